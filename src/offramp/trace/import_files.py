"""Traces of what was recorded elsewhere, read from npz and parquet files.

Layer: trace.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp._core.checks import check_known
from offramp._core.errors import FileFormatError, InputError, MissingExtraError
from offramp._core.files import open_npz
from offramp.trace.imports import from_logits, from_predictions, from_probabilities
from offramp.trace.losses import from_losses
from offramp.trace.trace import Trace

_KINDS: dict[str, Callable[..., Trace]] = {
    "logits": from_logits,
    "probabilities": from_probabilities,
    "predictions": from_predictions,
    "losses": from_losses,
}


def from_npz(
    path: Path | str,
    *,
    logits: Mapping[str, str] | None = None,
    probabilities: Mapping[str, str] | None = None,
    predictions: Mapping[str, str] | None = None,
    losses: Mapping[str, str | None] | None = None,
    confidences: Mapping[str, str] | None = None,
    features: Mapping[str, str] | None = None,
    labels: str = "labels",
    ids: str | None = None,
    split: str | None = None,
    **others: object,
) -> Trace:
    """A trace of the arrays in an npz file.

    Args:
        path: The file; pickled arrays in it are refused.
        logits: For each stage the name of its array of scores `(n, c)`. Either this, or
        probabilities: for each stage that of its probabilities `(n, c)`, or
        predictions: for each stage the name of its array of labels `(n,)` or `(n, r)`, or
        losses: for each stage that of what its answers lost `(n,)`, None if it answers nothing.
        confidences: For each stage the name of its array of confidences `(n,)`.
        features: With losses: for each stage that of its features `(n, d)`.
        labels: Name of the array of true labels; with losses it is not read.
        ids: Name of the array of ids, or None.
        split: Name of the array of splits, or None.
        **others: As in `from_logits` or whichever it is: `costs`, `unit`, `edges`... In `costs`
            a name stands for what the file holds by it: a price for each example.

    Raises:
        FileFormatError: If the file is missing, damaged or holds pickled arrays.
        UnknownNameError: If it has no such array; the nearest name is suggested.
        InputError: As in `from_logits`, `from_probabilities` and `from_predictions`.
    """
    with open_npz(Path(path)) as file:

        def column(name: str, _: bool) -> NDArray[Any]:
            return np.asarray(file[check_known("array", name, file.files)])

        tables = _tables(logits, probabilities, predictions, losses, confidences, features)
        read = _read(column, tables, labels, ids, split, others)
    return _from_read({**others, **read})


def from_parquet(
    path: Path | str,
    *,
    logits: Mapping[str, str | Sequence[str]] | None = None,
    probabilities: Mapping[str, str | Sequence[str]] | None = None,
    predictions: Mapping[str, str | Sequence[str]] | None = None,
    losses: Mapping[str, str | None] | None = None,
    confidences: Mapping[str, str] | None = None,
    features: Mapping[str, str | Sequence[str]] | None = None,
    labels: str = "label",
    ids: str | None = None,
    split: str | None = None,
    **others: object,
) -> Trace:
    """A trace of the columns of a parquet file.

    Args:
        path: The file.
        logits: For each stage a column of lists of `c` scores, or the names of `c` columns.
            Either this, or
        probabilities: likewise, or
        predictions: for each stage a column of labels or of ranked lists, or the names of `r`
            columns, best first; an empty cell is a refusal; or
        losses: for each stage the column of what its answers lost, None if it answers nothing.
        confidences: For each stage its column of confidences.
        features: With losses: for each stage a column of lists, or the names of `d` columns.
        labels: Column of true labels; with losses it is not read.
        ids: Column of ids, or None.
        split: Column of split names or indices, or None.
        **others: As in `from_logits` or whichever it is: `costs`, `unit`, `edges`... In `costs`
            a name stands for what the file holds by it: a price for each example.

    Raises:
        MissingExtraError: If pyarrow is not installed.
        FileFormatError: If the file is missing or damaged, or lists differ in length.
        UnknownNameError: If it has no such column; the nearest name is suggested.
        InputError: As in `from_logits`, `from_probabilities` and `from_predictions`.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
    tables = _tables(logits, probabilities, predictions, losses, confidences, features)
    wanted = [
        name for table in tables.values() for names in table.values() for name in _as_names(names)
    ]
    wanted += [
        name for name in (labels if losses is None else None, ids, split) if name is not None
    ]
    wanted += list(_named_costs(others).values())
    try:
        with parquet.ParquetFile(path) as file:
            for name in wanted:
                check_known("column", name, file.schema_arrow.names)
            table = file.read(columns=list(dict.fromkeys(wanted)))
    except (OSError, pa.ArrowException) as error:
        raise FileFormatError(f"{path} cannot be read as a parquet file: {error}") from error

    def column(names: str | Sequence[str], gaps: bool) -> NDArray[Any]:
        if isinstance(names, str):
            return _column_values(table[names], f"column {names!r} of {path}", gaps)
        each = [_column_values(table[n], f"column {n!r} of {path}", gaps) for n in names]
        return np.stack(each, 1)

    return _from_read({**others, **_read(column, tables, labels, ids, split, others)})


def _tables(
    logits: Mapping[str, Any] | None,
    probabilities: Mapping[str, Any] | None,
    predictions: Mapping[str, Any] | None,
    losses: Mapping[str, Any] | None,
    confidences: Mapping[str, Any] | None,
    features: Mapping[str, Any] | None,
) -> dict[str, Mapping[str, Any]]:
    """What is to be read for each argument: names of arrays by stage."""
    given = {"logits": logits, "probabilities": probabilities, "predictions": predictions}
    given["losses"] = losses
    named = {argument: table for argument, table in given.items() if table is not None}
    if len(named) != 1:
        raise InputError(
            "Name the arrays of exactly one of logits, probabilities, predictions and losses, got "
            f"{', '.join(named) or 'none'}."
        )
    if confidences is not None and predictions is None and losses is None:
        raise InputError("confidences belong to predictions; scores of all classes need none.")
    if features is not None and losses is None:
        raise InputError("features belong to losses; where there are labels answers decide.")
    beside = {"confidences": confidences, "features": features}
    return {**named, **{name: table for name, table in beside.items() if table is not None}}


def _read(
    column: Callable[[Any, bool], NDArray[Any]],
    tables: Mapping[str, Mapping[str, Any]],
    labels: str,
    ids: str | None,
    split: str | None,
    others: Mapping[str, Any],
) -> dict[str, Any]:
    read: dict[str, Any] = {
        **({} if "losses" in tables else {"labels": column(labels, False)}),
        "ids": None if ids is None else column(ids, False),
        "split": None if split is None else column(split, False),
    }
    for argument, names in tables.items():
        # a service may refuse to answer
        gaps = "predictions" in tables and argument in ("predictions", "confidences")
        read[argument] = {
            stage: None if name is None else column(name, gaps) for stage, name in names.items()
        }
    if named := _named_costs(others):
        read["costs"] = {**others["costs"], **{s: column(n, False) for s, n in named.items()}}
    return read


def _named_costs(others: Mapping[str, Any]) -> dict[str, str]:
    """For each stage whose prices stand in the file: where."""
    costs = others.get("costs")
    if not isinstance(costs, Mapping):
        return {}
    return {stage: name for stage, name in costs.items() if isinstance(name, str)}


def _from_read(read: Mapping[str, Any]) -> Trace:
    (kind,) = read.keys() & _KINDS.keys()
    return _KINDS[kind](**read)


def _as_names(names: str | Sequence[str] | None) -> Sequence[str]:
    return [names] if isinstance(names, str) else names or ()


def _column_values(column: Any, what: str, gaps: bool) -> NDArray[Any]:  # noqa: ANN401  (of pyarrow)
    if column.null_count and not gaps:
        raise FileFormatError(f"{what} has {column.null_count} empty cells; fill or drop them.")
    array = column.combine_chunks()
    if not hasattr(array, "value_lengths"):  # not a column of lists
        return np.asarray(array.to_numpy(zero_copy_only=False))
    if column.null_count:
        raise FileFormatError(f"{what} must hold lists of one length without empty cells.")
    flat = array.flatten()
    lengths = np.asarray(array.value_lengths()) if len(array) else np.array([0])
    if flat.null_count or len(np.unique(lengths)) > 1:
        raise FileFormatError(f"{what} must hold lists of one length without empty cells.")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(array), -1)
