"""One request to an executor: its examples, until all of them are answered.

Layer: runtime.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import final

import torch

from offramp._core.errors import OfframpError
from offramp.runtime.pools import Finished
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
    """Examples of one caller, until all are finished."""

    def __init__(self, n: int) -> None:
        self.future: Future[Prediction] = Future()
        self.n, self.missing, self.first = n, n, 0
        self.parts: list[tuple[list[int], Prediction]] = []
        self.errors: dict[int, Exception] = {}

    def take(self, done: Finished, here: Sequence[int]) -> None:
        """Some of its examples are finished: those at some positions of what a batcher gave."""
        rows = [int(done.numbers[k]) - self.first for k in here]
        self.missing -= len(rows)
        if done.answer is None:
            self.errors |= {row: done.error for row in rows if done.error is not None}
        else:
            part = done.answer if len(here) == len(done.numbers) else done.answer.take(here)
            self.parts.append((rows, part))

    def settle(self) -> None:
        """Tell the caller, once nobody is missing."""
        if self.missing or not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self._outcome())
        except Exception as error:  # noqa: BLE001  (nobody may wait for ever)
            self.future.set_exception(error)

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
