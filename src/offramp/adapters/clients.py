"""Clients of HTTP, one for each call at a time.

One client for all calls would look through all its connections several times in each of them, so
that a call among 32 costs several times as much as one alone.

Layer: adapters.  Needs the extra `services`.
"""

import asyncio
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

from offramp._core.optional import imported

if TYPE_CHECKING:
    import httpx


@final
class Clients:
    """Clients that nobody uses at the moment; used within one event loop.

    Args:
        trust_env: Whether proxies and certificates are those that environment variables name.

    Raises:
        MissingExtraError: If httpx is not installed.
    """

    def __init__(self, *, trust_env: bool) -> None:
        self.httpx, self._trust_env = imported("httpx", "services"), trust_env
        self._free: list[httpx.AsyncClient] = []
        self._process = 0
        self._context: object = None  # made at the first call: it reads many certificates

    @contextmanager
    def one(self) -> "Iterator[httpx.AsyncClient]":
        """Within, a client that nobody else uses: that which was used last, if there is one."""
        if self._process != os.getpid():  # a fork has connections of its own
            self._process, self._free = os.getpid(), []
            loop = asyncio.get_running_loop()
            weakref.finalize(self, _let_go, self._free, loop).atexit = False
        client = self._free.pop() if self._free else self._another()
        free = self._free
        try:
            yield client
        finally:
            free.append(client)

    async def close(self) -> None:
        """Close what is open; it opens again where it is asked."""
        await _close(self._free)

    def _another(self) -> "httpx.AsyncClient":
        if self._context is None:
            self._context = self.httpx.create_ssl_context(trust_env=self._trust_env)
        return self.httpx.AsyncClient(  # type: ignore[no-any-return]
            timeout=None,  # each attempt has one for all of it
            follow_redirects=False,
            trust_env=self._trust_env,
            verify=self._context,
        )


def _let_go(free: "list[httpx.AsyncClient]", loop: asyncio.AbstractEventLoop) -> None:
    """Close the connections of whoever is not needed any more."""
    if free:
        asyncio.run_coroutine_threadsafe(_close(free), loop)


async def _close(free: "list[httpx.AsyncClient]") -> None:
    while free:
        await free.pop().aclose()
