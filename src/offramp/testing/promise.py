"""How a check says what was promised and is not kept.

Layer: testing.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
from torch import Tensor

from offramp._core.registry import Registry

Member = TypeVar("Member")


def require(kept: object, promise: str, /, *, whose: str) -> None:
    """Raise `AssertionError` unless a promise is kept.

    Args:
        kept: Whether it is.
        promise: What every member promises, a sentence.
        whose: The member, for the message.
    """
    if not kept:
        raise AssertionError(f"{whose}: {promise}")


def member(registry: Registry[Member], given: Member | str) -> tuple[str, Member]:
    """A member and what to call it: by its name, or itself."""
    if isinstance(given, str):
        return repr(given), registry[given]
    return getattr(given, "__name__", type(given).__name__), given


def documented(found: Callable[..., object], whose: str) -> None:
    """Require a first sentence that says what it is."""
    text = inspect.getdoc(inspect.unwrap(getattr(found, "func", found))) or ""
    first = text.partition("\n")[0]
    require(first.endswith((".", ":")), "the docstring begins with a sentence", whose=whose)


def same(one: object, other: object) -> bool:
    """Whether two values, or tensors in mappings and tuples, are equal to the last bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.equal(other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, np.asarray(other)))
    return bool(one == other)
