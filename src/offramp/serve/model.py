"""One bundle that is served: loaded, warmed, and asked by many at once.

Layer: serve.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import torch

from offramp._core.batch import split_rows
from offramp._core.types import Raw
from offramp.bundle import load
from offramp.runtime import Adaptive, Executor, Prediction, RowsError
from offramp.runtime.batcher import FULL
from offramp.runtime.prediction import joined
from offramp.serve.inputs import Inputs
from offramp.serve.settings import Settings
from offramp.stages.segments import run_segments

Names = Sequence[int] | Sequence[str]
_SLICE = FULL  # examples of one request that go to the stages at a time
_AHEAD = 2  # such slices: one runs, the next waits, and what others send comes between


@runtime_checkable
class Watcher(Protocol):
    """Who is told what was answered."""

    def answered(
        self, rows: Raw, ids: Names, prediction: Prediction, seconds: float, *, gear: str | None
    ) -> None:
        """A request was answered; rows and ids as they went to the stages."""
        ...

    def close(self) -> None:
        """Nothing comes any more."""
        ...


@final
class ServedModel:
    """A model that answers requests.

    Args:
        name: What clients call it.
        version: Counts how often it was loaded.
        path: Of the bundle.
        model: As it was loaded.
        settings: Of the server.
    """

    def __init__(
        self, name: str, version: str, path: Path, model: Adaptive, settings: Settings
    ) -> None:
        self.name, self.version, self.path = name, version, path
        self.inputs = Inputs(model, settings.max_pixels)
        self.model = self.inputs.model
        self.executor = Executor(self.model, workers=settings.workers, patience=settings.patience)
        self._users, self._retired = 0, False

    @classmethod
    def load(cls, name: str, version: str, path: Path, settings: Settings) -> "ServedModel":
        """Load a bundle, verified, and run every stage once at the sizes that it will run at.

        Raises:
            OfframpError: As `offramp.load`.
        """
        model = load(
            path,
            backend=settings.backend,
            allow_network=settings.allow_network or False,
            allow_import=settings.allow_import,
        )
        served = cls(name, version, path, model, settings)
        try:
            served.warm()
        except BaseException:
            served.executor.close(answer=False)
            raise
        return served

    def warm(self) -> None:
        """Run stages on made-up examples, one and a full batch; services are not called."""
        if any(stage.waits for stage in self.model.cascade):
            return
        for n in (1, _SLICE):
            noise = self.inputs.noise(n)
            if noise is None:
                return
            stages = list(self.model.cascade)
            with torch.inference_mode():
                for stage, result in run_segments(stages, noise, self.model.cascade.topology):
                    stage.answer(result)
            self.executor.future(noise).result()

    # ---- answering

    async def answer(
        self,
        rows: Raw,
        names: Names,
        *,
        deadline: float | None = None,
        budget: float | None = None,
        priority: float = 0.0,
    ) -> Prediction:
        """Answer a request; a large one in slices, between which others come.

        If whoever awaits this is cancelled, its examples are let go.

        Args:
            rows: Raw input.
            names: Of each example.
            deadline: As `Executor.submit` takes it, and the next two.
            budget: The most that each example may cost.
            priority: Those of higher priority go first.

        Raises:
            RowsError: If some examples are not answered. A single one raises its own error.
        """

        def ask(part: Raw, ids: Names, within: float | None) -> Future[Prediction]:
            return self.executor.future(
                part, list(ids), deadline=within, budget=budget, priority=priority
            )

        n = len(names)
        if n <= _SLICE:
            return await asyncio.wrap_future(ask(rows, names, deadline))
        end = None if deadline is None else time.monotonic() + deadline
        room = asyncio.Semaphore(_AHEAD)

        async def one(part: Raw, first: int, size: int) -> tuple[int, Prediction | RowsError]:
            async with room:
                within = None if end is None else end - time.monotonic()
                try:
                    return first, await asyncio.wrap_future(
                        ask(part, names[first : first + size], within)
                    )
                except RowsError as error:
                    return first, error
                except Exception as error:  # noqa: BLE001  (others of the request are answered)
                    return first, RowsError(None, dict.fromkeys(range(size), error))

        sizes = [min(_SLICE, n - k) for k in range(0, n, _SLICE)]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(one(part, k * _SLICE, size))
                for k, (part, size) in enumerate(zip(split_rows(rows, sizes), sizes, strict=True))
            ]
        return _whole(n, [task.result() for task in tasks])

    # ---- coming and going

    @contextmanager
    def used(self) -> Iterator["ServedModel"]:
        """Within, it is not closed."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            self._close_unless_used()

    def retire(self) -> None:
        """Close it once nobody uses it; on the loop's thread, as `used`."""
        self._retired = True
        self._close_unless_used()

    def _close_unless_used(self) -> None:
        if self._retired and not self._users:
            self.executor.close()


def _whole(n: int, found: Sequence[tuple[int, Prediction | RowsError]]) -> Prediction:
    """One answer of those to the slices of a request."""
    parts, errors = list[tuple[torch.Tensor, Prediction]](), dict[int, Exception]()
    for first, said in found:
        answer = said.answer if isinstance(said, RowsError) else said
        if isinstance(said, RowsError):
            errors |= {first + row: error for row, error in said.errors.items()}
        if answer is not None:
            rows = torch.arange(first, first + len(answer))
            kept = [k for k in range(len(answer)) if first + k not in errors]
            parts.append((rows[kept], answer if len(kept) == len(rows) else answer.take(kept)))
    whole = joined(n, parts) if parts else None
    if errors or whole is None:
        raise RowsError(whole, errors)
    return whole
