"""Calls of the cloud, with the HTTP of Python itself: bounded in time, tried again, or left.

Layer: edge.  Needs nothing but Python.
"""

import http.client
import queue
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, final
from urllib.parse import urlsplit

from offramp._core.breaker import PASSES, Breaker
from offramp.edge.settings import Settings

_MOST_BYTES = 64 * 2**20  # of an answer
_FIRST_WAIT = 0.05  # seconds; it doubles
_Answer = tuple[int, Mapping[str, str], bytes]


class CallError(Exception):
    """The cloud has not answered.

    Args:
        why: In a few words.
        refused: Whether the same call would be refused again.
    """

    def __init__(self, why: str, *, refused: bool = False) -> None:
        super().__init__(why)
        self.refused = refused


@final
class Calls:
    """The server that a device asks; used from any thread.

    Args:
        settings: With its address.
        sent: Told of the bytes of each attempt before it; raises `CallError` to prevent it.
        clock: Seconds, for the breaker.
    """

    def __init__(
        self,
        settings: Settings,
        sent: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._sent = settings, sent
        parts = urlsplit(str(settings.url))
        self._base = parts.path.rstrip("/")
        self._address = (str(parts.hostname), parts.port)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_seconds, clock=clock)
        self._free: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._drawn = random.Random()

    def ask(self, path: str, body: bytes | None, headers: Mapping[str, str]) -> _Answer:
        """Status, headers and body of an answer.

        Raises:
            CallError: If there is none within the time.
        """
        until, wait, why = time.monotonic() + self._settings.timeout, _FIRST_WAIT, ""
        for attempt in range(self._settings.attempts):
            if attempt:
                pause = min(wait * (0.5 + self._drawn.random() / 2), self._settings.longest_wait)
                if time.monotonic() + pause >= until:
                    break
                time.sleep(pause)
                wait *= 2
            with self._lock:
                allowed = self._breaker.allows()
            if not allowed:
                raise CallError(why or "the cloud has failed too often, and is left for a while")
            self._sent(len(body or b""))
            try:
                status, said, content = self._attempt(path, body, headers, until)
            except CallError as error:
                self._note(failed=True)
                why = str(error)
                continue
            if status in PASSES:
                if status != 429:
                    self._note(failed=True)
                why = f"HTTP {status}"
                wait = max(wait, _retry_after(said))
                continue
            self._note(failed=False)
            if status != 200:
                raise CallError(f"HTTP {status}: {_error_of(content)}", refused=True)
            return status, said, content
        raise CallError(why or f"no answer within {self._settings.timeout:g} s")

    def close(self) -> None:
        """Close what is open."""
        with self._lock:
            free, self._free = self._free, []
        for connection in free:
            connection.close()

    def _note(self, *, failed: bool) -> None:
        with self._lock:
            self._breaker.failed() if failed else self._breaker.answered()

    def _attempt(
        self, path: str, body: bytes | None, headers: Mapping[str, str], until: float
    ) -> _Answer:
        """One attempt, in a thread of its own: no call of a socket is bounded as a whole."""
        with self._lock:
            connection = self._free.pop() if self._free else None
        for kept in (connection, None):
            reused = kept is not None
            held = self._another(until) if kept is None else kept
            found: queue.SimpleQueue[Any] = queue.SimpleQueue()
            threading.Thread(
                target=_sent_and_read,
                args=(held, self._base + path, body, dict(headers), found),
                daemon=True,
            ).start()
            try:
                answer = found.get(timeout=max(until - time.monotonic(), 0.001))
            except queue.Empty:
                _cut(held)
                raise CallError(f"no answer within {self._settings.timeout:g} s") from None
            if not isinstance(answer, Exception):
                with self._lock:
                    self._free.append(held)
                return answer  # type: ignore[no-any-return]
            held.close()
            gone = isinstance(answer, ConnectionError | http.client.BadStatusLine)
            if not (reused and gone):  # a server may close what nobody uses
                raise CallError(f"no connection ({type(answer).__name__})")
            self._sent(len(body or b""))
        raise CallError("no connection")  # it is never come to

    def _another(self, until: float) -> http.client.HTTPConnection:
        left = max(until - time.monotonic(), 0.001)
        host, port = self._address
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=left)
        return http.client.HTTPSConnection(host, port, timeout=left, context=self._tls)


def _sent_and_read(
    connection: http.client.HTTPConnection,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    found: "queue.SimpleQueue[Any]",
) -> None:
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        content = response.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise http.client.HTTPException("an answer that is too large")
        length = response.getheader("content-length")
        if length is not None and int(length) != len(content):
            raise http.client.IncompleteRead(content)
        if response.will_close:
            connection.close()
        found.put((response.status, {k.lower(): v for k, v in response.getheaders()}, content))
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        found.put(error)


def _cut(connection: http.client.HTTPConnection) -> None:
    """End what a thread waits for."""
    held = connection.sock
    if held is not None:
        with suppress(OSError):
            held.shutdown(socket.SHUT_RDWR)
    connection.close()


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    return float(text) if text.isdigit() and len(text) < 6 else 0.0


def _error_of(content: bytes) -> str:
    """What a server says of an error."""
    return content[:300].decode("utf-8", "replace").removeprefix('{"error": "').removesuffix('"}')
