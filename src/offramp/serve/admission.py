"""Who is taken in: no more examples wait than can be answered soon, and no more bytes are held.

Layer: serve.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from offramp.serve.errors import RequestError

_LONGEST = 60  # seconds that anybody is asked to come back after
_FILLED = 0.5  # of the time given, by what is there: the rest is for batches to fill
_RESERVE = 0.1  # of the time given, in which stages may take longer than they have of late


@final
class Admission:
    """A bounded queue, counted in examples; who cannot be answered in time is not taken in.

    Args:
        most: Examples that are accepted and not answered.
        most_of_one: Of one request.
        backlog: Seconds until all are done who are there, with so many more (`Executor.backlog`).
        lag: Seconds by which answers are taken up late (`Executor.lag`).

    >>> admission = Admission(4, 4, lambda more: 0.1 * more)
    >>> with admission.of(3):
    ...     admission.examples
    3
    """

    def __init__(
        self,
        most: int,
        most_of_one: int,
        backlog: Callable[[int], float],
        lag: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._most, self._most_of_one = most, min(most, most_of_one)
        self._backlog, self._lag, self.examples = backlog, lag, 0

    @contextmanager
    def of(self, n: int, within: float | None = None) -> Iterator[None]:
        """Within, so many examples are there.

        Args:
            n: Their number.
            within: Seconds in which they have to be answered; None for any time.

        Raises:
            RequestError: With 413 if a request has too many, 429 if too many are there or they
                would not be answered in time.
        """
        if n > self._most_of_one:
            raise RequestError(
                413,
                f"A request must have at most {self._most_of_one} examples, got {n}. Send several "
                "requests.",
            )
        if self.examples + n > self._most:
            raise self._full(
                f"The queue must hold at most {self._most} examples, got {self.examples}"
            )
        if within is not None and self.examples and self._backlog(n) > _FILLED * within:
            said = f"{self.examples} examples are there, which take longer than the time given"
            raise self._full(said)
        self.examples += n
        try:
            yield
        finally:
            self.examples -= n

    def left(self, within: float) -> float:
        """Of so many seconds those that stages may take: the rest is the way there and back."""
        return within - min(_RESERVE * within + 2 * self._lag(), within / 2)

    def _full(self, said: str) -> RequestError:
        wait = min(max(math.ceil(self._backlog(0)), 1), _LONGEST)
        return RequestError(429, f"{said}. Come back in {wait} s.", {"Retry-After": str(wait)})
