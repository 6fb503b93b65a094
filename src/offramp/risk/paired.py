"""P-values of paired differences -1, 0, 1: accuracy lost, corrections counted.

Rescaled to [0, 1] a difference is nearly always 1/2. Bounds that do not use how seldom the two
answers differ cannot certify a loss of one point from a few thousand examples; this test does, and
needs nothing but two counts.

Layer: risk.  Source: Berger and Boos, JASA 89 (1994) 1012-1016: the largest p-value over a
confidence set of the nuisance parameter, plus the chance that the set misses it. Outcomes are
ordered by standard errors, as in score tests of paired proportions (Tango, Statistics in Medicine
17 (1998) 891-908), with a simpler variance.
"""

import math

import numpy as np
from scipy import special, stats

from offramp._core.checks import check_probability
from offramp._core.errors import InputError
from offramp._core.types import FloatArray, IntArray
from offramp.risk.losses import check_counts

_GRID = 33  # discordance rates tried: the tail is smooth in them, see the test with 1,000
_FINE = 13  # and between the neighbors of the worst
_ROUNDING = 1e-9  # the outcome seen must count as one as low as itself
_FAR = 9.0  # standard deviations of the number of discordant examples that are summed over


def paired_p_values(
    losses: IntArray,
    corrections: IntArray,
    n: int,
    *,
    max_difference: float,
    slack: float = 1e-3,
) -> FloatArray:
    """P-values of "the mean difference exceeds `max_difference`" for differences -1, 0, 1.

    An outcome of i losses and j corrections is the safer, the more standard errors it lies below
    the limit: t = (i - j - nB) / sqrt(i + j + nB). Ordered by i - j alone, outcomes with few
    discordant examples, which say more, would count as little as those with many.

    A difference of 1 has probability a, of -1 probability c; q = a + c is the share of examples
    whose answers differ in loss. The number d of them is Bin(n, q), that of losses among them
    Bin(d, a/q). For given d the outcomes with t as low as the one seen are those with at most so
    many losses, which is the likelier the smaller a/q; so for given q the null hypothesis is worst
    at a - c = B, where a/q = (1 + B/q)/2. The p-value is the largest chance of these outcomes over
    all q up to q's upper Clopper-Pearson limit at level `slack`, plus `slack`.

    Args:
        losses: Number of examples with difference 1 (new errors), `(k,)`.
        corrections: Number with difference -1, `(k,)`.
        n: Number of examples.
        max_difference: B, in (0, 1).
        slack: Chance that the limit of q is wrong, in (0, 1); fixed beforehand, well below the
            level that p-values are compared with, which they never fall under.

    Returns:
        `(k,)`, in [slack, 1]; lower is safer.

    Raises:
        InputError: If counts do not fit `n`, or `max_difference` or `slack` lie outside (0, 1).

    >>> import numpy as np
    >>> lost, won = np.array([0, 15, 15]), np.array([0, 15, 0])
    >>> paired_p_values(lost, won, 1500, max_difference=0.01).round(3).tolist()
    [0.001, 0.007, 1.0]
    """
    check_probability("max_difference", max_difference)
    check_probability("slack", slack)
    check_counts("losses", losses, n)
    check_counts("corrections", corrections, n)
    check_counts("losses + corrections", losses + corrections, n)
    if losses.shape != corrections.shape:
        raise InputError(
            f"losses and corrections must have one shape, got {losses.shape} and "
            f"{corrections.shape}."
        )
    kinds, which = np.unique(np.stack([losses, corrections]), axis=1, return_inverse=True)
    found = [_p_value(int(a), int(c), n, max_difference, slack) for a, c in kinds.T]
    return np.array(found, dtype=np.float64)[np.ravel(which)]


def _p_value(losses: int, corrections: int, n: int, limit: float, slack: float) -> float:
    seen = losses - corrections
    if seen >= n * limit:
        return 1.0  # above the limit itself; no p-value would be small
    highest = upper_limit(losses + corrections, n, slack)
    if highest <= limit:
        return slack  # so few differ that the limit cannot be exceeded
    spread = _FAR * math.sqrt(n * max(limit * (1 - limit), highest * (1 - highest), 0.25 / n))
    low = max(0, math.floor(n * limit - spread))
    high = min(n, math.ceil(n * highest + spread))
    d = np.arange(low, high + 1)[None, :]  # (1, d)
    reached = (seen - n * limit) / math.sqrt(losses + corrections + n * limit)  # t, negative
    below = n * limit + reached * np.sqrt(d + n * limit)  # losses less corrections, at most
    most = np.floor((below + d) / 2 + _ROUNDING)  # losses among d, at most
    coarse = np.linspace(limit, highest, _GRID)
    chances = _chances(coarse, d, most, n, limit)
    top = int(chances.argmax())
    fine = np.linspace(coarse[max(0, top - 1)], coarse[min(top + 1, _GRID - 1)], _FINE)
    return min(1.0, float(max(chances[top], _chances(fine, d, most, n, limit).max())) + slack)


def _chances(q: FloatArray, d: IntArray, most: FloatArray, n: int, limit: float) -> FloatArray:
    """Chance of at most so many losses among d, summed over d, where the mean is the limit; `(q,)`.

    Args:
        q: Discordance rates, `(q,)`.
        d: Numbers of discordant examples, `(1, d)`.
        most: Losses among them, at most; negative where none will do.
        n: Number of examples.
        limit: The mean difference.
    """
    rate = q[:, None]
    tail = np.where(most >= 0, special.bdtr(np.clip(most, 0, d), d, (1 + limit / rate) / 2), 0.0)
    return np.asarray((stats.binom.pmf(d, n, rate) * tail).sum(axis=1))


def upper_limit(count: int, n: int, level: float) -> float:
    """Upper Clopper-Pearson limit of a probability; it is exceeded with chance `level`."""
    return 1.0 if count == n else float(stats.beta.ppf(1 - level, count + 1, n - count))


def paired_p_value_reference(
    losses: int, corrections: int, n: int, *, max_difference: float, slack: float, grid: int = 1000
) -> float:
    """As `paired_p_values` for one candidate, adding up every outcome of `n` examples."""

    def errors_below(i: int, j: int) -> float:
        return (n * max_difference - (i - j)) / math.sqrt(i + j + n * max_difference)

    if losses - corrections >= n * max_difference:
        return 1.0
    highest = upper_limit(losses + corrections, n, slack)
    if highest <= max_difference:
        return slack
    seen = errors_below(losses, corrections) - _ROUNDING
    outcomes = [(i, j) for i in range(n + 1) for j in range(n + 1 - i)]
    as_safe = [
        (i, j, math.comb(n, i) * math.comb(n - i, j))
        for i, j in outcomes
        if errors_below(i, j) >= seen
    ]
    worst = 0.0
    for q in np.linspace(max_difference, highest, grid).tolist():
        a, c = (q + max_difference) / 2, (q - max_difference) / 2
        chance = sum(ways * a**i * c**j * (1 - q) ** (n - i - j) for i, j, ways in as_safe)
        worst = max(worst, chance)
    return min(1.0, worst + slack)
