"""Money: how much was spent, and a ceiling that calls running side by side cannot break together.

Layer: _core.
"""

import threading
import time
from collections.abc import Callable
from typing import final

from offramp._core.checks import check_not_negative

_DAY_S = 86_400
_ROUNDING = 1e-9  # relative; sums in another order differ by less


@final
class Spending:
    """What was spent, and how much may be: in all, or each day (UTC).

    Whoever is about to spend reserves the most that it can come to, and settles what it was. So
    calls side by side never spend the same rest twice. Thread-safe.

    Args:
        most: The ceiling, in the unit of the prices; None for none.
        daily: Whether it is one for each day.
        clock: Gives seconds since 1970; for tests.

    Raises:
        InputError: If `most` is negative or not finite.

    >>> spending = Spending(1.0)
    >>> spending.reserve(0.7), spending.reserve(0.7), spending.settle(0.7, 0.2)
    (True, False, None)
    >>> spending.reserve(0.7), spending.spent, spending.reserved
    (True, 0.2, 0.7)
    >>> spending.settle(0.7, 0.9)
    >>> spending.overdrawn
    True
    """

    def __init__(
        self,
        most: float | None = None,
        *,
        daily: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.most = None if most is None else check_not_negative("most", most)
        self.daily = daily
        self._clock, self._lock = clock, threading.Lock()
        self._spent = self._today = self._reserved = 0.0
        self._day, self._open = self._now(), 0

    @property
    def spent(self) -> float:
        """All that was spent since this object was made."""
        return self._spent

    @property
    def reserved(self) -> float:
        """What calls that run now may come to."""
        return self._reserved

    @property
    def overdrawn(self) -> bool:
        """Whether what was spent and reserved goes beyond the ceiling.

        So it is once a call came to more than was set aside for it: then some of what was reserved
        must be given back before it is spent.
        """
        with self._lock:
            self._begin_day()
            return self.most is not None and self._so_far() > self.most * (1 + _ROUNDING)

    def reserve(self, amount: float) -> bool:
        """Set aside what a call may come to; False where it does not fit under the ceiling."""
        with self._lock:
            self._begin_day()
            if self.most is not None and self._so_far() + amount > self.most:
                return False
            self._reserved += amount
            self._open += 1
            return True

    def settle(self, reserved: float, paid: float) -> None:
        """A call is over.

        Args:
            reserved: What was set aside for it.
            paid: What it came to.
        """
        with self._lock:
            self._open -= 1
            self._reserved = self._reserved - reserved if self._open else 0.0  # no rounding is left
            self._spent += paid
            self._today += paid

    def add(self, paid: float) -> None:
        """Count what was paid before, as by a run that was interrupted."""
        with self._lock:
            self._spent += paid

    def _begin_day(self) -> None:
        if self._day != self._now():
            self._day, self._today = self._now(), 0.0

    def _so_far(self) -> float:
        return (self._today if self.daily else self._spent) + self._reserved

    def _now(self) -> int:
        return int(self._clock() // _DAY_S)
