"""P-values by betting for losses of a few known values, of which only counts are known.

As in `betting`, but each candidate's bet is fixed beforehand, on other examples. The capital is
then a product in which the order of examples does not matter, so counts suffice: of the paths that
examples took, each with its cost; of classes, each with its weight.

Layer: risk.  Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables by
betting, JRSS B 86 (2024), arXiv:2010.09686: the capital process, with one bet for all examples, and
Markov's inequality for its end.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from offramp._core.checks import check_not_negative, check_probability
from offramp._core.errors import InputError
from offramp._core.types import FloatArray, IntArray

_SHARE = 0.75  # of the capital that one example can take at most: the bet never goes bankrupt


@final
@dataclass(frozen=True, kw_only=True)
class Range:
    """The lowest and highest value that a loss can have, seen or not, and the limit of its mean.

    Args:
        low: Lowest value.
        high: Highest value, above `low`: what losses are rescaled by.
        limit: B, in the unit of the losses.

    Raises:
        InputError: If `high` is not above `low`, or one of the three is not finite.
    """

    low: float
    high: float
    limit: float

    def __post_init__(self) -> None:
        values = (self.low, self.high, self.limit)
        if not (np.isfinite(values).all() and self.low < self.high):
            raise InputError(
                f"low, high and limit must be finite, low below high, got {self.low!r}, "
                f"{self.high!r} and {self.limit!r}."
            )

    @property
    def rescaled_limit(self) -> float:
        """The limit after `low` has become 0 and `high` 1; at 1 it cannot be exceeded."""
        return (self.limit - self.low) / (self.high - self.low)

    @property
    def highest_bet(self) -> float:
        """What loses at most three quarters of the capital on one example."""
        return _SHARE / (1 - self.rescaled_limit)

    def rescale(self, values: FloatArray) -> FloatArray:
        """Losses in [0, 1].

        Raises:
            InputError: If a loss lies outside [low, high].
        """
        outside = ~((values >= self.low) & (values <= self.high))  # True for NaN as well
        if outside.any():
            raise InputError(
                f"values must be in [{self.low:g}, {self.high:g}], got "
                f"{float(values[outside][0])!r}."
            )
        return (values - self.low) / (self.high - self.low)


def tuned_bet(
    values: FloatArray, counts: IntArray, n: int, *, within: Range, delta: float
) -> float:
    """The bet for a test on `n` examples, from losses of others: b = sqrt(2 log(1/delta) / (n v)).

    v = (1/4 + sum (x - mean)^2) / (m + 1) over the `m` other examples, rescaled; without any of
    them 1/4. Any bet gives a valid p-value; this one a small one where v is about right.

    Args:
        values: The losses that occur, `(u,)`.
        counts: How many of the other examples have each, `(u,)`.
        n: Number of examples that will be tested on.
        within: Lowest and highest loss, and the limit, which can be exceeded.
        delta: Level to be reached, in (0, 1).

    Returns:
        In (0, `within.highest_bet`].

    >>> import numpy as np
    >>> fitted = np.array([700, 300])
    >>> unit = Range(low=0.0, high=1.0, limit=0.4)
    >>> round(tuned_bet(np.array([0.0, 1.0]), fitted, 1500, within=unit, delta=0.05), 3)
    0.138
    """
    check_probability("delta", delta)
    x, m = within.rescale(values), int(counts.sum())
    mean = float(counts @ x) / m if m else 0.0
    spread = (0.25 + float(counts @ (x - mean) ** 2)) / (m + 1)
    return min(math.sqrt(2 * math.log(1 / delta) / (n * spread)), within.highest_bet)


def counted_p_value(values: FloatArray, counts: IntArray, *, within: Range, bet: float) -> float:
    """P-value of "the mean loss exceeds the limit", by one bet against it on every example.

    With x the losses and B the limit after rescaling, the capital at the end is the product of
    1 - b (x - B). It is 1 on average if the mean is B, and less above; so it reaches 1/p with
    probability p at most.

    Args:
        values: The losses that occur, `(u,)`.
        counts: How many examples have each, `(u,)`.
        within: Lowest and highest loss that is possible, and the limit.
        bet: b, in [0, `within.highest_bet`]; chosen without looking at these examples.

    Returns:
        In [0, 1]; 0 where the limit cannot be exceeded, 1 where it cannot be kept.

    Raises:
        InputError: If a loss lies outside its range, or the bet outside its domain.

    >>> import numpy as np
    >>> unit = Range(low=0.0, high=1.0, limit=0.4)
    >>> costs, counts = np.array([0.0, 1.0]), np.array([1050, 450])
    >>> counted_p_value(costs, counts, within=unit, bet=0.4) < 1e-6
    True
    """
    x = within.rescale(values)
    if within.rescaled_limit >= 1:
        return 0.0
    if within.rescaled_limit <= 0:
        return 1.0
    _check_bet(bet, within)
    log_capital = float(counts @ np.log1p(-bet * (x - within.rescaled_limit)))
    return math.exp(-max(0.0, log_capital))


def counted_p_value_reference(losses: list[float], *, within: Range, bet: float) -> float:
    """As `counted_p_value`, one example after another."""
    if not 0 < within.rescaled_limit < 1:
        return 0.0 if within.rescaled_limit >= 1 else 1.0
    capital = 1.0
    for loss in losses:
        x = (loss - within.low) / (within.high - within.low)
        capital *= 1 - bet * (x - within.rescaled_limit)
    return min(1.0, 1 / capital)


def fewest_counted(*, within: Range, delta: float, best: float = 0.0) -> int:
    """Examples without which such a bet certifies nothing, even if each has the loss `best`.

    Args:
        within: Lowest and highest loss, and the limit, above `best`.
        delta: Largest chance of a wrong promise, in (0, 1).
        best: The loss of an example on which nothing is lost.

    >>> fewest_counted(within=Range(low=0.0, high=1.0, limit=0.02), delta=0.05)
    198
    """
    check_probability("delta", delta)
    if within.rescaled_limit >= 1:
        return 1
    gained = within.rescaled_limit - float(within.rescale(np.array([best]))[0])
    return math.ceil(-math.log(delta) / math.log1p(within.highest_bet * gained))


def _check_bet(bet: float, within: Range) -> None:
    check_not_negative("bet", bet)
    if bet > within.highest_bet * (1 + 1e-9):
        raise InputError(f"bet must be in [0, {within.highest_bet:.6g}], got {bet!r}.")
