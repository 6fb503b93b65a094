"""The bodies of requests: read within limits of size and time; and whether anybody still listens.

Layer: serve.
"""

import asyncio
import zlib
from collections.abc import Coroutine
from typing import Any, TypeVar, final

from starlette.requests import ClientDisconnect, Request

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
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                if size + len(part) > most:
                    raise _too_large(most)
                room.take(len(part))
                size += len(part)
                parts.append(part)
    except TimeoutError:
        raise RequestError(
            408, f"The request must be there within {seconds:g} s, and is not.", _CLOSE
        ) from None
    except ClientDisconnect:
        raise RequestError(GONE, "The client has gone.") from None
    finally:
        room.give(size)
    body = b"".join(parts)
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


async def while_there(
    request: Request, work: Coroutine[Any, Any, T], seconds: float | None = None
) -> T:
    """What some work gives; it is cancelled where the client goes first, or time is up.

    Args:
        request: Whose body was read.
        work: To be done.
        seconds: For it; None for any time.

    Raises:
        RequestError: With 408 where time is up; where the client has gone, nobody reads it.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise RequestError(GONE, "The client has gone.")
        raise RequestError(408, "The request was not answered in the time that it gives.")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
