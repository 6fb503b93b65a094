"""A stream of batches, driven through a batcher in one thread, and told in a generator.

What one stage or batch raises costs nobody else's answer (docs/adr/0030).

Layer: runtime.  Source: methods.md 6.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import final

import numpy as np
from torch import Tensor

from offramp._core.batch import batch_size, to_device
from offramp._core.errors import InputError
from offramp._core.ids import as_ids, shown_id
from offramp._core.keys import example_keys
from offramp._core.types import AnyBatch, Ids, Raw
from offramp.runtime.batcher import Batcher
from offramp.runtime.inflight import enter
from offramp.runtime.prediction import Prediction
from offramp.runtime.program import Program

_NAMED = 20  # examples that an error names

#: Told of examples that cannot be answered: their ids, and the error.
OnError = Callable[[Ids, Exception], object]

Delivered = tuple[Ids, Prediction]
Keys = Tensor | Ids | Sequence[int | str]


@final
class Stream:
    """One stream of batches on its way.

    Args:
        program: The stages, and what decides.
        batcher: Says who visits what together.
        clock: Gives seconds.
        on_error: Told of examples that are not answered, and why.
    """

    def __init__(
        self,
        program: Program,
        batcher: Batcher,
        clock: Callable[[], float],
        on_error: OnError | None = None,
    ) -> None:
        self._program, self._batcher = program, batcher
        self._clock, self._on_error = clock, on_error
        self._count = 0
        self._error: Exception | None = None  # the first that nobody was told of
        self._unanswered: list[int | str] = []  # because of that and later ones

    def run(
        self, batches: Iterable[AnyBatch | None], ids: Iterable[Keys | None] | None
    ) -> Iterator[Delivered]:
        """Answer everything, as `Adaptive.stream` documents it."""
        source = _paired(batches, ids, self._program.take_in)
        while self._error is None:
            try:
                batch, n, keys = next(source)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001  (the source is over; who waits is answered)
                self._error = error
                break
            if batch is not None and n:
                self._enter(batch, n, keys)
            yield from self._advance(at_end=False)
        yield from self._advance(at_end=True)
        if self._error is not None:
            if self._unanswered:
                self._error.add_note(_told(self._unanswered))
            raise self._error

    def _enter(self, batch: Raw, n: int, keys: Ids | None) -> None:
        device = self._program.policy.temperatures.device
        own = np.arange(self._count, self._count + n) if keys is None else keys
        self._count += n
        try:
            given = to_device(batch, device), example_keys(own).to(device)
            flight = enter(self._program, *given)
        except Exception as error:  # noqa: BLE001  (whatever a network raises)
            self._lose(own, self._program.explained(batch, error))
            return
        self._batcher.put(flight, own, self._clock())

    def _advance(self, *, at_end: bool) -> Iterator[Delivered]:
        """Run whatever is due, and hand out who is finished."""
        while (job := self._batcher.next_job(self._clock(), flush=at_end)) is not None:
            self._batcher.tell(job, job.run(), self._clock())
            for done in self._batcher.finished():
                if done.answer is not None:
                    yield done.ids, done.answer
                elif done.error is not None:
                    self._lose(done.ids, done.error)

    def _lose(self, ids: Ids, error: Exception) -> None:
        """Give up some examples: tell of them, or end the stream once all others are answered."""
        if self._on_error is not None:
            self._on_error(ids, error)
            return
        self._error = self._error or error
        self._unanswered += ids.tolist()


def _paired(
    batches: Iterable[AnyBatch | None],
    ids: Iterable[Keys | None] | None,
    take_in: Callable[[object], Raw],
) -> Iterator[tuple[Raw, int, Ids | None]]:
    """Each batch with its number of examples and their ids.

    Raises:
        InputError: If a batch is none, or its ids are not one for each example.
    """
    given = iter(()) if ids is None else iter(ids)
    for entry in batches:
        keys = None if ids is None else next(given, None)
        batch = None if entry is None else take_in(entry)
        n = 0 if batch is None else batch_size(batch)
        if n and ids is not None and keys is None:
            raise InputError(
                f"ids must hold one entry per batch, got none for batch of {n} examples."
            )
        own = None if keys is None else as_ids(keys)
        if n and own is not None and own.shape != (n,):
            raise InputError(f"ids must have shape ({n},), one for each example, got {own.shape}.")
        yield batch, n, own


def _told(ids: Sequence[int | str]) -> str:
    named = ", ".join(map(shown_id, ids[:_NAMED])) + ("" if len(ids) <= _NAMED else ", ...")
    return f"Not answered because of it: {len(ids)} examples of the stream, with the ids {named}."
