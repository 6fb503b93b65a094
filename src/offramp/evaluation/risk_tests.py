"""Tests of one limit each: what was measured, the p-value of a broken promise, the fewest examples.

All are computed from counts that evaluations keep. So a stored frontier can be certified later, and
the order of examples does not matter.

Layer: evaluation.  Source: methods.md 4; the p-values are those of `offramp.risk`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, final, runtime_checkable

import numpy as np

from offramp._core.errors import InputError
from offramp._core.types import FloatArray, IntArray
from offramp.evaluation.judging import optimism
from offramp.evaluation.limits import OF_COSTS
from offramp.evaluation.results import Evaluation, FrontierPoint, Risk
from offramp.policy.promise import Limit
from offramp.risk import (
    Range,
    binomial_p_values,
    counted_p_value,
    fewest_counted,
    fewest_examples,
    paired_p_values,
    several_risks,
    tuned_bet,
)

SLACK = 0.01  # of delta, spent on how often the answers of a candidate and the reference differ
_LOSSES = {  # of an example, in the order of OUTCOMES
    "accuracy_drop": (0.0, -1.0, 1.0, 0.0),
    "negative_flips": (0.0, 0.0, 1.0, 0.0),
    "error": (0.0, 0.0, 1.0, 1.0),
}

_T = TypeVar("_T")
Kinds = tuple[FloatArray, IntArray]  # values of a loss, `(u,)`, and how many examples have each


@runtime_checkable
class RiskTest(Protocol):
    """How one limit is tested. It is fixed before the examples are looked at."""

    @property
    def limit(self) -> Limit:
        """What is to be kept."""
        ...

    def losses(self, found: Evaluation) -> list[Kinds]:
        """The losses whose means are limited: one for each class, or a single one."""
        ...

    def p_values(self, points: Sequence[FrontierPoint]) -> FloatArray:
        """P-values of "the limit is exceeded" from what points were tested on, `(k,)`."""
        ...

    def fewest(self, points: Sequence[FrontierPoint]) -> int:
        """Examples without which none of the points passes, even if nothing is lost."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class CountTest:
    """Of a share of examples: difference, excess, error, disagreement.

    Args:
        limit: One of these four.
        delta: Level that p-values will be compared with.
    """

    limit: Limit
    delta: float

    def losses(self, found: Evaluation) -> list[Kinds]:
        """As `RiskTest.losses`."""
        if self.limit.risk == "accuracy_drop":
            lost, won = (int(counts[0]) for counts in outcome_counts([found]))
        else:
            lost, won = round(found.n * _share(found, self.limit.risk)), 0
        values = np.array([-1.0, 0.0, 1.0], dtype=np.float64)
        return [(values, np.array([won, found.n - lost - won, lost], dtype=np.int64))]

    def p_values(self, points: Sequence[FrontierPoint]) -> FloatArray:
        """As `RiskTest.p_values`."""
        found = [evidence(point) for point in points]
        return risk_p_values(
            found, risk=self.limit.risk, max_drop=self.limit.at_most, delta=self.delta
        )

    def fewest(self, points: Sequence[FrontierPoint]) -> int:
        """As `RiskTest.fewest`."""
        return fewest_examples(max_risk=self.limit.at_most, delta=self.delta)


@final
@dataclass(frozen=True, kw_only=True)
class RecallTest:
    """Of the recall lost by some classes: each is tested on its own examples; all have to pass.

    Args:
        limit: Of "recall".
        delta: Level that p-values will be compared with.
        classes: Indices of the classes.
    """

    limit: Limit
    delta: float
    classes: tuple[int, ...]

    def losses(self, found: Evaluation) -> list[Kinds]:
        """As `RiskTest.losses`: of the examples of each class."""
        values = np.array(_LOSSES["accuracy_drop"], dtype=np.float64)
        table = class_table(found)
        return [(values, table[:, y]) for y in self.classes]

    def p_values(self, points: Sequence[FrontierPoint]) -> FloatArray:
        """As `RiskTest.p_values`."""
        tables = np.stack([class_table(evidence(point)) for point in points])  # (k, 4, c)
        return several_risks(np.stack([self._of_class(tables[:, :, y]) for y in self.classes]))

    def fewest(self, points: Sequence[FrontierPoint]) -> int:
        """As `RiskTest.fewest`, of each class."""
        return fewest_examples(max_risk=self.limit.at_most, delta=self.delta)

    def rarest(self, found: Evaluation) -> tuple[int, int]:
        """The class with the fewest examples, and their number."""
        sizes = class_table(found).sum(axis=0)
        rarest = min(self.classes, key=lambda y: int(sizes[y]))
        return rarest, int(sizes[rarest])

    def hardest(self, point: FrontierPoint) -> "RecallTest":
        """The test of the class with the largest p-value alone."""
        each = [replace(self, classes=(y,)) for y in self.classes]
        return max(each, key=lambda test: float(test.p_values([point])[0]))

    def _of_class(self, table: IntArray) -> FloatArray:
        """P-values from outcomes of the examples of one class, `(k, 4)`."""
        n = int(table[0].sum())
        if n == 0:
            return np.ones(len(table), dtype=np.float64)
        lost, won, b = table[:, 2], table[:, 1], self.limit.at_most
        return paired_p_values(lost, won, n, max_difference=b, slack=SLACK * self.delta)


@final
@dataclass(frozen=True, kw_only=True)
class GradedTest:
    """Of a mean loss where losses lie between 0 and 1: bets, tuned on `fit`.

    Args:
        limit: Of "accuracy_drop" (the mean loss against the reference's), "negative_flips" (what
            of it is above 0) or "error" (the mean loss itself).
        delta: Level that p-values will be compared with.
    """

    limit: Limit
    delta: float

    def losses(self, found: Evaluation) -> list[Kinds]:
        """As `RiskTest.losses`."""
        error = self.limit.risk == "error"
        tally = kept(found.loss_tally if error else found.difference_tally, found)
        values = np.array(tally.values, dtype=np.float64)
        values = values.clip(min=0) if self.limit.risk == "negative_flips" else values
        return [(values, np.array(tally.counts, dtype=np.int64))]

    def p_values(self, points: Sequence[FrontierPoint]) -> FloatArray:
        """As `RiskTest.p_values`."""
        each = ((self.losses(point.fit)[0], self.losses(evidence(point))[0]) for point in points)
        bets = [bet_p_value(before, seen, self._range(), self.delta) for before, seen in each]
        return np.array(bets, dtype=np.float64)

    def fewest(self, points: Sequence[FrontierPoint]) -> int:
        """As `RiskTest.fewest`."""
        return fewest_counted(within=self._range(), delta=self.delta)

    def _range(self) -> Range:
        low = -1.0 if self.limit.risk == "accuracy_drop" else 0.0
        return Range(low=low, high=1.0, limit=self.limit.at_most)


@final
@dataclass(frozen=True, kw_only=True)
class WeightedTest:
    """Of any mean where classes become more or less frequent by known factors.

    The risk in future is the mean, on the examples at hand, of each loss times the weight of its
    class. Bets are placed on these products, rescaled by the largest weight.

    Args:
        limit: Of any risk but "recall", which does not change.
        delta: Level that p-values will be compared with.
        weights: For each class its share in future over its share now, `(c,)`.
    """

    limit: Limit
    delta: float
    weights: tuple[float, ...]

    def losses(self, found: Evaluation) -> list[Kinds]:
        """As `RiskTest.losses`."""
        return [self._kinds(found)]

    def p_values(self, points: Sequence[FrontierPoint]) -> FloatArray:
        """As `RiskTest.p_values`."""
        return np.array([self._p_value(point) for point in points], dtype=np.float64)

    def fewest(self, points: Sequence[FrontierPoint]) -> int:
        """As `RiskTest.fewest`: of the point where the fewest will do."""
        each = [self._kinds(point.fit)[0] for point in points]
        return min((self._fewest(v) for v in each if v.min() < self.limit.at_most), default=1)

    def _fewest(self, values: FloatArray) -> int:
        if self.limit.at_most >= values.max():
            return 1
        best = max(0.0, float(values.min()))
        return fewest_counted(within=self._range(values), delta=self.delta, best=best)

    def _p_value(self, point: FrontierPoint) -> float:
        values, counts = self._kinds(evidence(point))
        unweighted = self._by_class(point.fit)[0]  # no shares of classes lead beyond these
        if self.limit.at_most >= unweighted.max():
            return 0.0
        if self.limit.at_most <= values.min():
            return 1.0
        return bet_p_value(
            self._kinds(point.fit), (values, counts), self._range(values), self.delta
        )

    def _range(self, values: FloatArray) -> Range:
        return Range(low=values.min(), high=values.max(), limit=self.limit.at_most)

    def _kinds(self, found: Evaluation) -> Kinds:
        losses, table = self._by_class(found)  # (u,), (u, c)
        # Weights are 1 on average, so what every example costs at least needs none.
        base = float(losses.min()) if self.limit.risk == "cost" else 0.0
        return (base + np.outer(losses - base, self.weights)).ravel(), table.ravel()

    def _by_class(self, found: Evaluation) -> tuple[FloatArray, IntArray]:
        """Losses, and how many examples of each class have each."""
        if self.limit.risk == "cost":
            counts = np.array(kept(found.class_paths, found), dtype=np.int64)
            return np.array(kept(found.path_cost_ratio, found), dtype=np.float64), counts
        table = class_table(found)
        if self.limit.risk == "disagreement":
            differing = np.array(kept(found.class_disagreements, found), dtype=np.int64)
            both = np.stack([table.sum(axis=0) - differing, differing])
            return np.array([0.0, 1.0], dtype=np.float64), both
        return np.array(_LOSSES[self.limit.risk], dtype=np.float64), table


def measured(test: RiskTest, found: Evaluation) -> float:
    """The risk on the examples of an evaluation: the largest mean loss."""
    return max(_mean(values, counts) for values, counts in test.losses(found))


def slack(test: RiskTest, found: Evaluation) -> float:
    """Standard errors on `fit` between the risk and its limit, the fewest of all losses.

    The optimism of the fit is added to risks, not to costs. One more example that is off by 1
    is counted in, so that a loss that was never seen has an error as well. Negative beyond the
    limit; beyond one of cost the distance itself: what takes one path only has hardly any error,
    and would seem the farthest.
    """
    each = []
    optimistic = 0.0 if test.limit.risk in OF_COSTS else optimism(found)
    for values, counts in test.losses(found):
        n, mean = max(1, int(counts.sum())), _mean(values, counts)
        variance = (1 + n * optimistic + float(counts @ (values - mean) ** 2)) / (n + 1)
        room = test.limit.at_most - mean - optimistic
        error = 1.0 if test.limit.risk == "cost" and room <= 0 else math.sqrt(variance / n)
        each.append(room / error)
    return min(each)


def _mean(values: FloatArray, counts: IntArray) -> float:
    return float(counts @ values) / max(1, int(counts.sum()))


def bet_p_value(before: Kinds, seen: Kinds, within: Range, delta: float) -> float:
    """P-value of what was seen, by a bet tuned on what was there before; 1 of nothing."""
    bet = 0.0
    if not seen[1].any():
        return 1.0
    if 0 < within.rescaled_limit < 1:
        bet = tuned_bet(*before, int(seen[1].sum()), within=within, delta=delta)
    return counted_p_value(*seen, within=within, bet=bet)


def class_table(found: Evaluation) -> IntArray:
    """How many examples of each class have each of `OUTCOMES`, `(4, c)`.

    Raises:
        InputError: If the evaluation does not keep it.
    """
    return np.array(kept(found.class_outcomes, found), dtype=np.int64)


def kept(value: _T | None, found: Evaluation) -> _T:
    """What certificates need of an evaluation, if it is there."""
    if value is None or value == ():
        raise InputError(
            f"The evaluation of {found.candidate.label!r} lacks what this certificate needs; "
            "an older version has stored it. Fit again."
        )
    return value


def evidence(point: FrontierPoint) -> Evaluation:
    """The evaluation that a certificate of the point rests on.

    Raises:
        InputError: If there is none.
    """
    if point.tested is None:
        raise InputError(
            f"Every candidate must have been evaluated on calibrate, got {point.candidate.label!r} "
            "without."
        )
    return point.tested


def _share(found: Evaluation, risk: Risk) -> float:
    if risk == "error":
        return 1 - found.accuracy
    if risk == "disagreement":
        return kept(found.disagreement, found)
    return found.risk(risk)


def risk_p_values(
    evaluations: Sequence[Evaluation], *, risk: Risk, max_drop: float, delta: float
) -> FloatArray:
    """P-values of "the risk exceeds `max_drop`", one for each evaluation, `(k,)`.

    Args:
        evaluations: Of candidates, all on the same examples.
        risk: "accuracy_drop": paired test. "negative_flips", "error", "disagreement": exact
            binomial.
        max_drop: B, in (0, 1).
        delta: Level that the p-values will be compared with, in (0, 1).
    """
    if not evaluations:
        return np.empty(0, dtype=np.float64)
    n = evaluations[0].n
    if risk == "accuracy_drop":
        lost, won = outcome_counts(evaluations)
        return paired_p_values(lost, won, n, max_difference=max_drop, slack=SLACK * delta)
    counts = _whole([_share(e, risk) for e in evaluations], evaluations)
    return binomial_p_values(counts, n, max_risk=max_drop)


def outcome_counts(evaluations: Sequence[Evaluation]) -> tuple[IntArray, IntArray]:
    """How many examples are lost against the reference, and how many corrected, `(k,)` each.

    Exact: the loss difference of an example is -1, 0 or 1.

    Raises:
        InputError: If the risks are no shares of n examples.
    """
    lost = _whole([e.negative_flips for e in evaluations], evaluations)
    return lost, _whole([e.negative_flips - e.accuracy_drop for e in evaluations], evaluations)


def _whole(shares: Sequence[float], evaluations: Sequence[Evaluation]) -> IntArray:
    """Shares of n examples as counts."""
    n = np.array([e.n for e in evaluations], dtype=np.float64)
    exact = n * np.array(shares, dtype=np.float64)
    counts = np.rint(exact).astype(np.int64)
    off = np.abs(exact - counts) > 1e-6 * np.maximum(n, 1)
    if off.any():
        first = int(np.flatnonzero(off)[0])
        raise InputError(
            f"Risks must be counts over n, got {shares[first]!r} for n = {int(n[first])}."
        )
    return counts
