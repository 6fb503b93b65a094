"""Weights from and to files: safetensors, npz, or a torch file; never a pickled object.

Layer: models.
"""

import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from offramp._core.checks import check_path
from offramp._core.errors import FileFormatError, InputError, why_unreadable
from offramp._core.files import new_file

_SHOWN = 3  # names listed in a message
_NESTED = ("state_dict", "model")
_PARALLEL_PREFIX = "module."  # put there by DataParallel
# What numpy, safetensors and torch raise on damaged or foreign files, found by damaging some.
_DAMAGED = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, AssertionError),
    *(SafetensorError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error),
)
_KINDS = (
    {torch.float16, torch.bfloat16, torch.float32, torch.float64},
    {torch.int16, torch.int32, torch.int64},
)
_COUNTER = "num_batches_tracked"  # of batch normalization: it does not change any output


@runtime_checkable
class TranslatesNames(Protocol):
    """A network for which files are published that name a weight otherwise, or hold more."""

    def own_name(self, published: str) -> str | None:
        """Name of a weight in the network, from its name in a file; None to leave it out."""
        ...


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Load weights into `module`, all of them or none.

    Args:
        module: The network; its names must be those of the file. A prefix "module." that all
            names of the file share is dropped; counters of batches may be missing. A network
            with `own_name` says what its published files name otherwise, and what in them it has
            no use for: the auxiliary classifiers of GoogLeNet and Inception-v3.
        path: `.safetensors`; `.npz` of plain arrays; or `.pt`, `.pth`, `.bin`, `.ckpt`, read by
            torch with `weights_only=True`: a state dict, or one under "state_dict" or "model".

    Raises:
        InputError: If the ending is another one.
        FileFormatError: If the file is missing or cannot be read, or if names, shapes or kinds of
            numbers differ (float16 is taken for float32, int8 is not); the first few are named
            and `module` stays as it was.

    >>> import tempfile
    >>> from offramp.models import small_cnn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights(small_cnn(width=2, depth=2, seed=1), Path(folder) / "w.safetensors")
    ...     load_weights(small_cnn(width=2, depth=2), Path(folder) / "w.safetensors")
    """
    if not isinstance(path, str | Path):
        raise InputError(f"path must be that of a file of weights, got {path!r}.")
    path = check_path("path", path)
    fill(module, _read(path), path)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Give a module the tensors of a file, all of them or none, as `load_weights` says.

    Raises:
        FileFormatError: If names, shapes or kinds of numbers differ.
    """
    found = check_fit(module, tensors, path)
    module.load_state_dict({**module.state_dict(), **found})


def check_fit(
    module: nn.Module, tensors: Mapping[str, Tensor], path: Path | str
) -> dict[str, Tensor]:
    """The tensors of a file under the module's own names; nothing is loaded.

    Args:
        module: The network; like the tensors it may be on the "meta" device.
        tensors: What the file holds.
        path: The file, for messages.

    Raises:
        FileFormatError: If names, shapes or kinds of numbers differ; the first few are named.
    """
    found = _own_names(module, _without_prefix(tensors))
    wanted = module.state_dict()
    missing = [k for k in wanted if k not in found and not k.endswith(_COUNTER)]
    unexpected = [k for k in found if k not in wanted]
    both = [k for k in wanted if k in found]
    different = [
        f"{k} {tuple(found[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in both
        if found[k].shape != wanted[k].shape
    ]
    strange = [
        f"{k} {found[k].dtype} instead of {wanted[k].dtype}"
        for k in both
        if _kind(found[k]) != _kind(wanted[k])
    ]
    problems = [
        _listed(names, what)
        for names, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (different, "of another shape"),
            (strange, "of another kind of number"),
        )
        if names
    ]
    if problems:
        raise FileFormatError(
            f"The weights in {path} do not fit {type(module).__name__}: {'; '.join(problems)}."
        )
    return found


def save_weights(module: nn.Module, path: Path | str, *, overwrite: bool = False) -> None:
    """Write the weights of `module` to a safetensors file, whole or not at all.

    Weights that two layers share are written twice, so the file loads without knowing of it.

    Args:
        module: Whose weights.
        path: Where to; it ends with ".safetensors".
        overwrite: Whether a file that is there already may be replaced.

    Raises:
        InputError: If `path` does not end with ".safetensors", or exists and may not be replaced.
        StorageError: If the disk is full.
    """
    path = check_path("path", path)
    if path.suffix != ".safetensors":
        raise InputError(f"path must end with .safetensors, got {path.name!r}.")
    # clone: safetensors refuses tensors that share memory
    state = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
    with new_file(path, overwrite=overwrite) as temporary:
        save_file(state, temporary)


def _read(path: Path) -> dict[str, Tensor]:
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise InputError(f"path must end with one of {', '.join(_READERS)}, got {path.name!r}.")
    try:
        return reader(path)
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} is missing.") from error
    except _DAMAGED as error:
        raise FileFormatError(
            f"{path} cannot be read as weights: {why_unreadable(error)}. Only plain tensors are "
            "read, never pickled objects."
        ) from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    # opened here: numpy leaves a damaged file open
    with path.open("rb") as raw:
        arrays = np.load(raw, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array without a name")
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _read_torch(path: Path) -> dict[str, Tensor]:
    value = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(value, Mapping):
        value = next((value[k] for k in _NESTED if isinstance(value.get(k), Mapping)), value)
    if not isinstance(value, Mapping):
        raise ValueError(f"it holds a {type(value).__name__} instead of named tensors")
    foreign = [str(k) for k, v in value.items() if not isinstance(v, Tensor)]
    if foreign:
        raise ValueError(_listed(foreign, "not tensors"))
    return {str(k): v for k, v in value.items()}


_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".safetensors": load_file,
    ".npz": _read_npz,
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _read_torch),
}


def _kind(tensor: Tensor) -> object:
    """What may be turned into each other: usual floating-point types, and whole numbers.

    Eight-bit floats and integers mean nothing without a scale; they are taken for no others.
    """
    return next((k for k, kind in enumerate(_KINDS) if tensor.dtype in kind), tensor.dtype)


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if state and all(k.startswith(_PARALLEL_PREFIX) for k in state):
        return {k.removeprefix(_PARALLEL_PREFIX): v for k, v in state.items()}
    return dict(state)


def _own_names(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(module, TranslatesNames):
        return state
    named = ((module.own_name(k), v) for k, v in state.items())
    return {k: v for k, v in named if k is not None}


def _listed(names: list[str], what: str) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"
