"""P-values by betting, for any losses in [0, 1]: where they vary little it bets more.

Layer: risk.  Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables by
betting, JRSS B 86 (2024), arXiv:2010.09686: capital process, predictable plug-in bets.
"""

import math

import numpy as np

from offramp._core.checks import check_probability
from offramp._core.types import FloatArray
from offramp.risk.losses import check_losses

_SHARE = 0.75  # of the capital that one example can take at most: the bets never go bankrupt


def betting_p_values(losses: FloatArray, *, max_risk: float, delta: float) -> FloatArray:
    """P-values of "the risk exceeds `max_risk`" for losses in [0, 1], by betting against it.

    Capital starts at 1 and is multiplied by 1 - b_t (x_t - B) with each example: if the risk is
    B or more it does not grow on average, so it ever reaches 1/p with probability p at most
    (Ville). Bets use only what was seen before, with m_t = (1/2 + sum x_i)/(t + 1) and
    v_t = (1/4 + sum (x_i - m_i)^2)/(t + 1):

        b_t = min(sqrt(2 log(1/delta) / (n v_{t-1})), 3/4 / (1 - B))

    Args:
        losses: Of each example and candidate, `(n, k)`. Examples stand in an order that has nothing
            to do with the losses: as they came, or shuffled; never sorted.
        max_risk: B, in (0, 1).
        delta: Level that the bets are tuned for, in (0, 1); the p-value is valid at every level.

    Returns:
        `(k,)`, in (0, 1]; lower is safer.

    Raises:
        InputError: If a loss lies outside [0, 1], or `max_risk` or `delta` outside (0, 1).

    >>> import numpy as np
    >>> losses = np.stack([np.full(500, 0.5), np.full(500, 0.52)], axis=1)
    >>> betting_p_values(losses, max_risk=0.51, delta=0.1).round(4).tolist()
    [0.0007, 1.0]
    """
    check_probability("max_risk", max_risk)
    check_probability("delta", delta)
    x = check_losses("losses", losses)
    t = np.arange(1, len(x) + 1)[:, None]  # (n, 1)
    mean = (0.5 + x.cumsum(axis=0)) / (t + 1)
    spread = (0.25 + ((x - mean) ** 2).cumsum(axis=0)) / (t + 1)
    before = np.concatenate([np.full((1, x.shape[1]), 0.25), spread[:-1]])  # (n, k)
    bets = np.sqrt(2 * math.log(1 / delta) / (len(x) * before))
    bets = np.minimum(bets, _SHARE / (1 - max_risk))
    log_capital = np.log1p(-bets * (x - max_risk)).cumsum(axis=0)
    return np.asarray(np.exp(-np.maximum(0.0, log_capital.max(axis=0))))


def betting_p_value_reference(losses: list[float], *, max_risk: float, delta: float) -> float:
    """As `betting_p_values` for one candidate, one example after another."""
    capital, highest = 1.0, 1.0
    total, squares = 0.0, 0.0
    for t, x in enumerate(losses, start=1):
        variance = (0.25 + squares) / t
        bet = math.sqrt(2 * math.log(1 / delta) / (len(losses) * variance))
        capital *= 1 - min(bet, _SHARE / (1 - max_risk)) * (x - max_risk)
        highest = max(highest, capital)
        total += x
        squares += (x - (0.5 + total) / (t + 1)) ** 2
    return 1 / highest
