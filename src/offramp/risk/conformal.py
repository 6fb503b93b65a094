"""Conformal risk control, and conformal limits of one number.

Of risk control: the expected loss, for losses that never fall along the candidates.

A weaker promise than the tests': the mean over many users' calibrations stays within the limit, not
the risk of each with high probability. Where a loss is not monotone it promises nothing and is
refused; the loss of a cascade against its thresholds as a rule is not.

Layer: risk.  Source: Angelopoulos, Bates, Fisch, Lei, Schuster, ICLR 2024, arXiv:2208.02814,
Theorem 1.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from offramp._core.arrays import array_of, tensor_of
from offramp._core.checks import check_probability
from offramp._core.errors import InputError
from offramp._core.types import AnyArray, FloatArray
from offramp.risk.losses import check_losses
from offramp.risk.selection import NonePassed


@final
@dataclass(frozen=True, kw_only=True)
class Controlled:
    """The cheapest candidate whose expected loss is within the limit.

    Args:
        index: Its place in the sequence.
        bound: (n m + 1) / (n + 1), m the mean loss: not above the limit.
    """

    index: int
    bound: float


def conformal_risk_control(losses: FloatArray, *, max_risk: float) -> Controlled | NonePassed:
    """The last candidate whose mean loss, with one worst example added, is within the limit.

    The expected loss on a new example is then at most `max_risk`, on average over calibrations,
    if the safest candidate's loss never exceeds it, as where the fallback loses nothing.

    Args:
        losses: Of each example and candidate, from the safest candidate to the cheapest, `(n, k)`,
            in [0, 1]; for each example they never fall along the candidates.
        max_risk: In (0, 1).

    Raises:
        InputError: If a loss falls from one candidate to the next, or lies outside [0, 1]; if
            `max_risk` lies outside (0, 1).

    >>> import numpy as np
    >>> losses = np.array([[0, 0, 1]] * 3 + [[0, 0, 0]] * 46, dtype=np.float64)
    >>> conformal_risk_control(losses, max_risk=0.02)
    Controlled(index=1, bound=0.02)
    """
    check_probability("max_risk", max_risk)
    losses = check_losses("losses", array_of("losses", losses))
    if losses.shape[1] == 0:
        return NonePassed(reason="there is no candidate to choose from")
    falls = np.argwhere(np.diff(losses, axis=1) < 0)
    if len(falls):
        row, k = (int(v) for v in falls[0])
        raise InputError(
            "losses must never fall from the safest candidate to the cheapest, got "
            f"{float(losses[row, k])!r} and then {float(losses[row, k + 1])!r} for example {row}, "
            f"candidates {k} and {k + 1}. Conformal risk control does not hold for such losses; "
            "test the candidates with fixed_sequence instead."
        )
    n = len(losses)
    bounds = (losses.sum(axis=0) + 1) / (n + 1)  # (k,), never falling
    within = int((bounds <= max_risk).sum())
    if within == 0:
        return NonePassed(
            reason=f"the safest candidate has a bound of {bounds[0]:.3g}, above {max_risk:g}"
        )
    return Controlled(index=within - 1, bound=float(bounds[within - 1]))


def conformal_risk_control_reference(
    losses: FloatArray, *, max_risk: float
) -> Controlled | NonePassed:
    """As `conformal_risk_control` for losses that never fall, trying the cheapest first."""
    n = len(losses)
    for index in reversed(range(losses.shape[1])):
        bound = (sum(losses[:, index].tolist()) + 1) / (n + 1)
        if bound <= max_risk:
            return Controlled(index=index, bound=bound)
    bound = (sum(losses[:, 0].tolist()) + 1) / (n + 1)
    return NonePassed(reason=f"the safest candidate has a bound of {bound:.3g}, above {max_risk:g}")


def conformal_limit(values: AnyArray, *, delta: float) -> float:
    """What a new value exceeds with probability `delta` at most: a budget for the next request.

    It is the ceil((n + 1)(1 - delta))-th smallest of `n` values: a new one, exchangeable with
    them, is as likely to take any place among them. The chance is over these examples and the new
    one together; what one set of examples promises to all new ones takes a test, as "over_budget"
    of `Frontier.certify`, and so does a choice among candidates.

    Args:
        values: What examples cost, `(n,)`, finite; not those that the candidate was chosen by.
        delta: In (0, 1).

    Returns:
        The limit; infinity where there are fewer than 1/delta - 1 values.

    Raises:
        InputError: If a value is not finite, there is none, or `delta` lies outside (0, 1).

    Source: Vovk et al. 2005; for costs of cascades C3PO, Valkanas et al., NeurIPS 2025.

    >>> conformal_limit(np.arange(1.0, 20.0), delta=0.1)
    18.0
    """
    check_probability("delta", delta)
    found = tensor_of("values", values).numpy()
    if found.ndim != 1 or len(found) == 0 or not np.isfinite(found).all():
        raise InputError(f"values must be (n,) finite numbers, n >= 1, got shape {found.shape}.")
    rank = math.ceil((len(found) + 1) * (1 - delta) - 1e-9)
    return math.inf if rank > len(found) else float(np.sort(found)[rank - 1])


def conformal_limit_reference(values: list[float], *, delta: float) -> float:
    """As `conformal_limit`: the smallest value that few enough of the others exceed."""
    n = len(values)
    for limit in sorted(values):
        above = sum(value > limit for value in values)
        if above + 1 <= (n + 1) * delta + 1e-9:  # the new one counted as above
            return limit
    return math.inf
