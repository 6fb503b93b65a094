"""Until when an answer is wanted: said by the runtime, heeded by stages that wait for others.

Layer: _core.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_UNTIL: ContextVar[float] = ContextVar("until", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Within, an answer is wanted in so many seconds: by this thread, and by what it starts.

    >>> with within(5.0):
    ...     4.0 < seconds_left() <= 5.0
    True
    >>> seconds_left()
    inf
    """
    token = _UNTIL.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _UNTIL.reset(token)


def wanted_until() -> float:
    """When an answer is of no use any more, by `time.monotonic`; infinity if nobody has said so."""
    return _UNTIL.get()


def seconds_left() -> float:
    """Seconds until then."""
    return _UNTIL.get() - time.monotonic()
