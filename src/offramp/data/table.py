"""Tables in files: columns of texts and of numbers, by name.

A .csv is read with the csv of Python, so that it needs no package; a .parquet with pyarrow, of the
extra "parquet".

Layer: data.
"""

import csv
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp._core.checks import check_known, check_path
from offramp._core.errors import FileFormatError, InputError
from offramp._core.optional import imported
from offramp.data.arrays import rows
from offramp.data.dataset import Dataset

TABLES = (".csv", ".tsv", ".parquet")
_SHOWN = 5  # names in a message
_GAPS = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})  # how files say that there is none
_WITHOUT = "name the columns to read without it: columns = [...]."
_YES_NO = {"false": 0.0, "true": 1.0}
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_MOST_OF_MANY = 0.5  # of the rows: so many different labels are numbers, not classes
_MANY = 50
_LARGEST = float(np.finfo(np.float32).max)
_LOST = 1e-3  # of a column's spread, by rounding to float32


def table(
    path: Path | str,
    *,
    label: str = "label",
    id: str | None = None,
    split: str | None = None,
    columns: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    r"""Read labeled rows of numbers from a table with a header: .csv, .tsv or .parquet.

    Fields of a .csv are separated by commas, or, where the header has none, by semicolons or tabs;
    those of a .tsv have no quotes. Columns are found by name, whatever their order.

    Nothing is made up: a gap (an empty field, NA, NaN, null, ?) and text are refused, with the
    column and the row. True and False count as 1 and 0.

    Args:
        path: The file, in UTF-8.
        label: Column of the labels: names, or numbers, which are names as well.
        id: Column of unique ids; by default rows are counted from 0.
        split: Column of the splits' names.
        columns: Those of the features, numbers; by default all others. Others in the file are not
            looked at.
        class_names: Names of the classes in their order; by default the labels that are there,
            sorted, numbers by their value.

    Returns:
        Examples whose inputs are a mapping of columns, float32 `(n,)` each, which the transform
        `Columns` puts side by side.

    Raises:
        FileFormatError: If the file cannot be read, is empty, names a column twice, or has a row
            with more or fewer fields than the header.
        UnknownNameError: If it has no such column; the nearest is suggested.
        InputError: If a feature is no finite number, a label is missing or no class, there is only
            one class, or the labels look like measurements.

    Warns:
        UserWarning: If a column loses digits that tell rows apart, as times in seconds do.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "flowers.csv"
    ...     _ = file.write_text("width,length,label\n1.5,2,rose\n0.5,3,daisy\n")
    ...     examples = table(file)
    >>> examples.class_names, examples.batch(0, 1).inputs
    (('daisy', 'rose'), {'width': tensor([1.5000]), 'length': tensor([2.])})
    """
    path = check_path("path", path)
    known = column_names(path)
    roles = [name for name in (label, id, split) if name is not None]
    for name in roles:
        check_known(f"column of {path}", name, known)
    features = [name for name in known if name not in roles] if columns is None else [*columns]
    _check_features(path, features, roles)
    found = read_table(path, [*roles, *features])
    labels = [str(value).strip() for value in found[label]]
    if not labels:
        raise FileFormatError(f"{path} has a header and no rows.")
    names = _class_names(path, label, labels) if class_names is None else list(class_names)
    _check_labels(path, label, labels, names)
    return rows(
        as_numbers(path, {name: found[name] for name in features}),
        labels,
        class_names=names,
        ids=None if id is None else [str(value) for value in found[id]],
        split=None if split is None else [str(value) for value in found[split]],  # type: ignore[misc]  # it is checked
        name=path.name,
    )


def column_names(path: Path) -> list[str]:
    """The names of a table's columns, in their order.

    Raises:
        FileFormatError: If the file cannot be read, is empty, or names a column twice.
    """
    names: list[str]
    if path.suffix.lower() == ".parquet":
        names = _of_parquet(path, None)
    else:
        _, names = next(_lines(path))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise FileFormatError(f"{path} names {_some(twice)} twice. Each column needs its own name.")
    return names


def read_table(path: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Some columns of a .csv, .tsv or .parquet: of the first two texts, as they stand there.

    Raises:
        FileFormatError: If the file cannot be read, is empty, or a row has more or fewer fields
            than the header.
        UnknownNameError: If there is no such column.
    """
    known = column_names(path)
    for name in columns:
        check_known(f"column of {path}", name, known)
    if path.suffix.lower() == ".parquet":
        return _of_parquet(path, list(columns))  # type: ignore[no-any-return]
    places = [known.index(name) for name in columns]
    held: list[list[str]] = [[] for _ in columns]
    lines = _lines(path)
    next(lines)  # the header
    for line, fields in lines:
        if len(fields) != len(known):
            raise FileFormatError(
                f"{path}, line {line}: the row has {len(fields)} fields, and the header "
                f"{len(known)}. A field with a separator or a line break in it needs quotes."
            )
        for values, place in zip(held, places, strict=True):
            values.append(fields[place])
    return dict(zip(columns, held, strict=True))


def as_numbers(path: Path, columns: Mapping[str, list[Any]]) -> dict[str, Tensor]:
    """Columns of a table as numbers, float32 `(n,)` each.

    Raises:
        InputError: If a field is text, a gap, or not finite; column and row are named.

    Warns:
        UserWarning: As `table`.
    """
    found = {name: _numbers(path, name, values) for name, values in columns.items()}
    coarse = [name for name, values in found.items() if _loses_digits(values)]
    if coarse:
        warnings.warn(
            f"{_some(coarse)} of {path} loses digits in float32, which networks read: what differs "
            "between rows is small beside the numbers. Take off what all have in common, such as "
            "the first date of times.",
            stacklevel=3,
        )
    return {name: torch.from_numpy(values.astype(np.float32)) for name, values in found.items()}


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields of a .csv or .tsv, the header first; blank lines are left out."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".tsv":
                table = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            else:
                header = file.readline()
                separator = next((one for one in ",;\t" if one in header), ",")
                file.seek(0)
                table = csv.reader(file, delimiter=separator, strict=True)
            empty = True
            for fields in table:
                if fields:
                    empty = False
                    yield table.line_num, fields
            if empty:
                raise FileFormatError(f"{path} is empty. Its first line must name the columns.")
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} is missing.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(f"{path} cannot be read as a table in UTF-8: {error}") from error


def _of_parquet(path: Path, columns: list[str] | None) -> Any:  # noqa: ANN401
    """Columns of a .parquet; their names where none are given."""
    parquet = imported("pyarrow.parquet", "parquet")
    if not path.exists():
        raise FileFormatError(f"{path} is missing.")
    try:
        if columns is None:
            return list(parquet.read_schema(path).names)
        held = parquet.read_table(path, columns=columns)
        return {name: ["" if v is None else v for v in held[name].to_pylist()] for name in columns}
    except (OSError, ValueError) as error:  # those of pyarrow are either
        raise FileFormatError(f"{path} cannot be read as parquet: {error}") from error


def _check_features(path: Path, features: list[str], roles: list[str]) -> None:
    both = [name for name in features if name in roles]
    if both:
        raise InputError(
            f"columns must not hold {_some(both)}, which is the label, id or split of {path}: "
            "what it says would be given away."
        )
    if not features or len(set(features)) < len(features):
        raise InputError(
            f"columns must name at least one column of {path}, each once, got {features}."
        )
    if not all(features):
        raise InputError(
            f"A column of {path} has no name; pandas writes its index so. Write the table with "
            "to_csv(index=False), name it as id, or say which to read: columns = [...]."
        )


def _class_names(path: Path, label: str, labels: list[str]) -> list[str]:
    """The labels that are there, sorted."""
    names = {name for name in labels if name and name.lower() not in _GAPS - {"none"}}
    if len(labels) >= _MANY and len(names) > _MOST_OF_MANY * len(labels):
        raise InputError(
            f"{label!r} of {path} has {len(names)} different labels in {len(labels)} rows, such as "
            f"{labels[0]!r}: these are no classes. Name the column of the labels with label."
        )
    try:
        return sorted(names, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(names)


def _check_labels(path: Path, label: str, labels: list[str], names: list[str]) -> None:
    known = set(names)
    for row, value in enumerate(labels):
        if not value or (value.lower() in _GAPS and value not in known):
            raise InputError(
                f"{path}, row {row + 1}: {label!r} is missing. Leave out rows without a label."
            )
        if value not in known:
            raise InputError(
                f"{path}, row {row + 1}: {label!r} must be one of the classes {_some(names)}, got "
                f"{value!r}."
            )
    if len(known) < 2:
        raise InputError(f"{label!r} of {path} must have at least two labels, got {_some(names)}.")


def _numbers(path: Path, name: str, values: list[Any]) -> NDArray[np.float64]:
    """A column as float64."""
    try:
        if any(isinstance(value, str) and "_" in value for value in values):
            raise ValueError("Python reads 1_000 as a number")
        found = np.array([float(value) for value in values])
    except (TypeError, ValueError):
        lower = [str(value).strip().lower() for value in values]
        if not all(value in _YES_NO for value in lower):
            raise _no_number(path, name, values) from None
        found = np.array([_YES_NO[value] for value in lower])
    if not (np.abs(found) <= _LARGEST).all():  # false of NaN as well
        raise _no_number(path, name, values)
    return found


def _no_number(path: Path, name: str, values: list[Any]) -> InputError:
    """What is wrong with a column that holds something else than finite numbers."""
    texts = ["" if value is None else str(value).strip() for value in values]
    gaps = [row for row, text in enumerate(texts) if text.lower() in _GAPS]
    others = [row for row, text in enumerate(texts) if text.lower() not in _GAPS and _is_text(text)]
    if not others:
        share = f"{len(gaps)} gaps in {len(texts)} rows"
        return InputError(
            f"{path}, row {gaps[0] + 1}: {name!r} is missing; it has {share}. Nothing is made up: "
            f"fill them (pandas: table.fillna(...)), leave out these rows, or {_WITHOUT}"
        )
    said = texts[others[0]]
    repair = f"Make numbers of it (pandas: get_dummies(table, columns=[{name!r}])), or {_WITHOUT}"
    if _DECIMAL_COMMA.fullmatch(said):
        repair = "Numbers are written with a point: 1.5, not 1,5."
    elif len(others) == len(set(texts)) > 1:
        repair = f"If it names the rows, say so: id = {name!r}. Else {_WITHOUT}"
    return InputError(
        f"{path}, row {others[0] + 1}: {name!r} must be a finite number, got {said!r}. {repair}"
    )


def _is_text(value: str) -> bool:
    try:
        return "_" in value or not abs(float(value)) <= _LARGEST
    except ValueError:
        return True


def _loses_digits(values: NDArray[np.float64]) -> bool:
    rounded = values.astype(np.float32).astype(np.float64)
    spread = float(values.std()) if len(values) > 1 else 0.0
    return spread > 0 and float(np.abs(rounded - values).max()) > _LOST * spread


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
