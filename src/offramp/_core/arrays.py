"""Arrays of any origin: tensors, numpy, pandas and whatever else numpy reads, lists of numbers.

They are taken by position: the index of a pandas column is not looked at.

Layer: _core.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp._core.errors import InputError

_NUMBERS = "biuf"
_LONGEST = 8  # bytes of a float that torch knows


def array_of(name: str, values: object, *, gaps: bool = False) -> NDArray[Any]:
    """Values as a numpy array of any type, also text; shares memory where it can.

    Args:
        name: Of the argument, for messages.
        values: Array, tensor, pandas or polars column or table, or nested lists.
        gaps: Whether None may stand for a missing entry; lists then become arrays of objects.

    Raises:
        InputError: If they are nothing of this kind (None, pictures), rows differ in length, or
            entries are masked out.

    >>> array_of("labels", ["cat", "dog"]).dtype.kind
    'U'
    """
    if isinstance(values, Tensor):
        held = values.detach().cpu()
        return (held.float() if held.dtype == torch.bfloat16 else held).numpy()
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise InputError(f"{name} must be whole, got an array with masked entries; fill them.")
    leaf = _first_leaf(values)
    if type(leaf).__module__.startswith("PIL."):
        raise InputError(
            f"{name} must be numbers, got {kind_of(values)}: pictures. Turn each into a tensor of "
            "one size as its network takes it, (channels, height, width), and stack them; or have "
            "the stages do it: transform=[Decode(), Resize(...), Normalize(...)]."
        )
    known = isinstance(leaf, int | float | np.generic | str) or hasattr(leaf, "__array__")
    if not known and not (gaps and leaf is None and values is not None):
        raise InputError(
            f"{name} must be an array, a tensor or nested lists, got {kind_of(values)}."
        )
    try:
        plain = values.to_numpy() if hasattr(values, "to_numpy") else values
        return np.asarray(plain, dtype=object if gaps and isinstance(values, list) else None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be one array, got {kind_of(values)}: {error}") from error


def tensor_of(name: str, values: object) -> Tensor:
    """Values as a tensor; tensors as they are, arrays without a copy where torch can share them.

    Reversed arrays and those of another byte order or read-only are copied.

    Args:
        name: Of the argument, for messages.
        values: As for `array_of`; numbers.

    Raises:
        InputError: If they are no numbers, or as `array_of`.

    >>> tensor_of("inputs", np.arange(3, dtype=">i2")[::-1]).tolist()
    [2, 1, 0]
    """
    if isinstance(values, Tensor):
        return values
    array = array_of(name, values)
    if array.dtype.kind not in _NUMBERS:
        raise InputError(f"{name} must be numbers, got {_content(array)}.")
    if array.dtype.kind == "f" and array.dtype.itemsize > _LONGEST:
        array = array.astype(np.float64)
    if array.flags.writeable or isinstance(values, np.memmap):  # a file may not fit into memory
        try:
            return torch.from_numpy(array)
        except (TypeError, ValueError):  # strides and byte orders that torch does not know
            pass
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _first_leaf(values: object) -> object:
    while isinstance(values, list | tuple) and values:
        values = values[0]
    return 0 if isinstance(values, list | tuple) else values  # of an empty list: no matter


def kind_of(values: object) -> str:
    """What somebody gave, by the names of its types, for messages."""
    leaf = _first_leaf(values)
    inner = "" if leaf is values else f" of {type(leaf).__name__}"
    return f"{'None' if values is None else type(values).__name__}{inner}"


def _content(array: NDArray[Any]) -> str:
    """What an array holds that is no number, with its first entry of another kind."""
    if array.dtype.kind != "O":
        return f"an array of {array.dtype}"
    flat = list(array.flat)
    odd = next((v for v in flat if not isinstance(v, int | float | np.number)), flat[0])
    return (
        f"an array of objects, such as {odd!r}; give it one type, for example "
        "values.astype('float32')"
    )
