"""Several processes that answer at one address, and the parent that keeps them.

The parent opens the socket at which all of them listen, starts each one anew where it dies or
hangs, and tells them to end. It accepts no connection itself, and does not load torch.

Layer: serve.  Source: docs/adr/0055.
"""

import asyncio
import logging
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, final

from offramp._core import errors
from offramp._core.errors import FileFormatError, OfframpError, UnsupportedError
from offramp._core.logs import logging_to_stderr
from offramp._core.ownership import BUNDLE
from offramp.serve.channel import Channel
from offramp.serve.hub import Hub
from offramp.serve.listening import address_of, listening
from offramp.serve.settings import Settings, check_name
from offramp.serve.state import State

_log = logging.getLogger(__name__)
_LATE = 15.0  # seconds beyond the drain, or of silence when told to end: then a worker is killed
_LONGEST = 30.0  # seconds between two tries to start a worker
_LOOKS = 4  # at each, in the seconds after which it is held to hang
_HANGS = 3  # in a row, while it loads, after which a worker is given up


def serve_many(
    sources: Mapping[str, Path],
    settings: Settings,
    *,
    threads: int | None,
    log: bool,
    told: Callable[[str], object],
) -> None:
    """Serve bundles with `settings.workers` processes until a signal comes.

    Args:
        sources: For each name the folder of its bundle.
        settings: Where to listen, and limits.
        threads: That torch may use in each; None to divide those of this process.
        log: Whether each logs to the standard error stream.
        told: Called with the address once the first of them answers.

    Raises:
        InputError: If it cannot listen there.
        OfframpError: If a bundle cannot be loaded.
        UnsupportedError: If this system has no sockets that processes can share.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise UnsupportedError("Several workers need a system with Unix sockets. Use one.")
    for name, folder in sources.items():  # before they have begun, each in some seconds
        check_name(name)
        if not (folder / BUNDLE.manifest).is_file():
            raise FileFormatError(
                f"{folder / BUNDLE.manifest} is missing: {folder} is no bundle, which `offramp fit "
                "--bundle` writes."
            )
    listener = listening(settings.host, settings.port)
    with _shared(settings) as chosen, listener as held, logging_to_stderr(on=log):
        told_it = partial(told, address_of(held))
        asyncio.run(Workers(sources, chosen, held, threads=threads, log=log, told=told_it).run())


def _work(*given: Any, **named: Any) -> None:  # noqa: ANN401
    """What a worker does, in its own process, where torch is loaded."""
    from offramp.serve.worker import work

    work(*given, **named)


@contextmanager
def _shared(settings: Settings) -> Iterator[Settings]:
    """With a folder for what the workers watch in common."""
    if settings.watch is not None:
        State(settings.watch).close()  # made before several open it
        yield settings
        return
    with tempfile.TemporaryDirectory(prefix="offramp-") as folder:
        State(Path(folder)).close()
        yield replace(settings, watch=Path(folder))


@final
class Workers:
    """The processes of a server.

    Args:
        sources: For each name the folder of its bundle.
        settings: Of each.
        held: The socket that all listen at; closed when they are told to end.
        threads: That torch may use in each; None to divide those that it would use.
        log: Whether each logs to the standard error stream.
        told: Called once the first answers.
    """

    def __init__(
        self,
        sources: Mapping[str, Path],
        settings: Settings,
        held: socket.socket,
        *,
        threads: int | None,
        log: bool,
        told: Callable[[], object],
    ) -> None:
        self._sources, self._settings, self._held = sources, settings, held
        self._how, self._told = {"threads": threads, "log": log}, told
        self._hub = Hub(sources, self._kill, within=settings.load_seconds)
        self._processes: dict[int, SpawnProcess] = {}
        self._ready, self._began = set[int](), set[int]()  # now, and ever
        self._loading, self._hung = set[int](), set[int]()  # that have said so; that did not end it
        self._why: dict[int, OfframpError] = {}
        self._stopping = asyncio.Event()
        self._error: OfframpError | None = None

    async def run(self) -> None:
        """Keep them until a signal comes, and everything is answered that was accepted.

        Raises:
            OfframpError: If one cannot begin.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signal)
        try:
            await asyncio.gather(*map(self._keep, range(self._settings.workers)))
        finally:
            for process in self._processes.values():
                process.kill()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Tell all to end; those that answer nothing yet are ended."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._held.close()
        for worker in set(self._processes) - self._ready:
            self._kill(worker)
        self._telling = asyncio.create_task(self._end())
        late = self._settings.drain_seconds + _LATE
        asyncio.get_running_loop().call_later(late, self._kill_all)

    async def _end(self) -> None:
        for worker in await self._hub.stop(_LATE):  # it hangs, and would never hear of it
            self._kill(worker)

    def _signal(self) -> None:
        if self._stopping.is_set():  # the second ends at once
            self._kill_all()
        self.stop()

    def _kill_all(self) -> None:
        for worker in list(self._processes):
            self._kill(worker)

    def _kill(self, worker: int) -> None:
        if (process := self._processes.get(worker)) is not None:
            process.kill()

    async def _keep(self, worker: int) -> None:
        """Run a worker, again and again until the server ends."""
        failures = hangs = 0
        while not self._stopping.is_set():
            try:
                said = f"it ended with {_words(await self._one(worker))}"
            except OSError as error:  # no process or no file is left
                said = f"it could not be started: {error}"
            was_ready = worker in self._ready
            hung = worker in self._hung
            for state in (self._ready, self._loading, self._hung):
                state.discard(worker)
            why = self._why.pop(worker, None)
            if self._stopping.is_set():
                return
            said = said if why is None else str(why)
            hangs = hangs + 1 if hung else 0
            if hangs == _HANGS:
                why = OfframpError(f"Worker {worker} is given up after {hangs} times: {said}.")
                if worker in self._began and self._ready:  # others answer
                    _log.error("%s", why)
                    return
            if hangs == _HANGS or (worker not in self._began and not hung):
                self._error = why or OfframpError(f"Worker {worker} could not begin: {said}.")
                self.stop()
                return
            failures = 0 if was_ready else failures + 1
            pause = 0.0 if was_ready else min(2.0**failures, _LONGEST)
            _log.error("Worker %d is started again in %g s: %s.", worker, pause, said.rstrip("."))
            try:
                await asyncio.wait_for(self._stopping.wait(), pause or 1e-3)
            except TimeoutError:
                continue

    async def _one(self, worker: int) -> int | None:
        """Run a worker once; its exit code."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        ours, theirs = socket.socketpair()
        settings = replace(self._settings, part=worker)
        process = get_context("spawn").Process(
            target=_work,
            name=f"offramp-worker-{worker}",
            args=(self._sources, settings, self._hub.known, self._held, theirs),
            kwargs=self._how,
        )
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the parent
        try:
            process.start()
        except OSError:
            ours.close()
            raise
        finally:
            signal.signal(signal.SIGINT, before)
            theirs.close()
        self._processes[worker] = process
        loop.add_reader(process.sentinel, ended.set)

        async def answer(verb: str, given: dict[str, Any]) -> Any:  # noqa: ANN401
            return await self._asked(worker, verb, given)

        channel = Channel(ours, answer)
        reading = await channel.open()
        self._hub.joined(worker, channel)
        watching = asyncio.create_task(self._watch(worker, channel))
        await ended.wait()
        watching.cancel()
        loop.remove_reader(process.sentinel)
        channel.close()
        await reading
        self._hub.left(worker)
        process.join()
        del self._processes[worker]
        return process.exitcode

    async def _watch(self, worker: int, channel: Channel) -> None:
        """End a worker that hangs, while it loads or later."""
        try:
            said = await self._how_it_hangs(worker, channel)
        except ConnectionError:
            return  # it has gone
        if worker not in self._ready:
            self._hung.add(worker)
            said += " while it loads (--load-seconds and --hang-seconds say how long it may)"
        self._why[worker] = OfframpError(f"it has {said}")
        self._kill(worker)

    async def _how_it_hangs(self, worker: int, channel: Channel) -> str:
        """In words, once it does."""
        loads, most = self._settings.load_seconds, self._settings.hang_seconds
        time = asyncio.get_running_loop().time
        begun = time()
        while True:
            await asyncio.sleep(min(loads, most) / _LOOKS)
            ready = worker in self._ready
            if self._stopping.is_set() or not (ready or worker in self._loading):
                busy = 0.0  # it imports what it needs, which may hold its loop
            else:
                try:
                    busy = await channel.ask("busy", within=most)
                except TimeoutError:
                    return f"said nothing for {most:g} s"
            if busy > most:
                return f"run one batch for {most:g} s"
            if not ready and worker not in self._ready and time() - begun > loads:
                return f"not come to an end in {loads:g} s"

    async def _asked(self, worker: int, verb: str, given: dict[str, Any]) -> Any:  # noqa: ANN401
        if verb == "ready":
            _log.info("Worker %d is ready.", worker)
            if not self._began:
                self._told()
            self._ready.add(worker)
            self._began.add(worker)
            return None
        if verb == "loading":
            self._loading.add(worker)
            return None
        if verb == "failed":
            kind = getattr(errors, given["kind"], OfframpError)
            self._why[worker] = kind(given["text"])
            self._kill(worker)
            return None
        return await self._hub.answer(verb, given)


def _words(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
