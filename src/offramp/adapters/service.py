"""A service as the module of a stage: rows in, labels with confidences and prices out.

Each row is asked by itself, many at a time, within the limits. What cannot be answered is marked as
that and never taken for an answer; what it means is said by `on_error`.

Layer: adapters.  Source: docs/adr/0048.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from offramp._core.batch import is_table
from offramp._core.checks import check_choice
from offramp._core.deadline import wanted_until
from offramp._core.errors import InputError, SpendingError
from offramp._core.outputs import CAPPED, FAILED
from offramp._core.spending import Spending
from offramp._core.types import ON_ERROR, OnError
from offramp.adapters.connection import CallError, Connection, run
from offramp.adapters.journal import Answer, Journal, Memory

_PAUSE_S = 0.005  # between two looks at whether calls that run now leave something to spend


class _CapError(Exception):
    """The daily cap leaves nothing for a call that has not begun."""


@runtime_checkable
class Asks(Protocol):
    """What a service is asked about a row, and what its answers mean."""

    @property
    def identity(self) -> str:
        """The same for services that would answer alike."""
        ...

    @property
    def settings(self) -> Any:  # noqa: ANN401  (a record, of its adapter's own kind)
        """All that is needed to make it again; no key."""
        ...

    @property
    def unit(self) -> str | None:
        """Unit of the prices; None where they are not known."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes."""
        ...

    def digest(self, row: object) -> str:
        """The same for rows that are asked alike."""
        ...

    def most(self, row: object) -> float:
        """What the answer costs at most."""
        ...

    async def __call__(self, connection: Connection, row: object, digest: str) -> Answer:
        """Ask; raises `CallError`, which says what was paid all the same, or `ServiceError`."""
        ...


@final
class Service(nn.Module):
    """Asks a service about rows.

    Args:
        asks: What it is asked.
        connection: How it is reached.
        on_error: What it means that it has failed for good.
        daily_cap: The most to spend in a day (UTC); what would go beyond is not asked, and the
            examples are answered by the stages before.

    `counts` says how many rows were answered, remembered, refused, foreign, capped or failed, and
    why they failed; `spent` what was paid.
    """

    reads_rows = True
    asks_alone = True

    def __init__(
        self,
        asks: Asks,
        connection: Connection,
        *,
        on_error: OnError = "next",
        daily_cap: float | None = None,
    ) -> None:
        super().__init__()
        check_choice("on_error", on_error, ON_ERROR)
        if daily_cap is not None and asks.unit is None:
            raise InputError("daily_cap needs prices: without them nobody knows what was spent.")
        self.waits = connection.limits.concurrency
        self.on_error, self.unit, self.settings = on_error, asks.unit, asks.settings
        self.counts: Counter[str] = Counter()
        self._asks, self._connection = asks, connection
        connection.before = self._check_ceilings
        self._daily = Spending(daily_cap, daily=True)
        self._memory: Memory | Journal = Memory(connection.limits.cache)
        self._shares = True  # whether rows that ask alike wait for one call
        self._ceiling: Spending | None = None  # of a recording, in which all answers are kept
        # Calls that run now, and until when their answers are wanted.
        self._asked: dict[str, tuple[float, asyncio.Task[Answer]]] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> "Service":
        return self  # one service has one budget and one connection

    def extra_repr(self) -> str:
        """Its address; no key."""
        return f"{self._connection!r}, on_error={self.on_error!r}"

    @property
    def fingerprint(self) -> str:
        """The same for services that would answer alike."""
        return self._asks.identity

    @property
    def spent(self) -> float:
        """What was paid since it was made, in its unit."""
        return self._daily.spent

    def forward(self, rows: object) -> dict[str, Tensor]:
        """Ask about `m` rows.

        Returns:
            "labels" `(m,)` and "confidence" `(m,)`, NaN where nobody answered; "prices" `(m,)`
            where they are known: 0 for what was remembered.

        Raises:
            ServiceError: If it cannot be used as it is set up.
            SpendingError: If the ceiling of a recording was reached.
        """
        answers = run(self._all(rows_of(rows)))
        found = {
            "labels": torch.tensor([answer.label for answer in answers], dtype=torch.int64),
            "confidence": torch.tensor([a.confidence for a in answers], dtype=torch.float32),
        }
        if self.unit is not None:
            found["prices"] = torch.tensor([a.price for a in answers], dtype=torch.float64)
        return found

    @contextmanager
    def keeping(
        self, path: Path | None, ceiling: Spending, *, concurrency: int | None = None
    ) -> Iterator[None]:
        """Within, each answer is in a file before it is counted, and is paid for once.

        Prices are then those of the answers, whenever they were paid. What would go beyond the
        ceiling raises `SpendingError`, once the calls that run have been answered.

        Args:
            path: The file; answers that are there already are not asked for again, and count as
                spent. None keeps them in memory.
            ceiling: The most to spend, perhaps of several services together.
            concurrency: Calls at a time; by default as the limits say.
        """
        before = self._memory
        with ExitStack() as stack:
            if path is None:
                self._memory = Memory(None)
            else:
                journal = stack.enter_context(Journal(path, self.fingerprint))
                ceiling.add(journal.paid)
                self._memory = journal
            self._ceiling = ceiling
            stack.enter_context(self._connection.at_a_time(concurrency))
            try:
                yield
            finally:
                self._memory, self._ceiling = before, None

    def forget(self) -> None:
        """Remember no answers from now on, so that whoever measures does not measure that."""
        self._memory, self._shares = Memory(0), False

    def close(self) -> None:
        """Close its connections; they open again where it is asked."""
        run(self._connection.close())

    # ---- in the loop of all calls

    async def _all(self, rows: list[Any]) -> list[Answer]:
        self._connection.refusal = None
        # Before the first call: a row that cannot be asked about costs nothing.
        digests = [self._asks.digest(row) for row in rows]
        found = await asyncio.gather(*map(self._one, rows, digests), return_exceptions=True)
        for answer in found:  # all calls have ended by now, and what was paid is kept
            if isinstance(answer, BaseException):
                raise answer
        return found  # type: ignore[return-value]  # no errors are among them

    async def _one(self, row: object, digest: str) -> Answer:
        answer, until = self._memory.get(digest), wanted_until()
        if answer is None:
            wanted, task = self._asked.get(digest, (-math.inf, None))
            if task is None or wanted < until or not self._shares:
                return await self._call(row, digest, until)
            answer = await asyncio.shield(task)
        self.counts["remembered"] += 1
        if self._ceiling is not None:
            return answer
        return Answer(label=answer.label, confidence=answer.confidence, text=answer.text)

    async def _call(self, row: object, digest: str, until: float) -> Answer:
        """Ask, and let others wait for the same answer."""
        task = asyncio.ensure_future(self._paid(row, digest))
        running = self._asked[digest] = until, task
        try:
            return await task
        finally:
            if self._asked.get(digest) is running:
                del self._asked[digest]

    async def _paid(self, row: object, digest: str) -> Answer:
        most, paid = self._asks.most(row), 0.0
        if not await self._afford(most):
            return self._capped()
        try:
            answer = await self._asks(self._connection, row, digest)
            paid = answer.price
            self._memory.keep(digest, answer)
            self.counts["answered"] += 1
            self.counts["refused"] += answer.label < 0
            self.counts["foreign"] += answer.label >= self._asks.classes
            return answer
        except CallError as error:
            paid = most if error.paid is None else error.paid
            if paid:
                self._memory.count(paid)
            self.counts["failed"] += 1
            self.counts[f"failed: {error}"] += 1
            return Answer(label=FAILED, confidence=float("nan"), price=paid)
        except _CapError:
            return self._capped()
        finally:
            self._daily.settle(most, paid)
            if self._ceiling is not None:
                self._ceiling.settle(most, paid)

    def _capped(self) -> Answer:
        self.counts["capped"] += 1
        return Answer(label=CAPPED, confidence=float("nan"))

    def _check_ceilings(self) -> None:
        """End a call that has not begun, where another one came to more than was set aside."""
        if self._ceiling is not None and self._ceiling.overdrawn:
            raise SpendingError(_reached("max_spend", self._ceiling, self.unit))
        if self._daily.overdrawn:
            if self._ceiling is None:
                raise _CapError
            raise SpendingError(_reached("daily_cap", self._daily, self.unit))

    async def _afford(self, most: float) -> bool:
        """Reserve what a call may come to; waits for calls whose rest may be enough."""
        if not await _reserved(self._daily, most):
            if self._ceiling is None:
                return False
            raise SpendingError(_reached("daily_cap", self._daily, self.unit))
        if self._ceiling is not None and not await _reserved(self._ceiling, most):
            self._daily.settle(most, 0.0)
            raise SpendingError(_reached("max_spend", self._ceiling, self.unit))
        return True


async def _reserved(spending: Spending, most: float) -> bool:
    while not spending.reserve(most):
        if not spending.reserved:
            return False
        await asyncio.sleep(_PAUSE_S)
    return True


def _reached(name: str, spending: Spending, unit: str | None) -> str:
    return (
        f"{name} was reached: {spending.spent:.6g} of {spending.most:.6g} {unit} were spent, and "
        "one more answer might go beyond. All that was paid for is kept: call again with a larger "
        f"{name} to go on."
    )


def rows_of(batch: Any) -> list[Any]:  # noqa: ANN401  (rows of any type)
    """The rows of a batch one by one; of tables and columns a mapping for each.

    >>> rows_of({"title": ["a", "b"], "year": [1, 2]})[0]
    {'title': 'a', 'year': 1}
    """
    if is_table(batch):
        return [dict(row) for row in batch.to_dict("records")]
    if isinstance(batch, dict):
        columns = [rows_of(column) for column in batch.values()]
        return [dict(zip(batch, values, strict=True)) for values in zip(*columns, strict=True)]
    if isinstance(batch, Tensor):
        return list(batch.tolist())
    return list(batch)
