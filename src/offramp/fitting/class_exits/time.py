"""Time with early exits of a class: what leaving and staying takes, and the mean over a class.

Layer: fitting.
Source: Bonato and Bouganis, class-specific early exit, equations (1) to (3) and (8)
to (11); the letters are theirs: t the baseline, d up to the exit's layer, e the exit's branch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from offramp._core.checks import check_not_negative
from offramp._core.errors import InputError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What one exit costs an example, in one declared unit.

    Args:
        baseline: t, the whole network without exits, > 0.
        reached: d, the network up to where the branch is attached, >= 0.
        branch: e, the branch, >= 0.
        unit: "flops", "seconds", or a name of your own.

    Raises:
        InputError: If a time is outside its domain.

    >>> timing = Timing(baseline=10.0, reached=2.0, branch=1.0, unit="flops")
    >>> timing.leaving, timing.staying, timing.mean(0.5)
    (3.0, 11.0, 7.0)
    """

    baseline: float
    reached: float
    branch: float
    unit: str

    def __post_init__(self) -> None:
        for name in ("baseline", "reached", "branch"):
            check_not_negative(name, getattr(self, name))
        if self.baseline == 0:
            raise InputError("baseline must be greater than 0, got 0.0: nothing can be saved.")

    @property
    def leaving(self) -> float:
        """Time of an example that leaves here: d + e."""
        return self.reached + self.branch

    @property
    def staying(self) -> float:
        """t', time of an example that stays: t + e.  Source: (1), (2)."""
        return self.baseline + self.branch

    def mean(self, rate: float) -> float:
        """t'', mean time where a share `rate` leaves: (1 - rate)(t - d) + d + e.  Source: (3).

        A rate above 1, which (4) allows since it counts impostors, makes it less than leaving at
        once takes, and in the end less than nothing.
        """
        return (1 - rate) * (self.baseline - self.reached) + self.leaving


def nested_time(timings: Sequence[Timing], rates: Sequence[float]) -> float:
    """Mean time with several exits in a row.

    Args:
        timings: Of the exits in the order in which they are reached; one baseline.
        rates: For each exit the share that leaves there of those who reach it.

    Raises:
        InputError: If the numbers differ, the order is wrong or the baselines differ.

    Source: (11), and the pattern that section 3.1.1 gives for more exits.

    >>> first = Timing(baseline=10.0, reached=2.0, branch=1.0, unit="flops")
    >>> second = Timing(baseline=10.0, reached=5.0, branch=1.0, unit="flops")
    >>> nested_time([first, second], [0.5, 0.0])  # 3 for half, 3 + 4 + 5 for the rest
    7.5
    """
    if not timings or len(timings) != len(rates):
        raise InputError(
            f"rates must have one entry for each exit ({len(timings)}, at least 1), got "
            f"{len(rates)}."
        )
    depths = [timing.reached for timing in timings]
    if depths != sorted(depths) or len({timing.baseline for timing in timings}) > 1:
        raise InputError(
            f"timings must be of one network, in the order of its exits, got depths {depths}."
        )
    rest = timings[-1].baseline - depths[-1]
    for timing, before, rate in zip(
        reversed(timings), [*reversed(depths[:-1]), 0.0], reversed(rates), strict=True
    ):
        rest = (1 - rate) * rest + (timing.reached - before) + timing.branch
    return float(rest)


def nested_time_reference(timings: Sequence[Timing], rates: Sequence[float]) -> float:
    """As `nested_time`: each exit's own time, weighted by the share that leaves there."""
    total, reach, branches = 0.0, 1.0, 0.0
    for timing, rate in zip(timings, rates, strict=True):
        branches += timing.branch
        total += reach * rate * (timing.reached + branches)
        reach *= 1 - rate
    return total + reach * (timings[-1].baseline + branches)


def logit(probability: float) -> float:
    """Log-odds of a probability in (0, 1]; infinity at 1."""
    return float("inf") if probability == 1.0 else float(np.log(probability / (1 - probability)))
