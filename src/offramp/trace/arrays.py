"""Array files in the safetensors layout: written as a stream, read as a map of the file.

The package safetensors writes arrays that are in memory; here they may come in parts. Reading is
left to it: it checks the header and maps the file, so that nothing is copied before it is used.

Layer: trace.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from offramp._core.errors import FileFormatError, InputError

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int8": "I8",
    "uint8": "U8",
}
_ALIGNMENT = 8  # bytes
_PART_BYTES = 4 * 2**20


@final
@dataclass(frozen=True, kw_only=True)
class ArraySource:
    """One array to be written.

    Args:
        name: Its name in the file.
        dtype: "float64", "float32", "float16", "int64", "int8" or "uint8".
        shape: Its whole shape.
        parts: Its values in order, split along the first axis in any way.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: Iterable[NDArray[np.generic]]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return np.dtype(self.dtype).itemsize * prod(self.shape)


@final
@dataclass(frozen=True, kw_only=True)
class Written:
    """Size and checksum of a file just written."""

    nbytes: int
    sha256: str


def in_parts(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Cut values along the first axis into parts of a few MiB."""
    row = max(1, values.nbytes // max(1, len(values)))
    step = max(1, _PART_BYTES // row)
    return (values[start : start + step] for start in range(0, len(values), step))


def write_arrays(path: Path, arrays: Sequence[ArraySource]) -> Written:
    """Write arrays to a new file, holding one part at a time in memory.

    Raises:
        InputError: If the parts of an array do not add up to its shape.
        OSError: If the disk is full; what was written so far is left to the caller.
    """
    order = sorted(arrays, key=lambda a: -np.dtype(a.dtype).itemsize)  # keeps each one aligned
    digest = hashlib.sha256()
    header = _header(order)
    with path.open("wb") as file:
        for block in (len(header).to_bytes(8, "little"), header):
            file.write(block)
            digest.update(block)
        for array in order:
            count = 0
            for part in array.parts:
                little = np.dtype(array.dtype).newbyteorder("<")
                block = np.ascontiguousarray(part, dtype=little).tobytes()
                file.write(block)
                digest.update(block)
                count += len(block)
            if count != array.nbytes:
                raise InputError(
                    f"The parts of {array.name!r} must add up to {array.nbytes} bytes for shape "
                    f"{array.shape}, got {count}."
                )
        return Written(nbytes=file.tell(), sha256=digest.hexdigest())


def open_arrays(path: Path) -> dict[str, Tensor]:
    """Map the arrays of a file; their values are read from disk when they are used.

    Raises:
        FileFormatError: If the file is missing or damaged; it names the file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} is missing.") from error
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise FileFormatError(
            f"{path} is damaged or not a file of arrays: {error}. Make it again, or copy it again "
            "from where it is whole."
        ) from error


def _header(arrays: Sequence[ArraySource]) -> bytes:
    entries: dict[str, object] = {}
    start = 0
    for array in arrays:
        end = start + array.nbytes
        entries[array.name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)
