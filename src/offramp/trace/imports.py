"""Traces of what was recorded elsewhere: arrays, npz and parquet files, with or without logits.

Stages are listed in topological order, cheapest first. Up to five of them get every forward edge,
more a chain; `edges` says otherwise.

Layer: trace.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from offramp._core.checks import check_known, check_shape
from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError, InputError, MissingExtraError
from offramp._core.topology import Topology
from offramp._core.types import Split
from offramp.trace.convert import integers, ranks, scores, split_indices
from offramp.trace.trace import Trace

_FULL_UP_TO = 5  # stages; with every edge, the number of visit paths doubles with each stage

Edges = str | Iterable[tuple[str, str]]
CostTable = Costs | Mapping[str, float]


def from_logits(
    logits: Mapping[str, ArrayLike | Tensor] | ArrayLike | Tensor,
    labels: ArrayLike | Tensor,
    *,
    costs: CostTable,
    unit: str | None = None,
    names: Sequence[str] | None = None,
    ids: ArrayLike | None = None,
    split: ArrayLike | Split | None = None,
    class_names: Sequence[str] = (),
    edges: Edges | None = None,
    seen_in_training: bool = False,
) -> Trace:
    """A trace of logits.

    Args:
        logits: For each stage scores `(n, c)`, by name; or `(n, s, c)` at once. Float16 is kept
            and marks the trace as lossy, anything else becomes float32.
        labels: True labels, `(n,)`, in [0, c).
        costs: Cost per example of each stage, by name, in `unit`; or a whole table.
        unit: Of the costs: "flops", "seconds", "joules", "usd", or a name of your own.
        names: Names of the stages where `logits` is one array; by default those of `costs`.
        ids: Names of the examples, `(n,)`, integers or text, unique; by default 0..n-1.
        split: For each example the name of its split or its index in train, fit, calibrate,
            test; or one name for all.
        class_names: Names of the `c` classes.
        edges: "full", "chain", or pairs of names; by default as the module says.
        seen_in_training: Whether the networks were trained on these examples.

    Raises:
        InputError: If shapes differ, a value is outside its domain, or a cost is missing.

    >>> trace = from_logits({"small": [[0.0, 1.0]], "large": [[2.0, 1.0]]}, [0],
    ...                     costs={"small": 1.0, "large": 4.0}, unit="flops")
    >>> trace.accuracy(0), trace.accuracy(1)
    (0.0, 1.0)
    """
    if isinstance(logits, Mapping):
        names = tuple(logits)
        stacked = torch.stack(_same_shape("logits", logits, scores), dim=1)  # (n, s, c)
    else:
        stacked = scores("logits", logits)
        check_shape("logits", stacked.shape, (None, None, None))
        names = tuple(names if names is not None else _names_of(costs, stacked.shape[1]))
    check_shape("logits", stacked.shape, (None, len(names), None))
    topology = _topology(names, edges)
    return Trace(
        topology=topology,
        labels=integers("labels", labels),
        classes=stacked.shape[2],
        costs=_cost_table(costs, unit, topology),
        logits=stacked,
        class_names=tuple(class_names),
        seen_in_training=seen_in_training,
        lossy=stacked.dtype == torch.float16,
        **_optional(ids, split, len(stacked)),
    )


def from_predictions(
    predictions: Mapping[str, ArrayLike | Tensor],
    labels: ArrayLike | Tensor,
    *,
    costs: CostTable,
    unit: str | None = None,
    confidences: Mapping[str, ArrayLike | Tensor] | None = None,
    classes: int | None = None,
    ids: ArrayLike | None = None,
    split: ArrayLike | Split | None = None,
    class_names: Sequence[str] = (),
    edges: Edges | None = None,
    seen_in_training: bool = False,
) -> Trace:
    """A trace of predicted labels, as services and published result lists give them.

    Args:
        predictions: For each stage labels `(n,)`, or ranked labels `(n, r)`, best first. A label
            outside the classes, also a negative one, is a legitimate wrong answer.
        labels: True labels, `(n,)`, in [0, classes).
        costs: As in `from_logits`, like the arguments that are not listed here.
        unit: Of the costs.
        confidences: For each stage the probability that its first label is right, `(n,)` in
            [0, 1]. Without them only policies that compare labels can be fitted.
        classes: Number of classes; by default that of `class_names`, else 1 + the largest label.
        ids: Names of the examples.
        split: Splits of the examples.
        class_names: Names of the classes.
        edges: Decision edges.
        seen_in_training: Whether the networks were trained on these examples.

    Raises:
        InputError: If shapes differ, a stage has no confidence, or a value is outside its domain.

    >>> trace = from_predictions({"local": [0, 7], "service": [0, 1]}, [0, 1], unit="usd",
    ...                          costs={"local": 0.0, "service": 0.001})
    >>> trace.accuracy(0), trace.classes
    (0.5, 2)
    """
    names = tuple(predictions)
    ranked = torch.stack(_same_shape("predictions", predictions, ranks), dim=1)  # (n, s, r)
    known = integers("labels", labels)
    if classes is None:
        classes = len(class_names) or int(known.max()) + 1 if len(known) else 0
    topology = _topology(names, edges)
    return Trace(
        topology=topology,
        labels=known,
        classes=classes,
        costs=_cost_table(costs, unit, topology),
        ranked=ranked,
        confidence=_confidence(confidences, names),
        class_names=tuple(class_names),
        seen_in_training=seen_in_training,
        **_optional(ids, split, len(ranked)),
    )


def from_npz(
    path: Path | str,
    *,
    logits: Mapping[str, str] | None = None,
    predictions: Mapping[str, str] | None = None,
    confidences: Mapping[str, str] | None = None,
    labels: str = "labels",
    ids: str | None = None,
    split: str | None = None,
    **others: object,
) -> Trace:
    """A trace of the arrays in an npz file.

    Args:
        path: The file; pickled arrays in it are refused.
        logits: For each stage the name of its array of scores `(n, c)`. Either this, or
        predictions: for each stage the name of its array of labels `(n,)` or `(n, r)`.
        confidences: For each stage the name of its array of confidences `(n,)`.
        labels: Name of the array of true labels.
        ids: Name of the array of ids, or None.
        split: Name of the array of splits, or None.
        **others: As in `from_logits` or `from_predictions`: `costs`, `unit`, `edges`...

    Raises:
        FileFormatError: If the file is missing, damaged or holds pickled arrays.
        UnknownNameError: If it has no such array; the nearest name is suggested.
        InputError: As in `from_logits` and `from_predictions`.
    """
    try:
        # Opened here because numpy leaves a file that it cannot read open.
        with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:

            def column(name: str) -> NDArray[Any]:
                return np.asarray(file[check_known("array", name, file.files)])

            read = _read(column, logits, predictions, confidences, labels, ids, split)
    except (OSError, BadZipFile, ValueError, EOFError, AttributeError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise FileFormatError(f"{path} cannot be read as an npz file: {error}") from error
    return _from_read(read, others)


def from_parquet(
    path: Path | str,
    *,
    logits: Mapping[str, str | Sequence[str]] | None = None,
    predictions: Mapping[str, str | Sequence[str]] | None = None,
    confidences: Mapping[str, str] | None = None,
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
        predictions: for each stage a column of labels or of ranked lists, or the names of `r`
            columns, best first.
        confidences: For each stage its column of confidences.
        labels: Column of true labels.
        ids: Column of ids, or None.
        split: Column of split names or indices, or None.
        **others: As in `from_logits` or `from_predictions`: `costs`, `unit`, `edges`...

    Raises:
        MissingExtraError: If pyarrow is not installed.
        FileFormatError: If the file is missing or damaged, or lists differ in length.
        UnknownNameError: If it has no such column; the nearest name is suggested.
        InputError: As in `from_logits` and `from_predictions`.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
    wanted = [
        name
        for table in (logits, predictions, confidences)
        for names in (table or {}).values()
        for name in _as_names(names)
    ]
    wanted += [name for name in (labels, ids, split) if name is not None]
    try:
        with parquet.ParquetFile(path) as file:
            for name in wanted:
                check_known("column", name, file.schema_arrow.names)
            table = file.read(columns=list(dict.fromkeys(wanted)))
    except (OSError, pa.ArrowException) as error:
        raise FileFormatError(f"{path} cannot be read as a parquet file: {error}") from error

    def column(names: str | Sequence[str]) -> NDArray[Any]:
        if isinstance(names, str):
            return _column_values(table[names], f"column {names!r} of {path}")
        return np.stack([_column_values(table[n], f"column {n!r} of {path}") for n in names], 1)

    return _from_read(_read(column, logits, predictions, confidences, labels, ids, split), others)


def _read(
    column: Callable[[Any], NDArray[Any]],
    logits: Mapping[str, Any] | None,
    predictions: Mapping[str, Any] | None,
    confidences: Mapping[str, str] | None,
    labels: str,
    ids: str | None,
    split: str | None,
) -> dict[str, Any]:
    if (logits is None) == (predictions is None):
        raise InputError("Name the arrays of either logits or predictions, and not of both.")
    if logits is not None and confidences is not None:
        raise InputError("confidences belong to predictions; logits need none.")
    read: dict[str, Any] = {
        "labels": column(labels),
        "ids": None if ids is None else column(ids),
        "split": None if split is None else column(split),
    }
    for argument, names in (
        ("logits", logits),
        ("predictions", predictions),
        ("confidences", confidences),
    ):
        if names is not None:
            read[argument] = {stage: column(name) for stage, name in names.items()}
    return read


def _from_read(read: dict[str, Any], others: Mapping[str, object]) -> Trace:
    return (from_logits if "logits" in read else from_predictions)(**read, **others)  # type: ignore[arg-type]


def _as_names(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _column_values(column: Any, what: str) -> NDArray[Any]:  # noqa: ANN401  (pyarrow is optional)
    if column.null_count:
        raise FileFormatError(f"{what} has {column.null_count} empty cells; fill or drop them.")
    array = column.combine_chunks()
    if not hasattr(array, "value_lengths"):  # not a column of lists
        return np.asarray(array.to_numpy(zero_copy_only=False))
    flat = array.flatten()
    lengths = np.asarray(array.value_lengths()) if len(array) else np.array([0])
    if flat.null_count or len(np.unique(lengths)) > 1:
        raise FileFormatError(f"{what} must hold lists of one length without empty cells.")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(array), -1)


def _same_shape(
    argument: str, tables: Mapping[str, Any], convert: Callable[[str, Any], Tensor]
) -> list[Tensor]:
    if not tables:
        raise InputError(f"{argument} must name at least one stage, got none.")
    found = {name: convert(f"{argument} of {name!r}", table) for name, table in tables.items()}
    shapes = {name: tuple(table.shape) for name, table in found.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 2:
        raise InputError(
            f"{argument} must have two axes and one shape for all stages, examples first; got "
            f"{shapes}."
        )
    return list(found.values())


def _confidence(
    confidences: Mapping[str, ArrayLike | Tensor] | None, names: Sequence[str]
) -> Tensor | None:
    if confidences is None:
        return None
    for name in confidences:
        check_known("stage", name, names)
    missing = [name for name in names if name not in confidences]
    if missing:
        raise InputError(f"confidences must have an entry for every stage; {missing} have none.")
    each = [scores(f"confidences of {name!r}", confidences[name]).float() for name in names]
    for name, values in zip(names, each, strict=True):
        check_shape(f"confidences of {name!r}", values.shape, (len(each[0]),))
    return torch.stack(each, dim=1)  # (n, s)


def _topology(names: Sequence[str], edges: Edges | None) -> Topology:
    if edges is None:
        edges = "full" if len(names) <= _FULL_UP_TO else "chain"
    return Topology.of(names, edges=edges)


def _names_of(costs: CostTable, stages: int) -> tuple[str, ...]:
    if isinstance(costs, Costs):
        return tuple(f"stage{k}" for k in range(stages))
    return tuple(costs)


def _cost_table(costs: CostTable, unit: str | None, topology: Topology) -> Costs:
    if isinstance(costs, Costs):
        return costs
    if unit is None:
        raise InputError("unit must name what the costs are in, such as 'flops', got None.")
    for name in costs:
        check_known("stage", name, topology.names)
    missing = [name for name in topology.names if name not in costs]
    if missing:
        raise InputError(f"costs must have an entry for every stage; {missing} have none.")
    return Costs.simple(unit, [costs[name] for name in topology.names])


def _optional(ids: ArrayLike | None, split: ArrayLike | Split | None, n: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if ids is not None:
        given = np.asarray(ids)
        found["ids"] = given.astype(str) if given.dtype.kind == "O" else given
    if split is not None:
        found["split"] = split_indices(split, n)
    return found
