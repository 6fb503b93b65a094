"""Checks of arguments. Each message names the argument, its domain, the value and the repair.

Layer: _core.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import numpy as np
from torch import Tensor

from offramp._core.errors import InputError, UnknownNameError
from offramp._core.types import SPLITS


def check_probability(name: str, value: float) -> float:
    """Return `value` if it lies in the open interval (0, 1).

    Raises:
        InputError: Otherwise; percentages are explained.

    >>> check_probability("delta", 0.05)
    0.05
    """
    if not 0.0 < value < 1.0:
        raise InputError(f"{name} must be in (0, 1), got {value!r}.{_percentage(value)}")
    return float(value)


def check_fraction(name: str, value: float) -> float:
    """Return `value` if it lies in the closed interval [0, 1]; else raise `InputError`."""
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{name} must be in [0, 1], got {value!r}.{_percentage(value)}")
    return float(value)


def check_positive_int(name: str, value: int) -> int:
    """Return `value` if it is an integer of at least 1; else raise `InputError`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} must be an integer of at least 1, got {value!r}.")
    return int(value)


def check_not_negative(name: str, value: float) -> float:
    """Return `value` if it is finite and at least 0; else raise `InputError`."""
    if not (np.isfinite(value) and value >= 0):
        raise InputError(f"{name} must be finite and at least 0, got {value!r}.")
    return float(value)


def check_shape(name: str, shape: Sequence[int], expected: Sequence[int | None]) -> None:
    """Compare a shape with what is expected; None stands for any size.

    Raises:
        InputError: If they differ.
    """
    fits = len(shape) == len(expected) and all(
        want is None or have == want for have, want in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise InputError(f"{name} must have shape ({wanted}), got {tuple(shape)}.")


def check_split(name: str, value: str) -> str:
    """Return `value` if it names one of the four splits; else raise `InputError`."""
    if value not in SPLITS:
        raise InputError(f"{name} must be one of {', '.join(SPLITS)}, got {value!r}.")
    return value


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; else raise `InputError` with the nearest."""
    known = list(choices)
    if value not in known:
        raise InputError(f"{name} must be one of {known}, got {value!r}.{_hint(value, known)}")
    return value


def check_known(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known; else raise `UnknownNameError` and suggest the nearest."""
    names = list(known)
    if name not in names:
        raise UnknownNameError(
            f"There is no {kind} {name!r}.{_hint(name, names)} Known: {', '.join(sorted(names))}."
        )
    return name


def plain(id: object) -> object:
    """An id of a numpy array or a tensor as the Python value to show in a message.

    >>> f"{plain(np.str_('cat/1.png'))!r} and {plain(np.int64(7))!r}"
    "'cat/1.png' and 7"
    """
    return id.item() if isinstance(id, np.generic | Tensor) else id


def _percentage(value: float) -> str:
    """That percentages are divided by 100, where the value may be one."""
    if not value >= 1:
        return ""
    example = f": {value:g} % is {value / 100:g}" if value <= 100 else ""
    return f" A percentage has to be divided by 100 first{example}."


def _hint(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(str(name), known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
