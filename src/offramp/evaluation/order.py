"""The order in which candidates are tested, fixed on `fit` before `calibrate` is looked at.

A walk ends at the first candidate that fails, so the order decides how far it comes. How likely a
candidate is to pass depends on how many standard errors its risk lies within the limit: one that
differs from the reference on 1 % of examples passes where one that differs on 10 % does not, at
equal risk. And of two that lost as much on `fit`, the one of fewer rules lost less by luck.

Layer: evaluation.  Source: methods.md 4; none for the measure and the steps, both were measured
(docs/adr/0017, 0067).
"""

from collections.abc import Sequence

import numpy as np

from offramp.evaluation.limits import OF_COSTS
from offramp.evaluation.results import FrontierPoint, Risk
from offramp.evaluation.risk_tests import RiskTest, slack
from offramp.fitting.pareto import pareto_front

_STEP = 0.3  # standard errors on fit that a candidate must be safer than the next, or be left out


def walk_order(
    points: Sequence[FrontierPoint], f: FrontierPoint, tests: Sequence[RiskTest], least: Risk
) -> list[FrontierPoint]:
    """What is tested, in its order; only `fit` is read.

    From the safest to the cheapest; where the cost is limited too, those first that stay the most
    standard errors within every limit.

    Args:
        points: Candidates and single networks; those that were evaluated on `calibrate`, or where
            none was, all.
        f: the reference alone: what costs as much is left out, the reference itself needs no
            promise.
        tests: Of the limits.
        least: Where only the cost is limited: the risk that stands beside it.
    """
    candidates = [p for p in points if p.tested is not None] or list(points)
    losses = [test for test in tests if test.limit.risk not in OF_COSTS]
    if not tests:
        return []
    rooms = [_room(p, losses) if losses else -p.fit.risk(least) for p in candidates]
    front = _front(candidates, f, rooms)
    if len(losses) == len(tests):
        return [candidates[i] for i in _in_steps(front, rooms)]
    return sorted((candidates[i] for i in front), key=lambda point: -_room(point, tests))


def _front(points: Sequence[FrontierPoint], f: FrontierPoint, rooms: Sequence[float]) -> list[int]:
    """Which are on the front of low cost and much room, the most expensive first."""
    costs = np.array([p.fit.cost_ratio for p in points], dtype=np.float64)
    kept = np.flatnonzero(pareto_front(costs, -np.array(rooms, dtype=np.float64)))
    cheaper = kept[costs[kept] < f.fit.cost_ratio]
    return [int(i) for i in cheaper[np.argsort(-costs[cheaper], kind="stable")]]


def _in_steps(front: Sequence[int], rooms: Sequence[float]) -> list[int]:
    """Without those that are hardly safer than the next cheaper one that is kept.

    Such a candidate gains little where it passes, and ends the walk where it fails by bad luck.
    """
    kept: list[int] = []
    for i in reversed(front):
        if not kept or rooms[i] >= rooms[kept[-1]] + _STEP:
            kept.append(i)
    return kept[::-1]


def _room(point: FrontierPoint, tests: Sequence[RiskTest]) -> float:
    """Standard errors on `fit` between the risks and their limits: the fewest."""
    return min(slack(test, point.fit) for test in tests)
