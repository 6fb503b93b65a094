"""What happened to examples, added up: all that an evaluation needs of them.

Layer: evaluation.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, final

import numpy as np

from offramp._core.costs import Costs
from offramp._core.types import BoolArray, FloatArray, IntArray
from offramp.evaluation.replay import paid_costs
from offramp.evaluation.tally import Tally, costs_rounded_up, losses_rounded_up
from offramp.policy import Candidate
from offramp.trace import Trace

_Sums = TypeVar("_Sums", "Outcomes", "Spent", "Graded")


@final
@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How many examples of which kind there are: all that an evaluation needs of them.

    Wherever two axes of size 2 stand last, the first is 1 where the example's own answer is wrong,
    the second where the reference's is.

    Args:
        paths: Of each path of the candidate's topology, `(p, 2, 2)`; where losses are graded all
            stand at [0, 0].
        classes: Of each true class, `(c, 2, 2)`; of none where there are no labels.
        class_paths: Of each path, how many are of each true class, `(p, c)`.
        disagreements: Of each true class, examples whose first label is not the reference's,
            `(c,)`.
        spent: Where examples have prices of their own: what they came to.
        graded: Where losses are neither 0 nor 1: what they came to.
    """

    paths: IntArray
    classes: IntArray
    class_paths: IntArray
    disagreements: IntArray
    spent: "Spent | None" = None
    graded: "Graded | None" = None

    def __add__(self, other: "Outcomes") -> "Outcomes":
        """Of the examples of both."""
        return _added(self, other)


@final
@dataclass(frozen=True, kw_only=True)
class Spent:
    """What examples cost by their own prices.

    Args:
        by_path: Sum of the prices of each stage over the examples of each path, `(p, s)`.
        tally: What examples cost, decisions and heads included, rounded up.
    """

    by_path: FloatArray
    tally: Tally

    @classmethod
    def of(cls, trace: Trace, candidate: Candidate, path: IntArray) -> "Spent | None":
        """Of examples that took these paths; None where they have no prices."""
        paid = paid_costs(trace, candidate.policy, path)
        if trace.prices is None or paid is None:
            return None
        topology = candidate.policy.topology
        by_path = np.zeros((len(topology.paths()), len(topology)))
        np.add.at(by_path, path, trace.prices.numpy())
        return cls(by_path=by_path, tally=Tally.of(costs_rounded_up(paid)))

    def __add__(self, other: "Spent") -> "Spent":
        """Of the examples of both."""
        return _added(self, other)

    def on_each(self, costs: Costs, counts: IntArray) -> list[Costs]:
        """The mean prices on each path; those of `costs` where nobody took it."""
        return [
            replace(costs, segment=tuple((paid / count).tolist())) if count else costs
            for paid, count in zip(self.by_path, counts, strict=True)
        ]


@final
@dataclass(frozen=True, kw_only=True)
class Graded:
    """What losses in [0, 1] come to.

    Args:
        own: Sum of the losses of the examples' own answers.
        reference: Sum of those of the reference's.
        excess: Sum of what is lost against the reference, gains not counted.
        losses: The examples' own losses, rounded up.
        differences: Losses against the reference, in [-1, 1], rounded up.
    """

    own: float
    reference: float
    excess: float
    losses: Tally
    differences: Tally

    @classmethod
    def of(cls, own: FloatArray, reference: FloatArray) -> "Graded":
        """Of the losses of the examples' own answers and of the reference's, `(n,)` each."""
        difference = own - reference
        return cls(
            own=float(own.sum()),
            reference=float(reference.sum()),
            excess=float(difference.clip(min=0).sum()),
            losses=Tally.of(losses_rounded_up(own)),
            differences=Tally.of(losses_rounded_up(difference)),
        )

    def __add__(self, other: "Graded") -> "Graded":
        """Of the examples of both."""
        return _added(self, other)


def _added(one: _Sums, other: _Sums) -> _Sums:
    """Two records of sums, field by field."""
    pairs = {f.name: (getattr(one, f.name), getattr(other, f.name)) for f in fields(one)}
    sums: dict[str, Any] = {n: None if a is None else a + b for n, (a, b) in pairs.items()}
    return type(one)(**sums)


def outcomes_of(
    trace: Trace,
    candidate: Candidate,
    *,
    path: IntArray,
    loss: FloatArray | BoolArray,
    f_loss: FloatArray | BoolArray,
    differs: BoolArray | None,
) -> Outcomes:
    """Count the examples of a trace.

    Args:
        trace: The examples.
        candidate: What was replayed.
        path: The path that each has taken, `(n,)`.
        loss: Loss of the example's own answer, `(n,)`; True and False where it is 1 or 0.
        f_loss: That of the reference's.
        differs: True where its first label is not the reference's, `(n,)`; None without labels.
    """
    paths = len(candidate.policy.topology.paths())
    spent = Spent.of(trace, candidate, path)
    none = np.zeros((0, 2, 2), dtype=np.int64)
    if trace.graded:
        wrong = f_wrong = np.zeros(len(path), dtype=np.bool_)
        graded = Graded.of(np.asarray(loss, np.float64), np.asarray(f_loss, np.float64))
    else:
        wrong, f_wrong, graded = loss.astype(np.bool_), f_loss.astype(np.bool_), None
    by_path = count_outcomes(path, wrong, f_wrong, paths)
    if differs is None:
        return Outcomes(
            paths=by_path,
            classes=none,
            class_paths=none.reshape(0, 0),
            disagreements=none.reshape(0),
            spent=spent,
            graded=graded,
        )
    labels, c = trace.labels.numpy(), trace.classes
    return Outcomes(
        paths=by_path,
        classes=count_outcomes(labels, wrong, f_wrong, c),
        class_paths=np.bincount(c * path + labels, minlength=c * paths).reshape(paths, c),
        disagreements=np.bincount(labels[differs], minlength=c),
        spent=spent,
    )


def count_outcomes(group: IntArray, wrong: BoolArray, f_wrong: BoolArray, groups: int) -> IntArray:
    """Examples of each group by right or wrong, and the reference right or wrong, `(g, 2, 2)`.

    Args:
        group: Of each example, `(n,)`, in 0..groups - 1.
        wrong: True where the example's own answer is wrong, `(n,)`.
        f_wrong: True where the reference's is, `(n,)`.
        groups: How many groups there are.
    """
    kinds = 4 * group + 2 * wrong + f_wrong
    return np.bincount(kinds, minlength=4 * groups).reshape(groups, 2, 2)


def f_labels(trace: Trace, stage: int) -> IntArray:
    """The reference's own first label of each example, `(n,)`."""
    return first_labels(trace.output(stage).top(1).numpy(), trace)


def first_labels(labels: IntArray, trace: Trace) -> IntArray:
    """The first of each row of labels, `(n,)`; all that lie outside the classes become `c`."""
    first = labels[:, 0]
    return np.where((first >= 0) & (first < trace.classes), first, trace.classes)
