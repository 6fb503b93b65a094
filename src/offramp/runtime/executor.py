"""An adaptive model that many callers ask at once: threads around one batcher.

Thread-safe: `Executor.submit`, `Executor.future` and `Executor.close`, from any thread and any
event loop. The batcher is used under one lock; stages run outside of it, several at a time. What
only waits, such as a service, does so in threads of its own, and no computing waits for it. A
module that can run one batch at a time (`reentrant = False`, such as CUDA graphs) has a lock of its
own. Not thread-safe: changing or moving the model while an executor has it, and calling the model
directly if it holds such a module.

Layer: runtime.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from offramp._core.batch import batch_size, to_device
from offramp._core.checks import check_known, check_positive_int
from offramp._core.deadline import within
from offramp._core.errors import InputError, UnsupportedError
from offramp._core.ids import as_ids
from offramp._core.keys import example_keys
from offramp._core.outputs import StageOutput
from offramp._core.types import AnyBatch, Ids
from offramp.runtime.adaptive import Adaptive
from offramp.runtime.elsewhere import Asked, Elsewhere, Visited
from offramp.runtime.explained import Visit, explain
from offramp.runtime.inflight import InFlight, enter
from offramp.runtime.pools import Failure, Job, numbers_of
from offramp.runtime.prediction import Prediction
from offramp.runtime.request import Request, settle

_log = logging.getLogger(__name__)
_HERE = ""  # the lane of stages that run in this process beside others that do not
_FADES = 0.98  # of what an answer was taken up late, with each that follows


class Ran(NamedTuple):
    """A batch that a stage has run.

    Args:
        stage: Name of the stage.
        examples: How many visited it.
        full: How many would have been a full batch.
        seconds: How long it took, waiting for a module that runs alone not counted.
        failed: Whether it raised an error.
    """

    stage: str
    examples: int
    full: int
    seconds: float
    failed: bool


@final
class Executor:
    """Runs an adaptive model for many callers; survivors of their requests go on together.

    Args:
        model: What runs; nobody else changes it meanwhile.
        workers: Threads that run stages.
        batch_size: A full batch, as in `Adaptive.stream`.
        patience: Seconds after which an example waits for no others any more.
        clock: Gives seconds that do not go back; for tests.
        gears: Models over the same stages, by name, that a request may ask for; by default those
            of `model.gears`. Examples of one gear share batches; all share the threads.
        elsewhere: Runs the stages that it has lanes for; beside `workers`, which run the others,
            there are then as many threads as it takes batches.
        observer: Told of each batch that a stage has run, by the thread that ran it; it must be
            quick, and what it raises is logged.

    Raises:
        InputError: If `workers` or a batch size is no integer of at least 1, `patience` is
            negative, or a gear has other stages.

    >>> from offramp.stages import Cascade
    >>> model = Adaptive.single(Cascade.from_models({"a": torch.nn.Linear(4, 3)}), "a")
    >>> async def ask():
    ...     with Executor(model) as executor:
    ...         return await asyncio.gather(*(executor.submit(torch.zeros(2, 4)) for _ in range(3)))
    >>> [len(answer) for answer in asyncio.run(ask())]
    [2, 2, 2]
    """

    def __init__(
        self,
        model: Adaptive,
        *,
        workers: int = 2,
        batch_size: int | Mapping[str, int] | None = None,
        patience: float = 0.002,
        clock: Callable[[], float] = time.monotonic,
        gears: Mapping[str, Adaptive] | None = None,
        elsewhere: Elsewhere | None = None,
        observer: Callable[["Ran"], None] | None = None,
    ) -> None:
        check_positive_int("workers", workers)
        self._model, self._clock, self._observer = model, clock, observer
        if gears is None:
            gears = {name: model.in_gear(name) for name in model.gears.names}
        self._gears = dict(gears)
        models = (model, *self._gears.values())
        for name, each in self._gears.items():
            each.policy.topology.check_same_stages(model.policy.topology, f"gear {name!r}")
        self._stages = {k: stage for each in models for k, stage in each.program.stages.items()}
        self._batcher = model.batcher(
            batch_size=batch_size, patience=patience, others=self._gears.values()
        )
        computing = [k for k, stage in self._stages.items() if not stage.waits]
        self._elsewhere, away = elsewhere, dict[int, tuple[str, int]]()
        if elsewhere is not None:
            there = {k: elsewhere.lanes.get(model.stage_names[k]) for k in computing}
            away = {k: lane for k, lane in there.items() if lane is not None}
        lanes = dict.fromkeys(computing, (_HERE, workers)) | away if away else {}
        workers = sum(dict(lanes.values()).values()) or workers
        self._away = frozenset(away)
        self._gear_of = {each.program: name for name, each in self._gears.items()}
        self._batcher.driven_by(workers, computing, lanes)
        self._requests: dict[int, Request] = {}  # by the number of each example that is not done
        self._lock = threading.RLock()  # callbacks of futures may ask again
        self._changed = threading.Condition(self._lock)
        self._closing, self._lag = False, 0.0
        self._locks = _locks_of(models)
        calls = sum(stage.waits for stage in self._stages.values())
        self._waiting = ThreadPoolExecutor(calls) if calls else None  # begins threads when needed
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    async def submit(
        self,
        rows: AnyBatch,
        ids: Tensor | Ids | Sequence[int | str] | None = None,
        *,
        deadline: float | None = None,
        budget: float | None = None,
        priority: float = 0,
        gear: str | None = None,
    ) -> Prediction:
        """Answer a batch, in the order of its rows, together with those of others.

        If whoever awaits this is cancelled, its examples are let go.

        Args:
            rows: As in `Adaptive.forward`, at least one example.
            ids: As in `Adaptive.forward`.
            deadline: Seconds from now on. No stage is begun that would take longer; then what an
                example has visited answers, with the reason "deadline". A service that is asked
                then is waited for no longer; it has failed.
            budget: The most that each example may cost; what does not fit is not begun, and the
                reason is "budget".
            priority: Those of higher priority go first.
            gear: Name of the gear that answers; None for `model` itself.

        Raises:
            InputError: As in `Adaptive.forward`; or no costs are known, or the first stage costs
                more than `budget`; or there are no gears.
            UnknownNameError: If there is no such gear.
            RowsError: If only some rows can be answered. A single row raises its own error.
            UnsupportedError: If the executor is closed.
        """
        request = self._accepted(
            rows, ids, asyncio.get_running_loop(), deadline, budget, priority, gear
        )
        try:
            answer: Prediction = await request.future  # type: ignore[misc]  # of this loop
            return answer
        except asyncio.CancelledError:
            self._let_go(request)
            raise
        finally:
            self._lag = max(_FADES * self._lag, time.monotonic() - request.settled)

    def future(
        self,
        rows: AnyBatch,
        ids: Tensor | Ids | Sequence[int | str] | None = None,
        *,
        deadline: float | None = None,
        budget: float | None = None,
        priority: float = 0,
        gear: str | None = None,
    ) -> Future[Prediction]:
        """As `submit`, for callers without an event loop; cancelling the future lets go."""
        request = self._accepted(rows, ids, None, deadline, budget, priority, gear)
        future: Future[Prediction] = request.future  # type: ignore[assignment]
        future.add_done_callback(lambda done: self._let_go(request) if done.cancelled() else None)
        return future

    def _accepted(
        self,
        rows: AnyBatch,
        ids: Tensor | Ids | Sequence[int | str] | None,
        loop: asyncio.AbstractEventLoop | None,
        deadline: float | None,
        budget: float | None,
        priority: float,
        gear: str | None,
    ) -> Request:
        program = self._model.program if gear is None else self._in_gear(gear).program
        batch = program.take_in(rows)
        n = batch_size(batch)
        names = np.arange(n) if ids is None else as_ids(ids)
        if n == 0 or names.shape != (n,):
            raise InputError(
                f"rows must hold at least one example and ids one entry for each, got {n} "
                f"examples and ids of shape {names.shape}."
            )
        request = Request(n, loop)
        device = self._model.policy.temperatures.device
        keys, given = example_keys(names).to(device), to_device(batch, device)
        with self._lock:
            self._check_open()
            flight = (InFlight if program.checked else enter)(program, given, keys)
            now = self._clock()
            late = None if deadline is None else now + deadline
            numbers = self._batcher.put(
                flight, names, now, deadline=late, budget=budget, priority=priority
            ).tolist()
            request.first = numbers[0]
            self._requests |= dict.fromkeys(numbers, request)
            self._changed.notify()
        return request

    def explain(
        self, example: AnyBatch, id: int | str = 0, *, gear: str | None = None
    ) -> tuple[Prediction, tuple[Visit, ...]]:
        """One example stage by stage, in the thread of the caller; it shares no batch.

        Args:
            example: As in `offramp.runtime.explain`, like what is raised.
            id: Its key.
            gear: As in `submit`.
        """
        model = self._model if gear is None else self._in_gear(gear)
        with self._holding(self._stages):
            return explain(model, example, id)

    @property
    def gears(self) -> tuple[str, ...]:
        """The gears that a request may ask for."""
        return tuple(self._gears)

    @property
    def unfinished(self) -> int:
        """How many examples were accepted and are not finished."""
        return len(self._requests)

    @property
    def lag(self) -> float:
        """Seconds by which answers were taken up of late, once they were there, in event loops."""
        return self._lag

    def waiting(self) -> dict[str, int]:
        """How many examples wait in front of each stage, by its name."""
        with self._lock:
            found = self._batcher.waiting()
        return {name: found.get(k, 0) for k, name in enumerate(self._model.stage_names)}

    def backlog(self, more: int = 0, *, gear: str | None = None, priority: float = 0) -> float:
        """Seconds until everybody is answered who was accepted, as far as is known by now.

        It counts the batches that run, and who waits: for all that is still before them, if as
        many go on as of late.

        Args:
            more: So many examples more.
            gear: They ask for this one.
            priority: Those of lower priority are passed over.
        """
        program = (self._model if gear is None else self._in_gear(gear)).program
        with self._lock:
            return self._batcher.backlog(self._clock(), priority, (program, more))

    def delay(self, priority: float = 0) -> float:
        """Seconds since the oldest of those was accepted who wait now; 0 if nobody waits.

        Args:
            priority: Those of lower priority are passed over.
        """
        with self._lock:
            since = self._batcher.oldest(priority)
        return self._seconds_since(since)

    def age(self, priority: float = 0) -> float:
        """Seconds since the oldest of those was accepted who are not finished; 0 without any.

        Args:
            priority: Those of lower priority are passed over.
        """
        with self._lock:
            since = self._batcher.begun(priority)
        return self._seconds_since(since)

    def busy(self) -> float:
        """Seconds for which a stage has been running a batch; 0 if none runs, or only waits."""
        with self._lock:
            since = self._batcher.running()
        return self._seconds_since(since)

    def _seconds_since(self, then: float | None) -> float:
        return 0.0 if then is None else max(self._clock() - then, 0.0)

    def close(self, *, answer: bool = True) -> None:
        """Take nothing more, and come back when nobody waits.

        Args:
            answer: True answers everybody who was accepted first; else they are told
                `UnsupportedError` as soon as the stages that run now have ended.
        """
        with self._lock:
            self._closing = True
            if not answer:
                self._fail_all(UnsupportedError("The executor was closed before it answered."))
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        if self._waiting is not None:
            self._waiting.shutdown(cancel_futures=not answer)

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- threads

    @torch.inference_mode()
    def _work(self) -> None:
        while (job := self._next()) is not None:
            if self._waiting is not None and self._stages[job.stage].waits:
                self._waiting.submit(self._wait_for, job)
            else:
                self._run(job)

    def _wait_for(self, job: Job) -> None:
        """Run a job that only waits, unless all its callers have gone: it might have to be paid."""
        with self._lock:
            wanted = any(number in self._requests for number in numbers_of(job.flight))
            left = self._batcher.deadline_of(job) - self._clock()
            if not wanted:
                self._batcher.failed(job, UnsupportedError("Nobody waits for it."), self._clock())
        if wanted:
            with within(left):
                self._run(job)

    @torch.inference_mode()
    def _run(self, job: Job) -> None:
        with self._holding((*job.flight.program.plans[job.stage].segments, job.stage)):
            begun = 0.0 if self._observer is None else self._clock()
            outcome = job.run(self._visit_of(job))
        if self._observer is not None:
            self._tell(self._observer, job, outcome, self._clock() - begun)
        with self._lock:
            try:
                self._batcher.tell(job, outcome, self._clock())
                self._deliver()
            except Exception as error:  # noqa: BLE001  (nobody may wait for ever)
                self._fail_all(error)
            self._changed.notify_all()

    def _visit_of(self, job: Job) -> Callable[[Asked], Visited] | None:
        """What visits the stage of a job, if not this thread."""
        if self._elsewhere is None or job.stage not in self._away:
            return None
        return partial(self._elsewhere, self._gear_of.get(job.flight.program))

    def _tell(
        self,
        observer: Callable[["Ran"], None],
        job: Job,
        outcome: StageOutput | Visited | Failure,
        seconds: float,
    ) -> None:
        each = [(job.stage, len(job), seconds)]
        if isinstance(outcome, Visited):
            each = [(k, len(one.said), one.seconds) for k, one in outcome.each(job.stage)]
        failed = isinstance(outcome, Failure)
        try:
            for k, n, taken in each:
                name, full = self._model.stage_names[k], self._batcher.full(k)
                observer(Ran(name, n, full, taken, failed))
        except Exception:  # noqa: BLE001  (a stage has run; its examples must be answered)
            _log.exception("The observer of an executor has raised an error.")

    def _next(self) -> Job | None:
        """Wait for a job; None when there are none any more."""
        with self._lock:
            while True:
                now = self._clock()
                try:
                    job = self._batcher.next_job(now, flush=self._closing)
                    self._deliver()
                except Exception as error:  # noqa: BLE001  (nobody may wait for ever)
                    self._fail_all(error)
                    continue
                if job is not None:
                    return job
                if self._closing and not self._requests:
                    return None
                wake = self._batcher.wake_at(now)
                self._changed.wait(None if wake is None else max(wake - now, 0.0))

    @contextmanager
    def _holding(self, stages: Iterable[int]) -> Iterator[None]:
        """Hold the locks of stages, always in the same order."""
        wanted = sorted({k for stage in stages for k in self._locks.get(stage, {})})
        with ExitStack() as held:
            for k in wanted:
                held.enter_context(next(of[k] for of in self._locks.values() if k in of))
            yield

    def _deliver(self) -> None:
        for done in self._batcher.finished():
            numbers, owners = done.numbers.tolist(), dict[Request, list[int]]()
            for k, number in enumerate(numbers):
                owners.setdefault(self._requests.pop(number), []).append(k)
            parts = done.parts(list(owners.values()))
            for (request, here), part in zip(owners.items(), parts, strict=True):
                request.take([numbers[k] for k in here], part)
            settle(request for request in owners if not request.missing)

    def _let_go(self, request: Request) -> None:
        """Forget the examples of a request whose caller has gone."""
        with self._lock:
            numbers = range(request.first, request.first + request.n)
            self._batcher.cancel(numbers)
            for number in numbers:
                self._requests.pop(number, None)
            self._changed.notify_all()

    def _fail_all(self, error: Exception) -> None:
        requests = dict.fromkeys(self._requests.values())
        self._batcher.cancel(list(self._requests))
        self._requests.clear()
        settle(requests, error)

    def _in_gear(self, gear: str) -> Adaptive:
        if not self._gears:
            raise InputError(
                f"gear must be None where a model has no gears, got {gear!r}. Make some with "
                "Frontier.gears, and save them with the model: save(model, folder)."
            )
        return self._gears[check_known("gear", gear, self._gears)]

    def _check_open(self) -> None:
        if self._closing:
            raise UnsupportedError("The executor is closed; make a new one: Executor(model).")


def _locks_of(models: Iterable[Adaptive]) -> dict[int, dict[int, threading.Lock]]:
    """For each stage the locks of its modules that run one batch at a time, by module."""
    locks: dict[int, threading.Lock] = {}
    found: dict[int, dict[int, threading.Lock]] = {}
    for k, stage in (held for model in models for held in model.program.stages.items()):
        alone = [id(part) for part in stage.modules() if not getattr(part, "reentrant", True)]
        found.setdefault(k, {}).update(
            {part: locks.setdefault(part, threading.Lock()) for part in alone}
        )
    return found
