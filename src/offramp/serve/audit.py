"""Audits: a few answers, drawn at random, are compared with the reference's, off the critical path.

Whether an example is audited depends on its id and a seed alone. Those drawn wait in a bounded
queue; one thread sends them through the reference at the lowest priority, a few at a time, so that
they run when nobody else has something to run. Where the queue is full the newcomer is dropped, and
counted. That the queue is full says something about the load, and nothing about that example's
answer; so those that are audited stay a fair sample of those answered under the same load. Under
lasting overload few are audited, and a promise is watched less closely: the numbers show it.

Layer: serve.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from offramp._core.batch import take_rows
from offramp._core.checks import check_fraction, check_seed
from offramp._core.types import AnyBatch, Raw
from offramp.policy.gears import REFERENCE
from offramp.runtime import Executor, Prediction, audit_mask
from offramp.serve.answered import Answered

_log = logging.getLogger(__name__)

PRIORITY = -1e9  # of audits: everybody else goes first
MOST = 256  # examples that wait to be audited
_AT_ONCE = 8  # examples that are with the executor


@final
@dataclass(frozen=True, eq=False, slots=True)
class Case:
    """An answer to be compared with the reference's.

    Args:
        name: Id of the example.
        row: The example, a batch of one.
        gear: What answered.
        answer: Its best labels, the first first; -1 for none.
    """

    name: int | str
    row: Raw
    gear: str
    answer: tuple[int, ...]


#: Told of each case and what the reference says, or None where it could not be asked.
Told = Callable[[Case, Prediction | None], None]


@final
class Audits:
    """Draws examples, and sends them through the reference when there is time.

    Thread-safe.

    Args:
        rate: Share of the examples to audit, in [0, 1].
        seed: Of the draw.
        told: Called from the thread of the audits.

    Raises:
        InputError: If `rate` lies outside [0, 1].
    """

    def __init__(self, rate: float, seed: int, told: Told) -> None:
        self.rate, self._seed, self._told = check_fraction("audit", rate), check_seed(seed), told
        self._waiting: deque[Case] = deque()
        self._changed = threading.Condition()
        self._executor: Executor | None = None
        self._thread: threading.Thread | None = None
        self._closing = self._busy = False

    def start(self, executor: Executor) -> None:
        """Begin to audit: the executor must have the reference among its gears."""
        self._executor = executor
        if self.rate > 0 and self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def drawn_of(self, heard: Sequence[Answered]) -> Iterator[tuple[Answered, list[int]]]:
        """Of some requests those with examples that are audited, and which these are."""
        if self.rate == 0:
            return
        for kind in "iU":  # ids that are numbers, and names
            each = [one for one in heard if one.ids.dtype.kind == kind]
            if each:
                ids = np.concatenate([one.ids for one in each])
                mask = audit_mask(ids, rate=self.rate, seed=self._seed)
                ends = np.cumsum([len(one.ids) for one in each])
                for one, part in zip(each, np.split(mask, ends[:-1]), strict=True):
                    if part.any() and (held := np.flatnonzero(part & one.promised).tolist()):
                        yield one, held

    def offer(self, case: Case) -> bool:
        """Audit a case later; False if there is no room for it."""
        with self._changed:
            if len(self._waiting) >= MOST or self._closing or self._executor is None:
                return False
            self._waiting.append(case)
            self._changed.notify()
        return True

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def wait(self, seconds: float) -> bool:
        """Wait until all that were offered are done with; for tests. False if time is up."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def close(self) -> None:
        """Drop who waits, and come back when nothing runs any more."""
        with self._changed:
            self._closing = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        while cases := self._next():
            for case, said in self._asked(cases):
                try:
                    self._told(case, said)
                except Exception:  # noqa: BLE001  (the next ones have to be audited as well)
                    _log.exception("An audit could not be counted.")
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _next(self) -> list[Case]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            count = min(_AT_ONCE, len(self._waiting))
            self._busy = count > 0
            return [self._waiting.popleft() for _ in range(count)]

    def _asked(self, cases: list[Case]) -> list[tuple[Case, Prediction | None]]:
        """What the reference says to each; the executor runs them together."""
        executor, futures = self._executor, list[Future[Prediction] | None]()
        if executor is None:
            return []
        for case in cases:
            try:
                ask = executor.future(case.row, [case.name], gear=REFERENCE, priority=PRIORITY)
            except Exception as error:  # noqa: BLE001  (a closed executor, or a bad example)
                _log.info("An audit could not be made: %s", error)
                futures.append(None)
            else:
                futures.append(ask)
        found: list[tuple[Case, Prediction | None]] = []
        for case, future in zip(cases, futures, strict=True):
            try:
                found.append((case, None if future is None else future.result()))
            except Exception as error:  # noqa: BLE001  (whatever a network raises)
                _log.info("The reference could not answer an audit: %s", error)
                found.append((case, None))
        return found


def rows_of(batch: AnyBatch, take_in: Callable[[object], Raw], rows: list[int]) -> list[Raw]:
    """Single examples of a batch, copied out of it.

    Args:
        batch: As it was answered.
        take_in: Of the program: what makes raw input of it.
        rows: Their positions.
    """
    raw = take_in(batch)
    return [take_rows(raw, torch.tensor([row])) for row in rows]
