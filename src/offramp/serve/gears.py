"""Which gear to run in: a cheaper one while people wait too long, a dearer one when they do not.

It has no clock and no threads: whoever drives it says how long the oldest example has waited, and
what time it is. All it ever names are gears that it was given, so what is not promised is not run.

Layer: serve.
"""

from collections.abc import Sequence
from typing import final

from offramp._core.checks import check_known, check_positive
from offramp._core.errors import InputError
from offramp.policy.gears import REFERENCE
from offramp.runtime import Adaptive

_CALM = 0.5  # of the target: below it a dearer gear is tried
_MOST = 8  # times `up_after`, where moving up has gone wrong again and again


def all_gears(model: Adaptive) -> dict[str, Adaptive]:
    """What a request or an audit may run in, by name: the gears, and the reference in any case.

    Args:
        model: Made of a choice that names its reference.

    >>> import torch
    >>> from offramp import Adaptive, Candidate, Cascade
    >>> cascade = Cascade.from_models({"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(4, 3)})
    >>> model = Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="b"))
    >>> list(all_gears(model))
    ['reference']
    """
    found = {name: model.in_gear(name) for name in model.gears.names}
    return found or {REFERENCE: model.reference}


@final
class Controller:
    """Moves along gears by the queueing delay, with hysteresis.

    A delay above the target for `down_after` seconds moves one gear down, to the next cheaper. One
    below half of the target for `up_after` seconds moves one gear up. Where that was too early, so
    that it has to go down again, the next time it waits twice as long, eight times at most.

    Args:
        names: Of the gears, the dearest first, the cheapest last.
        start: The gear to begin in; by default the first.
        target: Seconds that the oldest example may wait.
        down_after: Seconds above the target before each move down.
        up_after: Seconds of calm before each move up.

    Raises:
        InputError: If there are no names, or one comes twice; or a number is not above 0.
        UnknownNameError: If `start` is none of them.

    >>> controller = Controller(["reference", "drop-1", "drop-2"], down_after=1, up_after=10)
    >>> [controller.observe(0.2, now) for now in (0, 1, 2, 3)]
    ['reference', 'drop-1', 'drop-2', 'drop-2']
    >>> [controller.observe(0.0, now) for now in (4, 13, 14, 24)]
    ['drop-2', 'drop-2', 'drop-1', 'reference']
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        start: str | None = None,
        target: float = 0.05,
        down_after: float = 0.25,
        up_after: float = 5.0,
    ) -> None:
        if not names or len(set(names)) < len(names):
            raise InputError(f"names must be those of different gears, got {list(names)}.")
        self.names = tuple(names)
        self._at = 0 if start is None else self._index(start)
        self._target = check_positive("target", target)
        self._down_after = check_positive("down_after", down_after)
        self._up_after = self._patience = check_positive("up_after", up_after)
        self._since: tuple[int, float] | None = None  # which way it would go, and since when
        self._raised: tuple[float, float] | None = None  # the last move up, and what it waited for
        self._pinned: int | None = None

    @property
    def gear(self) -> str:
        """The gear to run in."""
        return self.names[self._at if self._pinned is None else self._pinned]

    @property
    def pinned(self) -> bool:
        """Whether somebody holds it in one gear."""
        return self._pinned is not None

    def pin(self, name: str | None) -> None:
        """Stay in one gear, whatever the delay; None to move again.

        Raises:
            UnknownNameError: If there is no such gear.
        """
        if name is None and self._pinned is not None:
            self._at = self._pinned
        self._pinned = None if name is None else self._index(name)
        self._since = None

    def observe(self, delay: float, now: float) -> str:
        """The gear to run in from now on.

        Args:
            delay: Seconds that the oldest example has waited, at least 0.
            now: The time in seconds, of any clock that does not go back.

        Raises:
            InputError: If the delay is negative or no number.
        """
        if not delay >= 0:
            raise InputError(f"delay must be at least 0, got {delay!r}.")
        way = 1 if delay > self._target else -1 if delay < _CALM * self._target else 0
        if self._pinned is not None or way == 0:
            self._since = None
        elif self._since is None or self._since[0] != way:
            self._since = (way, now)
        elif now - self._since[1] >= (self._down_after if way > 0 else self._patience):
            self._move(way, now)
        return self.gear

    def _move(self, way: int, now: float) -> None:
        self._since = (way, now)
        if not 0 <= self._at + way < len(self.names):
            return
        self._at += way
        if way < 0:
            self._raised = (now, self._patience)
            self._patience = max(self._up_after, self._patience / 2)
        elif self._raised is not None and now - self._raised[0] < self._raised[1]:
            self._patience = min(2 * self._raised[1], _MOST * self._up_after)
            self._raised = None

    def _index(self, name: str) -> int:
        return self.names.index(check_known("gear", name, self.names))
