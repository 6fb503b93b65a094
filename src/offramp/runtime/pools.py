"""What a batcher keeps: who waits for which stage, since when, and how urgently.

Layer: runtime.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch

from offramp._core.errors import InputError, ServiceError, UnsupportedError
from offramp._core.outputs import StageOutput
from offramp._core.topology import Path
from offramp._core.types import Ids
from offramp.runtime.elsewhere import Asked, Visited, asked_of
from offramp.runtime.inflight import InFlight, Numbers
from offramp.runtime.prediction import Prediction
from offramp.runtime.program import Program

Urgency = tuple[float, float, int]  # least first: minus the priority, the deadline, the number


@final
@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Examples that came the same way and visit a stage together now.

    Args:
        path: Ends with the stage to be visited.
        flight: They.
        since: When the job was handed out.
    """

    path: Path
    flight: InFlight
    since: float

    def __len__(self) -> int:
        return len(self.flight)

    @property
    def stage(self) -> int:
        """The stage to be visited."""
        return self.path[-1]

    def run(
        self, elsewhere: "Callable[[Asked], Visited] | None" = None
    ) -> "StageOutput | Visited | Failure":
        """Visit the stage; what it says, or what it raised, explained. Raises nothing.

        Args:
            elsewhere: Visits it, if it is not here.
        """
        program, first = self.flight.program, len(self.path) == 1
        batch = self.flight.raw if first else ()
        try:
            try:
                program.check_before(batch, 1)  # the networks' mode
                found: StageOutput | Visited
                if elsewhere is None:
                    said = found = self.flight.visit(self.stage, None)
                else:
                    found = elsewhere(asked_of(self.flight, self.path))
                    self.flight.came(self.stage, found.carries)
                    said = found.said
            finally:
                program.check_modes()
            if first:
                program.check_after(batch, said.width)
        except Exception as error:  # noqa: BLE001  (whatever a network raises)
            if isinstance(error, ServiceError):  # asked again in halves it would say the same
                return Failure(error, whole=True)
            if first:
                return Failure(program.explained(batch, error), program.is_another_kind(batch))
            return Failure(error)
        return found


@final
@dataclass(frozen=True, slots=True)
class Failure:
    """What came of a job that did not run.

    Args:
        error: What it raised.
        whole: True where it is known that all its examples are to blame.
    """

    error: Exception
    whole: bool = False


@final
@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """Examples that a batcher has done with: either an answer, or an error.

    Args:
        numbers: Of `Batcher.put`, `(k,)`.
        ids: Names or numbers that they came with, `(k,)`.
        answer: To all of them, or None.
        error: Why there is none.
    """

    numbers: Numbers
    ids: Ids
    answer: Prediction | None = None
    error: Exception | None = None

    def parts(self, owners: Sequence[Sequence[int]]) -> Sequence[Prediction | Exception]:
        """What each of some owners is told, who have these positions, and all of them together."""
        if self.answer is None:
            return [self.error or UnsupportedError("Nobody has answered.")] * len(owners)
        if len(owners) == 1:
            return [self.answer]
        if len(owners) == len(self.numbers):
            return self.answer.singles()
        return [self.answer.take(here) for here in owners]


@final
@dataclass(frozen=True, slots=True)
class Ticket:
    """What is known of one example that was accepted and is not finished."""

    name: int | str
    since: float
    deadline: float
    budget: float
    urgency: Urgency


@final
@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """Examples in a pool; the rest is that of the most urgent, the oldest, the first to be late."""

    flight: InFlight
    urgency: Urgency
    since: float
    deadline: float


@final
@dataclass(slots=True)
class Pool:
    """Who waits for the stage at the end of a path, in one form, the most urgent first."""

    path: Path
    waiting: list[Waiting] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(one.flight) for one in self.waiting)

    @property
    def first(self) -> bool:
        """True before the first stage, which takes batches as they come."""
        return len(self.path) == 1

    def add(self, flight: InFlight, tickets: Mapping[int, Ticket]) -> None:
        """Examples wait from now on; each has a ticket."""
        theirs = [tickets[number] for number in numbers_of(flight)]
        waiting = Waiting(
            flight,
            min(ticket.urgency for ticket in theirs),
            min(ticket.since for ticket in theirs),
            min(ticket.deadline for ticket in theirs),
        )
        bisect.insort(self.waiting, waiting, key=lambda one: one.urgency)

    def take(self, count: int, tickets: Mapping[int, Ticket]) -> InFlight:
        """The most urgent, so many of them; all where there are fewer."""
        missing, taken = count, list[InFlight]()
        while missing > 0 and self.waiting:
            flight = self.waiting[0].flight
            if len(flight) > missing and self.first and taken:
                break
            del self.waiting[0]
            if len(flight) > missing and not self.first:
                flight, rest = _cut(flight, missing, tickets)
                self.add(rest, tickets)
            taken.append(flight)
            missing -= len(flight)
        return taken[0].concat(taken[1:])


def numbers_of(flight: InFlight) -> list[int]:
    """Who some examples are to the batcher that has taken them in."""
    return [] if flight.numbers is None else flight.numbers.tolist()


def _cut(flight: InFlight, count: int, tickets: Mapping[int, Ticket]) -> tuple[InFlight, InFlight]:
    """The most urgent examples, some of them, and the others."""
    urgent = [tickets[number].urgency for number in numbers_of(flight)]
    order = sorted(range(len(flight)), key=urgent.__getitem__)
    first, rest = (
        torch.tensor(sorted(part), device=flight.ids.device)
        for part in (order[:count], order[count:])
    )
    return flight.take(first), flight.take(rest)


def check_budget(program: Program, budget: float) -> None:
    """Raise `InputError` where a budget does not allow the first stage, or nobody knows."""
    if program.costs is None:
        raise InputError(
            f"budget must be None where no costs are known, got {budget}. Give the costs of "
            "the stages: Adaptive(cascade, choice, costs=costs)."
        )
    first = program.costs[program.paths[program.topology.root,]]
    if not budget >= first:
        raise InputError(
            f"budget must be at least what the first stage costs, {first:g}, got {budget}."
        )
