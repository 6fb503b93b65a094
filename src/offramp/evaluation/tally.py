"""How many examples have which value, few values standing for many.

What differs from example to example, a price or a loss in [0, 1], has as many values as there are
examples. Rounded up it has few, so that counts suffice for a test, which can only become more
careful by it.

Layer: evaluation.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from offramp._core.schema import stored
from offramp._core.types import FloatArray, IntArray

_DIGITS = 3  # significant ones of a cost
_STEPS = 10_000  # of a loss between 0 and 1
_ROUNDING = 1e-9  # of a step: a number that is on the grid stays there


@final
@stored()
@dataclass(frozen=True)
class Tally:
    """Values and how many examples have each.

    Args:
        values: `(u,)`, rising.
        counts: `(u,)`, at least 1 each.

    >>> Tally.of(np.array([0.5, 0.0, 0.5]))
    Tally(values=(0.0, 0.5), counts=(1, 2))
    """

    values: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: FloatArray, counts: IntArray | None = None) -> "Tally":
        """Of values that are few already; each counts once where nothing else is said."""
        found, which = np.unique(values, return_inverse=True)
        totals = np.bincount(which, counts, minlength=len(found)).round().astype(np.int64)
        return cls(tuple(found.tolist()), tuple(totals.tolist()))

    def __add__(self, other: "Tally") -> "Tally":
        """Of the examples of both."""
        return Tally.of(
            np.array([*self.values, *other.values], dtype=np.float64),
            np.array([*self.counts, *other.counts], dtype=np.int64),
        )

    def scaled(self, factor: float) -> "Tally":
        """The counts of more or fewer examples, in whole ones."""
        return Tally(self.values, tuple(round(factor * count) for count in self.counts))

    def above(self, limit: float) -> int:
        """How many examples have a value above a limit."""
        return sum(
            count
            for value, count in zip(self.values, self.counts, strict=True)
            if value > limit * (1 + _ROUNDING)
        )

    def __json__(self) -> dict[str, str]:
        """As text: a line for each number would make up most of a file."""
        named = {"values": self.values, "counts": self.counts}
        return {name: " ".join(map(repr, each)) for name, each in named.items()}

    @classmethod
    def __from_json__(cls, *, values: str, counts: str) -> "Tally":
        return cls(tuple(map(float, values.split())), tuple(map(int, counts.split())))


def costs_rounded_up(costs: FloatArray) -> FloatArray:
    """Costs at three significant digits, none lower than it was.

    >>> costs_rounded_up(np.array([0.0, 0.0123, 0.01231, 4567.0])).tolist()
    [0.0, 0.0123, 0.0124, 4570.0]
    """
    powers = np.floor(np.log10(np.where(costs > 0, costs, 1.0))) - (_DIGITS - 1)
    whole = np.ceil(costs / 10.0**powers - _ROUNDING)
    # the division by a power that is a whole number gives the nearest float, as text does
    return np.where(powers < 0, whole / 10.0**-powers, whole * 10.0**powers) + 0.0  # no -0


def losses_rounded_up(losses: FloatArray) -> FloatArray:
    """Losses, or differences of two, at four digits, none lower than it was.

    >>> losses_rounded_up(np.array([-0.12345, 0.0, 0.1, 0.12341])).tolist()
    [-0.1234, 0.0, 0.1, 0.1235]
    """
    return np.ceil(losses * _STEPS - _ROUNDING) / _STEPS + 0.0
