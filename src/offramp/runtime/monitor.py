"""Watching a promise in production: an alarm once audited losses refute it, at any time.

Of the examples that were answered a few, drawn at random, are sent through the reference as well.
The watch bets on their losses, one after another. As long as the promise holds each bet keeps its
capital or loses some, on average; so the capital ever reaches 1/delta with probability delta at
most, however long one watches (Ville's inequality).

Nobody knows how bad a fault will be, nor when it comes. So the capital of 1 is divided: over bets
of several sizes, and over starts, one for every 1/limit audits. What starts late has lost nothing
while all was well.

Layer: runtime.  Source: Waudby-Smith and Ramdas, JRSS B 86 (2024), arXiv:2010.09686 (capital
processes); Shin, Ramdas, Rinaldo 2022, arXiv:2203.03532 (restarts); docs/adr/0022.
"""

import math
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from offramp._core.checks import check_choice, check_fraction, check_probability, check_seed
from offramp._core.errors import InputError
from offramp._core.keys import example_keys, keyed_uniform
from offramp._core.schema import stored
from offramp._core.types import BoolArray, FloatArray, Ids

#: Risks that can be watched, with the smallest loss that one example can have.
MONITORED: dict[str, float] = {
    "accuracy_drop": -1.0,
    "negative_flips": 0.0,
    "disagreement": 0.0,
    "error": 0.0,
}

# Shares of its capital that each bet loses on the best outcome: the small ones find small faults.
STAKES = np.geomspace(0.02, 0.8, 6)
_DRAW = -1  # a stage that no policy has, so that audits and random rules of one seed are unrelated


@final
@stored(derived=("alarm", "wealth"), whole=True)
@dataclass(frozen=True, kw_only=True)
class RiskMonitor:
    """A promise under watch: its limit, and what the audits so far say.

    A value that never changes: `update` gives the next one, and `offramp.to_json` what
    to keep on disk.

    Args:
        limit: B, the largest risk that was promised, in (0, 1).
        delta: Largest chance of an alarm, ever, while the promise holds, in (0, 1).
        risk: "accuracy_drop": losses -1, 0, 1 against the reference; "negative_flips": new errors;
            "disagreement": another answer than the reference's, which takes no labels; "error":
            wrong answers.
        n: Audits so far.
        alarm_at: Number of the audit that raised the alarm, or None.
        capital: What each size of bets holds, over all starts so far, `(b,)`.

    Raises:
        InputError: If `limit` or `delta` lies outside (0, 1), the risk is unknown, or `n` and
            `capital` cannot be what audits left.

    >>> import numpy as np
    >>> watch = RiskMonitor(limit=0.02, delta=0.05, risk="negative_flips")
    >>> calm = watch.update(np.zeros(500))
    >>> calm.alarm, round(calm.wealth, 2), calm.update(np.tile([1.0, 0, 0, 0], 30)).alarm
    (False, 0.28, True)
    """

    limit: float
    delta: float
    risk: str = "accuracy_drop"
    n: int = 0
    alarm_at: int | None = None
    capital: tuple[float, ...] = (0.0,) * len(STAKES)

    def __post_init__(self) -> None:
        check_probability("limit", self.limit)
        check_probability("delta", self.delta)
        check_choice("risk", self.risk, MONITORED)
        sound = all(math.isfinite(value) and value >= 0 for value in self.capital)
        if self.n < 0 or len(self.capital) != len(STAKES) or not sound:
            raise InputError(
                f"n must be at least 0 and capital hold {len(STAKES)} finite numbers of at least "
                f"0, got {self.n} and {list(self.capital)!r}."
            )

    @property
    def alarm(self) -> bool:
        """True once the promise is refuted; it stays so."""
        return self.alarm_at is not None

    @property
    def wealth(self) -> float:
        """The capital, 1 at first; an alarm is raised where it reaches 1 / delta, and it stays."""
        n = self.n if self.alarm_at is None else self.alarm_at
        return sum(self.capital) + unspent(starts_until(n, self.limit))

    def update(self, losses: ArrayLike) -> "RiskMonitor":
        """The watch after further audits, in the order in which they came.

        Args:
            losses: `(m,)` or one number; in [-1, 1] for "accuracy_drop", else in [0, 1]. After an
                alarm they are counted, no more.

        Raises:
            InputError: If a loss lies outside.
        """
        values = self._checked(losses)
        if self.alarm:
            return replace(self, n=self.n + len(values))
        at: int | None = None
        capital = np.array(self.capital, dtype=np.float64)
        for n, loss in enumerate(values.tolist(), start=self.n + 1):
            capital = after_audit(capital, loss, n=n, limit=self.limit, risk=self.risk)
            wealth = float(capital.sum()) + unspent(starts_until(n, self.limit))
            if wealth * self.delta >= 1:
                at = n
                break
        return replace(self, n=self.n + len(values), alarm_at=at, capital=tuple(capital.tolist()))

    def _checked(self, losses: ArrayLike) -> FloatArray:
        values = np.atleast_1d(np.asarray(losses, dtype=np.float64))
        least = MONITORED[self.risk]
        outside = ~((values >= least) & (values <= 1))  # True for NaN as well
        if values.ndim != 1 or outside.any():
            got = f"shape {values.shape}" if values.ndim != 1 else repr(float(values[outside][0]))
            raise InputError(
                f"losses must have shape (m,) and lie in [{least:g}, 1] for the risk "
                f"{self.risk!r}, got {got}."
            )
        return values


def after_audit(
    capital: FloatArray, loss: float | FloatArray, *, n: int, limit: float, risk: str
) -> FloatArray:
    """What the bets hold after the n-th audit, `(..., b)`: a new start perhaps, then the bet.

    Each bet of size b multiplies its capital by 1 + b (loss - limit): at most 1 on average where
    the risk is at most `limit`, and never below 0.

    Args:
        capital: Before it, `(..., b)`.
        loss: Of the audit; `(..., 1)` for several watches side by side.
        n: Its number, from 1.
        limit: B.
        risk: Which losses are possible.
    """
    starts = starts_until(n, limit)
    fresh = (unspent(starts_until(n - 1, limit)) - unspent(starts)) / len(STAKES)
    bets = STAKES / (limit - MONITORED[risk])  # the best outcome costs `STAKES` of the capital
    return np.asarray((capital + fresh) * (1 + bets * (np.asarray(loss) - limit)))


def starts_until(n: int, limit: float) -> int:
    """How many starts there were when `n` audits are done: one for every 1 / limit of them."""
    return math.ceil(n / math.ceil(1 / limit))


def unspent(starts: int) -> float:
    """Share of the capital that is kept for later starts: 1 / log2(starts + 2).

    So the k-th start gets 1/log2(k + 1) - 1/log2(k + 2): late ones get little less than earlier
    ones, and however many there are, all of them get 1.
    """
    return 1 / math.log2(starts + 2)


def wealth_reference(losses: list[float], *, limit: float, risk: str) -> float:
    """As `RiskMonitor.wealth` without an alarm, one start and one bet after another."""
    every = math.ceil(1 / limit)
    total, given = 0.0, 0.0
    for k, first in enumerate(range(0, len(losses), every), start=1):
        share = 1 / math.log2(k + 1) - 1 / math.log2(k + 2)
        given += share
        for stake in STAKES.tolist():
            capital = share / len(STAKES)
            for loss in losses[first:]:
                capital *= 1 + stake / (limit - MONITORED[risk]) * (loss - limit)
            total += capital
    return total + 1 - given


def audit_mask(ids: Ids, *, rate: float, seed: int) -> BoolArray:
    """Which examples to send through the reference as well: each with probability `rate`.

    The draw depends on seed and id alone, never on the answer; the same id is drawn alike each
    time, so every request needs an id of its own.

    Args:
        ids: Names of examples, `(n,)`, integers or str.
        rate: Share to audit, in [0, 1].
        seed: Of the draw.

    Raises:
        InputError: If `rate` lies outside [0, 1].

    >>> import numpy as np
    >>> drawn = audit_mask(np.arange(10_000), rate=0.05, seed=0)
    >>> bool(abs(drawn.mean() - 0.05) < 0.01)
    True
    """
    check_fraction("rate", rate)
    check_seed(seed)
    return np.asarray(keyed_uniform(example_keys(ids), seed, _DRAW).numpy() < rate)
