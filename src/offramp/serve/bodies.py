"""The bodies of requests: read within limits of size and time; and whether anybody still listens.

Layer: serve.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Generator
from contextlib import nullcontext
from typing import Any, Generic, TypeVar, final

from starlette.requests import Request
from starlette.types import Message

from offramp._core.errors import InputError
from offramp.serve.errors import GONE, RequestError

T = TypeVar("T")

_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_CLOSE = {"Connection": "close"}  # the rest of what is sent is not read


@final
class Room:
    """Bytes of all requests that are on their way in.

    Args:
        most: Of them.
    """

    def __init__(self, most: int) -> None:
        self._most, self.taken = most, 0

    def take(self, size: int) -> None:
        """Some more have come; raises `RequestError` where that is too much."""
        if self.taken + size > self._most:
            said = f"Requests on their way must have at most {self._most} bytes together."
            raise RequestError(503, f"{said} Come back in 1 s.", {"Retry-After": "1", **_CLOSE})
        self.taken += size

    def give(self, size: int) -> None:
        """They are read."""
        self.taken -= size


@final
class Begun(Generic[T]):
    """Something to be awaited that has begun, up to where it waits for something else.

    Args:
        work: It.

    `ended` says whether it has come to its end, with `value`; else it waits for `waits_for`.
    """

    value: T

    def __init__(self, work: Awaitable[T]) -> None:
        self._rest = work.__await__()
        self.ended = False
        self.waits_for: Any = None
        try:
            self.waits_for = next(self._rest)
        except StopIteration as end:
            self.ended, self.value = True, end.value

    def __await__(self) -> Generator[Any, None, T]:
        if not self.ended:
            yield self.waits_for
            self.value = yield from self._rest
        return self.value

    def close(self) -> None:
        """Let it go."""
        self._rest.close()


async def read_body(request: Request, room: Room, *, most: int, seconds: float) -> bytes:
    """The body of a request, unpacked.

    Args:
        request: It.
        room: For the bytes of all requests.
        most: Bytes that it may have, also unpacked.
        seconds: Within which it has to be there.

    Raises:
        RequestError: With 413 where it is larger, 408 where it does not come, 415 where it is
            packed in another way, 503 where there is no room.
        InputError: If it cannot be unpacked.
    """
    packed = request.headers.get("content-encoding", "identity").lower()
    if packed not in ("identity", *_WINDOW):
        raise RequestError(
            415, f"Content-Encoding must be gzip, deflate or left out, got {packed[:40]!r}.", _CLOSE
        )
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told[:20]) > most:
        raise _too_large(most)
    parts, size = list[bytes](), 0
    coming: Awaitable[Message] = (first := Begun(request.receive()))
    whole = first.ended and not first.value.get("more_body", False)
    try:
        # Most bodies are there already, and a timer for each would take longer than to read it.
        async with nullcontext() if whole else asyncio.timeout(seconds):
            while True:
                message = await coming
                if message["type"] == "http.disconnect":
                    raise RequestError(GONE, "The client has gone.")
                part = message.get("body", b"")
                if size + len(part) > most:
                    raise _too_large(most)
                room.take(len(part))
                size += len(part)
                parts.append(part)
                if not message.get("more_body", False):
                    break
                coming = request.receive()
    except TimeoutError:
        raise RequestError(
            408, f"The request must be there within {seconds:g} s, and is not.", _CLOSE
        ) from None
    finally:
        room.give(size)
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    return body if packed == "identity" else _unpacked(body, packed, most)


def _too_large(most: int) -> RequestError:
    return RequestError(413, f"A request must have at most {most} bytes.", _CLOSE)


def _unpacked(body: bytes, packed: str, most: int) -> bytes:
    stream = zlib.decompressobj(_WINDOW[packed])
    try:
        found = stream.decompress(body, most + 1)
    except zlib.error:
        raise InputError(f"The body must be {packed}, as Content-Encoding says.") from None
    if len(found) > most:
        raise _too_large(most)
    if not stream.eof or stream.unused_data:
        raise InputError(f"The body must be {packed} of one piece, as Content-Encoding says.")
    return found


@final
class WhileThere:
    """Within, work is cancelled where the client goes before it is done, or time is up.

    Args:
        request: Whose body was read.
        seconds: For the work; None for any time.

    Raises:
        RequestError: With 408 where time is up; where the client has gone, nobody reads it.
    """

    def __init__(self, request: Request, seconds: float | None = None) -> None:
        self._request, self._seconds = request, seconds
        self._work: asyncio.Task[Any] | None = None
        self._why: RequestError | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        self._work = asyncio.current_task()
        # Nothing comes after the body but the news that the client has gone, so what is awaited
        # for it says enough: a task that awaits it for each request would take longer.
        self._listening = Begun(self._request.receive())
        if self._listening.ended:
            raise RequestError(GONE, "The client has gone.")
        self._listening.waits_for.add_done_callback(self._stop)
        if self._seconds is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(self._seconds, 0.0), self._stop)

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        work, self._work = self._work, None  # from now on nobody is stopped
        self._listening.close()
        if self._why is not None and work is not None:
            others = work.uncancel()  # whoever else has cancelled it is not kept from it
            if not others and kind is asyncio.CancelledError:
                raise self._why from None

    def _stop(self, gone: object = None) -> None:
        if self._why is None and self._work is not None:
            said = (408, "The request was not answered in the time that it gives.")
            self._why = RequestError(*(said if gone is None else (GONE, "The client has gone.")))
            self._work.cancel()
