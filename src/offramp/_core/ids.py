"""Ids of examples: integers or text, as arrays and in messages.

Layer: _core.
"""

import numpy as np
from torch import Tensor

from offramp._core.arrays import array_of
from offramp._core.errors import InputError
from offramp._core.types import AnyArray, Ids

_LARGEST = np.iinfo(np.int64).max


def as_ids(values: AnyArray) -> Ids:
    """Ids as an array of int64 or text, with the values that were given.

    Whether they are unique is left to the caller.

    Args:
        values: `(n,)`, integers or text; objects other than numbers, such as paths, become text.

    Raises:
        InputError: If one is neither a whole number nor text (a float would be cut), or a number
            is beyond int64; it is named. Text holds any number.

    >>> import numpy as np
    >>> as_ids(np.array([3, 5], dtype=np.uint64)).dtype
    dtype('int64')
    """
    if type(values) is np.ndarray and values.dtype.kind == "U":
        return values
    array = array_of("ids", values)
    if array.dtype.kind == "O":
        odd = [i for i in array.flat if i is None or isinstance(i, int | float | bytes)]
        if odd:
            raise InputError(
                f"ids must be integers of 64 bits or text, got an array of objects, such as "
                f"{shown_id(odd[0])}."
            )
        return array.astype(str)
    if array.dtype.kind == "u" and array.size and int(array.max()) > _LARGEST:
        raise InputError(
            f"ids must be at most {_LARGEST} (int64), got {int(array.max())}. Give them as text: "
            "ids.astype(str)."
        )
    if array.dtype.kind not in "iuU" and array.size:
        raise InputError(
            f"ids must be integers or text, got an array of {array.dtype}; ids.astype(str) makes "
            "text of them."
        )
    return array if array.dtype.kind == "U" else array.astype(np.int64, copy=False)


def shown_id(value: object) -> str:
    """An id as a message shows it: plain, without the type that numpy gave it.

    >>> import numpy as np
    >>> shown_id(np.str_("cat/1.png")), shown_id(np.int64(7))
    ("'cat/1.png'", '7')
    """
    return repr(value.item() if isinstance(value, np.generic | Tensor) else value)
