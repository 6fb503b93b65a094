"""One request to an executor: its examples, until all of them are answered.

Layer: runtime.
"""

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import final

import torch

from offramp._core.errors import OfframpError
from offramp.runtime.prediction import Prediction, joined


class RowsError(OfframpError, RuntimeError):
    """Some examples of a request could not be answered; the others were.

    Args:
        answer: To all rows of the request; those without an answer are not `valid`, and their
            `reason` is "error". None where nobody was answered.
        errors: By row, why there is no answer.
    """

    def __init__(self, answer: Prediction | None, errors: Mapping[int, Exception]) -> None:
        rows = list(errors)
        first = errors[rows[0]]
        super().__init__(
            f"{len(rows)} examples of this request could not be answered, the first of them row "
            f"{rows[0]}: {type(first).__name__}: {first}. See `errors`; `answer` has the others."
        )
        self.answer, self.errors = answer, dict(errors)


@final
class Request:
    """Examples of one caller, until all are finished.

    Args:
        n: Their number.
        loop: That the caller waits in; None for a caller with a thread.
    """

    def __init__(self, n: int, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.future: Future[Prediction] | asyncio.Future[Prediction]
        self.future = Future() if loop is None else loop.create_future()
        self.loop, self.n, self.missing, self.first = loop, n, n, 0
        self.parts: list[tuple[list[int], Prediction]] = []
        self.errors: dict[int, Exception] = {}
        self.settled = math.inf  # when the answer was there, on the monotonic clock

    def take(self, numbers: Sequence[int], said: Prediction | Exception) -> None:
        """Some of its examples, by number, are answered or cannot be."""
        rows = [number - self.first for number in numbers]
        self.missing -= len(rows)
        if isinstance(said, Exception):
            self.errors |= dict.fromkeys(rows, said)
        else:
            self.parts.append((rows, said))

    def settle(self, error: Exception | None = None) -> None:
        """Tell the caller what it is answered, or an error that is none of an example."""
        future = self.future
        if isinstance(future, Future):
            if not future.set_running_or_notify_cancel():
                return
        elif future.done():  # nobody waits any more
            return
        try:
            if error is not None:
                raise error
            future.set_result(self._outcome())
        except Exception as failed:  # noqa: BLE001  (nobody may wait for ever)
            future.set_exception(failed)

    def _outcome(self) -> Prediction:
        """The whole answer.

        Raises:
            RowsError: If some rows have none. A single row raises its own error.
        """
        if self.errors and self.n == 1:
            raise self.errors[0]
        if len(self.parts) == 1 and not self.errors and self.parts[0][0] == list(range(self.n)):
            return self.parts[0][1]  # most requests are answered at once
        parts = [(torch.tensor(rows), part) for rows, part in self.parts]
        answer = joined(self.n, parts) if parts else None
        if answer is None or self.errors:
            raise RowsError(answer, dict(sorted(self.errors.items())))
        return answer


def settle(requests: Iterable[Request], error: Exception | None = None) -> None:
    """Tell callers from any thread; all who wait in one event loop in one step of it."""
    waiting: dict[asyncio.AbstractEventLoop, list[Request]] = {}
    now = time.monotonic()
    for request in requests:
        request.settled = now
        if request.loop is None:
            request.settle(error)
        else:
            waiting.setdefault(request.loop, []).append(request)
    for loop, each in waiting.items():
        with suppress(RuntimeError):  # it is closed: nobody waits in there
            loop.call_soon_threadsafe(_settle, each, error)


def _settle(requests: Sequence[Request], error: Exception | None) -> None:
    for request in requests:
        request.settle(error)
