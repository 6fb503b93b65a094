"""Watching traffic without labels: whether things happen as often as they did before.

An event is anything that an example does or does not: it leaves at a stage, its confidence is below
a number. The null hypothesis is that examples come like those of a baseline: each event has one
chance, the same there and now, whatever that is. Of that chance the baseline says no more than an
interval (Clopper and Pearson), which misses any of the events with probability delta / 2. Bets are
placed on each event coming more often than the upper end, and less often than the lower. As long as
nothing has changed no bet gains on average, so their mean ever reaches 2 / delta with probability
delta / 2 at most (Ville). Together: a false alarm, ever, with probability delta.

As in `offramp.runtime.RiskMonitor` the capital is divided over sizes of bets and over starts, one
for each block of examples, for nobody knows when a change will come, or how large.

No I/O, no clock, no threads.

Layer: serve.  Source: docs/adr/0053; Waudby-Smith and Ramdas 2024, arXiv:2010.09686 (capital
processes); Clopper and Pearson 1934 (intervals).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import final

import numpy as np

from offramp._core.checks import check_positive_int, check_probability
from offramp._core.errors import InputError
from offramp._core.schema import stored
from offramp._core.types import BoolArray, FloatArray
from offramp.runtime.monitor import STAKES, unspent

BLOCK = 100  # examples between two looks; each block is also a start
_MOST = 300.0  # logarithm of what a bet may gain in a block, so that numbers stay finite


@final
@stored(derived=("alarm", "wealth"), whole=True)
@dataclass(frozen=True, kw_only=True)
class DriftMonitor:
    """Whether some events come as often as in a baseline; a value that never changes.

    Args:
        events: Names of the events, `(e,)`.
        seen: How many examples of the baseline each event happened to, `(e,)`.
        size: Number of examples of the baseline, at least 1.
        delta: Largest chance of an alarm, ever, while nothing has changed, in (0, 1).
        n: Examples so far.
        blocks: Blocks that are complete.
        part: Of the block under way: how many examples, to how many each event happened, and to how
            many it did not, `(1 + 2 e,)`.
        capital: What each size of bets on "more often" and on "less often" holds, `(2 e, b)`.
        alarm_at: Number of the example at which the alarm was raised, or None.
        moved: The event that had the largest capital then, and whether it came "more" or "less"
            often; empty without an alarm.

    Raises:
        InputError: If there are no events, or counts cannot be those of such a baseline.

    >>> watch = DriftMonitor.of(["left at a"], [700], 1000, delta=0.1)
    >>> calm = watch.update(np.arange(5000)[:, None] % 10 < 7)
    >>> calm.alarm, calm.update(np.arange(2000)[:, None] % 10 < 5).moved
    (False, 'left at a less')
    """

    events: tuple[str, ...]
    seen: tuple[int, ...]
    size: int
    delta: float
    n: int
    blocks: int
    part: tuple[int, ...]
    capital: tuple[tuple[float, ...], ...]
    alarm_at: int | None = None
    moved: str = ""

    @classmethod
    def of(
        cls, events: Sequence[str], seen: Sequence[int], size: int, *, delta: float
    ) -> "DriftMonitor":
        """A watch that has seen nothing but its baseline."""
        e = len(events)
        return cls(
            events=tuple(events),
            seen=tuple(int(count) for count in seen),
            size=check_positive_int("size", size),
            delta=delta,
            n=0,
            blocks=0,
            part=(0,) * (1 + 2 * e),
            capital=((0.0,) * len(STAKES),) * (2 * e),
        )

    def __post_init__(self) -> None:
        check_probability("delta", self.delta)
        e = len(self.events)
        whole = e > 0 and len(self.seen) == e and len(self.part) == 1 + 2 * e
        shaped = len(self.capital) == 2 * e and all(len(row) == len(STAKES) for row in self.capital)
        if not whole or not shaped or not all(0 <= count <= self.size for count in self.seen):
            raise InputError(
                f"A baseline must have one count in [0, {self.size}] for each of its events "
                f"{list(self.events)}, got {list(self.seen)}, and a watch what goes with it."
            )

    @property
    def alarm(self) -> bool:
        """True once the null hypothesis is refuted; it stays so."""
        return self.alarm_at is not None

    @property
    def wealth(self) -> float:
        """The mean capital, 1 at first; an alarm is raised where it reaches 2 / delta."""
        return float(np.sum(self.capital)) / (2 * len(self.events)) + unspent(self.blocks)

    def update(self, happened: BoolArray, known: BoolArray | None = None) -> "DriftMonitor":
        """The watch after further examples, in the order in which they were accepted.

        Args:
            happened: Which event happened to whom, `(m, e)`.
            known: Of whom that is known, `(m,)`; by default of all. The others count as whatever
                speaks against an alarm.

        Raises:
            InputError: If `happened` has another number of events.
        """
        happened = np.asarray(happened, dtype=np.bool_)
        if happened.ndim != 2 or happened.shape[1] != len(self.events):
            raise InputError(
                f"happened must have shape (m, {len(self.events)}), got {happened.shape}."
            )
        sure = np.ones(len(happened), np.bool_) if known is None else np.asarray(known, np.bool_)
        yes, no = happened & sure[:, None], ~happened & sure[:, None]
        watch, begin = self, 0
        while begin < len(yes):
            end = min(len(yes), begin + BLOCK - watch.part[0])
            counts = [end - begin, *yes[begin:end].sum(axis=0), *no[begin:end].sum(axis=0)]
            watch = watch._counted(tuple(int(count) for count in counts))
            begin = end
        return watch

    def _counted(self, counts: tuple[int, ...]) -> "DriftMonitor":
        part = tuple(a + b for a, b in zip(self.part, counts, strict=True))
        n = self.n + counts[0]
        if part[0] < BLOCK:
            return replace(self, n=n, part=part)
        empty = (0,) * len(part)
        if self.alarm:
            return replace(self, n=n, blocks=self.blocks + 1, part=empty)
        limits = np.array(limits_of(self.seen, self.size, self.delta), dtype=np.float64)
        capital = after_block(
            np.array(self.capital, dtype=np.float64),
            np.array(part[1:], dtype=np.float64),
            blocks=self.blocks + 1,
            limits=limits,
        )
        held = tuple(tuple(row) for row in capital.tolist())
        watch = replace(self, n=n, blocks=self.blocks + 1, part=empty, capital=held)
        if watch.wealth * self.delta < 2:
            return watch
        k, e = int(capital.sum(axis=1).argmax()), len(self.events)
        moved = f"{self.events[k % e]} {'more' if k < e else 'less'}"
        return replace(watch, alarm_at=n, moved=moved)


@cache
def limits_of(seen: tuple[int, ...], size: int, delta: float) -> tuple[float, ...]:
    """Largest chance that each event can have, then of each that it does not happen, `(2 e,)`.

    Any of these is too low with probability delta / 2 at most, over the draw of the baseline.

    >>> [round(limit, 3) for limit in limits_of((700,), 1000, 0.1)]
    [0.728, 0.329]
    """
    from scipy.special import betaincinv

    counts = np.array([*seen, *(size - count for count in seen)], dtype=np.float64)
    level = 1 - delta / (2 * len(counts))
    highest = betaincinv(counts + 1, np.maximum(size - counts, 1), level)
    return tuple(np.where(counts < size, highest, 1.0).tolist())


def after_block(
    capital: FloatArray, counts: FloatArray, *, blocks: int, limits: FloatArray
) -> FloatArray:
    """What bets hold after a block of `BLOCK` examples, `(..., 2 e, b)`: a start, then the bets.

    A bet of size b multiplies its capital by 1 + b (x - limit) for each example, x being 1 or 0:
    at most 1 on average where the chance is at most `limit`. Where it may be 1 nothing is bet.

    Args:
        capital: Before it, `(..., 2 e, b)`.
        counts: To how many it is known to have happened, and not to have, `(..., 2 e)`.
        blocks: Its number, from 1.
        limits: Of `limits_of`, `(..., 2 e)`.
    """
    limits = limits[..., None]
    fresh = (unspent(blocks - 1) - unspent(blocks)) / len(STAKES)
    bets = np.where(limits < 1, 1.0, 0.0) * STAKES / limits  # (..., 2 e, b)
    won = counts[..., None] * np.log1p(bets * (1 - limits))
    lost = (BLOCK - counts[..., None]) * np.log1p(-bets * limits)
    return np.asarray((capital + fresh) * np.exp(np.minimum(won + lost, _MOST)))


@final
@stored(whole=True)
@dataclass(frozen=True, kw_only=True)
class Learning:
    """A baseline that is not known before, and is learned from the first examples that come.

    Args:
        events: Names of the events, `(e,)`.
        seen: To how many of the examples so far each event happened, `(e,)`.
        size: Number of examples so far.
        wanted: Number of examples that make a baseline.
        delta: Of the watch that follows.

    >>> learning = Learning(events=("a",), seen=(0,), size=0, wanted=10, delta=0.1)
    >>> watch = learning.update(np.ones((12, 1), dtype=bool))
    >>> watch.seen, watch.size, watch.n
    ((10,), 10, 2)
    """

    events: tuple[str, ...]
    seen: tuple[int, ...]
    size: int
    wanted: int
    delta: float

    def update(
        self, happened: BoolArray, known: BoolArray | None = None
    ) -> "Learning | DriftMonitor":
        """What there is after further examples; those of whom nothing is known are passed over.

        Args:
            happened: Which event happened to whom, `(m, e)`.
            known: Of whom that is known, `(m,)`; by default of all.
        """
        sure = np.arange(len(happened)) if known is None else np.flatnonzero(known)
        taken = sure[: self.wanted - self.size]
        seen = np.array(self.seen, dtype=np.int64) + happened[taken].sum(axis=0)
        size = self.size + len(taken)
        if size < self.wanted:
            return replace(self, seen=tuple(seen.tolist()), size=size)
        rest = slice(int(taken[-1]) + 1 if len(taken) else 0, None)
        watch = DriftMonitor.of(self.events, seen.tolist(), size, delta=self.delta)
        return watch.update(happened[rest], None if known is None else known[rest])
