"""Tests of what examples cost: the mean, and the share that costs more than a budget.

Layer: evaluation.  Source: methods.md 4; the p-values are those of `offramp.risk`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from offramp._core.types import FloatArray
from offramp.evaluation.results import Evaluation, FrontierPoint
from offramp.evaluation.risk_tests import Kinds, bet_p_value, evidence, kept
from offramp.evaluation.tally import Tally
from offramp.policy.promise import Limit
from offramp.risk import Range, binomial_p_values, fewest_counted, fewest_examples

HEADROOM = 2  # times the highest cost on fit: what no example is assumed to exceed


@final
@dataclass(frozen=True, kw_only=True)
class CostTest:
    """Of the mean cost, from how many examples took each path.

    Where paths have two different costs it is a share of examples, tested exactly. Otherwise bets
    are placed on the costs, rescaled by those of the cheapest and the most expensive path.

    Where examples have prices of their own, bets are placed on what each cost, over the reference's
    mean cost on `fit`. They need a highest cost, and nobody knows one: it is assumed, in words, to
    be `HEADROOM` times the highest on `fit`. An example beyond it fails the test.

    Args:
        limit: Of "cost".
        delta: Level that p-values will be compared with.
    """

    limit: Limit
    delta: float

    def losses(self, found: Evaluation) -> list[Kinds]:
        """As `RiskTest.losses`."""
        return [_costs(found, found.reference_cost)]

    def p_values(self, points: Sequence[FrontierPoint]) -> FloatArray:
        """As `RiskTest.p_values`."""
        return np.array([self._p_value(point) for point in points], dtype=np.float64)

    def _p_value(self, point: FrontierPoint) -> float:
        if point.fit.cost_tally is not None:
            return self._priced_p_value(point)
        ratios, counts = _paths(evidence(point))
        if self.limit.at_most >= ratios.max():
            return 0.0  # whatever path examples take
        if self.limit.at_most <= ratios.min():
            return 1.0
        within = self._range(ratios)
        if len(np.unique(ratios)) == 2:
            expensive = counts[ratios == ratios.max()].sum(keepdims=True)
            share = within.rescaled_limit
            return float(binomial_p_values(expensive, int(counts.sum()), max_risk=share)[0])
        return bet_p_value(_paths(point.fit), (ratios, counts), within, self.delta)

    def _priced_p_value(self, point: FrontierPoint) -> float:
        own, within = point.fit.reference_cost, self._range_of_prices(point)
        seen = _costs(evidence(point), own)
        if seen[0].max() > within.high or within.rescaled_limit <= 0:
            return 1.0
        return bet_p_value(_costs(point.fit, own), seen, within, self.delta)

    def _range_of_prices(self, point: FrontierPoint) -> Range:
        highest = HEADROOM * float(_costs(point.fit, point.fit.reference_cost)[0].max())
        return Range(low=0.0, high=max(highest, self.limit.at_most), limit=self.limit.at_most)

    def assumes(self, point: FrontierPoint) -> tuple[str, ...]:
        """What a promise of a point rests on beside the examples."""
        found = point.fit
        if found.cost_tally is None:
            return ()
        high = HEADROOM * max(found.cost_tally.values)
        return (
            f"No example costs more than {high:.4g} {found.unit}, {HEADROOM} times the most that "
            f"one cost in fit, and {found.candidate.reference} alone costs on average what it cost "
            f"there, {found.reference_cost:.4g}.",
        )

    def fewest(self, points: Sequence[FrontierPoint]) -> int:
        """As `RiskTest.fewest`: of the point where the fewest will do."""
        priced = [self._range_of_prices(p) for p in points if p.fit.cost_tally is not None]
        if priced:
            return min(fewest_counted(within=within, delta=self.delta) for within in priced)
        each = [np.array(kept(p.fit.path_cost_ratio, p.fit), dtype=np.float64) for p in points]
        return min((self._fewest(r) for r in each if r.min() < self.limit.at_most), default=1)

    def _fewest(self, ratios: FloatArray) -> int:
        if self.limit.at_most >= ratios.max():
            return 1
        within = self._range(ratios)
        if len(np.unique(ratios)) == 2:
            return fewest_examples(max_risk=within.rescaled_limit, delta=self.delta)
        return fewest_counted(within=within, delta=self.delta, best=within.low)

    def _range(self, ratios: FloatArray) -> Range:
        low, high = float(ratios.min()), float(ratios.max())
        return Range(low=low, high=high, limit=self.limit.at_most)


@final
@dataclass(frozen=True, kw_only=True)
class BudgetTest:
    """Of the share of examples that cost more than a budget: exact binomial.

    Args:
        limit: Of "over_budget".
        delta: Level that p-values will be compared with.

    Source: the promise of C3PO, Valkanas et al. 2025, for a set of candidates tested in order.
    """

    limit: Limit
    delta: float

    def losses(self, found: Evaluation) -> list[Kinds]:
        """As `RiskTest.losses`."""
        over = self._over(found)
        counts = np.array([found.n - over, over], dtype=np.int64)
        return [(np.array([0.0, 1.0], dtype=np.float64), counts)]

    def p_values(self, points: Sequence[FrontierPoint]) -> FloatArray:
        """As `RiskTest.p_values`."""
        found = [evidence(point) for point in points]
        over = np.array([self._over(e) for e in found], dtype=np.int64)
        return binomial_p_values(over, found[0].n, max_risk=self.limit.at_most)

    def fewest(self, points: Sequence[FrontierPoint]) -> int:
        """As `RiskTest.fewest`."""
        return fewest_examples(max_risk=self.limit.at_most, delta=self.delta)

    def _over(self, found: Evaluation) -> int:
        values, counts = _costs(found, 1.0)
        return Tally.of(values, counts).above(self.limit.budget or 0.0)


def _costs(found: Evaluation, own: float) -> Kinds:
    """What examples cost over `own`, and how many cost that much."""
    if found.cost_tally is not None:
        values = np.array(found.cost_tally.values, dtype=np.float64) / own
        return values, np.array(found.cost_tally.counts, dtype=np.int64)
    ratios, counts = _paths(found)
    return ratios * (found.reference_cost / own), counts


def _paths(found: Evaluation) -> Kinds:
    """The costs of paths and how many examples took each."""
    ratios = np.array(kept(found.path_cost_ratio, found), dtype=np.float64)
    shares = np.array(found.path_share, dtype=np.float64)
    return ratios, np.rint(found.n * shares).astype(np.int64)
