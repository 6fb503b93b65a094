"""Running a server: its socket, its end, and clients that are too slow.

Layer: serve.
"""

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, final

import torch
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from offramp._core.errors import InputError
from offramp._core.logs import logging_to_stderr
from offramp._core.memory import keep_freed_memory
from offramp.serve.app import make_app
from offramp.serve.listening import BACKLOG, address_of, listening
from offramp.serve.settings import Settings

_log = logging.getLogger(__name__)
_IDLE = 30  # seconds that a connection is kept without requests
_GARBAGE = 20_000  # objects, more than requests on their way are: hardly any are in cycles
_LOOK = 0.02  # seconds between looks at whether models are loaded

Protocol: Any = AutoHTTPProtocol  # of whichever parser is installed


@final
class Impatient(Protocol):  # type: ignore[misc]  # of two kinds
    """Closes a connection whose next request has begun and does not come to the end of its headers.

    The rest of a request has a time of its own (`offramp.serve.bodies`).
    """

    def __init__(self, *args: Any, header_seconds: float, **named: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **named)
        self._header_seconds, self._late = header_seconds, None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Somebody has come, and says nothing yet."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Something has come: the headers, or a part of them."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """They have gone."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self._header_seconds, self.transport.close)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


@final
class Server(uvicorn.Server):
    """Ends at SIGTERM and SIGINT once everything is answered that was accepted.

    Args:
        app: Of `make_app`.
        settings: Of it.
    """

    def __init__(self, app: Starlette, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Impatient, header_seconds=settings.header_seconds),  # type: ignore[arg-type]
                ws="none",
                proxy_headers=False,  # nobody asks who the client is
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=_IDLE,
                timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
            )
        )
        self._app = app
        app.state.on_failure = self.stop

    def stop(self) -> None:
        """Take nobody in any more, and end."""
        self._app.state.serving.stop()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come; the second ends at once."""
        self.force_exit = self.should_exit
        self.stop()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Within, signals end the server; afterwards they do what they did, and come to nobody."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        both = (signal.SIGINT, signal.SIGTERM)  # one that is ignored stays so
        ours = [sig for sig in both if signal.getsignal(sig) is not signal.SIG_IGN]
        before = {sig: signal.signal(sig, self.handle_exit) for sig in ours}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def serve(
    sources: Mapping[str, Path],
    settings: Settings,
    *,
    threads: int | None = None,
    log: bool = False,
    told: Callable[[str], object],
) -> None:
    """Serve bundles until a signal comes.

    Args:
        sources: For each name the folder of its bundle.
        settings: Where to listen, and limits.
        threads: That torch may use, in each process; None for its own number, which several
            processes divide.
        log: Whether to log to the standard error stream.
        told: Called with the address once it listens.

    Raises:
        InputError: If it cannot listen there.
        OfframpError: If a bundle cannot be loaded.
    """
    if settings.workers > 1:
        from offramp.serve.workers import serve_many

        serve_many(sources, settings, threads=threads, log=log, told=told)
        return
    if threads is not None:
        torch.set_num_threads(threads)
    app = make_app(sources, settings)
    own_process(app)
    with logging_to_stderr(on=log), listening(settings.host, settings.port) as held:
        server = Server(app, settings)
        told(address_of(held))
        server.run(sockets=[held])
    failed = app.state.failed
    if failed is not None:
        raise failed


def own_process(app: Starlette) -> None:
    """Set up the process of a server that shares it with nobody: its memory, and its collector."""
    keep_freed_memory()
    gc.set_threshold(_GARBAGE)
    app.state.serving.repository.on_load = keep_uncollected


def keep_uncollected() -> None:
    """Let the garbage collector pass over all that there is: models are many objects, and stay."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@final
class Running:
    """A server in a thread of this process, for notebooks and tests; a context manager that stops.

    Args:
        sources: For each name the folder of its bundle.
        settings: Limits; by default it listens at any free port of this machine.

    Raises:
        InputError: If it cannot listen.
        OfframpError: If a bundle cannot be loaded.
    """

    def __init__(self, sources: Mapping[str, Path | str], settings: Settings | None = None) -> None:
        chosen = Settings(port=0) if settings is None else settings
        if chosen.workers > 1:
            raise InputError(
                f"workers must be 1 for a server in this process, got {chosen.workers}. Several "
                "are started by offramp.serve.run.serve, or by offramp serve --workers."
            )
        self.app = make_app({name: Path(path) for name, path in sources.items()}, chosen)
        self._held = listening(chosen.host, chosen.port)
        self.url = address_of(self._held)
        self._server = Server(self.app, chosen)
        run = partial(self._server.run, sockets=[self._held])
        self._thread = threading.Thread(target=run, name="offramp-serve", daemon=True)
        self._thread.start()
        while not (self._state.serving.repository.ready or self._state.failed is not None):
            self._thread.join(_LOOK)
        if self._state.failed is not None:
            self.stop()
            raise self._state.failed

    @property
    def _state(self) -> Any:  # noqa: ANN401  (starlette's)
        return self.app.state

    def stop(self) -> None:
        """Answer what was accepted, and end."""
        self._server.stop()
        self._thread.join()
        self._held.close()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
