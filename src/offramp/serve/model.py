"""One bundle that is served: loaded, warmed, and asked by many at once.

Layer: serve.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import final

import torch

from offramp._core.batch import split_rows
from offramp._core.errors import InputError
from offramp._core.types import Ids, Raw
from offramp.bundle.pictures import ImageFiles
from offramp.edge.resume import load_resumed
from offramp.policy.gears import REFERENCE
from offramp.runtime import Adaptive, Executor, Prediction, RowsError
from offramp.runtime.elsewhere import Elsewhere
from offramp.runtime.prediction import joined
from offramp.runtime.times import FULL
from offramp.serve.admission import Admission
from offramp.serve.gears import Controller, all_gears
from offramp.serve.inputs import Inputs, held_by
from offramp.serve.metrics import Metrics
from offramp.serve.observer import Observer
from offramp.serve.settings import Settings
from offramp.serve.sizes import measured_sizes
from offramp.stages.segments import run_segments

_WAIT = 0.05  # seconds that examples may wait before a cheaper gear is tried
_AHEAD = 2  # slices of one request: one runs, the next waits, and what others send comes between


@final
class ServedModel:
    """A model that answers requests.

    Args:
        name: What clients call it.
        version: Counts how often it was loaded.
        path: Of the bundle.
        model: As it was loaded.
        settings: Of the server.
        metrics: Where to count.
        elsewhere: Says where the stages of a model run, if not here.
    """

    def __init__(
        self,
        name: str,
        version: str,
        path: Path,
        model: Adaptive,
        settings: Settings,
        metrics: Metrics,
        elsewhere: Callable[[Adaptive], Elsewhere] | None = None,
    ) -> None:
        self.name, self.version, self.path = name, version, path
        self.inputs = Inputs(model, settings.max_pixels, ImageFiles.of(path))
        self.model = self.inputs.model
        self.admission = Admission(settings.max_queue, settings.max_rows, self._backlog, self._lag)
        self.controller = controller_of(self.model, settings)
        sizes = measured_sizes(self.model, self.inputs)
        root = self.model.policy.topology.root
        self._slice = sizes.get(self.model.stage_names[root], FULL)
        self.executor = Executor(
            self.model,
            workers=settings.engines,
            batch_size=sizes,
            patience=settings.patience,
            gears=all_gears(self.model),
            elsewhere=None if elsewhere is None else elsewhere(self.model),
            observer=metrics.ran(name),
        )
        self.observer: Observer | None = None
        self._settings, self._metrics = settings, metrics
        self._users, self._retired, self._replaced = 0, False, False

    @classmethod
    def load(
        cls,
        name: str,
        version: str,
        path: Path,
        *,
        settings: Settings,
        metrics: Metrics,
        elsewhere: Callable[[Adaptive], Elsewhere] | None = None,
    ) -> "ServedModel":
        """Load a bundle, verified, and run every stage once at the sizes that it will run at.

        Raises:
            OfframpError: As `offramp.load`.
        """
        model = load_served(path, settings)
        served = cls(name, version, path, model, settings, metrics, elsewhere)
        import_module("scipy.special")  # drift needs it, and no request should wait for that
        try:
            served.warm()
        except BaseException:
            served.executor.close(answer=False)
            raise
        return served

    def warm(self) -> None:
        """Run stages on made-up examples, one and a full batch; services are not called."""
        if any(stage.waits for stage in held_by(self.model)):
            return
        for n in (1, self._slice):
            noise = self.inputs.noise(n)
            if noise is None:
                return
            stages = list(held_by(self.model))
            with torch.inference_mode():
                for stage, result in run_segments(stages, noise, self.model.cascade.topology):
                    stage.answer(result)
            for gear in (None, *self.executor.gears):
                self.executor.future(noise, gear=gear).result()

    def begin(self) -> None:
        """Take the place of the one before: from now on this one answers, and is watched.

        Raises:
            OfframpError: As `Observer`.
        """
        settings = self._settings
        self.observer = Observer(
            self.name,
            self.model,
            audit=settings.audit,
            on_alarm=settings.on_alarm,
            metrics=self._metrics,
            folder=settings.watch,
            part=settings.part,
            parts=settings.workers,
        )
        self.observer.start(self.executor)
        self._metrics.queue(self.name, self.executor)
        self._show_gear()

    # ---- answering

    async def answer(
        self,
        rows: Raw,
        names: Ids,
        *,
        deadline: float | None = None,
        budget: float | None = None,
        priority: float = 0.0,
        gear: str | None = None,
    ) -> Prediction:
        """Answer a request; a large one in slices, between which others come.

        If whoever awaits this is cancelled, its examples are let go.

        Args:
            rows: Raw input.
            names: Of each example.
            deadline: As `Executor.submit` takes it, and the next two.
            budget: The most that each example may cost.
            priority: Those of higher priority go first.
            gear: Name of the gear that answers.

        Raises:
            RowsError: If some examples are not answered. A single one raises its own error.
        """

        def ask(part: Raw, ids: Ids, within: float | None) -> Awaitable[Prediction]:
            return self.executor.submit(
                part, ids, deadline=within, budget=budget, priority=priority, gear=gear
            )

        n = len(names)
        if n <= self._slice:
            return await ask(rows, names, deadline)
        end = None if deadline is None else time.monotonic() + deadline
        room = asyncio.Semaphore(_AHEAD)

        async def one(part: Raw, first: int, size: int) -> tuple[int, Prediction | RowsError]:
            async with room:
                within = None if end is None else end - time.monotonic()
                try:
                    return first, await ask(part, names[first : first + size], within)
                except RowsError as error:
                    return first, error
                except Exception as error:  # noqa: BLE001  (others of the request are answered)
                    return first, RowsError(None, dict.fromkeys(range(size), error))

        sizes = [min(self._slice, n - k) for k in range(0, n, self._slice)]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(one(part, k * self._slice, size))
                for k, (part, size) in enumerate(zip(split_rows(rows, sizes), sizes, strict=True))
            ]
        return _whole(n, [task.result() for task in tasks])

    # ---- gears

    def gear(self, wanted: str | None) -> str | None:
        """The gear that answers a request; None where the model has none.

        Args:
            wanted: By the request; None for the one that is in use.

        Raises:
            InputError: If there is no such gear.
        """
        if wanted is None:
            wanted = self.model.gear if self.controller is None else self.controller.gear
        elif wanted not in self.executor.gears:
            near = get_close_matches(wanted, self.executor.gears)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"gear must be one of {list(self.executor.gears)}, got {wanted[:40]!r}.{hint}"
            )
        return wanted if self.observer is None else self.observer.gear(wanted)

    def hold(self, name: str | None) -> None:
        """Stay in one gear; None to move again.

        Raises:
            InputError: If there is no such gear, or it moves along none.
        """
        if self.controller is None:
            raise InputError(f"Model {self.name!r} has no gears that it moves along.")
        if name is not None and name not in self.controller.names:
            raise InputError(f"gear must be one of {list(self.controller.names)}, got {name!r}.")
        self.controller.pin(name)
        self._show_gear()

    def promise(self, gear: str | None) -> str | None:
        """What is promised of answers in a gear, in a sentence; None where nothing is."""
        guarantee = getattr(self.model.choice, "guarantee", None)
        if gear is not None and gear in self.model.gears.names:
            guarantee = self.model.gears[gear].guarantee
        elif gear is not None:  # the reference, of a model without gears
            guarantee = None
        if guarantee is None:
            return None
        words = [limit.words(self.model.candidate.reference) for limit in guarantee.limits]
        return f"{' and '.join(words)}, with probability at least {1 - guarantee.delta:g}"

    def tick(self) -> None:
        """Let the controller look at how long examples wait; now and then."""
        if self.controller is not None:
            before = self.controller.gear
            if self.controller.observe(self.executor.delay(), time.monotonic()) != before:
                self._show_gear()

    def _show_gear(self) -> None:
        if (gear := self.gear(None)) is not None:
            self._metrics.gear(self.name, gear, self.executor.gears)

    def _backlog(self, more: int) -> float:
        """Seconds until all are answered who were taken in, with so many more."""
        read = self.admission.examples - self.executor.unfinished  # now: stages have not seen them
        return self.executor.backlog(more + max(read, 0), gear=self.gear(None))

    def _lag(self) -> float:
        """Seconds by which answers are taken up late."""
        return self.executor.lag

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

    def retire(self, *, replaced: bool) -> None:
        """Close it once nobody uses it; on the loop's thread, as `used`.

        Args:
            replaced: Whether another of its name answers from now on.
        """
        self._retired, self._replaced = True, replaced
        self._close_unless_used()

    def _close_unless_used(self) -> None:
        if self._retired and not self._users:
            if self.observer is not None:
                self.observer.close()
            self.executor.close()
            if not self._replaced:
                self._metrics.forget(self.name, self.executor)


def controller_of(model: Adaptive, settings: Settings) -> Controller | None:
    """What moves a model along its gears; None where it stays in one.

    Raises:
        InputError: If gears are asked for, and the model has none, or no such gear.
    """
    wanted, names = settings.gears, [gear for gear in model.gears.names if gear != REFERENCE]
    if wanted == "off" or (wanted == "auto" and not names):
        return None
    if not names:
        raise InputError(
            f"gears must be 'auto' or 'off' for a bundle without gears, got {wanted!r}. Save some "
            "with it: Adaptive(cascade, gears[name], gears=gears) with Frontier.gears."
        )
    if wanted not in ("auto", "on"):
        held = Controller(model.gears.names)
        held.pin(wanted)
        return held
    start = model.gear if model.gear in names else names[0]
    return Controller(names, start=start, target=_target(settings.deadline))


def _target(deadline: float | None) -> float:
    """Seconds that examples may wait before a cheaper gear is tried."""
    return _WAIT if deadline is None else min(_WAIT, deadline / 4)


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


def load_served(path: Path, settings: Settings) -> Adaptive:
    """A bundle as a server loads it; raises as `offramp.load` does."""
    return load_resumed(
        path,
        backend=settings.backend,
        allow_network=settings.allow_network or False,
        allow_import=settings.allow_import,
        allow_types=settings.allow_types,
    )
