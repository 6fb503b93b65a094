"""Examples from arrays in memory and from npz files.

Layer: data.
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp._core.arrays import tensor_of
from offramp._core.batch import as_rows
from offramp._core.checks import check_choice, check_labels, check_path
from offramp._core.errors import FileFormatError, InputError, why_unreadable
from offramp._core.ids import as_ids
from offramp._core.types import SPLITS, AnyArray, Raw, Split
from offramp.data.dataset import Dataset

# Arrays up to 1 GiB are read however small their file; larger ones may shrink to a hundredth.
_ALWAYS_READ, _MOST_COMPRESSED = 2**30, 100
_ENCRYPTED = 0x1  # bit of a zip entry
_LOCAL = 26  # bytes before the two lengths in the header that stands before an entry
_UNREADABLE = (
    *(OSError, EOFError, ValueError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, KeyError, TypeError),
)
LAYOUTS = ("auto", "as_is", "nchw", "nhwc", "nhw")
_COLOURS = (1, 3)


def arrays(
    inputs: AnyArray | Mapping[str, AnyArray],
    labels: AnyArray,
    *,
    class_names: Sequence[str] | None = None,
    ids: AnyArray | None = None,
    split: Sequence[Split] | None = None,
    layout: str = "auto",
    name: str = "arrays",
) -> Dataset:
    """Take examples from arrays.

    Args:
        inputs: `(n, ...)`, batch first: tensor, numpy array, pandas table or nested lists, by
            position; float64 becomes float32. Or a mapping of such arrays, as text models take
            them: `{"input_ids": (n, t), "attention_mask": (n, t)}`.
        labels: `(n,)`, integers in [0, c), or names out of `class_names`.
        class_names: Names of the classes; by default "0", "1", ... up to the largest label.
        ids: Unique names, `(n,)`, integers or strings; by default 0..n-1.
        split: Name of each example's split, `(n,)`.
        layout: "nhwc" moves the channels of images to the second place, "nhw" adds a channel,
            "nchw" and "as_is" change nothing. "auto" is "nhwc" for uint8 of four axes whose
            last has 1 or 3 entries and whose second has not, and "as_is" otherwise.
        name: For people.

    Raises:
        InputError: If the arrays do not fit together (see `Dataset`), or the layout needs
            another number of axes.

    >>> import numpy as np
    >>> arrays(np.zeros((2, 8, 8, 3), dtype=np.uint8), [0, 1]).inputs.shape
    torch.Size([2, 3, 8, 8])
    """
    check_labels(labels, class_names=() if class_names is None else class_names)
    return _dataset(_taken(inputs, layout), labels, class_names, ids, split, name)


def _dataset(
    inputs: Raw,
    labels: AnyArray,
    class_names: Sequence[str] | None,
    ids: AnyArray | None,
    split: Sequence[Split] | None,
    name: str,
) -> Dataset:
    values = check_labels(labels, class_names=() if class_names is None else class_names)
    if class_names is None:
        class_names = [str(k) for k in range(int(values.max()) + 1 if len(values) else 0)]
    examples = Dataset(
        inputs=inputs,
        labels=values,
        class_names=tuple(class_names),
        ids=np.arange(len(values)) if ids is None else as_ids(ids),
        split=None if split is None else _split_indices(split),
        name=name,
    )
    examples.warn_if_class_missing()
    return examples


def rows(
    inputs: object,
    labels: AnyArray,
    *,
    class_names: Sequence[str] | None = None,
    ids: AnyArray | None = None,
    split: Sequence[Split] | None = None,
    name: str = "rows",
) -> Dataset:
    """Take examples whose inputs are rows of any type, for stages with transforms that read them.

    Args:
        inputs: A list of texts, bytes, images, dicts or lists of token ids; a pandas table; or a
            mapping of such columns.
        labels: As in `arrays`.
        class_names: As in `arrays`.
        ids: As in `arrays`.
        split: As in `arrays`.
        name: For people.

    Raises:
        InputError: If rows cannot be had of `inputs`, or as `arrays`.

    >>> examples = rows(["good", "bad"], [1, 0], class_names=["no", "yes"])
    >>> examples.batch(0, 1).inputs
    ['good']
    """
    return _dataset(as_rows(inputs), labels, class_names, ids, split, name)


_NAMED = (
    ' Say which is which: inputs="...", labels="..."; in a configuration '
    'options = { inputs = "...", labels = "..." }.'
)


def npz(
    path: Path | str,
    *,
    inputs: str | Sequence[str] = "images",
    labels: str = "labels",
    ids: str | None = None,
    class_names: Sequence[str] | None = None,
    layout: str = "auto",
) -> Dataset:
    """Read examples from an npz file of plain arrays.

    Args:
        path: The file.
        inputs: Name of the array of inputs, `(n, ...)`; or names of several, which become a
            mapping.
        labels: Name of the array of labels, `(n,)`.
        ids: Name of the array of ids, or None to count from 0.
        class_names: As in `arrays`.
        layout: As in `arrays`.

    Raises:
        FileFormatError: If the file is missing, truncated, holds pickled objects or lacks an
            array; it names the arrays there are.
        InputError: If the arrays do not fit together.
    """
    path = check_path("path", path)
    several = [] if isinstance(inputs, str) else list(inputs)
    wanted = [*(several or [str(inputs)]), labels, *([] if ids is None else [ids])]
    found = read_arrays(path, wanted, hint=_NAMED)
    return arrays(
        {key: found[key] for key in several} if several else found[str(inputs)],
        found[labels],
        class_names=class_names,
        ids=None if ids is None else found[ids],
        layout=layout,
        name=path.name,
    )


def read_arrays(
    path: Path,
    names: Sequence[str] | None = None,
    *,
    mapped: bool = False,
    hint: str = "",
) -> dict[str, NDArray[Any]]:
    """Read some arrays of an npz file, or all.

    Args:
        path: The file.
        names: Of the arrays; None for all.
        mapped: Arrays that are not compressed are mapped, read-only: what nobody looks at is not
            read. Nor is the checksum of the file compared.
        hint: What to say where one of the names is not there.

    Raises:
        FileFormatError: If one cannot be had.
    """
    try:
        # opened here: numpy leaves a damaged file open
        with path.open("rb") as raw:
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise FileFormatError(f"{path} holds one array; an npz file is needed.")
            names = file.files if names is None else names
            _check_told_apart(file.files, names)
            found = dict[str, NDArray[Any]]()
            for name in names:
                if name not in file.files:
                    raise FileFormatError(
                        f"{path} has no array {name!r}; it holds {sorted(file.files)}.{hint}"
                    )
                if file.zip is not None:
                    held = _checked_member(file.zip, name)
                    if mapped and held.start is not None:
                        found[name] = _mapped(path, held)
                        continue
                found[name] = file[name]
            return found
    except FileFormatError:
        raise
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} is missing.") from error
    except _UNREADABLE as error:
        said = why_unreadable(error)
        raise FileFormatError(f"{path} cannot be read as npz: {said}") from error


def _check_told_apart(files: Sequence[str], names: Iterable[str]) -> None:
    """Raise `ValueError` where a name means two arrays, "x.npy" and "x" or "x.npy" twice."""
    for name in names:
        same = [file for file in files if file in (name, f"{name}.npy", name.removesuffix(".npy"))]
        if len(same) > 1:
            raise ValueError(f"the array {name!r} is there twice. Save each once")


class _Member(NamedTuple):
    """An array within an npz file.

    Args:
        shape: Of it.
        fortran: Whether the first axis runs fastest.
        dtype: Of it.
        start: Where its numbers begin in the file; None where they do not stand there as they are.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int | None


def _mapped(path: Path, held: _Member) -> NDArray[Any]:
    order: Literal["C", "F"] = "F" if held.fortran else "C"
    return np.memmap(path, held.dtype, "r", held.start or 0, held.shape, order)


def _checked_member(archive: zipfile.ZipFile, name: str) -> _Member:
    """Raise `ValueError` for what is not worth its memory, before any is taken.

    Numpy believes the header of an array, and a compressed file may hold a thousand times its size.
    """
    within = archive.namelist()
    entry = archive.getinfo(f"{name}.npy" if f"{name}.npy" in within else name)
    if entry.flag_bits & _ENCRYPTED:
        raise ValueError(f"the array {name!r} is encrypted. Save it without a password")
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
        start = member.tell()
    held = _Member(shape, fortran, dtype, None)
    if dtype.hasobject:
        return held  # numpy refuses it, and says why
    wanted = math.prod(shape) * dtype.itemsize
    if start + wanted != entry.file_size:
        raise ValueError(
            f"the array {name!r} should have {wanted} bytes, for {dtype} {shape}, and has "
            f"{entry.file_size - start}"
        )
    if wanted > _ALWAYS_READ and wanted > _MOST_COMPRESSED * entry.compress_size:
        raise ValueError(
            f"the array {name!r} grows from {entry.compress_size} to {wanted} bytes. If that is "
            f"meant, save it with numpy.savez, not compressed"
        )
    if entry.compress_type != zipfile.ZIP_STORED or not wanted or archive.fp is None:
        return held
    archive.fp.seek(entry.header_offset + _LOCAL)
    name_size, more_size = struct.unpack("<HH", archive.fp.read(4))
    return held._replace(start=entry.header_offset + _LOCAL + 4 + name_size + more_size + start)


def _taken(inputs: AnyArray, layout: str) -> Tensor | dict[str, Tensor]:
    if not isinstance(inputs, Mapping):
        return _arranged(tensor_of("inputs", inputs), layout)
    if layout not in ("auto", "as_is"):
        raise InputError(f"layout must be 'as_is' for a mapping of inputs, got {layout!r}.")
    return {
        name: _arranged(tensor_of(f"inputs[{name!r}]", each), "as_is")
        for name, each in inputs.items()
    }


def _arranged(inputs: Tensor, layout: str) -> Tensor:
    check_choice("layout", layout, LAYOUTS)
    if inputs.ndim == 0:
        raise InputError("inputs must have the examples along the first axis, got one number.")
    if inputs.dtype == torch.float64:
        inputs = inputs.to(torch.float32)
    if layout == "auto":
        colored = inputs.ndim == 4 and inputs.dtype == torch.uint8
        last = colored and inputs.shape[3] in _COLOURS and inputs.shape[1] not in _COLOURS
        layout = "nhwc" if last else "as_is"
    axes = {"as_is": inputs.ndim, "nhw": 3}.get(layout, 4)
    if inputs.ndim != axes:
        raise InputError(f"layout {layout!r} needs {axes} axes, got {tuple(inputs.shape)}.")
    if layout == "nhwc":
        return inputs.permute(0, 3, 1, 2).contiguous()
    return inputs[:, None] if layout == "nhw" else inputs


def _split_indices(split: Sequence[Split]) -> Tensor:
    unknown = [name for name in split if name not in SPLITS]
    if unknown:
        raise InputError(f"split must hold names out of {SPLITS}, got {unknown[0]!r}.")
    return torch.tensor([SPLITS.index(name) for name in split], dtype=torch.int8)
