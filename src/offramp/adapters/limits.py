"""How a service may be called: how many at a time, how fast, how often again, and when not at all.

Layer: adapters.
"""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from offramp._core.checks import check_not_negative, check_positive_int, check_record
from offramp._core.errors import InputError
from offramp._core.schema import stored


@final
@stored(whole=True)
@dataclass(frozen=True, kw_only=True)
class Limits:
    """How a service is called; the defaults suit a paid service that many share.

    Args:
        concurrency: Calls at a time.
        timeout: Seconds that one attempt may take.
        attempts: How often a call is tried in all. What may pass is tried again: no connection, a
            timeout, 429, 500 and above, an answer that is no JSON.
        longest_wait: Seconds to wait before another attempt at most. Waits are drawn below a limit
            that doubles, from half a second on; a service that asks for a longer one has failed.
        per_second: Calls begun in a second at most, or None.
        breaker_failures: After so many failed attempts in a row nobody is asked for a while.
        breaker_seconds: How long that is; one call tries then, and closes the breaker or not.
        cache: Answers that are remembered, by what was asked; 0 for none.

    Raises:
        InputError: If a value is outside its domain.

    >>> Limits(concurrency=32).timeout
    30.0
    """

    concurrency: int = 8
    timeout: float = 30.0
    attempts: int = 4
    longest_wait: float = 30.0
    per_second: float | None = None
    breaker_failures: int = 20
    breaker_seconds: float = 30.0
    cache: int = 4096

    def __post_init__(self) -> None:
        for name in ("concurrency", "attempts", "breaker_failures"):
            check_positive_int(f"limits: {name}", getattr(self, name))
        if self.cache != 0:
            check_positive_int("limits: cache (where it is not 0)", self.cache)
        for name in ("timeout", "longest_wait", "breaker_seconds"):
            check_not_negative(f"limits: {name}", getattr(self, name))
        for name in ("timeout", "per_second"):
            if getattr(self, name) == 0:
                raise InputError(f"limits: {name} must be above 0, got 0.")
        if self.per_second is not None:
            check_not_negative("limits: per_second", self.per_second)


def limits_of(given: Limits | Mapping[str, Any] | None) -> Limits:
    """Limits, also given as a mapping of some of their fields, as in a configuration.

    Raises:
        InputError: If there is no such field.
    """
    return Limits() if given is None else check_record("limits", given, Limits)


@final
class Pace:
    """Lets calls begin one after the other, so many in a second; used within one event loop."""

    def __init__(self, per_second: float | None) -> None:
        self._gap = 0.0 if per_second is None else 1.0 / per_second
        self._next = -math.inf

    async def turn(self) -> None:
        """Wait until the next call may begin."""
        if self._gap:
            now = time.monotonic()
            mine = max(self._next, now)
            self._next = mine + self._gap
            await asyncio.sleep(mine - now)
