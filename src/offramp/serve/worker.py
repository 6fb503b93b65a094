"""One of several processes that answer at one address.

Layer: serve.  Source: docs/adr/0055.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from offramp._core.errors import InputError
from offramp._core.logs import logging_to_stderr
from offramp.serve.app import make_app
from offramp.serve.channel import Channel
from offramp.serve.hub import Known, seal_of
from offramp.serve.run import Server, own_process
from offramp.serve.serving import Serving
from offramp.serve.settings import Settings
from offramp.serve.whole import Alone, Stats


def work(
    sources: Mapping[str, Path],
    settings: Settings,
    known: Mapping[str, Known],
    held: socket.socket,
    parent: socket.socket,
    *,
    threads: int | None,
    log: bool,
) -> None:
    """Answer until the parent says that it is enough, or has gone.

    Args:
        sources: For each name the folder of its bundle.
        settings: Of the server; `part` says which worker this is.
        known: What the others run.
        held: The socket that all listen at.
        parent: Connected with the parent.
        threads: That torch may use; None for its share of torch's own number.
        log: Whether to log to the standard error stream.
    """
    import torch

    for number in (signal.SIGINT, signal.SIGTERM):  # they come to the parent as well, who tells
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads or max(1, torch.get_num_threads() // settings.workers))
    ends: list[Callable[[], None]] = []
    app = make_app(
        sources, settings, whole=lambda serving: Among(serving, parent, known, lambda: ends[0]())
    )
    own_process(app)
    server = Server(app, settings)
    ends.append(server.stop)
    with logging_to_stderr(f"worker {settings.part}: ", on=log):
        server.run(sockets=[held])
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)  # everything is closed; to take all modules apart costs a second of a core


@final
class Among:
    """A server of several processes, as one of them sees it.

    Args:
        serving: The state of this process.
        parent: Connected with the parent.
        known: What the others run.
        stop: Ends this process once everything is answered that was accepted.
    """

    def __init__(
        self,
        serving: Serving,
        parent: socket.socket,
        known: Mapping[str, Known],
        stop: Callable[[], None],
    ) -> None:
        self._serving, self._repository = serving, serving.repository
        self._known, self._stop, self._here = known, stop, Alone(serving)
        self._channel = Channel(parent, self._answer)
        self._reading: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Load what the others run; where that cannot be, the parent ends this process."""
        self._reading = await self._channel.open()
        self._reading.add_done_callback(lambda _: self._stop())
        await self._channel.ask("loading")  # from now on silence means that it hangs
        try:
            for name, model in self._known.items():
                if model.loaded:
                    await self._loaded(name, model)
                else:
                    await self._repository.unload(name)
        except Exception as error:  # noqa: BLE001  (told by the parent)
            await self._channel.ask("failed", kind=type(error).__name__, text=str(error))
            await asyncio.Event().wait()
        await self._channel.ask("ready")

    async def _loaded(self, name: str, model: Known) -> None:
        await self._prepare(name, model.number, model.seal)
        await self._repository.take(name, model.number)
        if model.gear is not None:
            self._repository.get(name).hold(model.gear)

    async def load_all(self) -> None:
        """That was done before it listened."""

    async def end(self) -> None:
        """The parent sees that this process has ended."""
        self._channel.close()

    # ---- what clients ask this process

    async def metrics(self) -> str:
        """Those of all."""
        text: str = await self._channel.ask("metrics")
        return text

    async def stats(self, name: str) -> Stats:
        """Of all."""
        self._repository.get(name)  # raises an error where there is none
        found: Stats = await self._channel.ask("stats", name=name)
        return found

    async def hold(self, name: str, gear: str | None) -> None:
        """Everywhere."""
        self._repository.get(name)
        await self._channel.ask("hold", name=name, gear=gear)

    async def load(self, name: str) -> str:
        """Everywhere."""
        version: str = await self._channel.ask("load", name=name)
        return version

    async def unload(self, name: str) -> None:
        """Everywhere."""
        await self._channel.ask("unload", name=name)

    # ---- what the parent asks it

    async def _answer(self, verb: str, given: dict[str, Any]) -> Any:  # noqa: ANN401
        if verb == "stop":
            return self._stop()
        if verb == "busy":
            return max((model.executor.busy() for model in self._repository.models), default=0.0)
        if verb == "prepare":
            return await self._prepare(**given)
        if verb == "take":
            return await self._repository.take(given["name"], given["number"])
        if verb == "drop":
            return self._repository.drop(**given)
        return await getattr(self._here, verb)(**given)

    async def _prepare(self, name: str, number: int, seal: str) -> None:
        self._check_seal(name, seal)  # before: what has come since may be what has ended others
        await self._repository.prepare(name, number)
        try:
            self._check_seal(name, seal)
        except InputError:
            self._repository.drop(name)
            raise

    def _check_seal(self, name: str, seal: str) -> None:
        if seal_of(folder := self._repository.sources[name]) != seal:
            raise InputError(
                f"The bundle in {folder} must be the one that the other workers run, and has "
                f"changed. Load it anew: POST /v2/repository/models/{name}/load."
            )
