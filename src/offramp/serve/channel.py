"""Two processes that ask each other over a socket: JSON, with its length in front.

Layer: serve.
"""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any, final

from offramp._core.errors import OfframpError
from offramp.serve.errors import RequestError, status_of

_LENGTH = 4  # bytes of the length

#: Answers what the other side asks: a verb, and what belongs to it.
Answers = Callable[[str, dict[str, Any]], Awaitable[Any]]


@final
class Channel:
    """One end of a pair of connected sockets, on the thread of an event loop.

    Args:
        held: The socket; closed at the end.
        answers: What the other side asks goes there.
    """

    def __init__(self, held: socket.socket, answers: Answers) -> None:
        self._held, self._answers = held, answers
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._count, self._tasks = 0, set[asyncio.Task[None]]()
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> asyncio.Task[None]:
        """Begin; what comes back is a task that ends when the other side has gone."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._held)
        return asyncio.create_task(self._read(reader))

    async def ask(self, verb: str, *, within: float | None = None, **given: Any) -> Any:  # noqa: ANN401
        """What the other side answers.

        Args:
            verb: What it is asked.
            within: Seconds in which it has to answer; None for any time.
            given: What belongs to it, as JSON values.

        Raises:
            RequestError: As the other side has raised it.
            ConnectionError: If it has gone.
            TimeoutError: If it does not answer in time.
        """
        self._count += 1
        number, future = self._count, asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            self._send({"number": number, "verb": verb, "given": given})
            async with asyncio.timeout(within):
                return await future
        finally:
            self._asked.pop(number, None)

    def close(self) -> None:
        """Say nothing any more."""
        if self._writer is not None:
            self._writer.close()

    def _send(self, told: dict[str, Any]) -> None:
        if self._writer is None or self._writer.is_closing():
            raise ConnectionError("The other process has gone.")
        body = json.dumps(told).encode()
        self._writer.write(len(body).to_bytes(_LENGTH, "big") + body)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(_LENGTH), "big")
                self._come(json.loads(await reader.readexactly(size)))
        except (asyncio.IncompleteReadError, OSError):
            pass  # it has gone
        finally:
            self.close()
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(ConnectionError("The other process has gone."))

    def _come(self, told: dict[str, Any]) -> None:
        if "verb" in told:
            task = asyncio.create_task(self._answer(told))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        future = self._asked.get(told["number"])
        if future is None or future.done():
            return
        if "error" in told:
            future.set_exception(RequestError(told["status"], told["error"]))
        else:
            future.set_result(told["said"])

    async def _answer(self, told: dict[str, Any]) -> None:
        number = {"number": told["number"]}
        try:
            said = {"said": await self._answers(told["verb"], told["given"])}
        except Exception as error:  # noqa: BLE001  (told to whoever asked)
            text = (
                str(error)
                if isinstance(error, OfframpError)
                else f"{type(error).__name__}: {error}"
            )
            said = {"status": status_of(error), "error": text}
        try:
            self._send(number | said)
        except ConnectionError:
            return  # nobody wants to know any more
