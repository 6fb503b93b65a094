"""How much of what an oracle could save a policy does save.

Layer: evaluation.  Source: methods.md 1 (share of the gap closed).
"""

from collections.abc import Sequence

from offramp._core.errors import InputError
from offramp.evaluation.results import Evaluation, ReferencePoint

_Point = tuple[float, float]  # cost ratio, accuracy


def share_of_gap_closed(
    point: Evaluation | ReferencePoint, random: Sequence[ReferencePoint], oracle: ReferencePoint
) -> float | None:
    """Cost saved against the random policy, over what the oracle saves, at equal accuracy.

    Both references are read off curves of costs that random mixing reaches: the random points,
    and the oracle followed on a share of the examples while the rest leave at the cheapest random
    point. Above its highest accuracy a curve is charged its cost there.

    The neutral oracle never corrects the reference and always answers with one stage, so it is no
    bound: a policy that combines stages, or is allowed other topologies, can close more than the
    whole gap.

    Args:
        point: What to judge.
        random: The random curve, at least one point.
        oracle: Usually the neutral one.

    Returns:
        The share: 1 means as cheap as the oracle, more than 1 cheaper, below 0 more expensive than
            random.
        None where the oracle saves nothing at this accuracy, so that there is no gap.

    Raises:
        InputError: If there is no random point.

    >>> def at(kind, cost, accuracy):
    ...     return ReferencePoint(name=kind, kind=kind, cost_ratio=cost, accuracy=accuracy,
    ...                           accuracy_drop=0.0, negative_flips=0.0)
    >>> curve = [at("random", 0.2, 0.8), at("random", 1.2, 0.9)]
    >>> round(share_of_gap_closed(at("threshold", 0.6, 0.9), curve, at("oracle", 0.4, 0.9)), 3)
    0.75
    """
    if not random:
        raise InputError("random must hold at least one point, got none.")
    curve = [(p.cost_ratio, p.accuracy) for p in random]
    ideal = [min(curve), (oracle.cost_ratio, oracle.accuracy)]
    expensive = cost_at(curve, point.accuracy)
    gap = expensive - cost_at(ideal, point.accuracy)
    return (expensive - point.cost_ratio) / gap if gap > 0 else None


def cost_at(curve: Sequence[_Point], accuracy: float) -> float:
    """Least cost at which random mixing of two points of `curve` reaches `accuracy`.

    Above the highest accuracy of the curve: the cost of its most accurate point.

    >>> round(cost_at([(1.0, 0.8), (3.0, 0.9)], 0.85), 6)
    2.0
    """
    enough = [p for p in curve if p[1] >= accuracy]
    if not enough:
        best = max(p[1] for p in curve)
        return min(cost for cost, reached in curve if reached == best)
    short = [p for p in curve if p[1] < accuracy]
    mixed = [
        low[0] + (accuracy - low[1]) / (high[1] - low[1]) * (high[0] - low[0])
        for low in short
        for high in enough
    ]
    return min([cost for cost, _ in enough] + mixed)
