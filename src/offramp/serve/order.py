"""Answers in the order in which their requests came, not in that in which they are done.

What leaves early is answered early, so among the answers that there are at any moment early exits
are too many. A sequential test must not see that: an answer is handed on only once every request
that came before it is answered as well.

Layer: serve.
"""

import heapq
from typing import Generic, TypeVar, final

T = TypeVar("T")

MOST = 100_000  # requests whose answers are held back


@final
class InOrder(Generic[T]):
    """Holds answers back until all earlier ones are there.

    Args:
        most: How many it holds; beyond that it waits no longer for a request that hangs.

    >>> held = InOrder[str]()
    >>> held.add(2.0, "second")
    >>> held.until(1.5), held.add(1.0, "first"), held.until(3.0)
    ([], None, ['first', 'second'])
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._held: list[tuple[float, int, T]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._held)

    def add(self, came: float, answer: T) -> None:
        """An answer to a request that came at this time."""
        self._count += 1
        heapq.heappush(self._held, (came, self._count, answer))

    def until(self, time: float) -> list[T]:
        """All that came before this time, in order; they are not held any more."""
        found = []
        while self._held and (self._held[0][0] < time or len(self._held) > self._most):
            found.append(heapq.heappop(self._held)[2])
        return found
