"""Who is taken in: no more examples wait than can be answered soon, and no more bytes are held.

Layer: serve.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from offramp.serve.errors import RequestError

_LATELY = 1024  # examples that say how fast it goes
_LONGEST = 60  # seconds that anybody is asked to come back after


@final
class Admission:
    """A bounded queue, counted in examples; who cannot be answered in time is not taken in.

    Args:
        most: Examples that are accepted and not answered.
        most_of_one: Of one request.
        workers: Threads that run stages.

    >>> admission = Admission(4, 4)
    >>> with admission.of(3):
    ...     admission.examples
    3
    """

    def __init__(self, most: int, most_of_one: int, workers: int = 1) -> None:
        self._most, self._most_of_one, self._workers = most, min(most, most_of_one), workers
        self.examples = 0
        self._busy = 0.0  # seconds of stages, lately
        self._answered = 0  # examples, in the same time

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
        if within is not None and self.examples and self.seconds(n) > within:
            said = f"{self.examples} examples are there, which take longer than the time given"
            raise self._full(said)
        self.examples += n
        try:
            yield
        finally:
            self.examples -= n
            self._answered += n
            if self._answered > _LATELY:  # the past counts half
                self._answered, self._busy = self._answered // 2, self._busy / 2

    def ran(self, seconds: float) -> None:
        """A stage has run for so long."""
        self._busy += seconds

    def forget(self) -> None:
        """What was seen so far says nothing about what comes."""
        self._busy, self._answered = 0.0, 0

    def seconds(self, n: int = 0) -> float:
        """How long those who are there will take, with so many more."""
        if not self._answered:
            return 0.0
        return (self.examples + n) * self._busy / self._answered / self._workers

    def _full(self, said: str) -> RequestError:
        wait = min(max(math.ceil(self.seconds()), 1), _LONGEST)
        return RequestError(429, f"{said}. Come back in {wait} s.", {"Retry-After": str(wait)})
