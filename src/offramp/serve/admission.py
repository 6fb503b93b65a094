"""Who is taken in: no more examples wait than can be answered soon, and no more bytes are held.

Layer: serve.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from offramp.serve.errors import RequestError

_LONGEST = 60  # seconds that anybody is asked to come back after


@final
class Admission:
    """A bounded queue, counted in examples.

    Args:
        most: Examples that are accepted and not answered.
        most_of_one: Of one request.
        clock: Gives seconds.

    >>> admission = Admission(4, 4)
    >>> with admission.of(3):
    ...     admission.examples
    3
    """

    def __init__(
        self, most: int, most_of_one: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._most_of_one, self._clock = most, min(most, most_of_one), clock
        self.examples = 0
        self.stopping = False
        self._answered = 0  # since `_since`, when somebody began to wait
        self._since = clock()

    @contextmanager
    def of(self, n: int) -> Iterator[None]:
        """Within, so many examples are there.

        Raises:
            RequestError: With 413 if a request has too many, 429 if too many are there, and 503 if
                nobody is taken in any more.
        """
        if self.stopping:
            raise RequestError(503, "The server is stopping; ask another.", {"Retry-After": "1"})
        if n > self._most_of_one:
            raise RequestError(
                413,
                f"A request must have at most {self._most_of_one} examples, got {n}. Send several "
                "requests.",
            )
        if self.examples + n > self._most:
            wait = self.seconds()
            raise RequestError(
                429,
                f"The queue must hold at most {self._most} examples, and {self.examples} are "
                f"there. Come back in {wait} s.",
                {"Retry-After": str(wait)},
            )
        if not self.examples:
            self._answered, self._since = 0, self._clock()
        self.examples += n
        try:
            yield
        finally:
            self.examples -= n
            self._answered += n

    def seconds(self) -> int:
        """How long those who are there will take, as fast as it goes since the queue is not empty.

        At least 1 and at most 60.
        """
        passed = self._clock() - self._since
        if not self._answered:
            return 1
        return min(max(math.ceil(passed * self.examples / self._answered), 1), _LONGEST)
