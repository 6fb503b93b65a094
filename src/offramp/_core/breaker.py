"""Whether somebody who has failed is asked again: by the class of a failure, and after how many.

Layer: _core.
"""

import math
import time
from collections.abc import Callable
from typing import final

#: Statuses of HTTP that may pass; a request that had any other is not sent again as it is.
PASSES = frozenset({408, 409, 425, 429, *range(500, 600)})


@final
class Breaker:
    """Keeps from asking a service that only fails.

    >>> now = [0.0]
    >>> breaker = Breaker(2, 10.0, clock=lambda: now[0])
    >>> breaker.failed(), breaker.failed(), breaker.allows()
    (None, None, False)
    >>> now[0] = 11.0
    >>> breaker.allows(), breaker.allows()  # one may try
    (True, False)
    >>> breaker.answered(), breaker.allows()
    (None, True)
    """

    def __init__(
        self, failures: int, seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._seconds, self._clock = failures, seconds, clock
        self._failures, self._until = 0, -math.inf

    def allows(self) -> bool:
        """Whether a call may be made now; after a pause one may, which counts as a trial."""
        if self._failures < self._most:
            return True
        if self._clock() < self._until:
            return False
        self._until = self._clock() + self._seconds
        return True

    def failed(self, *, for_good: bool = False) -> None:
        """An attempt has failed; for good where trying again at once is of no use."""
        self._failures = max(self._failures + 1, self._most if for_good else 0)
        if self._failures >= self._most:
            self._until = self._clock() + self._seconds

    def answered(self) -> None:
        """An attempt was answered."""
        self._failures = 0
