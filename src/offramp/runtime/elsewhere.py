"""Visits elsewhere: a job goes to another process, and what it left comes back.

Who asks has the scheduler, who answers has the networks; both have the program. Who answers decides
as well, so that only those come back with what they carry who go on to stages that are not there,
and a visit goes on through stages that are.

Layer: runtime.  Source: docs/adr/0059.
"""

import copyreg
import io
import pickle
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from offramp._core.carry import RawInput
from offramp._core.errors import InputError
from offramp._core.outputs import StageOutput
from offramp._core.topology import EXIT, Path
from offramp.runtime.inflight import Held, InFlight
from offramp.runtime.plans import RAW
from offramp.runtime.prediction import Rows
from offramp.runtime.program import Program
from offramp.runtime.walk import decide


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A batch on its way to a stage elsewhere.

    Args:
        path: The way that all have come; it ends at the stage.
        ids: Keys of the examples, `(n,)`.
        carries: What the visit reads, by group.
        outputs: What each stage has said before, or None.
    """

    path: Path
    ids: Tensor
    carries: Mapping[str, Any]
    outputs: tuple[StageOutput | None, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Visited:
    """What came of a visit.

    Args:
        said: By the stage, of all examples.
        seconds: That the stage took.
        ways: Who goes on to which stage, by position; None for all.
        ahead: Of those who have visited the next stage there as well, what came of that.
        carries: Of those who go on to other stages, what they carry, by group.
    """

    said: StageOutput
    seconds: float
    ways: Mapping[int, Rows]
    ahead: Mapping[int, "Visited"]
    carries: Mapping[str, Held]

    def each(self, stage: int) -> "Iterator[tuple[int, Visited]]":
        """This visit of a stage, and those that went on from it."""
        yield stage, self
        for child, one in self.ahead.items():
            yield from one.each(child)

    def check_agrees(self, ways: Mapping[int, Rows], n: int) -> None:
        """Raise `InputError` unless the same of `n` examples go to each stage as do here."""
        everyone, nobody = torch.arange(n), torch.zeros(0, dtype=torch.int64)
        for child, rows in ways.items():
            if child == EXIT:
                continue
            there = self.ways.get(child, nobody)
            if not torch.equal(
                everyone if rows is None else rows.cpu(), everyone if there is None else there
            ):
                raise InputError(
                    "The machines of a cluster must decide alike, and two of them let other "
                    f"examples of a batch go on to stage {child}. Let all run the same versions of "
                    "the bundle, of offramp and of torch on processors of one kind."
                )

    def take(self, rows: Rows) -> "Visited":
        """The same of some of the examples."""
        if rows is None:
            return self
        back = torch.full((len(self.said),), -1)
        back[rows] = torch.arange(len(rows))
        ways, ahead = dict[int, Rows](), dict[int, Visited]()
        for child, way in self.ways.items():
            found = back if way is None else back[way]
            ways[child] = found[found >= 0]
            if child in self.ahead:
                ahead[child] = self.ahead[child].take((found >= 0).nonzero()[:, 0])
        carries = dict[str, Held]()
        for group, held in self.carries.items():
            found = back if held.rows is None else back[held.rows]
            kept = (found >= 0).nonzero()[:, 0]
            carries[group] = Held(Held(held.batch, None).take(kept), found[kept])
        said = self.said.take(rows)
        return replace(self, said=said, ways=ways, ahead=ahead, carries=carries)


@runtime_checkable
class Elsewhere(Protocol):
    """Where stages of a model run, if not here."""

    @property
    def lanes(self) -> Mapping[str, tuple[str, int]]:
        """By name, where stages run, and how many batches go there at a time; others run here."""
        ...

    def __call__(self, gear: str | None, asked: Asked) -> Visited:
        """Have a batch visit a stage; raises what the stage raises."""
        ...


def packed(what: Asked | Visited) -> bytes:
    """As bytes for another process of the same program; `unpacked` makes it whole again.

    Tensors go as their own bytes. PyTorch would take ten times as long for small ones, and send the
    whole of a request with each slice of it, since they share their memory.
    """
    held = io.BytesIO()
    pickler = pickle.Pickler(held, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = copyreg.dispatch_table | {Tensor: _reduced}
    pickler.dump(what)
    return held.getvalue()


def unpacked(what: bytes) -> Any:  # noqa: ANN401  (Asked or Visited)
    """What was packed by a process of the same program, which is trusted as this one is."""
    return pickle.loads(what)


def _reduced(tensor: Tensor) -> Any:  # noqa: ANN401  (as `__reduce_ex__`)
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
        return tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # type: ignore[no-untyped-call]
    values = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return _tensor, (bytearray(values.numpy()), tensor.dtype, tensor.shape)


def _tensor(values: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    flat = torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)
    return flat.reshape(shape)


def asked_of(flight: InFlight, path: Path) -> Asked:
    """What is sent so that examples visit the last stage of their path."""
    carries = {
        group: batch.rows if isinstance(batch, RawInput) else batch
        for group, batch in flight.read_by(path[-1]).items()
    }
    return Asked(path=path, ids=flight.ids, carries=carries, outputs=tuple(flight.outputs))


def visit_there(program: Program, asked: Asked, part: Collection[int]) -> Visited:
    """Visit a stage, and the stages of a part that follow, where the networks are.

    Args:
        program: Like that of whoever asks.
        asked: By it.
        part: Stages that run here.
    """
    flight = InFlight(program, (), asked.ids)
    carries = dict(asked.carries)
    if RAW in carries:
        carries[RAW] = program.as_read(carries[RAW])
    flight.stand(carries, asked.outputs)
    return _visit(flight, asked.path, part)


def _visit(flight: InFlight, path: Path, part: Collection[int]) -> Visited:
    stage, sent = path[-1], flight.held
    began = time.perf_counter()
    said = flight.visit(stage, None)
    seconds = time.perf_counter() - began
    flight.hear(stage, None, said)
    ways, ahead, others = dict[int, Rows](), dict[int, Visited](), list[Rows]()
    for (_, rows), child in decide(flight, [(path, None)]):
        if child == EXIT:
            continue
        ways[child] = rows
        if child in part:
            ahead[child] = _visit(flight.take(rows), (*path, child), part)
        else:
            others.append(rows)
    carries = dict[str, Held]()
    if others:
        carries = flight.carried(_merged(others), sent)
    return Visited(said=said, seconds=seconds, ways=ways, ahead=ahead, carries=carries)


def _merged(parts: list[Rows]) -> Rows:
    """All of them, ascending; None where one is everybody."""
    some = [part for part in parts if part is not None]
    return torch.cat(some).sort().values if len(some) == len(parts) else None
