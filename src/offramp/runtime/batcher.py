"""Carry-over: survivors of successive batches gather until there is a full batch for a stage.

Whoever came the same way waits together, so a pool stands at each node of the tree of visit paths,
one for each form of what they bring along: texts of other lengths cannot be joined.

What one stage or batch raises costs nobody else's answer (docs/adr/0030).

Layer: runtime.  Source: methods.md 6; measured.md (carry-over of survivors to full batches).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from offramp._core.batch import as_batch
from offramp._core.checks import check_known, check_not_negative, check_positive_int
from offramp._core.errors import InputError, OfframpError
from offramp._core.ids import as_ids, shown_id
from offramp._core.keys import example_keys
from offramp._core.topology import EXIT, Path, Topology
from offramp._core.types import AnyBatch, Batch, Ids
from offramp.runtime.answer import Answer
from offramp.runtime.carries import Execution, Form
from offramp.runtime.events import unmarked
from offramp.runtime.inflight import Answered, Journey, Rows
from offramp.runtime.program import BLAMES_BATCH, Runner
from offramp.runtime.times import StageTimes
from offramp.runtime.walk import Engine, Routed
from offramp.stages import batch_size, to_device

FULL = 64  # a batch that uses a CPU well and fits into its caches

_NAMED = 20  # examples that an error names

#: Told of examples that cannot be answered: their ids, and the error.
OnError = Callable[[Ids, Exception], object]

Delivered = tuple[Ids, Answer]
Keys = Tensor | Ids | Sequence[int | str]


def full_sizes(
    given: int | Mapping[str, int] | None, topology: Topology, times: StageTimes | None
) -> dict[int, int]:
    """For each stage how many examples make a full batch, by index.

    >>> full_sizes({"b": 8}, Topology.of(["a", "b"]), None)
    {0: 64, 1: 8}
    """
    stages = range(len(topology))
    if isinstance(given, int):
        return dict.fromkeys(stages, check_positive_int("batch_size", given))
    default = {k: FULL if times is None else times.best_size(k) for k in stages}
    for name, size in (given or {}).items():
        check_known("stage", name, topology.names)
        default[topology.index(name)] = check_positive_int(f"batch_size[{name!r}]", size)
    return default


@dataclass(frozen=True, slots=True)
class _Parcel:
    """Examples that came the same way and wait for the same stage."""

    journey: Journey
    execution: Execution
    numbers: Tensor  # (m,), their places in the stream
    since: float  # when the first of them came in, by the clock

    def __len__(self) -> int:
        return len(self.numbers)

    def narrowed(self, rows: Rows) -> "_Parcel":
        if rows is None:
            return self
        return _Parcel(
            self.journey.narrowed(rows),
            self.execution.narrowed(rows),
            self.numbers.index_select(0, rows),
            self.since,
        )

    def joined(self, others: Sequence["_Parcel"]) -> "_Parcel":
        if not others:
            return self
        return _Parcel(
            self.journey.joined([one.journey for one in others]),
            self.execution.joined([one.execution for one in others]),
            torch.cat([self.numbers, *(one.numbers for one in others)]),
            min(self.since, *(one.since for one in others)),
        )


@final
class Stream:
    """One stream of batches on its way.

    Args:
        engine: Its policy decides.
        runner: Runs the stages.
        full: For each stage the size of a full batch.
        deadline: Seconds that an example may wait, or None.
        clock: Gives seconds.
        finish: Makes an answer of what is known of examples that left.
        on_error: Told of examples that are not answered, and why.
    """

    def __init__(
        self,
        engine: Engine,
        runner: Runner,
        full: Mapping[int, int],
        deadline: float | None,
        clock: Callable[[], float],
        finish: Callable[[Routed], Answer],
        on_error: OnError | None = None,
    ) -> None:
        self._deadline = None if deadline is None else check_not_negative("deadline", deadline)
        self._engine, self._runner, self._full = engine, runner, full
        self._clock, self._finish = clock, finish
        self._pools: dict[Path, dict[Form, list[_Parcel]]] = {path: {} for path in engine.paths}
        self._ids: dict[int, int | str] = {}  # of those who are on their way
        self._count = 0
        self._on_error = on_error
        self._error: Exception | None = None  # the first that nobody was told of
        self._unanswered: list[int | str] = []  # because of that and later ones

    def run(
        self, batches: Iterable[AnyBatch | None], ids: Iterable[Keys | None] | None
    ) -> Iterator[Delivered]:
        """Answer everything, as `Adaptive.stream` documents it."""
        source = _paired(batches, ids)
        while self._error is None:
            try:
                batch, n, keys = next(source)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001  (the source is over; who waits is answered)
                self._error = error
                break
            if batch is not None and n:
                yield from self._enter(batch, n, keys)
            yield from self._advance(at_end=False)
        yield from self._advance(at_end=True)
        if self._error is not None:
            if self._unanswered:
                self._error.add_note(_told(self._unanswered))
            raise self._error

    def _enter(self, batch: Batch, n: int, keys: Ids | None) -> Iterator[Delivered]:
        device = self._engine.policy.temperatures.device
        numbers = np.arange(self._count, self._count + n)
        self._count += n
        own = numbers if keys is None else keys
        self._ids.update(zip(numbers.tolist(), own.tolist(), strict=True))
        root = self._engine.policy.topology.root
        try:
            parcel = _Parcel(
                Journey(self._engine.policy, example_keys(own).to(device)),
                self._runner.start(to_device(batch, device), n, device),
                torch.from_numpy(numbers).to(device),
                self._clock(),
            )
            logits = self._visited(root, parcel)
        except Exception as error:  # noqa: BLE001  (whatever a network raises)
            self._fail(numbers, self._blamed(batch, error))
            return
        self._runner.answered(batch, logits.shape[1])
        yield from self._decided((root,), parcel, logits)

    def _blamed(self, batch: Batch, error: Exception) -> Exception:
        """The error, or a better one if the batch is not like those that were answered."""
        if not isinstance(error, OfframpError) and isinstance(error, BLAMES_BATCH):
            try:
                self._runner.check_blame(batch, error)
            except OfframpError as better:
                return better
        return error

    def _fail(self, numbers: Shaped[np.ndarray, " m"], error: Exception) -> None:
        """Give up some examples: tell of them, or end the stream once all others are answered."""
        lost = [self._ids.pop(number) for number in numbers.tolist()]
        if self._on_error is not None:
            self._on_error(np.array(lost), error)
            return
        self._error = self._error or error
        self._unanswered += lost

    def _advance(self, *, at_end: bool) -> Iterator[Delivered]:
        """Run whatever is full or late; paths come before their continuations."""
        for path in sorted(self._pools, key=lambda path: path[-1]):
            pools = self._pools[path]
            for form in list(pools):
                while (parcel := self._due(path, pools[form], at_end=at_end)) is not None:
                    yield from self._step(path, parcel)
                if not pools[form]:
                    del pools[form]

    def _due(self, path: Path, pool: list[_Parcel], *, at_end: bool) -> _Parcel | None:
        """A full batch of those who wait, the first to come first; or all who wait, if late."""
        full = self._full[path[-1]]
        waiting = sum(map(len, pool))
        if waiting < full and not (waiting and (at_end or self._late(pool))):
            return None
        taken, missing = list[_Parcel](), min(full, waiting)
        while missing:
            first = pool.pop(0)
            if len(first) > missing:
                device = first.numbers.device
                rest = torch.arange(missing, len(first), device=device)
                pool.insert(0, first.narrowed(rest))
                first = first.narrowed(torch.arange(missing, device=device))
            taken.append(first)
            missing -= len(first)
        return taken[0].joined(taken[1:])

    def _late(self, pool: Sequence[_Parcel]) -> bool:
        if self._deadline is None:
            return False
        return self._clock() - min(parcel.since for parcel in pool) >= self._deadline

    def _visited(self, stage: int, parcel: _Parcel) -> Tensor:
        try:
            return parcel.execution.visit(stage, None).float()
        finally:
            self._runner.check_modes()

    def _step(self, path: Path, parcel: _Parcel) -> Iterator[Delivered]:
        """Run the stage at the end of a path."""
        try:
            logits = self._visited(path[-1], parcel)
        except Exception as error:  # noqa: BLE001  (whatever a network raises)
            self._fail(parcel.numbers.cpu().numpy(), error)
            return
        yield from self._decided(path, parcel, logits)

    def _decided(self, path: Path, parcel: _Parcel, logits: Tensor) -> Iterator[Delivered]:
        """Take in what the last stage of a path says; some are answered, the others wait again."""
        journey = parcel.journey
        journey.hold(path[-1], None, logits)
        for (_, rows), child in journey.decide([(path, None)], unmarked):
            if child == EXIT:
                yield self._deliver(path, parcel, rows, journey.answer(path, rows))
                continue
            part = parcel.narrowed(rows)
            if part.journey.broken:  # what is not finite waits for nobody
                yield from self._step((*path, child), part)
            else:
                pools = self._pools[*path, child]
                pools.setdefault(part.execution.form, []).append(part)

    def _deliver(self, path: Path, parcel: _Parcel, rows: Rows, answered: Answered) -> Delivered:
        logits, nonfinite, valid = answered
        numbers = parcel.numbers if rows is None else parcel.numbers.index_select(0, rows)
        routed = Routed(
            logits=logits,
            parts=((self._engine.index[path], None),),
            nonfinite=torch.zeros_like(numbers) if nonfinite is None else nonfinite,
            valid=torch.ones_like(numbers, dtype=torch.bool) if valid is None else valid,
            sound=valid is None,
        )
        ids = np.array([self._ids.pop(number) for number in numbers.tolist()])
        return ids, self._finish(routed)


def _paired(
    batches: Iterable[AnyBatch | None], ids: Iterable[Keys | None] | None
) -> Iterator[tuple[Batch | None, int, Ids | None]]:
    """Each batch with its number of examples and their ids.

    Raises:
        InputError: If a batch is none, or its ids are not one for each example.
    """
    given = iter(()) if ids is None else iter(ids)
    for entry in batches:
        keys = None if ids is None else next(given, None)
        batch = None if entry is None else as_batch(entry)
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
