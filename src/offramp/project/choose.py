"""The choice that a configuration asks for.

Layer: project.
"""

from typing import TYPE_CHECKING, Any

from offramp.project.config.sections import FitSection

if TYPE_CHECKING:
    from offramp.evaluation import Choice, Frontier


def choose(frontier: "Frontier", asked: FitSection) -> "Choice":
    """Choose from a frontier what `[fit]` asks for: promised, unless it says `delta = "none"`.

    Args:
        frontier: The candidates.
        asked: With a limit of a risk, of the cost, or to be promised, of both.
    """
    risk, drop, cost, delta = asked.risk, asked.max_drop, asked.max_cost, asked.level
    if drop is None:
        return frontier.best(max_cost=float(cost or 0), risk=risk, delta=delta)
    if delta is not None:
        limits: dict[str, float | dict[str | int | float, float]] = {risk: drop}
        if cost is not None:
            limits["cost"] = cost
        if asked.max_request_cost is not None:
            limits["over_budget"] = {asked.max_request_cost: asked.over_budget}
        return frontier.certify(limits, delta=delta)
    margin: dict[str, Any] = {} if asked.margin is None else {"margin": asked.margin}
    return frontier.cheapest(max_drop=drop, risk=risk, delta=None, **margin)
