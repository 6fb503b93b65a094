"""A scheduler without I/O: examples of many requests wait for each other in front of stages.

It has no threads, no sockets, and no clock: whoever drives it says what time it is, runs the jobs
that it hands out, in any order and several at a time, and tells it what came of them. Survivors
gather at each node of the tree of visit paths until there is a full batch, one pool for each form
of what they bring along: texts of other lengths cannot be joined. Examples of several programs
over the same stages may be put in; each goes its own way, with those of its own.

Every example that was put in is handed out once, answered or with the error that is its own, unless
it was cancelled (docs/adr/0035-a-scheduler-without-a-clock.md).

Not thread-safe: calls come one after the other, as under a lock. `Job.run` is outside of it.

Layer: runtime.  Source: methods.md 6; measured.md (carry-over of survivors to full batches).
"""

import logging
import math
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from typing import final

import numpy as np
import torch

from offramp._core.batch import Form
from offramp._core.checks import check_not_negative
from offramp._core.errors import InputError
from offramp._core.outputs import StageOutput
from offramp._core.topology import EXIT, Path
from offramp._core.types import Ids
from offramp.runtime.elsewhere import Visited
from offramp.runtime.inflight import InFlight, Numbers
from offramp.runtime.pace import Pace
from offramp.runtime.pools import (
    Failure,
    Finished,
    Job,
    Pool,
    Ticket,
    check_budget,
    numbers_of,
)
from offramp.runtime.prediction import Prediction, Rows
from offramp.runtime.program import Program
from offramp.runtime.walk import decide, leave

_log = logging.getLogger(__name__)
_SLOWER = 1.25  # times what batches took of late


@final
class Batcher:
    """Decides who visits which stage together, and when.

    Args:
        full: For each stage the size of a full batch (`full_sizes`).
        seconds: What a full batch takes at each stage, where `Program.expected_seconds` knows it;
            later what batches have taken (`Pace`).
        patience: Seconds after which an example waits for no others any more; None to wait until
            a batch is full, somebody's deadline comes near, or the driver says that nobody comes.

    Raises:
        InputError: If `patience` is negative.
    """

    def __init__(
        self,
        full: Mapping[int, int],
        seconds: Mapping[int, float],
        *,
        patience: float | None = None,
    ) -> None:
        self._patience = math.inf
        if patience is not None:
            self._patience = check_not_negative("patience", patience)
        self._full, self._pace = full, Pace(full, seconds)
        self._workers, self._counted = 1, frozenset(full)
        self._lanes: Mapping[int, tuple[str, int]] = {}
        self._tickets: dict[int, Ticket] = {}
        self._pools: dict[tuple[Program, Path, Form], Pool] = {}
        self._apart: deque[tuple[Path, InFlight]] = deque()  # who may not be joined with others
        self._running: set[Job] = set()
        self._finished: list[Finished] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def full(self, stage: int) -> int:
        """How many examples make a full batch of a stage."""
        return self._full[stage]

    def waiting(self) -> dict[int, int]:
        """How many examples wait for each stage, by index; stages without any are left out."""
        found: dict[int, int] = {}
        for pool in self._pools.values():
            found[pool.path[-1]] = found.get(pool.path[-1], 0) + len(pool)
        for path, flight in self._apart:
            found[path[-1]] = found.get(path[-1], 0) + len(flight)
        return found

    def begun(self, priority: float) -> float | None:
        """When the first of those was put in who are not finished and have this priority."""
        each = (t.since for t in self._tickets.values() if t.urgency[0] <= -priority)
        return next(each, None)  # they stand in the order in which they came

    def running(self) -> float | None:
        """When the first of the jobs was handed out that run, those that only wait not counted."""
        return min((job.since for job in self._running if job.stage in self._counted), default=None)

    def oldest(self, priority: float) -> float | None:
        """The same of those who wait."""
        each = (one for pool in self._pools.values() for one in pool.waiting)
        return min((one.since for one in each if one.urgency[0] <= -priority), default=None)

    def backlog(
        self, now: float, priority: float = -math.inf, more: tuple[Program, int] | None = None
    ) -> float:
        """Seconds of work that is ahead, as far as is known: of all who are here, to their ends.

        Args:
            now: The time.
            priority: Those of lower priority are passed over, but for jobs that run.
            more: A program, and how many examples of it are still to be put in.
        """
        waiting = Counter[tuple[Program, int]]()
        for path, flight in self._apart:
            waiting[flight.program, path[-1]] += len(flight)
        for pool in self._pools.values():
            for one in pool.waiting:
                if one.urgency[0] <= -priority:
                    waiting[one.flight.program, pool.path[-1]] += len(one.flight)
        if more is not None:
            waiting[more[0], more[0].topology.root] += more[1]
        total = self._pace.left(self._running, now, self._counted)
        total += sum(n * self._pace.ahead(*at, self._counted) for at, n in waiting.items())
        return total / self._workers

    # ---- what the driver tells

    def driven_by(
        self,
        workers: int,
        counted: Collection[int],
        lanes: Mapping[int, tuple[str, int]] | None = None,
    ) -> None:
        """So many jobs run at a time, of some stages; those of others only wait, and elsewhere.

        Args:
            workers: How many.
            counted: The stages.
            lanes: For stages that run elsewhere, where, and how many jobs that takes at a time.
        """
        self._workers, self._counted, self._lanes = workers, frozenset(counted), lanes or {}

    def put(
        self,
        flight: InFlight,
        ids: Ids,
        now: float,
        *,
        deadline: float | None = None,
        budget: float | None = None,
        priority: float = 0,
    ) -> Numbers:
        """Accept examples that have visited nothing yet.

        Args:
            flight: They.
            ids: What they are called in answers, `(n,)`; need not differ.
            now: The time, in seconds of any clock that does not go back.
            deadline: Time at which they should be answered. No stage is begun that would take
                longer; then what they have visited answers. The first stage always runs.
            budget: The most that each may cost; the first stage is paid in any case.
            priority: Those of higher priority go first.

        Returns:
            A number for each, unlike all that were given before.

        Raises:
            InputError: If the budget is less than the first stage costs, or no costs are known.
        """
        if budget is not None:
            check_budget(flight.program, budget)
        numbers = np.arange(self._count, self._count + len(flight))
        self._count += len(flight)
        late = math.inf if deadline is None else deadline
        most = math.inf if budget is None else budget
        for number, name in zip(numbers.tolist(), ids.tolist(), strict=True):
            urgency = (-float(priority), late, number)
            self._tickets[number] = Ticket(name, now, late, most, urgency)
        flight.numbers = numbers
        if len(flight):
            self._wait((flight.program.topology.root,), flight)
        return numbers

    def done(self, job: Job, said: StageOutput | Visited, now: float) -> None:
        """A job has run: some of its examples are answered, the others wait again."""
        self._take_back(job)
        self._pace.saw(job.stage, len(job), max(now - job.since, 0.0))
        self._heard(job.path, job.flight, said)

    def _heard(self, path: Path, flight: InFlight, found: StageOutput | Visited) -> None:
        """Examples have visited the last stage of their path."""
        there = found if isinstance(found, Visited) else None
        ahead = {} if there is None else there.ahead
        try:
            flight.hear(path[-1], None, found.said if isinstance(found, Visited) else found)
            parts = decide(flight, [(path, None)])
            if there is not None:
                there.check_agrees({child: rows for (_, rows), child in parts}, len(flight))
        except Exception as error:  # noqa: BLE001  (else everybody in the job would be lost)
            self._give_up(flight, error)
            return
        for (_, rows), child in parts:
            count = len(flight) if rows is None else len(rows)
            self._pace.went(flight.program, path[-1], child, count)
            if child == EXIT:
                self._leave(path, flight, rows)
            elif child in ahead:
                self._have_gone_on(path, child, flight, rows, ahead[child])
            else:
                self._go_on(path, child, flight, rows)

    def failed(self, job: Job, error: Exception, now: float, *, whole: bool = False) -> None:
        """A job has raised an error: its halves run again, until who is to blame stands alone.

        Args:
            job: Of `next_job`.
            error: What it has raised.
            now: The time.
            whole: True where it is known that all examples are to blame.
        """
        self._take_back(job)
        job.flight.undo()
        alive = self._alive(job.flight)
        if alive is None:
            return
        if whole or len(job) == 1:
            self._give_up(alive, error)
            return
        _log.info("%d examples have failed and run again in halves: %s", len(alive), error)
        rows = torch.arange(len(alive), device=alive.ids.device)
        # One may be left of several: those who were cancelled meanwhile may be to blame.
        halves = [alive.take(part) for part in rows.tensor_split(2) if len(part)]
        self._apart.extendleft((job.path, half) for half in reversed(halves))

    def tell(self, job: Job, outcome: StageOutput | Visited | Failure, now: float) -> None:
        """`done` or `failed`, whichever it was."""
        if isinstance(outcome, Failure):
            self.failed(job, outcome.error, now, whole=outcome.whole)
        else:
            self.done(job, outcome, now)

    def deadline_of(self, job: Job) -> float:
        """Time by which the last of a job's examples should be answered; infinity for none."""
        tickets = [self._tickets.get(number) for number in numbers_of(job.flight)]
        return max((one.deadline for one in tickets if one is not None), default=math.inf)

    def cancel(self, numbers: Collection[int]) -> int:
        """Forget examples, wherever they are; whoever is in a job leaves it unanswered.

        Returns:
            How many of them were not finished.
        """
        gone = [n for n in (int(number) for number in numbers) if self._tickets.pop(n, None)]
        if gone:
            pools, apart = list(self._pools.values()), list(self._apart)
            self._pools, self._apart = {}, deque()
            for path, flight in [(pool.path, one.flight) for pool in pools for one in pool.waiting]:
                if (alive := self._alive(flight)) is not None:
                    self._wait(path, alive)
            kept = [(path, self._alive(flight)) for path, flight in apart]
            self._apart.extend((path, alive) for path, alive in kept if alive is not None)
        return len(gone)

    # ---- what the driver asks

    def next_job(self, now: float, *, flush: bool = False) -> Job | None:
        """Who should visit a stage together now, or None if it is better to wait.

        Args:
            now: The time.
            flush: True where nobody else is going to come: then nobody is waited for.
        """
        self._expire(now)
        if self._apart:
            return self._hand_out(*self._apart.popleft(), now)
        pools = [each for each in self._pools.items() if self._has_room(each[1])]
        due = [each for each in pools if flush or self._due_at(each[1]) <= now]
        if not due:
            return None
        latest = now + max(self._seconds(pool.path[-1], len(pool)) for _, pool in due)
        key, pool = min(due, key=lambda each: self._order(each[1], latest))
        flight = pool.take(self._fitting(pool, now), self._tickets)
        if not pool.waiting:
            del self._pools[key]
        job = self._hand_out(pool.path, flight, now)
        if sum(other.stage in self._counted for other in self._running) >= self._workers:
            self._expire(now + self._seconds(job.stage, len(job)))
        return job

    def wake_at(self, now: float) -> float | None:
        """When `next_job` should be asked again if nothing happens before; None for never."""
        if self._apart:
            return now
        pools = filter(self._has_room, self._pools.values())
        first = min(map(self._due_at, pools), default=math.inf)
        return None if first == math.inf else max(first, now)

    def finished(self) -> list[Finished]:
        """Who was finished since this was last asked."""
        found, self._finished = self._finished, []
        return found

    # ---- waiting

    def _wait(self, path: Path, flight: InFlight) -> None:
        pool = self._pools.setdefault((flight.program, path, flight.form), Pool(path))
        pool.add(flight, self._tickets)

    def _has_room(self, pool: Pool) -> bool:
        """Whether its stage takes another job; where it has none, its pool goes on filling."""
        if not self._lanes or pool.path[-1] not in self._lanes:
            return True
        lane, room = self._lanes[pool.path[-1]]
        taken = (self._lanes.get(job.stage, ("", 0))[0] for job in self._running)
        return sum(one == lane for one in taken) < room

    def _due_at(self, pool: Pool) -> float:
        """From when on a pool should be waited for no longer."""
        stage = pool.path[-1]
        if pool.first or len(pool) >= self._full[stage]:
            return -math.inf
        oldest = min(one.since for one in pool.waiting) + self._patience
        first = min(one.deadline for one in pool.waiting)
        if first == math.inf:
            return oldest
        seconds = self._pace.seconds(stage, len(pool))
        # Twice: the clock goes on before the stage begins.
        return -math.inf if seconds is None else min(oldest, first - 2 * seconds)

    def _order(self, pool: Pool, latest: float) -> tuple[float, bool, bool, float, int]:
        """Least for the pool that should go first.

        That is who would be late if another went first, which ends at `latest`; then full batches,
        which cost least for each example. Meanwhile the others fill.
        """
        less, deadline, number = pool.waiting[0].urgency
        calm = latest + self._seconds(pool.path[-1], len(pool)) <= deadline
        return less, calm, len(pool) < self._full[pool.path[-1]], deadline, number

    def _fitting(self, pool: Pool, now: float) -> int:
        """How many should go together, so that the most urgent is in time; a full batch if never.

        It is in time at least alone, or this is the first stage, which runs in any case.
        """
        stage, left = pool.path[-1], pool.waiting[0].deadline - now
        full = size = self._full[stage]
        while size > 1 and self._seconds(stage, size) > left:
            size //= 2
        return size if self._seconds(stage, size) <= left else full

    def _seconds(self, stage: int, size: int) -> float:
        """What so many take at a stage, a full batch at most, even if it is slower than of late."""
        return _SLOWER * (self._pace.seconds(stage, min(size, self._full[stage])) or 0.0)

    def _expire(self, now: float) -> None:
        """Who cannot visit another stage in time is answered by what there is."""
        for key, pool in list(self._pools.items()):
            late = now + self._seconds(pool.path[-1], 1)
            if pool.first or all(one.deadline >= late for one in pool.waiting):
                continue
            del self._pools[key]
            for one in pool.waiting:
                kept = self._in_time(pool.path, one.flight, late)
                if kept is not None:
                    self._wait(pool.path, kept)
        if any(len(path) > 1 for path, _ in self._apart):
            apart, self._apart = self._apart, deque()
            for path, flight in apart:
                late = now + self._seconds(path[-1], len(flight))
                kept = flight if len(path) == 1 else self._in_time(path, flight, late)
                if kept is not None:
                    self._apart.append((path, kept))

    def _in_time(self, path: Path, flight: InFlight, late: float) -> InFlight | None:
        """Those whose deadline is not before `late`; the others leave where they are."""
        may = [self._tickets[number].deadline >= late for number in numbers_of(flight)]
        return self._part(path[:-1], flight, "deadline", may)

    # ---- going on and leaving

    def _hand_out(self, path: Path, flight: InFlight, now: float) -> Job:
        job = Job(path, flight, now)
        self._running.add(job)
        return job

    def _take_back(self, job: Job) -> None:
        if job not in self._running:
            raise InputError("job must be one that runs: of next_job, and not told of before.")
        self._running.remove(job)

    def _have_gone_on(
        self, path: Path, child: int, flight: InFlight, rows: Rows, ahead: Visited
    ) -> None:
        """Examples have visited the next stage as well, where they were."""
        whole = flight.take(rows)
        part = self._affordable(path, child, whole)
        if part is None:
            return
        kept = None
        if len(part) < len(whole) and whole.numbers is not None and part.numbers is not None:
            kept = torch.from_numpy(np.isin(whole.numbers, part.numbers)).nonzero()[:, 0]
        visited = ahead.take(kept)
        part.came(child, visited.carries)
        self._heard((*path, child), part, visited)

    def _go_on(self, path: Path, child: int, flight: InFlight, rows: Rows) -> None:
        part = self._affordable(path, child, flight.take(rows))
        if part is None:
            return
        if part.broken:  # what is not finite waits for nobody
            self._apart.append(((*path, child), part))
        else:
            self._wait((*path, child), part)

    def _affordable(self, path: Path, child: int, flight: InFlight) -> InFlight | None:
        """Those who are still wanted, and may pay the next stage; the others leave."""
        part, way, program = self._alive(flight), (*path, child), flight.program
        if part is not None and program.costs is not None:
            cost, paid = program.costs[program.paths[way]], part.paid(path, None)
            most = [cost] * len(part) if paid is None else (cost + paid).tolist()
            may = [
                self._tickets[number].budget >= cost
                for number, cost in zip(numbers_of(part), most, strict=True)
            ]
            part = self._part(path, part, "budget", may)
        return part

    def _part(
        self, path: Path, flight: InFlight, reason: str, may: Sequence[bool]
    ) -> InFlight | None:
        """Those who may go on; the others leave at the end of `path`."""
        if all(may):
            return flight
        keep = torch.tensor(may, device=flight.ids.device)
        self._leave(path, flight, (~keep).nonzero()[:, 0], reason)
        return flight.take(keep.nonzero()[:, 0]) if any(may) else None

    def _leave(self, path: Path, flight: InFlight, rows: Rows, reason: str | None = None) -> None:
        """Examples are answered by what the stages on `path` have said."""
        numbers = numbers_of(flight)
        positions = range(len(flight)) if rows is None else rows.tolist()
        alive = [row for row in positions if numbers[row] in self._tickets]
        if not alive:
            return
        if len(alive) < len(positions):
            rows = torch.tensor(alive, device=flight.ids.device)
        _, _, said, kept, paid = leave(flight, path, rows)
        answer = flight.program.answer(len(alive), [(path, None, said, kept, paid)], reason)
        self._finish([numbers[row] for row in alive], answer, None)

    def _give_up(self, flight: InFlight, error: Exception) -> None:
        alive = [number for number in numbers_of(flight) if number in self._tickets]
        if alive:
            self._finish(alive, None, error)

    def _finish(
        self, numbers: Sequence[int], answer: Prediction | None, error: Exception | None
    ) -> None:
        names = np.array([self._tickets.pop(number).name for number in numbers])
        self._finished.append(Finished(np.array(numbers), names, answer, error))

    def _alive(self, flight: InFlight) -> InFlight | None:
        """Those of whom nobody has cancelled."""
        there = [number in self._tickets for number in numbers_of(flight)]
        if all(there):
            return flight if there else None
        rows = [row for row, here in enumerate(there) if here]
        return flight.take(torch.tensor(rows, device=flight.ids.device)) if rows else None
