"""What the processes of one server share: which bundles they run, and one answer for all of them.

It stands in the parent, which runs no stage and holds no weights.

Layer: serve.  Source: docs/adr/0055.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from offramp._core.checks import check_known
from offramp._core.files import sha256
from offramp._core.ownership import BUNDLE
from offramp.serve.channel import Channel
from offramp.serve.errors import RequestError
from offramp.serve.merge import lasting, merged
from offramp.serve.whole import summed

_LATE = 504  # status of what a worker has not answered in time
_SOON = 5.0  # seconds that a worker may take to tell its numbers; then its last ones are told


@final
@dataclass(frozen=True, kw_only=True)
class Known:
    """What a worker has to know of a model when it begins.

    Args:
        number: How often it was loaded, which is its version.
        seal: Of the bundle that the others run.
        loaded: Whether they run it.
        gear: That it is held in; None where it moves.
    """

    number: int = 1
    seal: str
    loaded: bool = True
    gear: str | None = None


def seal_of(folder: Path) -> str:
    """Of the manifest of a bundle, which names the digests of all its files; "" without one."""
    try:
        return sha256(folder / BUNDLE.manifest)
    except OSError:
        return ""


@final
class Hub:
    """Asks all workers, and makes one answer of theirs.

    Args:
        sources: For each name the folder of its bundle.
        end: Ends a worker, which is then started again.
        within: Seconds that a worker may take to load a model.
    """

    def __init__(
        self, sources: Mapping[str, Path], end: Callable[[int], object], *, within: float
    ) -> None:
        self._sources, self._end, self._within = sources, end, within
        self.known = {name: Known(seal=seal_of(path)) for name, path in sources.items()}
        self._turns = {name: asyncio.Lock() for name in sources}
        self._channels: dict[int, Channel] = {}
        self._told: dict[int, str] = {}  # the numbers of each, as it has told them last
        self._past, self._restarts = "", 0  # those of workers that are dead
        self._verbs: dict[str, Callable[..., Awaitable[Any]]] = {
            **{"metrics": self.metrics, "stats": self.stats, "hold": self.hold},
            **{"load": self.load, "unload": self.unload},
        }

    def joined(self, worker: int, channel: Channel) -> None:
        """A worker is there."""
        self._channels[worker] = channel

    def left(self, worker: int) -> None:
        """A worker has gone; what it has counted stays."""
        self._channels.pop(worker, None)
        self._past = lasting([self._past, self._told.pop(worker, "")])
        self._restarts += 1

    async def stop(self, within: float) -> list[int]:
        """Tell all workers to end once everything is answered that they have accepted.

        Args:
            within: Seconds in which they have to hear of it.

        Returns:
            Those who have not.
        """
        _, wrong = await self._all("stop", within)
        return list(wrong)

    async def answer(self, verb: str, given: dict[str, Any]) -> Any:  # noqa: ANN401
        """What a worker asks."""
        return await self._verbs[verb](**given)

    # ---- what is asked

    async def metrics(self) -> str:
        """What all have counted, the dead included."""
        said, _ = await self._all("metrics", within=_SOON)
        self._told |= said
        own = (
            "# HELP offramp_workers Processes that answer.\n# TYPE offramp_workers gauge\n"
            f"offramp_workers {len(self._channels)}\n"
            "# HELP offramp_worker_restarts_total Processes that ended and were started again.\n"
            "# TYPE offramp_worker_restarts_total counter\n"
            f"offramp_worker_restarts_total {self._restarts}\n"
        )
        return merged([self._past, *self._told.values(), own])

    async def stats(self, name: str) -> dict[str, Any]:
        """The stats of a model, summed."""
        said, wrong = await self._all("stats", name=name, within=_SOON)
        if not said:
            raise next(iter(wrong.values()), _nobody())
        return summed(list(said.values()))

    async def hold(self, name: str, gear: str | None) -> None:
        """Hold a gear everywhere."""
        async with self._turn(name):
            said, wrong = await self._all("hold", name=name, gear=gear)
            if wrong or not said:
                raise next(iter(wrong.values()), _nobody())
            self.known[name] = replace(self.known[name], gear=gear)

    async def load(self, name: str) -> str:
        """Load a model everywhere: first all make it ready, then all take it, or nobody does.

        One makes it ready before the others: a bundle whose loading ends or blocks a process does
        so to that one, and the others go on.
        """
        async with self._turn(name):
            number, seal = self.known[name].number + 1, seal_of(self._sources[name])
            fresh: dict[str, Any] = {"name": name, "number": number, "seal": seal}
            first, *others = self._channels or (None,)
            said, wrong = await self._all("prepare", self._within, [first], **fresh)
            if first is not None and not said and not wrong:
                wrong[first] = RequestError(503, "A worker has ended while it loaded the bundle.")
            if not wrong:
                more, wrong = await self._all("prepare", self._within, others, **fresh)
                said |= more
            if wrong or not said:
                for worker in (k for k, error in wrong.items() if error.status == _LATE):
                    self._end(worker)  # what it loads would keep it from every other load
                await self._all("drop", self._within, name=name)
                raise next(iter(wrong.values()), _nobody())
            self.known[name] = Known(number=number, seal=seal)
            said, wrong = await self._all("take", self._within, **fresh)
            for worker in wrong:  # it comes back with what the others have
                self._end(worker)
            if not said:
                raise next(iter(wrong.values()), _nobody())
        return str(number)

    async def unload(self, name: str) -> None:
        """Let a model go everywhere."""
        async with self._turn(name):
            self.known[name] = replace(self.known[name], loaded=False, gear=None)
            self._past = lasting([self._past], without=name)
            await self._all("unload", name=name)

    def _turn(self, name: str) -> asyncio.Lock:
        check_known("model", name[:128], self._sources)
        return self._turns[name]

    async def _all(
        self,
        verb: str,
        within: float | None = None,
        among: Iterable[int | None] | None = None,
        **given: Any,  # noqa: ANN401
    ) -> tuple[dict[int, Any], dict[int, RequestError]]:
        """By worker what they say, and their errors; who dies says nothing."""
        wanted = self._channels if among is None else among
        each = {worker: self._channels[worker] for worker in wanted if worker in self._channels}
        asked = (channel.ask(verb, within=within, **given) for channel in each.values())
        answers = await asyncio.gather(*asked, return_exceptions=True)
        said, wrong = dict[int, Any](), dict[int, RequestError]()
        for worker, answer in zip(each, answers, strict=True):
            if isinstance(answer, RequestError):
                wrong[worker] = answer
            elif not isinstance(answer, BaseException):
                said[worker] = answer
            elif isinstance(answer, TimeoutError):
                wrong[worker] = RequestError(_LATE, f"A worker has said nothing for {within:g} s.")
            elif not isinstance(answer, ConnectionError):
                raise answer
        return said, wrong


def _nobody() -> RequestError:
    return RequestError(503, "No worker answers now; come back soon.", {"Retry-After": "1"})
