"""Ids of examples: integers or text, as arrays and in messages.

Layer: _core.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from offramp._core.errors import InputError
from offramp._core.types import Ids

_LARGEST = np.iinfo(np.int64).max


def as_ids(values: ArrayLike) -> Ids:
    """Ids as an array of int64 or text, with the values that were given.

    Raises:
        InputError: If they are neither whole numbers nor text, or a number is beyond int64; it is
            named. Text holds any number.

    >>> import numpy as np
    >>> as_ids(np.array([3, 5], dtype=np.uint64)).dtype
    dtype('int64')
    """
    array = np.asarray(values)
    if array.dtype.kind == "O" and all(isinstance(name, str) for name in array.flat):
        array = array.astype(str)
    if array.dtype.kind == "u" and array.size and int(array.max()) > _LARGEST:
        raise InputError(
            f"ids must be at most {_LARGEST} (int64), got {int(array.max())}. Give them as text: "
            "ids.astype(str)."
        )
    if array.dtype.kind in "iu":
        return array.astype(np.int64, copy=False)
    if array.dtype.kind != "U":
        raise InputError(f"ids must be integers or text, got an array of {array.dtype}.")
    return array


def shown_id(value: Any) -> str:  # noqa: ANN401  (a number or text, of numpy or not)
    """An id as a message shows it: plain, without the type that numpy gave it.

    >>> import numpy as np
    >>> shown_id(np.str_("cat/1.png")), shown_id(np.int64(7))
    ("'cat/1.png'", '7')
    """
    return repr(value.item() if isinstance(value, np.generic) else value)
