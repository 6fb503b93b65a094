"""Calls of a service over HTTP: its address, its key, attempts, and what became of a call.

All calls run in one event loop, in a thread of its own, which whoever asks waits for: from a
notebook, from threads, or from another loop's thread.

The key is read from an environment variable at each call and stands in a header, nowhere else:
texts of the service that end up in messages or files have it taken out.

Layer: adapters.  Needs the extra `services`.
"""

import asyncio
import json
import math
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar, final

from offramp._core.addresses import checked_url, is_local, origin
from offramp._core.breaker import PASSES, Breaker
from offramp._core.deadline import seconds_left
from offramp._core.errors import InputError, ServiceError
from offramp._core.files import parse_json
from offramp._core.optional import imported
from offramp.adapters.clients import Clients
from offramp.adapters.limits import Limits, Pace

T = TypeVar("T")
Read = Callable[[bytes, Mapping[str, str]], dict[str, Any]]
_MOST_BYTES = 64 * 2**20  # of an answer
_SHOWN = 200  # characters of what a service says
_REFUSES = {
    401: "does not accept the key",
    403: "does not allow this",
    404: "knows no such address or model",
}


class CallError(Exception):
    """A call has failed for good.

    Args:
        why: In a few words.
        paid: What was paid for it all the same; None where it was answered and nobody knows.
    """

    def __init__(self, why: str, *, paid: float | None = 0.0) -> None:
        super().__init__(why)
        self.paid = paid


@final
class _PassingError(CallError):
    """An attempt has failed in a way that may pass.

    Args:
        why: In a few words.
        wait: Seconds that the service asks to wait.
    """

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


@final
class Connection:
    """One service.

    Args:
        url: Its address, https; http only on this machine or without a key.
        key_env: Name of the environment variable that holds its key; None where it needs none.
        limits: How it may be called.

    Raises:
        InputError: If the address is none, holds a key, or a key would go over plain http.
        MissingExtraError: If httpx or tenacity is not installed.
    """

    def __init__(self, url: str, *, key_env: str | None, limits: Limits) -> None:
        self._tenacity = imported("tenacity", "services")
        self.url, self.host = checked_url(url, key_env)
        self.key_env, self.limits = key_env, limits
        self.refusal: ServiceError | None = None  # why nobody need be asked in this batch
        self.before: Callable[[], None] = _nothing  # each attempt; what it raises ends the call
        self._answered = False
        self._breaker = Breaker(limits.breaker_failures, limits.breaker_seconds)
        self._pace = Pace(limits.per_second)
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._clients = Clients(trust_env=not is_local(self.host))

    def __repr__(self) -> str:
        return f"Connection({self.url!r}, key_env={self.key_env!r})"

    async def ask(
        self,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        read: Read | None = None,
    ) -> dict[str, Any]:
        """Post a body, or get where there is none; the object that is answered.

        Args:
            path: After the address of the service.
            body: Bytes, or what becomes JSON.
            headers: Beside those of every call.
            read: Makes the object of a good answer, JSON by default; raises `InputError` where it
                is none.

        Raises:
            CallError: If the call has failed for good, or is not over when its answer is of no use
                any more (`offramp._core.deadline`).
            ServiceError: If the service cannot be used as it is set up: it has no key, it refuses
                all calls, or sends them elsewhere. Where it has answered before, that is a failure.
        """
        tenacity = self._tenacity
        backoff = tenacity.wait_random_exponential(multiplier=0.5, max=self.limits.longest_wait)
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.limits.attempts),
            wait=lambda state: max(backoff(state), getattr(state.outcome.exception(), "wait", 0.0)),
            retry=tenacity.retry_if_exception_type(_PassingError),
            reraise=True,
        )
        sent = {"Content-Type": "application/json", **(headers or {}), **self._authorization()}
        content = body if isinstance(body, bytes | None) else _dumped(body)
        call, left = _Call(path, content, sent), seconds_left()
        try:
            async with asyncio.timeout(None if left == math.inf else left):
                found: dict[str, Any] = await retrying(self._attempt, call, read or _json)
        except TimeoutError:
            raise CallError("no answer before the deadline", paid=call.paid) from None
        except CallError as error:
            raise CallError(str(error), paid=call.paid if error.paid == 0 else error.paid) from None
        return found

    @contextmanager
    def at_a_time(self, concurrency: int | None) -> Iterator[None]:
        """Within, so many calls at a time; None for as many as the limits say."""
        before = self._slots
        if concurrency is not None:
            self._slots = asyncio.Semaphore(concurrency)
        try:
            yield
        finally:
            self._slots = before

    def clean(self, text: str) -> str:
        """A text of the service without the key, should it repeat it."""
        key = os.environ.get(self.key_env or "", "").strip()
        return text.replace(key, "***") if key else text

    async def close(self) -> None:
        """Close what is open; it opens again where it is asked."""
        await self._clients.close()

    # ---- one attempt

    async def _attempt(self, call: "_Call", read: Read) -> dict[str, Any]:
        await self._pace.turn()
        async with self._slots:
            if self.refusal is not None:
                raise self.refusal
            self.before()
            if not self._breaker.allows():
                raise CallError("it has failed too often, and is left alone for a while")
            before, call.paid = call.paid, None  # from here on nobody knows, until it is answered
            try:
                async with asyncio.timeout(self.limits.timeout):
                    status, said, body = await self._send(call)
            except TimeoutError:
                self._breaker.failed()
                raise _PassingError(f"no answer within {self.limits.timeout:g} s") from None
            except self._clients.httpx.HTTPError as error:
                self._breaker.failed()
                if isinstance(error, self._clients.httpx.ConnectError):
                    call.paid = before
                raise _PassingError(f"no connection ({type(error).__name__})") from None
            if status != 200:
                call.paid = before
            return self._read(status, said, body, read)

    async def _send(self, call: "_Call") -> tuple[int, Mapping[str, str], bytes]:
        method, parts, size = "GET" if call.content is None else "POST", list[bytes](), 0
        with self._clients.one() as client:
            request = client.stream(
                method, self.url + call.path, content=call.content, headers=call.headers
            )
            async with request as response:
                async for part in response.aiter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > _MOST_BYTES:
                        raise CallError(f"an answer of more than {_MOST_BYTES} bytes", paid=None)
                return response.status_code, response.headers, b"".join(parts)

    def _read(
        self, status: int, headers: Mapping[str, str], body: bytes, read: Read
    ) -> dict[str, Any]:
        """The object of a good answer."""
        if 300 <= status < 400:
            there = origin(headers.get("location", "")) or origin(self.url)
            self._refuse(
                f"sends on to {there!r}, and nothing is sent where nobody named the address. Give "
                "the address that answers itself"
            )
        if status in _REFUSES:
            self._refuse(f"{_REFUSES[status]} (HTTP {status}){self._said(body)}")
        if status in PASSES:
            wait = _retry_after(headers)
            if status != 429:
                self._breaker.failed()
            elif b"insufficient_quota" in body or wait > self.limits.longest_wait:
                raise CallError(f"HTTP 429: no quota left, or not before {wait:g} s")
            raise _PassingError(f"HTTP {status}", min(wait, self.limits.longest_wait))
        if status != 200:
            raise CallError(f"HTTP {status}{self._said(body)}")
        try:
            found = read(body, headers)
        except InputError as error:
            self._breaker.failed()
            why = self.clean(str(error))[:_SHOWN]
            raise _PassingError(f"an answer that cannot be read: {why}") from None
        self._breaker.answered()
        self._answered = True
        return found

    def _refuse(self, why: str) -> None:
        if self._answered:  # it was set up well: something has happened to it since
            self._breaker.failed(for_good=True)
            raise CallError(why)
        key = "no key" if self.key_env is None else f"the key in {self.key_env}"
        self.refusal = ServiceError(f"{self.url} (with {key}) {why}.")
        raise self.refusal

    def _said(self, body: bytes) -> str:
        """What the service says of an error, without the key."""
        with suppress(ValueError):
            found = parse_json(body)
            error = found.get("error", found) if isinstance(found, dict) else found
            text = error.get("message", "") if isinstance(error, dict) else error
            if isinstance(text, str) and text:
                return f": {self.clean(text)[:_SHOWN]}"
        return ""

    def _authorization(self) -> dict[str, str]:
        if self.key_env is None:
            return {}
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise ServiceError(
                f"{self.url} needs a key: the environment variable {self.key_env} must hold it, "
                f"and does not. Set it, for example export {self.key_env}=..."
            )
        if not (key.isascii() and key.isprintable()):
            raise ServiceError(f"What {self.key_env} holds is no key: a header cannot carry it.")
        return {"Authorization": f"Bearer {key}"}


@final
@dataclass
class _Call:
    """What is sent, and what was paid for it; None where it was sent and nobody knows."""

    path: str
    content: bytes | None
    headers: dict[str, str]
    paid: float | None = 0.0


def _dumped(body: object) -> bytes:
    return json.dumps(body, allow_nan=False).encode()


def _json(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    with suppress(ValueError):
        found = parse_json(body)
        if isinstance(found, dict):
            return found
    raise InputError("no JSON object")


def _nothing() -> None:
    """Nothing is to be seen to before a call."""


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a service asks to wait: a number, or a date."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))  # of NaN as well
    with suppress(ValueError, TypeError):
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    return 0.0


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run something in the loop of all calls, and wait for it."""
    future = asyncio.run_coroutine_threadsafe(work, _loop(os.getpid()))
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


_loops: dict[int, asyncio.AbstractEventLoop] = {}


def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The loop of this process; a fork has none of the threads of its parent."""
    found = _loops.get(process)
    if found is None:
        made = asyncio.new_event_loop()
        found = _loops.setdefault(process, made)  # of threads that come at once the first has it
        if found is not made:
            made.close()
        else:
            threading.Thread(target=made.run_forever, name="offramp-services", daemon=True).start()
    return found
