"""Statistics of one example as plain numbers, with how far tensors may be from them.

A decision about one example needs a few numbers, and a tensor for each costs more than all of
them. Here they are doubles; tensors hold single precision. What decides must not depend on who
computes it, so each number comes with a bound of the difference, and where that leaves a decision
open the tensors decide (`offramp.policy.rules`).

Layer: policy.  Source: docs/adr/0057.
"""

import math
from collections.abc import Callable
from typing import Final, final

#: More classes than that are faster as tensors.
MOST_CLASSES: Final = 64

FLOOR: Final = -15.0  # log-probabilities below this say no more than "impossible"

#: Half the gap between 1 and the next number of single precision.
UNIT: Final = 2.0**-24


@final
class Scalars:
    """What one distribution over few classes says about one example, computed on first use.

    Args:
        row: Scores of the classes, finite; a multiple of the log-probabilities, up to a constant.
        temperature: What they are divided by, > 0.
        counts: How often each stands; by default once.
        label: Its label; by default the position of the largest score.

    Attributes:
        error: What a statistic of tensors may be off from one of these, in the statistic's unit.

    >>> seen = Scalars([2.0, 0.0], 1.0)
    >>> round(seen.number("max_prob"), 3), seen.label, seen.number("unheard of")
    (0.881, 0, None)
    """

    __slots__ = (
        "_counts",
        "_known",
        "_label",
        "_logs",
        "_row",
        "_shares",
        "_sum",
        "_top",
        "error",
        "temperature",
    )

    def __init__(
        self,
        row: list[float],
        temperature: float,
        *,
        counts: list[float] | None = None,
        label: int | None = None,
    ) -> None:
        self._row, self.temperature, self._counts, self._label = row, temperature, counts, label
        self._top = top = max(row)
        exp = math.exp
        if counts is None:
            shares = [exp((x - top) / temperature) for x in row]
        else:
            pairs = zip(row, counts, strict=True)
            shares = [exp((x - top) / temperature) * count for x, count in pairs]
        self._shares, self._sum = shares, sum(shares)
        self._logs: list[float] | None = None
        self._known: dict[str, float] = {}  # later decisions ask for the same
        # Quotients, differences and exponentials are rounded in proportion to the largest scaled
        # score, sums in proportion to the number of classes; 8 of each is more than there are. A
        # statistic takes no more than 8 log-probabilities' worth of that.
        largest = max(top, -min(row)) / temperature
        self.error = 8 * UNIT * (8 * largest + 2 * len(row) + 32)

    @property
    def label(self) -> int | None:
        """The most likely class; None where rounding may make it another."""
        if self._label is None:
            first, second = self._largest()[:2]
            if first - second <= self.error:
                return None
            self._label = self._row.index(self._top)
        return self._label

    def number(self, kind: str) -> float | None:
        """A statistic by the name that it has among features, or None of one not known here."""
        found = self._known.get(kind)
        if found is None:
            compute = _KINDS.get(kind)
            found = None if compute is None else compute(self)
            if found is not None:
                self._known[kind] = found
        return found

    def _largest(self) -> list[float]:
        """Up to three log-probabilities, the largest first."""
        if self._logs is None:
            row = self._row
            if self._counts is not None:
                pairs = zip(row, self._counts, strict=True)
                row = [x for x, count in pairs for _ in range(min(int(count), 3))]
            top, t, of_top = self._top, self.temperature, math.log(self._sum)
            self._logs = [(x - top) / t - of_top for x in sorted(row, reverse=True)[:3]]
        return self._logs

    def _max_prob(self) -> float:
        return 1.0 / self._sum

    def _margin(self) -> float | None:
        logs = self._largest()
        return math.exp(_floored(logs[0])) - math.exp(_floored(logs[1]))

    def _log_margin(self) -> float:
        logs = self._largest()
        return _floored(logs[0]) - _floored(logs[1])

    def _entropy(self) -> float:
        total, top, t = self._sum, self._top, self.temperature
        pairs = zip(self._shares, self._row, strict=True)
        return math.log(total) - sum([share * (x - top) for share, x in pairs]) / (t * total)

    def _log_prob(self, rank: int) -> float | None:
        logs = self._largest()
        return _floored(logs[rank - 1]) if rank <= len(logs) else None


def _floored(log_prob: float) -> float:
    return max(log_prob, FLOOR)


_KINDS: dict[str, Callable[[Scalars], float | None]] = {
    "max_prob": Scalars._max_prob,
    "margin": Scalars._margin,
    "log_margin": Scalars._log_margin,
    "entropy": Scalars._entropy,
    "log_prob_1": lambda seen: seen._log_prob(1),
    "log_prob_2": lambda seen: seen._log_prob(2),
    "log_prob_3": lambda seen: seen._log_prob(3),
}
