"""The choice as measured: the selection rule, and the sentence that goes with what it found.

Layer: evaluation.  Source: methods.md 1 (choice on `calibrate`); docs/adr/0010.
"""

from collections.abc import Sequence

import numpy as np

from offramp.evaluation.choice import MEASURED, Choice, described
from offramp.evaluation.results import Evaluation, FrontierPoint, Risk
from offramp.policy.promise import Limit

Axis = str  # "cost" or one of RISKS
MARGIN = 1.0  # standard errors between the measured risk and the limit: the one-standard-error rule
_NOTE = f"{MEASURED.capitalize()}."
_ROUNDING = 1e-12  # a risk of exactly B computed as a mean may exceed B in the last bit


def choose(
    points: Sequence[FrontierPoint],
    *,
    limited: Axis,
    limit: float,
    minimized: Axis,
    margin: float = MARGIN,
) -> FrontierPoint | None:
    """The selection rule: within `limit` on one axis, the least on the other.

    Both are read from `judged`: `fit` and `calibrate` together. A limited risk is raised by
    `margin` standard errors first: the cheapest of many candidates within a limit is there partly
    by luck. Ties go to the lower value of what is limited. None if no point stays within the limit.
    """
    allowed = [p for p in points if _guarded(p.judged, limited, margin) <= limit + _ROUNDING]
    return min(
        allowed,
        key=lambda p: (_value(p.judged, minimized), _value(p.judged, limited)),
        default=None,
    )


def _guarded(found: Evaluation, axis: Axis, margin: float) -> float:
    """A risk plus `margin` of its standard errors; a cost is taken as it is."""
    if axis == "cost":
        return found.cost_ratio
    mean = found.risk(axis)
    if found.difference_tally is not None:
        values = np.array(found.difference_tally.values, dtype=np.float64)
        values = values.clip(min=0) if axis == "negative_flips" else values
        variance = np.cov(values, fweights=found.difference_tally.counts, ddof=0)
        return mean + margin * float(np.sqrt(variance / found.n))
    # The loss of an example is -1, 0 or 1, so its two means give the mean of the square.
    square = found.negative_flips if axis == "negative_flips" else 2 * found.negative_flips - mean
    return mean + margin * float(np.sqrt(max(0.0, square - mean**2) / found.n))


def _value(evaluation: Evaluation, axis: Axis) -> float:
    return evaluation.cost_ratio if axis == "cost" else evaluation.risk(axis)


def measured_choice(
    chosen: FrontierPoint | None,
    single: FrontierPoint | None,
    limit: Limit,
    risk: Risk,
    *,
    why: str | None,
    otherwise: FrontierPoint,
) -> Choice:
    """The best candidate within a limit, or the best network alone, as measured.

    Args:
        chosen: The best candidate, or None where none stays within the limit.
        single: The best single network, or None where none does.
        limit: What was asked for.
        risk: What is limited, or minimized within a cost.
        why: What stands against the candidate.
        otherwise: The network to run where no single one stays within the limit.
    """
    minimized = risk if limit.risk == "cost" else "cost"
    if chosen is None or why is not None:
        single = single or otherwise
        return Choice(
            point=single,
            limits=(limit,),
            minimized=minimized,
            refused=why,
            alternative=chosen,
            sentence=f"Do not use a cascade here: {why}. Use {_described(single, risk)}. {_NOTE}",
        )
    if single is None:
        against = "no single network stays within the limit"
    elif single.candidate.policy.topology.names[single.candidate.policy.topology.root] == (
        chosen.candidate.reference
    ):
        against = f"no single network within the limit is cheaper than {chosen.candidate.reference}"
    else:
        against = f"the best single network, {_described(single, risk)}"
    return Choice(
        point=chosen,
        limits=(limit,),
        minimized=minimized,
        alternative=single,
        sentence=f"Use {_described(chosen, risk)}; {against}. {_NOTE}",
    )


def _described(point: FrontierPoint, risk: Risk) -> str:
    return described(point.candidate, point.judged, risk)
