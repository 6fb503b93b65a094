"""How fast stages are, and how many go on: learned from the batches that have run.

Layer: runtime.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import final

from offramp.runtime.pools import Job
from offramp.runtime.program import Program

_NEW = 0.25  # weight of the last batch of a size; one that was slow by chance is soon forgotten
_LATELY = 512  # examples of a stage that say how many go on; beyond them the past counts half


@final
class Pace:
    """Seconds of each stage by the size of the batch, and where examples go from there.

    Args:
        full: For each stage the size of a full batch.
        seconds: What one takes, where it is known.

    >>> pace = Pace({0: 8}, {0: 4.0})
    >>> pace.saw(0, 2, 2.0)
    >>> [pace.seconds(0, size) for size in (1, 2, 3, 8, 16)]
    [2.0, 2.0, 4.0, 4.0, 8.0]
    """

    def __init__(self, full: Mapping[int, int], seconds: Mapping[int, float]) -> None:
        self._full = full
        self._each: dict[int, dict[int, float]] = {}  # of an example, by stage and size
        self._visits = Counter[tuple[Program, int]]()
        self._moves = Counter[tuple[Program, int, int]]()
        for stage, given in seconds.items():
            self.saw(stage, full[stage], given)

    def saw(self, stage: int, size: int, seconds: float) -> None:
        """A batch has taken so long."""
        sizes, new = self._each.setdefault(stage, {}), seconds / size
        at = _class_of(size)
        sizes[at] = new if at not in sizes else sizes[at] + _NEW * (new - sizes[at])

    def went(self, program: Program, stage: int, child: int, count: int) -> None:
        """So many examples go on from a stage to another, or leave (-1)."""
        self._moves[program, stage, child] += count
        self._visits[program, stage] += count
        if self._visits[program, stage] > _LATELY:
            self._visits[program, stage] //= 2
            for each in (*program.children[stage], -1):
                self._moves[program, stage, each] //= 2

    def seconds(self, stage: int, size: int) -> float | None:
        """What a batch will take; None before any has run.

        Of sizes that have not run it is what the next larger one took, or in proportion to the
        largest.
        """
        sizes = self._each.get(stage)
        if not sizes:
            return None
        at = _class_of(size)
        if at in sizes:
            return size * sizes[at]
        larger = min((other for other in sizes if other > at), default=None)
        return size * sizes[max(sizes)] if larger is None else larger * sizes[larger]

    def left(self, running: Iterable[Job], now: float, counted: Collection[int]) -> float:
        """Seconds that jobs which run still take, and their examples after them.

        Args:
            running: They.
            now: The time.
            counted: Stages whose seconds count.
        """
        total = 0.0
        for job in running:
            if job.stage in counted:
                expected = self.seconds(job.stage, len(job)) or 0.0
                total += max(job.since + expected - now, 0.0)
            total += len(job) * self.after(job.flight.program, job.stage, counted)
        return total

    def ahead(self, program: Program, stage: int, counted: Collection[int]) -> float:
        """Seconds of an example from a stage on, in full batches, if as many go on as of late.

        Args:
            program: Its own.
            stage: Where it waits.
            counted: Stages whose seconds count.
        """
        return self._own(stage, counted) + self.after(program, stage, counted)

    def after(self, program: Program, stage: int, counted: Collection[int]) -> float:
        """The same once it has visited the stage."""
        return self._after(program, counted)[stage]

    def _after(self, program: Program, counted: Collection[int]) -> dict[int, float]:
        """The same for each stage, from the last to the first: each is looked at once."""
        found: dict[int, float] = {}
        for stage, children in reversed(program.children.items()):  # in topological order
            visits = self._visits[program, stage] + 2
            found[stage] = sum(
                (self._moves[program, stage, child] + 1)
                / visits
                * (self._own(child, counted) + found[child])
                for child in children
            )
        return found

    def _own(self, stage: int, counted: Collection[int]) -> float:
        """Seconds of an example at a stage, in a full batch."""
        full = self._full[stage]
        return (self.seconds(stage, full) or 0.0) / full if stage in counted else 0.0


def _class_of(size: int) -> int:
    """The power of two that is not less."""
    return 1 << (size - 1).bit_length()
