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
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import final

import numpy as np
import torch
from torch import Tensor

from offramp._core.batch import batch_size, to_device
from offramp._core.checks import check_positive_int
from offramp._core.deadline import within
from offramp._core.errors import InputError, OfframpError, UnsupportedError
from offramp._core.ids import as_ids
from offramp._core.keys import example_keys
from offramp._core.types import AnyBatch, Ids
from offramp.runtime.adaptive import Adaptive
from offramp.runtime.inflight import enter
from offramp.runtime.pools import Finished, Job, numbers_of
from offramp.runtime.prediction import Prediction, joined


class RowsError(OfframpError, RuntimeError):
    """Some examples of a request could not be answered; the others were.

    Args:
        answer: To all rows of the request; those without an answer are not `valid`, and their
            `reason` is "error". None where nobody was answered.
        errors: By row, why there is no answer.
    """

    def __init__(self, answer: Prediction | None, errors: Mapping[int, Exception]) -> None:
        rows = list(errors)
        first = errors[rows[0]]
        super().__init__(
            f"{len(rows)} examples of this request could not be answered, the first of them row "
            f"{rows[0]}: {type(first).__name__}: {first}. See `errors`; `answer` has the others."
        )
        self.answer, self.errors = answer, dict(errors)


@final
class _Request:
    """Examples of one caller, until all are finished."""

    def __init__(self, n: int) -> None:
        self.future: Future[Prediction] = Future()
        self.n, self.missing, self.first = n, n, 0
        self.parts: list[tuple[Tensor, Prediction]] = []
        self.errors: dict[int, Exception] = {}

    def take(self, done: Finished, here: Sequence[int]) -> None:
        """Some of its examples are finished: those at some positions of what a batcher gave."""
        rows = [int(done.numbers[k]) - self.first for k in here]
        self.missing -= len(rows)
        if done.answer is None:
            self.errors |= {row: done.error for row in rows if done.error is not None}
        else:
            part = done.answer if len(here) == len(done.numbers) else done.answer.take(here)
            self.parts.append((torch.tensor(rows), part))

    def settle(self) -> None:
        """Tell the caller, once nobody is missing."""
        if self.missing or not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self._outcome())
        except Exception as error:  # noqa: BLE001  (nobody may wait for ever)
            self.future.set_exception(error)

    def _outcome(self) -> Prediction:
        """The whole answer.

        Raises:
            RowsError: If some rows have none. A single row raises its own error.
        """
        if self.errors and self.n == 1:
            raise self.errors[0]
        answer = joined(self.n, self.parts) if self.parts else None
        if answer is None or self.errors:
            raise RowsError(answer, dict(sorted(self.errors.items())))
        return answer


@final
class Executor:
    """Runs an adaptive model for many callers; survivors of their requests go on together.

    Args:
        model: What runs; nobody else changes it meanwhile.
        workers: Threads that run stages.
        batch_size: A full batch, as in `Adaptive.stream`.
        patience: Seconds after which an example waits for no others any more.
        clock: Gives seconds that do not go back; for tests.

    Raises:
        InputError: If `workers` or a batch size is no integer of at least 1, or `patience` is
            negative.

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
    ) -> None:
        check_positive_int("workers", workers)
        self._model, self._clock = model, clock
        self._batcher = model.batcher(batch_size=batch_size, patience=patience)
        self._requests: dict[int, _Request] = {}  # by the number of each example that is not done
        self._changed = threading.Condition()
        self._closing = False
        self._locks = _locks_of(model)
        calls = sum(stage.waits for stage in model.program.stages.values())
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

        Raises:
            InputError: As in `Adaptive.forward`; or no costs are known, or the first stage costs
                more than `budget`.
            RowsError: If only some rows can be answered. A single row raises its own error.
            UnsupportedError: If the executor is closed.
        """
        future = self.future(rows, ids, deadline=deadline, budget=budget, priority=priority)
        return await asyncio.wrap_future(future)

    def future(
        self,
        rows: AnyBatch,
        ids: Tensor | Ids | Sequence[int | str] | None = None,
        *,
        deadline: float | None = None,
        budget: float | None = None,
        priority: float = 0,
    ) -> Future[Prediction]:
        """As `submit`, for callers without an event loop; cancelling the future lets go."""
        batch = self._model.program.take_in(rows)
        n, device = batch_size(batch), self._model.policy.temperatures.device
        names = np.arange(n) if ids is None else as_ids(ids)
        if n == 0 or names.shape != (n,):
            raise InputError(
                f"rows must hold at least one example and ids one entry for each, got {n} "
                f"examples and ids of shape {names.shape}."
            )
        request = _Request(n)
        keys, given = example_keys(names).to(device), to_device(batch, device)
        with torch.inference_mode(), self._changed:
            self._check_open()
            flight = enter(self._model.program, given, keys)
            now = self._clock()
            late = None if deadline is None else now + deadline
            numbers = self._batcher.put(
                flight, names, now, deadline=late, budget=budget, priority=priority
            )
            request.first = int(numbers[0])
            self._requests |= dict.fromkeys(numbers.tolist(), request)
            self._changed.notify()
        request.future.add_done_callback(lambda future: self._let_go(request, future))
        return request.future

    def close(self, *, answer: bool = True) -> None:
        """Take nothing more, and come back when nobody waits.

        Args:
            answer: True answers everybody who was accepted first; else they are told
                `UnsupportedError` as soon as the stages that run now have ended.
        """
        with self._changed:
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
            if self._waiting is not None and self._model.program.stages[job.stage].waits:
                self._waiting.submit(self._wait_for, job)
            else:
                self._run(job)

    def _wait_for(self, job: Job) -> None:
        """Run a job that only waits, unless all its callers have gone: it might have to be paid."""
        with self._changed:
            wanted = any(number in self._requests for number in numbers_of(job.flight))
            left = self._batcher.deadline_of(job) - self._clock()
            if not wanted:
                self._batcher.failed(job, UnsupportedError("Nobody waits for it."), self._clock())
        if wanted:
            with within(left):
                self._run(job)

    @torch.inference_mode()
    def _run(self, job: Job) -> None:
        with self._alone(job):
            outcome = job.run()
        with self._changed:
            try:
                self._batcher.tell(job, outcome, self._clock())
                self._deliver()
            except Exception as error:  # noqa: BLE001  (nobody may wait for ever)
                self._fail_all(error)
            self._changed.notify_all()

    def _next(self) -> Job | None:
        """Wait for a job; None when there are none any more."""
        with self._changed:
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
    def _alone(self, job: Job) -> Iterator[None]:
        """Hold the locks of what the job may run, always in the same order."""
        stages = (*self._model.program.plans[job.stage].segments, job.stage)
        wanted = sorted({k for stage in stages for k in self._locks.get(stage, {})})
        with ExitStack() as held:
            for k in wanted:
                held.enter_context(next(of[k] for of in self._locks.values() if k in of))
            yield

    def _deliver(self) -> None:
        for done in self._batcher.finished():
            owners: dict[_Request, list[int]] = {}
            for k, number in enumerate(done.numbers.tolist()):
                owners.setdefault(self._requests.pop(number), []).append(k)
            for request, here in owners.items():
                request.take(done, here)
                request.settle()

    def _let_go(self, request: _Request, future: Future[Prediction]) -> None:
        """Forget the examples of a request whose caller has gone."""
        if future.cancelled():
            with self._changed:
                numbers = range(request.first, request.first + request.n)
                self._batcher.cancel(numbers)
                for number in numbers:
                    self._requests.pop(number, None)
                self._changed.notify_all()

    def _fail_all(self, error: Exception) -> None:
        requests = dict.fromkeys(self._requests.values())
        self._batcher.cancel(list(self._requests))
        self._requests.clear()
        for request in requests:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(error)

    def _check_open(self) -> None:
        if self._closing:
            raise UnsupportedError("The executor is closed; make a new one: Executor(model).")


def _locks_of(model: Adaptive) -> dict[int, dict[int, threading.Lock]]:
    """For each stage the locks of its modules that run one batch at a time, by module."""
    locks: dict[int, threading.Lock] = {}
    found: dict[int, dict[int, threading.Lock]] = {}
    for k, stage in model.program.stages.items():
        alone = [id(part) for part in stage.modules() if not getattr(part, "reentrant", True)]
        found[k] = {part: locks.setdefault(part, threading.Lock()) for part in alone}
    return found
