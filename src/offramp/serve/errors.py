"""What a request is told that is not answered: a status and a text in the protocol's form.

Layer: serve.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from offramp._core.errors import (
    FileFormatError,
    InputError,
    OfframpError,
    UnknownNameError,
    UnsupportedError,
)

_log = logging.getLogger(__name__)

GONE = 499  # the client has; nobody reads it
HELD = "offramp.held"  # in the scope of a request: what is let go once it is answered

#: The most specific class of an error decides.
STATUS: dict[type[BaseException], int] = {
    InputError: 400,
    FileFormatError: 400,
    UnknownNameError: 404,
    UnsupportedError: 503,
    asyncio.CancelledError: 503,
    BaseException: 500,
}


@final
class RequestError(OfframpError):
    """A request that is not answered.

    Args:
        status: Of HTTP.
        text: Why, for its sender.
        headers: To be sent along.
    """

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = status, dict(headers or {})


def status_of(error: BaseException) -> int:
    """The status of an error.

    >>> status_of(InputError()), status_of(ZeroDivisionError()), status_of(RequestError(413, ""))
    (400, 500, 413)
    """
    if isinstance(error, RequestError):
        return error.status
    if each := _of_rows(error):
        return max(map(status_of, each))
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def _of_rows(error: BaseException) -> list[Exception]:
    """The errors of single rows, where some of a request were answered."""
    if not isinstance(error, RuntimeError):  # nor is torch loaded, of which a parent has none
        return []
    from offramp.runtime import RowsError

    return list(error.errors.values()) if isinstance(error, RowsError) else []


def error_response(error: BaseException) -> Response:
    """`{"error": text}`, and nothing of where in the program it happened."""
    status = status_of(error)
    error = next((one for one in _of_rows(error) if status_of(one) == status), error)
    if status == 500:
        _log.error("A request has failed.", exc_info=error)
    said = str(error) if isinstance(error, OfframpError) else f"{type(error).__name__}: {error}"
    headers = error.headers if isinstance(error, RequestError) else {}
    return error_text(said, status, headers)


def error_text(said: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An error in the protocol's form."""
    body = json.dumps({"error": said}).encode()
    return Response(body, status, media_type="application/json", headers=headers)


@final
class Endpoint:
    """An application for one address, that answers whatever goes wrong.

    Args:
        answer: Answers a request.
        refused: Told of requests that are not answered, with the status.
    """

    def __init__(
        self,
        answer: Callable[[Request], Awaitable[Response]],
        refused: Callable[[Request, int], object] | None = None,
    ) -> None:
        self._answer, self._refused = answer, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive, send)
        with ExitStack() as scope[HELD]:
            try:
                response = await self._answer(request)
            except Exception as error:  # noqa: BLE001  (told to the client)
                response = error_response(error)
                if self._refused is not None:
                    self._refused(request, response.status_code)
        await response(scope, receive, send)
