"""The application: routes, tokens, and errors in one form (docs/adr/0051).

Layer: serve.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from offramp.runtime import Adaptive
from offramp.runtime.elsewhere import Elsewhere
from offramp.serve import door, openapi, page, protocol, watching
from offramp.serve.errors import error_text
from offramp.serve.serving import Serving
from offramp.serve.settings import Settings
from offramp.serve.whole import Whole

_log = logging.getLogger(__name__)
_OPEN = ("/v2/health/live", "/v2/health/ready", "/")  # to probes and browsers without a token


def make_app(
    sources: Mapping[str, Path],
    settings: Settings,
    *,
    whole: Callable[[Serving], Whole] | None = None,
    elsewhere: Callable[[Adaptive], Elsewhere] | None = None,
) -> Starlette:
    """An application that serves bundles; models are loaded once it runs.

    Args:
        sources: For each name the folder of its bundle.
        settings: Limits, token and the like.
        whole: Makes what joins it with other processes; None where it is alone.
        elsewhere: Says where the stages of a model run, if not here.

    Raises:
        InputError: If a name is none.
    """
    serving = Serving(sources, settings, elsewhere)
    if whole is not None:
        serving.whole = whole(serving)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await serving.whole.begin()
        tasks = [asyncio.create_task(_loaded(app, serving)), asyncio.create_task(serving.run())]
        try:
            yield
        finally:
            serving.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await serving.close()
            await serving.whole.end()

    app = Starlette(
        routes=[
            *door.routes(),
            *protocol.routes(),
            *page.routes(),
            *watching.routes(),
            *openapi.routes(),
        ],
        lifespan=lifespan,
        middleware=[
            Middleware(Gate, token=settings.token),
            Middleware(Straight, ways=protocol.infer_routes()),
        ],
        exception_handlers={HTTPException: _not_found},
    )
    app.state.serving, app.state.failed = serving, None
    app.state.on_failure = None
    return app


async def _loaded(app: Starlette, serving: Serving) -> None:
    """Load all models; if one cannot be loaded, whoever started the server is told."""
    try:
        await serving.whole.load_all()
    except Exception as error:  # noqa: BLE001  (told by whoever started the server)
        app.state.failed = error
        if app.state.on_failure is not None:
            app.state.on_failure()


@final
class Gate:
    """Looks at each request before anything else does: its token, and where it comes from.

    Args:
        app: What is behind.
        token: That is asked for; None for none.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on."""
        if scope["type"] == "http" and (refused := self._refused(scope)) is not None:
            await refused(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refused(self, scope: Scope) -> Response | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        origin = headers.get(b"origin")
        if origin is not None and scope["method"] != "GET":
            # Pages of other sites may send forms to this machine, which nobody here has asked for.
            there = urlsplit(origin.decode("latin-1")).netloc
            if there.encode("latin-1") != headers.get(b"host", b""):
                return error_text(f"Pages of {there!r} must not send requests here.", 403, _CLOSE)
        if self._token is None or scope["path"] in _OPEN:
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token):
            return None
        return error_text(
            "A token is needed: send the header Authorization: Bearer with it.",
            401,
            {"WWW-Authenticate": "Bearer", **_CLOSE},
        )


_CLOSE = {"Connection": "close"}


@final
class Straight:
    """Hands what is asked most on to its route: the way through all others takes a tenth of it.

    Args:
        app: What is behind.
        ways: The routes that are asked most.
    """

    def __init__(self, app: ASGIApp, ways: Sequence[Route]) -> None:
        self._app, self._ways = app, ways

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on."""
        if scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path"):
            for way in self._ways:
                if (found := way.path_regex.match(scope["path"])) is not None:
                    scope["path_params"] = found.groupdict()
                    await way.app(scope, receive, send)
                    return
        await self._app(scope, receive, send)


async def _not_found(request: Request, error: Any) -> Response:  # noqa: ANN401
    said = {
        404: f"There is nothing at {request.url.path[:200]!r}; see /docs.",
        405: f"{request.url.path[:200]!r} is not there for {request.method[:20]}.",
    }
    text = said.get(error.status_code, str(error.detail))
    return error_text(text, error.status_code, error.headers)
