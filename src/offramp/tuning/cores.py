"""Work that shares the cores of a machine.

Layer: tuning.  Source: processor sharing, with at most one core for each piece of work.
"""

import heapq
import itertools
from typing import Generic, TypeVar, final

import numpy as np

T = TypeVar("T")


@final
class Cores(Generic[T]):
    """Pieces of work that run at once: while there are more than cores, all are equally slower.

    All go on equally fast, so they end in the order of what they had to do when they began, on a
    clock that counts what each has got: nothing is looked at but the first to end.

    Args:
        count: How many cores there are; None where each piece of work has its own.

    >>> cores = Cores(1)
    >>> cores.begin(0.0, 1.0, "long"); cores.begin(0.0, 0.5, "short")
    >>> cores.soonest, cores.end()
    (1.0, 'short')
    >>> cores.soonest, cores.end()
    (1.5, 'long')
    """

    def __init__(self, count: int | None) -> None:
        self._count = count
        self._now = self._got = 0.0  # the time, and what each piece has got by then
        self._ends: list[tuple[float, int, T]] = []
        self._number = itertools.count()
        self.soonest = np.inf  # when the first ends, as things are

    def begin(self, now: float, seconds: float, what: T) -> None:
        """Begin something.

        Args:
            now: The time, no earlier than at the call before.
            seconds: What it takes on a core of its own.
            what: Comes back when it ends.
        """
        self._got = now if self._count is None else self._got + (now - self._now) * self._speed
        self._now = now
        heapq.heappush(self._ends, (self._got + seconds, next(self._number), what))
        self._look()

    def end(self) -> T:
        """What ends next, at `soonest`."""
        self._now = self.soonest
        self._got, _, what = heapq.heappop(self._ends)
        self._look()
        return what

    @property
    def _speed(self) -> float:
        if self._count is None or len(self._ends) <= self._count:
            return 1.0
        return self._count / len(self._ends)

    def _look(self) -> None:
        self.soonest = np.inf
        if self._ends:
            left = self._ends[0][0] - self._got
            self.soonest = (
                self._ends[0][0] if self._count is None else self._now + left / self._speed
            )
