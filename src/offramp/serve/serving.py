"""What all doors of a server share: models, limits, and the way of a request to its answer.

Layer: serve.
"""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
from starlette.requests import Request

from offramp._core.errors import InputError
from offramp._core.types import Ids, Raw
from offramp.runtime import Adaptive, Prediction, RowsError
from offramp.runtime.elsewhere import Elsewhere
from offramp.serve.bodies import Room, WhileThere, read_body
from offramp.serve.errors import GONE, RequestError
from offramp.serve.metrics import Metrics
from offramp.serve.model import ServedModel
from offramp.serve.repository import Repository
from offramp.serve.settings import Settings
from offramp.serve.whole import Alone, Whole

T = TypeVar("T")
_log = logging.getLogger(__name__)
_LEVELS, _USUAL = 9, 5  # of priority, 1 is the highest
_GRACE = 1.25  # of the time given: a little late is better than not at all
_WHY = {  # by status
    **dict.fromkeys((400, 404, 413, 415), "invalid"),
    **{408: "deadline", 429: "full", 503: "stopping", GONE: "cancelled"},
}
_LONGEST_ID = 256
_TICK = 0.05  # seconds between looks at how long examples wait
_FLUSH = 20  # such looks between those at what was answered
_ROOM = 2**29  # bytes of all requests that are on their way in
_SMALL = 2**16  # bytes that are read on the loop's thread: handing them over takes longer
APART = _SMALL + 1  # what is not, however few bytes it is


@final
@dataclass(frozen=True, kw_only=True)
class Options:
    """What a request asks for beside its inputs.

    Args:
        id: What it is called; by default the server's own name.
        priority: 1 to 9, 1 is the highest; 0 is 5, as in the middle.
        timeout: Microseconds from its arrival; 0 for the server's own deadline.
        max_cost: The most that each example may cost, in the unit of the model's costs.
        gear: Of the model's; None for the one that is in use.

    Raises:
        InputError: If one is outside its domain.
    """

    id: str | None = None
    priority: int = 0
    timeout: int = 0
    max_cost: float | None = None
    gear: str | None = None

    def __post_init__(self) -> None:
        if self.id is not None and not (isinstance(self.id, str) and len(self.id) <= _LONGEST_ID):
            raise InputError(f"id must be a text of at most {_LONGEST_ID} characters.")
        if type(self.priority) is not int or not 0 <= self.priority <= _LEVELS:
            raise InputError(
                f"priority must be a whole number in [0, {_LEVELS}], 1 is the highest and 0 the "
                f"usual, got {self.priority!r}."
            )
        if type(self.timeout) is not int or not 0 <= self.timeout < 2**53:
            raise InputError(
                "timeout must be a whole number of microseconds from now on, at least 0, and 0 for "
                f"the server's own, got {self.timeout!r}."
            )
        cost = self.max_cost
        if cost is not None and not (type(cost) in (int, float) and 0 <= cost < float("inf")):
            raise InputError(f"max_cost must be a number of at least 0, got {cost!r}.")
        if self.gear is not None and not isinstance(self.gear, str):
            raise InputError(f"gear must be the name of a gear, got {self.gear!r}.")

    @classmethod
    def of(cls, name: object, parameters: Mapping[str, Any]) -> "Options":
        """Of the parameters of a request; those that others define are not looked at."""
        known = ("priority", "timeout", "max_cost", "gear")
        given = {key: parameters[key] for key in known if parameters.get(key) is not None}
        return cls(id=name, **given)  # type: ignore[arg-type]  # it looks for itself


@final
@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a request."""

    id: str
    names: Ids
    prediction: Prediction
    gear: str
    promise: str | None
    seconds: float
    error: RowsError | None = None

    @property
    def size(self) -> int:
        """About how many bytes its numbers take."""
        log_probs = self.prediction.log_probs
        return 8 * (len(self.names) if log_probs is None else log_probs.numel())


@final
class Serving:
    """The state of a server, on the thread of its event loop.

    Args:
        sources: For each name the folder of its bundle.
        settings: Limits.
        elsewhere: Says where the stages of a model run, if not here.
    """

    def __init__(
        self,
        sources: Mapping[str, Path],
        settings: Settings,
        elsewhere: Callable[[Adaptive], Elsewhere] | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        load = partial(
            ServedModel.load, settings=settings, metrics=self.metrics, elsewhere=elsewhere
        )
        self.repository = Repository(sources, load)
        self.whole: Whole = Alone(self)
        self._pool = ThreadPoolExecutor(settings.decoders, thread_name_prefix="offramp-decode")
        self._room = Room(max(_ROOM, settings.max_body))
        self._own = secrets.token_hex(4)  # names of requests differ from those before a restart
        self._count = itertools.count()
        self.stopping = False

    def refused(self, request: Request, status: int) -> None:
        """Count a request that is not answered, if it asks for a model that there is."""
        name = request.path_params.get("model") or request.query_params.get("model")
        names = self.repository.sources
        if name is None and len(names) == 1:
            name = next(iter(names))
        if name in names:
            self.metrics.refused(name, _WHY.get(status, "error"))

    async def run(self) -> None:
        """Let each model change its gear, for as long as the server runs."""
        for k in itertools.count():
            await asyncio.sleep(_TICK)
            for model in self.repository.models:
                model.tick()
                if k % _FLUSH == 0 and model.observer is not None:
                    model.observer.flush()

    def stop(self) -> None:
        """Take nobody in any more."""
        self.stopping = True

    async def close(self) -> None:
        """Let all models go."""
        for model in self.repository.models:
            await self.repository.unload(model.name)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def body(self, request: Request) -> bytes:
        """The body of a request; raises as `read_body`."""
        settings = self.settings
        return await read_body(
            request, self._room, most=settings.max_body, seconds=settings.body_seconds
        )

    async def apart(self, size: int, work: Callable[..., T], *args: Any) -> T:  # noqa: ANN401
        """Do something that takes its time, off the loop's thread where it is large."""
        if size <= _SMALL:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args))

    async def answer(
        self,
        request: Request,
        model: ServedModel,
        n: int,
        read: Callable[[], Raw],
        options: Options,
        *,
        size: int,
        began: float,
    ) -> Answer:
        """Take a request in, and answer it.

        Args:
            request: Whose body was read.
            model: Whom it asks, held for it.
            n: Number of its examples.
            read: Makes raw input of it.
            options: What else it says.
            size: Bytes that it came in.
            began: When it came, on the monotonic clock.

        Raises:
            RequestError: If it is not taken in, its time is up, or its client has gone.
            RowsError: If nobody in it can be answered.
        """
        if self.stopping:
            raise RequestError(503, "The server is stopping; ask another.", {"Retry-After": "1"})
        if n == 0:
            raise InputError("inputs must hold at least one example, got none.")
        own = options.id if options.id is not None else f"{self._own}-{next(self._count):x}"
        names = np.array([own] if n == 1 else [f"{own}/{k}" for k in range(n)])
        within = options.timeout / 1e6 or self.settings.deadline
        end = None if within is None else began + within
        gear = model.gear(options.gear)
        hurried = 0 < options.priority < _USUAL  # they pass others, so nobody knows when
        with model.admission.of(n, None if hurried else within):
            left = None if within is None else began + _GRACE * within - time.monotonic()
            async with WhileThere(request, left):
                rows, prediction, error = await self._answered(
                    model, size, read, names, options, gear, end
                )
        seconds = time.monotonic() - began
        if model.observer is not None:
            model.observer.answered(rows, names, prediction, seconds, gear=gear)
        return Answer(
            id=own,
            names=names,
            prediction=prediction,
            gear=gear or "",
            promise=model.promise(gear),
            seconds=seconds,
            error=error,
        )

    async def _answered(
        self,
        model: ServedModel,
        size: int,
        read: Callable[[], Raw],
        names: Ids,
        options: Options,
        gear: str | None,
        end: float | None,
    ) -> tuple[Raw, Prediction, RowsError | None]:
        slow = model.inputs.kind in ("image", "columns")
        rows = await self.apart(APART if slow else size, read)
        within = None
        if end is not None:
            within = model.admission.left(end - time.monotonic())
            if within <= 0:
                raise RequestError(408, "The time that the request gives is over.")
        try:
            said = await model.answer(
                rows,
                names,
                deadline=within,
                budget=options.max_cost,
                priority=_USUAL - (options.priority or _USUAL),
                gear=gear,
            )
        except RowsError as error:
            if error.answer is None:
                raise
            return rows, error.answer, error
        return rows, said, None
