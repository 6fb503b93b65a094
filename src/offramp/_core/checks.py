"""Checks of arguments. Each message names the argument, its domain, the value and the repair.

torch is not loaded for checks that need none: the parent of a server's workers holds none of it.

Layer: _core.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from offramp._core.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def check_number(name: str, value: object, domain: str) -> float:
    """Return a number as a float; texts, None and truth values are none.

    Args:
        name: Of the argument.
        value: Any.
        domain: What is allowed, for the message: "in (0, 1)".

    Raises:
        InputError: If it is no number.

    >>> check_number("max_drop", np.float32(0.5), "in [0, 1)")
    0.5
    """
    if not isinstance(value, bool | np.bool_ | str | bytes):
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass
    hint = " Write 1 % as 0.01." if isinstance(value, str) else ""
    raise InputError(f"{name} must be a number {domain}, got {value!r}.{hint}")


def check_probability(name: str, value: object) -> float:
    """Return `value` if it lies in the open interval (0, 1).

    Raises:
        InputError: Otherwise; percentages are explained.

    >>> check_probability("delta", 0.05)
    0.05
    """
    number = check_number(name, value, "in (0, 1)")
    if not 0.0 < number < 1.0:
        raise InputError(f"{name} must be in (0, 1), got {value!r}.{_percentage(number)}")
    return number


def check_fraction(name: str, value: object) -> float:
    """Return `value` if it lies in the closed interval [0, 1]; else raise `InputError`."""
    number = check_number(name, value, "in [0, 1]")
    if not 0.0 <= number <= 1.0:
        raise InputError(f"{name} must be in [0, 1], got {value!r}.{_percentage(number)}")
    return number


def check_positive_int(name: str, value: object) -> int:
    """Return `value` if it is an integer of at least 1; else raise `InputError`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} must be an integer of at least 1, got {value!r}.")
    return int(value)


def check_seed(value: object, name: str = "seed") -> int:
    """Return a seed, a whole number in [0, 2**63); else raise `InputError`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**63:
        raise InputError(f"{name} must be a whole number in [0, 2**63), got {value!r}.")
    return int(value)


def check_class_count(name: str, value: object) -> int | None:
    """Return a number of classes, at least 2, or None where it is not known; else `InputError`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 2:
        raise InputError(f"{name} must be an integer of at least 2, got {value!r}.")
    return int(value)


def check_not_negative(name: str, value: object) -> float:
    """Return `value` if it is finite and at least 0; else raise `InputError`."""
    number = check_number(name, value, "that is finite and at least 0")
    if not (np.isfinite(number) and number >= 0):
        raise InputError(f"{name} must be finite and at least 0, got {value!r}.")
    return number


def check_positive(name: str, value: object) -> float:
    """Return `value` if it is finite and greater than 0; else raise `InputError`."""
    number = check_number(name, value, "greater than 0")
    if not (np.isfinite(number) and number > 0):
        raise InputError(f"{name} must be finite and greater than 0, got {value!r}.")
    return number


def check_text(name: str, value: object) -> str:
    """Return `value` if it is a text that is not empty; else raise `InputError`."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{name} must be a text that is not empty, got {value!r}.")
    return value


def check_path(name: str, value: object) -> Path:
    """Return a text or a path as a path; else raise `InputError`."""
    if not isinstance(value, str | PathLike):
        raise InputError(f"{name} must be a path, got {type(value).__name__}.")
    return Path(value)


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


def check_labels(
    labels: object,
    classes: int | None = None,
    *,
    class_names: Iterable[str] = (),
    name: str = "labels",
) -> "torch.Tensor":
    """True labels as int64: one whole number, or one name of a class, for each example.

    Every door that takes labels takes them through here.

    Args:
        labels: `(n,)`, in [0, c); whole numbers held as floats are taken, names by `class_names`.
        classes: Number of classes `c`, or None where it is not known yet, nor checked.
        class_names: Names of the classes, for labels that are text.
        name: Of the argument, for messages.

    Returns:
        `(n,)`, int64; shares memory where it can.

    Raises:
        InputError: If there is another number of axes, as a column `(n, 1)` or one-hot labels
            have; or a label is no whole number, outside the classes, or no name of one.

    >>> check_labels(["dog", "cat"], class_names=["cat", "dog"]).tolist()
    [1, 0]
    """
    from offramp._core.arrays import array_of, tensor_of

    array = array_of(name, labels)
    if array.ndim != 1:
        raise InputError(
            f"{name} must be one integer for each example, got shape {array.shape}; "
            f"{_to_one(array)}"
        )
    if is_text(array):
        array = _classes_of(array, class_names, name)
    found = tensor_of(name, _whole(array, name))
    if classes is None:
        return found
    outside = (found < 0) | (found >= classes)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise InputError(
            f"{name} must be in [0, {classes}), got {int(found[row])} for example {row}. Classes "
            "are counted from 0."
        )
    return found


def is_text(array: NDArray[Any]) -> bool:
    """True for an array of text, also one of objects that begins with a text."""
    if array.dtype.kind == "O":
        return isinstance(next(iter(array.flat), None), str)
    return array.dtype.kind == "U"


def names_to_classes(class_names: Iterable[str], name: str) -> dict[str, int]:
    """The index of each class by its name, for labels that are text.

    Raises:
        InputError: If there are no names, or one stands twice.
    """
    known = [str(one) for one in class_names]
    table = {one: k for k, one in enumerate(known)}
    if not table:
        raise InputError(
            f"{name} are text, so class_names must name the classes in the order of the scores, "
            "got none."
        )
    if len(table) != len(known):
        raise InputError(f"class_names must differ for {name} that are text, got {known}.")
    return table


def _classes_of(array: NDArray[Any], class_names: Iterable[str], name: str) -> NDArray[np.int64]:
    table = names_to_classes(class_names, name)
    unknown = [row for row, label in enumerate(array) if label not in table]
    if unknown:
        label = str(array[unknown[0]])
        hint = _hint(str(label), list(table))
        raise InputError(
            f"{name} must be names out of class_names, got {label!r} for example "
            f"{unknown[0]}.{hint}"
        )
    return np.array([table[label] for label in array], dtype=np.int64)


def _whole(array: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Whole numbers as int64, also where they are held as floats."""
    from offramp._core.ids import shown_id

    if array.dtype.kind == "b":
        raise InputError(
            f"{name} must be integers, got truth values; of two classes take {name}.astype(int)."
        )
    if array.dtype.kind not in "iuf":
        odd = next((v for v in array if not isinstance(v, int | np.integer)), None)
        raise InputError(
            f"{name} must be whole numbers, or text with class_names, got an array of "
            f"{array.dtype}, such as {shown_id(odd)}."
        )
    if array.dtype.kind == "f":
        fractional = array[~(np.isfinite(array) & (array == np.round(array)))]
        if len(fractional):
            raise InputError(f"{name} must be whole numbers, got {float(fractional[0])!r}.")
    return array.astype(np.int64, copy=False)


def _to_one(array: NDArray[Any]) -> str:
    if array.ndim == 2 and array.shape[1] == 1:
        return "of a column take labels[:, 0]."
    return "of one-hot labels take labels.argmax(1)."


def check_class_names(
    names: Iterable[Any], classes: int | None, *, name: str = "class_names"
) -> tuple[str, ...]:
    """Names of all classes, or none, as plain text; None where their number is not known yet.

    Raises:
        InputError: If their number is not that of the classes, or one is no text.

    >>> check_class_names(np.array(["cat", "dog"]), 2)
    ('cat', 'dog')
    """
    if isinstance(names, str):
        raise InputError(f"{name} must be a list of names, got the text {names!r}.")
    from offramp._core.ids import shown_id

    if not isinstance(names, Iterable):
        raise InputError(f"{name} must be a list of names, got {names!r}.")
    found = tuple(names)
    for known in found:
        if not isinstance(known, str):
            raise InputError(f"{name} must be text, got {shown_id(known)}; take str of each.")
    if found and classes is not None and len(found) != classes:
        raise InputError(f"{name} must have {classes} entries, got {len(found)}.")
    return tuple(str(known) for known in found)


def check_split(name: str, value: str) -> str:
    """Return `value` if it names one of the four splits; else raise `InputError`."""
    from offramp._core.types import SPLITS

    if value not in SPLITS:
        raise InputError(f"{name} must be one of {', '.join(SPLITS)}, got {value!r}.")
    return value


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; else raise `InputError` with the nearest."""
    known = list(choices)
    if value not in known:
        raise InputError(f"{name} must be one of {known}, got {value!r}.{_hint(value, known)}")
    return value


def check_record(name: str, value: object, kind: type[T]) -> T:
    """Return a frozen dataclass, which may be given as a mapping of its fields, as in TOML.

    Raises:
        InputError: If it is none, lacks a field that has no default, or has one that is unknown.
    """
    if isinstance(value, kind):
        return value
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(value, Mapping):
        raise InputError(f"{name} must be a mapping of fields among {list(known)}, got {value!r}.")
    needed = [one.name for one in known.values() if one.default is one.default_factory is MISSING]
    unknown = [field for field in value if field not in known]
    missing = [field for field in needed if field not in value]
    if unknown or missing:
        lacks = f"; {missing} must be among them" if missing else ""
        raise InputError(f"{name} must have fields among {list(known)}{lacks}, got {list(value)}.")
    return kind(**value)


def check_kind(name: str, value: object, kind: type, *, read: str = "") -> None:
    """Raise `InputError` unless something is of a kind.

    Args:
        name: Of the argument.
        value: Any.
        kind: What it must be.
        read: What makes one of a path, which is often given instead.
    """
    if not isinstance(value, kind):
        hint = f" Read it: {read}." if read and isinstance(value, str | PathLike) else ""
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise InputError(
            f"{name} must be {article} {kind.__name__}, got {type(value).__name__}.{hint}"
        )


def check_callable(name: str, value: object) -> None:
    """Raise `InputError` unless something can be called."""
    if not callable(value):
        raise InputError(f"{name} must be a function, got {type(value).__name__}.")


def check_known(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known; else raise `UnknownNameError` and suggest the nearest."""
    names = list(known)
    if name not in names:
        raise UnknownNameError(
            f"There is no {kind} {name!r}.{_hint(name, names)} Known: {', '.join(sorted(names))}."
        )
    return name


def _percentage(value: float) -> str:
    """That percentages are divided by 100, where the value may be one."""
    if not value >= 1:
        return ""
    example = f": {value:g} % is {value / 100:g}" if value <= 100 else ""
    return f" A percentage has to be divided by 100 first{example}."


def _hint(name: str, known: Sequence[str]) -> str:
    same = [one for one in known if one.casefold() == str(name).casefold()]
    near = same or get_close_matches(str(name), known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
