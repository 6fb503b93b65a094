"""Traces of what was recorded elsewhere: logits, probabilities, or labels with confidences.

Stages are listed in topological order, cheapest first. Up to five of them get every forward edge,
more a chain; `edges` says otherwise.

Layer: trace.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from offramp._core.arrays import tensor_of
from offramp._core.checks import check_class_names, check_known, check_shape, check_text
from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.ids import as_ids
from offramp._core.outputs import log_probabilities
from offramp._core.topology import Topology
from offramp._core.types import AnyArray, BoolArray, Split
from offramp.trace.convert import (
    Answers,
    confidences_of,
    labels_of,
    prices,
    scores,
    split_indices,
)
from offramp.trace.trace import Trace

_FULL_UP_TO = 5  # stages; with every edge, the number of visit paths doubles with each stage

Edges = str | Iterable[tuple[str, str]]
#: A number or `(n,)` prices for each stage; prices `(n, s)` of all; or a whole table.
CostTable = Costs | Mapping[str, Any] | AnyArray


def from_logits(
    logits: Mapping[str, AnyArray] | AnyArray,
    labels: AnyArray,
    *,
    costs: CostTable,
    unit: str | None = None,
    names: Sequence[str] | None = None,
    ids: AnyArray | None = None,
    split: ArrayLike | Split | None = None,
    class_names: Iterable[str] = (),
    edges: Edges | None = None,
    seen_in_training: bool = False,
) -> Trace:
    """A trace of logits.

    Args:
        logits: For each stage scores `(n, c)`, by name; or `(n, s, c)` at once. Float16 is kept
            and marks the trace as lossy, anything else becomes float32.
        labels: True labels, `(n,)`, in [0, c), or names out of `class_names`.
        costs: Cost per example of each stage, by name, in `unit`: a number, or `(n,)` prices of
            its answers; or `(n, s)` prices of all stages. Prices that differ are kept, and their
            mean is noted. Or a whole table.
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
    found, names = _stacked("logits", logits, scores, names, costs)
    _check_no_log_of_zero(found, names)
    return _of_scores(
        found,
        labels,
        topology=topology_of(names, edges),
        costs=costs,
        unit=unit,
        class_names=class_names,
        seen_in_training=seen_in_training,
        ids=ids,
        split=split,
    )


def from_probabilities(
    probabilities: Mapping[str, AnyArray] | AnyArray,
    labels: AnyArray,
    *,
    costs: CostTable,
    unit: str | None = None,
    names: Sequence[str] | None = None,
    ids: AnyArray | None = None,
    split: ArrayLike | Split | None = None,
    class_names: Iterable[str] = (),
    edges: Edges | None = None,
    seen_in_training: bool = False,
) -> Trace:
    """A trace of class probabilities, as `predict_proba` of scikit-learn gives them.

    Their logarithms are the logits. Probabilities below 1e-7, zeros among them, count as 1e-7.

    Args:
        probabilities: For each stage `(n, c)` in [0, 1], by name; or `(n, s, c)` at once. Rows sum
            to 1 within 0.01 and are divided by their sum.
        labels: As in `from_logits`, like the arguments that are not listed here.
        costs: Cost of each stage.
        unit: Of the costs.
        names: Names of the stages where `probabilities` is one array.
        ids: Names of the examples.
        split: Splits of the examples.
        class_names: Names of the `c` classes.
        edges: Decision edges.
        seen_in_training: Whether the models were trained on these examples.

    Raises:
        InputError: If a probability is outside [0, 1], a row does not sum to 1, or as in
            `from_logits`.

    >>> trace = from_probabilities({"forest": [[1.0, 0.0]], "large": [[0.2, 0.8]]}, [1],
    ...                            costs={"forest": 1.0, "large": 4.0}, unit="flops")
    >>> trace.output(1).logits.softmax(dim=1)
    tensor([[0.2000, 0.8000]])
    """
    found, names = _stacked("probabilities", probabilities, _log_probabilities, names, costs)
    return _of_scores(
        found,
        labels,
        topology=topology_of(names, edges),
        costs=costs,
        unit=unit,
        class_names=class_names,
        seen_in_training=seen_in_training,
        ids=ids,
        split=split,
    )


def from_predictions(
    predictions: Mapping[str, AnyArray],
    labels: AnyArray,
    *,
    costs: CostTable,
    unit: str | None = None,
    confidences: Mapping[str, AnyArray] | None = None,
    classes: int | None = None,
    ids: AnyArray | None = None,
    split: ArrayLike | Split | None = None,
    class_names: Iterable[str] = (),
    edges: Edges | None = None,
    seen_in_training: bool = False,
) -> Trace:
    """A trace of predicted labels, as services and published result lists give them.

    Args:
        predictions: For each stage labels `(n,)`, or ranked labels `(n, r)`, best first: numbers,
            or names where there are `class_names`. A label outside the classes is a legitimate
            wrong answer; so is a refusal: None, NaN, a negative number. Two refusals never agree.
        labels: True labels, `(n,)`, in [0, classes), or names out of `class_names`.
        costs: As in `from_logits`, like the arguments that are not listed here.
        unit: Of the costs.
        confidences: For each stage the probability that its first label is right, `(n,)` in
            [0, 1]; that of a refusal counts as 0, and rounding by up to 1e-6 outside is cut.
            Without them only policies that compare labels can be fitted.
        classes: Number of classes; by default that of `class_names`, else 1 + the largest label.
        ids: Names of the examples.
        split: Splits of the examples.
        class_names: Names of the classes.
        edges: Decision edges.
        seen_in_training: Whether the networks were trained on these examples.

    Raises:
        InputError: If shapes differ, a stage has no confidence, or a value is outside its domain.

    Warns:
        UserWarning: If a stage refused, or gave names that are no class; it says how often.

    >>> trace = from_predictions({"local": [0, 7], "service": [0, 1]}, [0, 1], unit="usd",
    ...                          costs={"local": 0.0, "service": 0.001})
    >>> trace.accuracy(0), trace.classes
    (0.5, 2)
    """
    names = tuple(predictions)
    known_names = _listed(class_names)
    answers = Answers(known_names)
    ranked = torch.stack(_same_shape("predictions", predictions, answers.read), dim=1)  # (n, s, r)
    known = labels_of(labels, known_names)
    if classes is None:
        classes = len(known_names) or int(known.max()) + 1 if len(known) else 0
    topology = topology_of(names, edges)
    trace = Trace(
        topology=topology,
        labels=known,
        classes=classes,
        **cost_table(costs, unit, topology, len(ranked)),
        ranked=ranked,
        confidence=_confidence(confidences, answers.refused),
        class_names=check_class_names(known_names, classes),
        seen_in_training=seen_in_training,
        **ids_and_split(ids, split, len(ranked)),
    )
    if answers.note():
        warnings.warn(answers.note(), stacklevel=2)
    return trace


def _of_scores(
    logits: Tensor,
    labels: AnyArray,
    *,
    topology: Topology,
    costs: CostTable,
    unit: str | None,
    class_names: Iterable[str],
    seen_in_training: bool,
    ids: AnyArray | None,
    split: ArrayLike | Split | None,
) -> Trace:
    names = _listed(class_names)
    return Trace(
        topology=topology,
        labels=labels_of(labels, names),
        classes=logits.shape[2],
        **cost_table(costs, unit, topology, len(logits)),
        logits=logits,
        class_names=check_class_names(names, logits.shape[2]),
        seen_in_training=seen_in_training,
        lossy=logits.dtype == torch.float16,
        **ids_and_split(ids, split, len(logits)),
    )


def _listed(names: Iterable[str]) -> Sequence[str]:
    """Names that can be walked through twice; a text stays one, to be refused."""
    return names if isinstance(names, str) else tuple(names)


def _stacked(
    argument: str,
    given: Mapping[str, AnyArray] | AnyArray,
    convert: Callable[[str, AnyArray], Tensor],
    names: Sequence[str] | None,
    costs: CostTable,
) -> tuple[Tensor, tuple[str, ...]]:
    """Scores `(n, s, c)` and the names of the stages."""
    if isinstance(given, Mapping):
        each = _same_shape(argument, given, lambda name, of: convert(f"{argument} of {name!r}", of))
        return torch.stack(each, dim=1), tuple(given)
    found = convert(argument, given)
    check_shape(argument, found.shape, (None, None, None))
    known = names_in(costs, found.shape[1], names)
    check_shape(argument, found.shape, (None, len(known), None))
    return found, known


def _log_probabilities(name: str, values: AnyArray) -> Tensor:
    return log_probabilities(name, scores(name, values))


def _check_no_log_of_zero(logits: Tensor, names: Sequence[str]) -> None:
    zero = torch.isneginf(logits)
    if bool(zero.any()) and not bool(torch.isnan(logits).any()):
        row, stage = zero.nonzero()[0][:2].tolist()
        raise InputError(
            f"logits must be finite, got -inf for example {row}, stage {names[stage]!r}. Is it the "
            "logarithm of a probability of 0? Give the probabilities to from_probabilities."
        )


def _same_shape(
    argument: str, tables: Mapping[str, Any], convert: Callable[[str, Any], Tensor]
) -> list[Tensor]:
    if not tables:
        raise InputError(f"{argument} must name at least one stage, got none.")
    found = {name: convert(name, table) for name, table in tables.items()}
    shapes = {name: tuple(table.shape) for name, table in found.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 2:
        raise InputError(
            f"{argument} must have two axes and one shape for all stages, examples first; got "
            f"{shapes}."
        )
    return list(found.values())


def _confidence(
    confidences: Mapping[str, AnyArray] | None, refused: Mapping[str, BoolArray]
) -> Tensor | None:
    if confidences is None:
        return None
    for name in confidences:
        check_known("stage", name, refused)
    missing = [name for name in refused if name not in confidences]
    if missing:
        raise InputError(f"confidences must have an entry for every stage; {missing} have none.")
    each = []
    for name, rows in refused.items():
        values = confidences_of(f"confidences of {name!r}", confidences[name], rows)
        check_shape(f"confidences of {name!r}", values.shape, rows.shape)
        each.append(values)
    return torch.stack(each, dim=1)  # (n, s)


def topology_of(names: Sequence[str], edges: Edges | None) -> Topology:
    """The topology of stages, by default as the module says."""
    if edges is None:
        edges = "full" if len(names) <= _FULL_UP_TO else "chain"
    return Topology.of(names, edges=edges)


def names_in(costs: CostTable, stages: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the stages of an array: as given, or those of the costs, or numbers."""
    if names is not None:
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise InputError(f"names must be a list of {stages} names of stages, got {names!r}.")
        return tuple(names)
    if isinstance(costs, Mapping):
        return tuple(costs)
    return tuple(f"stage{k}" for k in range(stages))


def cost_table(costs: CostTable, unit: str | None, topology: Topology, n: int) -> dict[str, Any]:
    """Costs of the stages and, where examples have their own, prices."""
    if isinstance(costs, Costs):
        return {"costs": costs}
    if unit is None:
        raise InputError("unit must name what the costs are in, such as 'flops', got None.")
    check_text("unit", unit)
    if not isinstance(costs, Mapping):
        table = tensor_of("costs", costs)
        check_shape("costs", table.shape, (n, len(topology)))
        costs = dict(zip(topology.names, table.unbind(dim=1), strict=True))
    for name in costs:
        check_known("stage", name, topology.names)
    missing = [name for name in topology.names if name not in costs]
    if missing:
        raise InputError(f"costs must have an entry for every stage; {missing} have none.")
    each, means, note = prices({name: costs[name] for name in topology.names}, n)
    return {"costs": Costs.simple(unit, means, note=note), "prices": each}


def ids_and_split(ids: AnyArray | None, split: ArrayLike | Split | None, n: int) -> dict[str, Any]:
    """What is given of ids and splits."""
    found: dict[str, Any] = {}
    if ids is not None:
        found["ids"] = as_ids(ids)
    if split is not None:
        found["split"] = split_indices(split, n)
    return found
