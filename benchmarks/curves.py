"""Points of policies, chosen on one part of the data and judged on another, and their curves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offramp._core.types import FloatArray
from offramp.evaluation import evaluate_all, replay
from offramp.fitting.pareto import pareto_front
from offramp.policy import Candidate
from offramp.trace import Trace

DRAWS = 1000  # of the bootstrap


@dataclass(frozen=True)
class Point:
    """A policy: what it cost and how often it erred where it was chosen, and on test."""

    label: str
    chosen_cost: float
    chosen_error: float
    cost: float
    error: float
    each: FloatArray | None = field(default=None, repr=False, compare=False)
    """Cost ratio and error of each test image, `(2, n)`, where it is known."""


def points(
    candidates: Sequence[Candidate], chosen: Trace, test: Trace, largest: float
) -> list[Point]:
    """What candidates do; `largest` is what the largest static network costs."""
    found = []
    for candidate, seen in zip(candidates, evaluate_all(chosen, candidates), strict=True):
        judged = replay(test, candidate.policy)
        costs, wrong = judged.cost / largest, judged.wrong.astype(np.float64)
        found.append(
            Point(
                candidate.label,
                seen.cost / largest,
                1 - seen.accuracy,
                float(costs.mean()),
                float(wrong.mean()),
                np.stack([costs, wrong]),
            )
        )
    return found


def cheapest(found: Sequence[Point], limit: float) -> Point:
    """The cheapest as accurate as `limit` where it was chosen, else the most accurate."""
    within = [p for p in found if p.chosen_error <= limit]
    if within:
        return min(within, key=lambda p: (p.chosen_cost, p.chosen_error))
    return min(found, key=lambda p: (p.chosen_error, p.chosen_cost))


def front(found: Sequence[Point]) -> list[Point]:
    """Those on the front where they were chosen."""
    on = pareto_front(
        np.array([p.chosen_cost for p in found]), np.array([p.chosen_error for p in found])
    )
    return [p for p, keep in zip(found, on, strict=True) if keep]


def curve(found: Sequence[Point]) -> list[list[float]]:
    """(cost ratio, error) on test of those on the front where they were chosen."""
    return [list(pair) for pair in sorted({(p.cost, p.error) for p in front(found)})]


def at_equal_cost(first: Sequence[Point], second: Sequence[Point]) -> dict[str, Any]:
    """Mean error of the first curve minus the second's, over the costs that both reach."""
    curves = [front(first), front(second)]
    reach = [[p.cost for p in points] for points in curves]
    low, high = max(map(min, reach)), min(map(max, reach))
    if not high > low:
        return {"minus": None, "standard_error": None}
    grid = np.linspace(low, high, 50)
    held = [np.stack([p.each for p in points if p.each is not None]) for points in curves]
    n = held[0].shape[2]
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS) / n

    def gap(weights: FloatArray) -> float:
        ours, theirs = (np.interp(grid, *_by_cost(each @ weights)) for each in held)
        return float(np.mean(ours - theirs))

    again = [gap(weights) for weights in draws]
    return {"minus": gap(np.full(n, 1 / n)), "standard_error": float(np.std(again))}


def _by_cost(points: FloatArray) -> FloatArray:
    """Costs and errors, `(2, k)`, of points `(k, 2)`, the cheapest first."""
    return points[np.argsort(points[:, 0], kind="stable")].T
