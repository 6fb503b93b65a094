"""Points of policies, chosen on one part of the data and judged on another, and their curves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offramp._core.types import FloatArray
from offramp.evaluate import evaluate_all, replay
from offramp.policy import Setting
from offramp.policy.pareto import pareto_front
from offramp.trace import Trace

DRAWS = 1000  # of the bootstrap


def _each() -> Any:
    return field(default_factory=lambda: np.zeros(0), repr=False, compare=False)


@dataclass(frozen=True)
class Point:
    """A policy: what it cost and how often it erred where it was chosen, and on test."""

    label: str
    chosen_cost: float
    chosen_error: float
    cost: float
    error: float
    costs: FloatArray = _each()  # of each test image, as a ratio
    wrong: FloatArray = _each()


def points(settings: Sequence[Setting], chosen: Trace, test: Trace, largest: float) -> list[Point]:
    """What settings do; `largest` is what the largest static network costs."""
    found = []
    for setting, seen in zip(settings, evaluate_all(chosen, settings), strict=True):
        judged = replay(test, setting.policy)
        costs, wrong = judged.cost / largest, judged.wrong.astype(np.float64)
        found.append(
            Point(
                setting.label,
                seen.cost / largest,
                1 - seen.accuracy,
                float(costs.mean()),
                float(wrong.mean()),
                costs,
                wrong,
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
    held = [
        [np.stack([getattr(p, name) for p in c]) for name in ("costs", "wrong")] for c in curves
    ]
    n = held[0][0].shape[1]
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS) / n

    def gap(weights: FloatArray) -> float:
        along = [
            np.interp(grid, *_sorted(costs @ weights, wrong @ weights)) for costs, wrong in held
        ]
        return float(np.mean(along[0] - along[1]))

    again = [gap(weights) for weights in draws]
    return {"minus": gap(np.full(n, 1 / n)), "standard_error": float(np.std(again))}


def _sorted(costs: FloatArray, errors: FloatArray) -> tuple[FloatArray, FloatArray]:
    order = np.argsort(costs, kind="stable")
    return costs[order], errors[order]
