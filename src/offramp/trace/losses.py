"""Traces of tasks without classes: what each answer loses, and numbers to decide by.

Layer: trace.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from offramp._core.checks import check_known, check_shape
from offramp._core.errors import InputError
from offramp._core.types import AnyArray, Split
from offramp.trace.convert import numbers, scores
from offramp.trace.imports import (
    CostTable,
    Edges,
    cost_table,
    ids_and_split,
    names_in,
    topology_of,
)
from offramp.trace.trace import Trace


def from_losses(
    losses: Mapping[str, AnyArray | None] | AnyArray,
    *,
    costs: CostTable,
    unit: str | None = None,
    confidences: Mapping[str, AnyArray] | AnyArray | None = None,
    features: Mapping[str, AnyArray] | AnyArray | None = None,
    names: Sequence[str] | None = None,
    ids: AnyArray | None = None,
    split: ArrayLike | Split | None = None,
    edges: Edges | None = None,
    seen_in_training: bool = False,
) -> Trace:
    """A trace of a task without classes: regression, detection, ranking, text that somebody judged.

    Policies decide on numbers that stages give; what they lose is known from the record alone.

    Args:
        losses: For each stage what its answer to each example loses, `(n,)`, in [0, 1], by name; or
            `(n, s)` at once. Whole numbers or bools say that nothing lies between 0 and 1, and are
            tested exactly. None for a stage that answers nothing, and gives features only, such as
            the length of a prompt: another stage always follows it.
        costs: As in `from_logits`, like the arguments that are not listed here.
        unit: Of the costs.
        confidences: For each stage a number for each example, `(n,)`, by name; or `(n, s)`. Either
            these or
        features: For each stage `d` numbers for each example, `(n, d)` or `(n,)`, by name; or
            `(n, s, d)`. Stages may have different ones.
        names: Names of the stages where `losses` is one array; by default those of `costs`.
        ids: Names of the examples.
        split: Splits of the examples.
        edges: Decision edges.
        seen_in_training: Whether the models were trained on these examples.

    Raises:
        InputError: If shapes differ, a value is outside its domain, not exactly one of confidences
            and features is given, or a stage that answers nothing may be the last.

    >>> trace = from_losses({"small": [0.0, 0.4], "large": [0.1, 0.0]}, unit="usd",
    ...                     confidences={"small": [0.9, 0.2], "large": [0.9, 0.9]},
    ...                     costs={"small": 0.001, "large": 0.02})
    >>> round(trace.accuracy(0), 2), trace.outputs  # 1 - the mean loss
    (0.8, 'features')
    """
    if (confidences is None) == (features is None):
        raise InputError(
            "Give exactly one of confidences (n, s) and features (n, s, d): what a policy is to "
            f"decide by. Got {'neither' if features is None else 'both'}."
        )
    named = _by_stage("losses", losses, names, costs)
    known = {name: numbers(f"losses of {name!r}", v) for name, v in named.items() if v is not None}
    if not known:
        raise InputError("losses must be known for at least one stage, got none.")
    shape = next(iter(known.values())).shape
    for name, column in known.items():
        check_shape(f"losses of {name!r}", column.shape, (shape[0] if shape else None,))
    whole = not any(column.is_floating_point() for column in known.values())
    if whole:
        for name, column in known.items():
            if bool(((column != 0) & (column != 1)).any()):
                raise InputError(f"losses of {name!r} must be in [0, 1], got whole numbers beyond.")
    dtype, nothing = (torch.int8, -1) if whole else (torch.float32, torch.nan)
    silent = torch.full((shape[0],), nothing, dtype=dtype)
    columns = [known[name].to(dtype) if name in known else silent for name in named]
    seen = features if confidences is None else confidences
    given = _by_stage("features", seen, tuple(named), costs)
    topology = topology_of(tuple(named), edges)
    rows, counts = _features(given, topology.names)
    return Trace(
        topology=topology,
        labels=torch.zeros(shape[0], dtype=torch.int64),
        classes=1,
        losses=torch.stack(columns, dim=1),
        features=rows,
        feature_counts=counts,
        **cost_table(costs, unit, topology, shape[0]),
        seen_in_training=seen_in_training,
        **ids_and_split(ids, split, shape[0]),
    )


def _by_stage(
    argument: str, given: object, names: Sequence[str] | None, costs: CostTable
) -> dict[str, Any]:
    """What is given for each stage, by name; the stages of an array are its second axis."""
    if isinstance(given, Mapping):
        return dict(given)
    whole = numbers(argument, given)
    if whole.dim() < 2:
        raise InputError(
            f"{argument} must have the examples first and the stages second, got shape "
            f"{tuple(whole.shape)}."
        )
    known = names_in(costs, whole.shape[1], names)
    check_shape(argument, whole.shape[:2], (None, len(known)))
    return dict(zip(known, whole.unbind(dim=1), strict=True))


def _features(given: Mapping[str, Any], names: Sequence[str]) -> tuple[Tensor, tuple[int, ...]]:
    """Features `(n, s, d)`, and how many each stage has; the rest is filled up with zeros."""
    for name in given:
        check_known("stage", name, names)
    missing = [name for name in names if given.get(name) is None]
    if missing:
        raise InputError(f"Every stage needs numbers to decide by; {missing} have none.")
    each = {name: scores(f"features of {name!r}", given[name]).float() for name in names}
    each = {name: v[:, None] if v.dim() == 1 else v for name, v in each.items()}
    for name, v in each.items():
        check_shape(f"features of {name!r}", v.shape, (len(each[names[0]]), None))
    counts = tuple(v.shape[1] for v in each.values())
    rows = [functional.pad(v, (0, max(counts) - v.shape[1])) for v in each.values()]
    return torch.stack(rows, dim=1), counts
