"""Numbers made small for a link: as they are, in half precision, or in eight bits with a scale.

Layer: _core.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Packing = Literal["float32", "float16", "int8"]
PACKINGS: tuple[Packing, ...] = ("float32", "float16", "int8")
LOSSLESS: Packing = "float32"
WIDTHS = {"float32": 4, "float16": 2, "int8": 1}  # bytes of a number
SCALE = ".scale"  # behind the name of the tensor whose scales these are
_LEVELS = 127.0


def packed(name: str, values: NDArray[Any], packing: Packing) -> dict[str, NDArray[Any]]:
    """A tensor as it is sent, by name; what is no float32 goes as it is.

    Args:
        name: Of it.
        values: `(m, ...)`.
        packing: "int8" sends for each example a scale, its largest absolute value / 127.

    >>> sent = packed("carry", np.array([[1.0, -4.0]], dtype=np.float32), "int8")
    >>> sent["carry"].tolist(), unpacked(sent, "carry").tolist()[0][1]
    ([[32, -127]], -4.0)
    """
    if packing == LOSSLESS or values.dtype != np.float32:
        return {name: values}
    if packing == "float16":
        with np.errstate(over="ignore"):  # infinite, which the next stage is seen to give
            return {name: values.astype(np.float16)}
    flat = values.reshape(len(values), -1)
    most = np.abs(flat).max(axis=1, initial=0.0)
    scale = np.where(most > 0, most / np.float32(_LEVELS), 1).astype(np.float32)
    scale[~np.isfinite(most)] = np.nan
    levels = np.rint(np.nan_to_num(flat / scale[:, None])).astype(np.int8)
    return {name: levels.reshape(values.shape), name + SCALE: scale}


def unpacked(sent: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """The tensor of this name, of what `packed` has given."""
    values = sent[name]
    if name + SCALE in sent:
        scale = sent[name + SCALE].reshape(-1, *(1,) * (values.ndim - 1))
        return np.asarray(values.astype(np.float32) * scale)
    return values.astype(np.float32) if values.dtype == np.float16 else values
