"""Examples on their way: what stages said of them, what they carry along, and who they are.

The raw input and the carries are narrowed to the examples that need them only when a segment is
about to read them.

Layer: runtime.  Source: methods.md 1 (early exit: segments and heads) and 6.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from offramp._core.batch import (
    Form,
    carry_form,
    concat,
    split_rows,
    take_rows,
)
from offramp._core.carry import RawInput
from offramp._core.errors import OfframpError
from offramp._core.outputs import StageOutput
from offramp._core.topology import RAW_INPUT, Path
from offramp._core.types import Raw
from offramp.policy.features import Distribution
from offramp.policy.policy import Evidence
from offramp.runtime.events import NO_STAGE, Mark
from offramp.runtime.fallback import Fallback
from offramp.runtime.plans import RAW
from offramp.runtime.prediction import Rows
from offramp.runtime.program import BLAMES_BATCH, Program

Numbers = Int64[np.ndarray, " n"]


@final
@dataclass(frozen=True, slots=True)
class Held:
    """A carry, and the examples whose it is; `rows` None stands for the whole batch."""

    batch: Any
    rows: Rows

    def take(self, rows: Rows) -> Any:  # noqa: ANN401  (a carry is what a network gives)
        """The carry of some of its examples; the same object where that is all of them."""
        if rows is None or (self.rows is not None and len(rows) == len(self.rows)):
            return self.batch
        if self.rows is None:
            return gather(self.batch, rows)
        return gather(self.batch, torch.searchsorted(self.rows, rows))

    def holds_more_than(self, rows: Rows) -> bool:
        """True if it holds the carry of others as well."""
        return rows is not None and (self.rows is None or len(rows) < len(self.rows))

    def joined(self, other: "Held", n: int) -> "Held":
        """Both together, by position; they have no example in common."""
        parts = [held.rows for held in (self, other) if held.rows is not None]
        rows, order = torch.cat(parts).sort()
        batch = take_rows(concat([self.batch, other.batch]), order)
        return Held(batch, None if len(rows) == n else rows)


def gather(batch: Any, rows: Tensor) -> Any:  # noqa: ANN401  (a carry is what a network gives)
    """Some examples of a carry, by position, in the memory format that it has.

    Three times as fast as indexing where examples lie one after the other in memory.
    """
    if isinstance(batch, StageOutput):
        return batch.take(rows)
    if not isinstance(batch, Tensor):
        return take_rows(batch, rows)
    if batch.is_contiguous():
        return batch.index_select(0, rows)
    if batch.dim() == 4 and batch.is_contiguous(memory_format=torch.channels_last):
        return batch.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return take_rows(batch, rows)


class InFlight:
    """Some examples on their way through a program: everything that is known of them.

    Whoever drives it visits a stage, lets it hear what the stage says, and asks what each example
    does next (`offramp.runtime.walk`).

    Args:
        program: The stages, and what visiting each takes.
        batch: The raw input.
        ids: Keys of the examples for random policies, `(n,)`; they lie where the stages are.
        mark: Told of segments, heads, compaction, decisions, and waiting for the device.
    """

    def __init__(
        self,
        program: Program,
        batch: Raw,
        ids: Int[Tensor, " n"],
        *,
        mark: Mark | None = None,
    ) -> None:
        self.program, self.ids, self.mark = program, ids, mark
        self.numbers: Numbers | None = None  # who they are to a `Batcher`, `(n,)`, on the host
        self._n = ids.shape[0]
        self._carries = {RAW: Held(program.as_read(batch), None)}
        self._before: dict[str, Held] | None = None  # the carries until a visit was heard
        self.outputs: list[StageOutput | None] = [None] * program.count
        self.last: StageOutput | None = None  # what was heard last, of whom it concerns
        self.fallback: Fallback | None = None  # of all; from the first that is not finite on
        self.known: dict[int, Distribution] = {}  # of stages that were looked at
        self._known_of: Rows = None  # whose distributions `known` holds

    def __len__(self) -> int:
        return self._n

    # ---- visiting stages

    @property
    def held(self) -> frozenset[str]:
        """Groups whose carries are held; "" for the raw input."""
        return frozenset(self._carries)

    @property
    def raw(self) -> Raw:
        """The raw input, as long as it is held."""
        held = self._carries[RAW].batch
        return held.rows if isinstance(held, RawInput) else held

    @property
    def form(self) -> Form:
        """What the carries held look like; only those of one form can be joined."""
        carries = sorted(self._carries.items())
        return tuple((group, carry_form(held.batch)) for group, held in carries)

    def visit(self, stage: int, rows: Rows) -> StageOutput:
        """Run what the examples at `rows` lack up to `stage`, and its head.

        A visit that raises changes nothing, so it can be made again; `undo` takes one back.
        """
        plan, carries = self.program.plans[stage], dict(self._carries)
        for j in plan.segments:
            if self._has_passed(j, carries):
                continue
            lacking = self._lacking(j, rows, carries) if j in plan.by_some else rows
            if lacking is None or len(lacking):
                self._run(j, lacking, carries, shared=j in plan.by_some)
        said = self._answer(stage, rows, carries)
        if len(carries) > len(plan.keep) or not plan.keep.issuperset(carries):
            carries = {group: held for group, held in carries.items() if group in plan.keep}
        self._before, self._carries = self._carries, carries
        return said

    def read_by(self, stage: int) -> dict[str, Any]:
        """What a visit of a stage reads, by group; all examples came the same way."""
        topology, plan = self.program.topology, self.program.plans[stage]
        sources = (topology.sources[k] for k in plan.segments)
        groups = {RAW if k == RAW_INPUT else topology.groups[k] for k in sources}
        groups |= {topology.groups[k] for k in (*plan.segments, stage)}
        return {group: held.batch for group, held in self._carries.items() if group in groups}

    def carried(self, rows: Rows, beside: Collection[str]) -> dict[str, Held]:
        """What some examples carry on, by group, but for some groups."""
        own = {group: held for group, held in self._carries.items() if group not in beside}
        each = {id(held): Held(held.take(rows), rows) for held in own.values()}
        return {group: each[id(held)] for group, held in own.items()}

    def came(self, stage: int, carries: Mapping[str, Held]) -> None:
        """Stand where a visit of a stage elsewhere has taken all examples; `undo` takes it back.

        Args:
            stage: It.
            carries: What they carry on from there, beside what they had.
        """
        keep = self.program.plans[stage].keep
        held = {**self._carries, **carries}
        self._before = self._carries
        self._carries = {group: one for group, one in held.items() if group in keep}

    def undo(self) -> None:
        """Stand where the last visit began, unless what the stage says has been heard."""
        if self._before is not None:
            self._carries, self._before = self._before, None

    def _has_passed(self, stage: int, carries: Mapping[str, Held]) -> bool:
        """Whether a segment ran with that of an earlier stage, for everybody who got there."""
        block = self.program.blocks.get(stage)
        return (
            block is not None and block.passing and self.program.topology.groups[stage] in carries
        )

    def _run(self, stage: int, lacking: Rows, carries: dict[str, Held], *, shared: bool) -> None:
        """Run a segment for those who lack it, and hold what it gives."""
        topology, times = self.program.topology, self.program.times
        source, group = topology.sources[stage], topology.groups[stage]
        held = carries[RAW if source == RAW_INPUT else topology.groups[source]]
        block = self.program.blocks.get(stage)
        if block is not None and block.passing:
            lacking = held.rows  # nothing has to be computed, so nothing is gathered
        elif times is not None and lacking is not None and not shared:
            count = self._n if held.rows is None else len(held.rows)
            if times.whole_is_cheaper(stage, source, count, len(lacking)):
                lacking = held.rows
        m = self._n if lacking is None else len(lacking)
        given = held.take(lacking)
        mark = self.mark
        if mark is not None and given is not held.batch:
            mark("compaction", stage, m)
        done = Held(self._segment(stage, given, m), lacking)
        if mark is not None:
            mark("stage", stage, m)
        before = carries.get(group)
        done = done if before is None else before.joined(done, self._n)
        for name in (group,) if block is None else block.groups:
            carries[name] = done

    def _segment(self, stage: int, given: Raw, m: int) -> Any:  # noqa: ANN401
        """What a segment gives, taken in parts where that is faster."""
        here, times = self.program.stages[stage], self.program.times
        parts = (m,) if times is None else times.split(stage, m)
        if len(parts) == 1:
            return here.segment(given)
        given_parts = split_rows(given, parts)
        if here.gives_carry or stage not in self.program.plans:  # nobody answers: no head is held
            return concat([here.segment(part) for part in given_parts])
        # What a whole network returns may hold more than can be joined; its answer can.
        first, *others = [here.run(part)[0] for part in given_parts]
        return first.concat(others)

    def _answer(self, stage: int, rows: Rows, carries: Mapping[str, Held]) -> StageOutput:
        program = self.program
        here, held = program.stages[stage], carries[program.topology.groups[stage]]
        picks = stage in program.blocks  # costs nothing, so nothing is gathered for it
        if (picks or program.times is not None) and held.holds_more_than(rows):
            given, whole = held.batch, held.rows
        else:
            given, whole = held.take(rows), rows
        said = given if isinstance(given, StageOutput) else here.answer(given)
        if here.calls_on_rows and said.device != self.ids.device:
            said = said.to(self.ids.device)
        if whole is not rows:
            said = Held(said, whole).take(rows)
        said.check_answers(here.name, self._n if rows is None else rows.shape[0])
        if self.mark is not None:
            self.mark("head", stage, len(said))
        return said

    def _lacking(self, stage: int, rows: Rows, carries: Mapping[str, Held]) -> Rows:
        """Those among `rows` that have not run a segment; asks the device how many they are."""
        held = carries.get(self.program.topology.groups[stage])
        if held is None:
            return rows
        everyone = torch.arange(self._n, device=self.ids.device)
        wanted = everyone if rows is None else rows
        if held.rows is None:
            return wanted[:0]
        has = torch.zeros(self._n, dtype=torch.bool, device=self.ids.device)
        has[held.rows] = True
        found = wanted[~has[wanted]]
        if self.mark is not None:
            self.mark("wait", stage, len(found))
        return found

    # ---- what was said

    def hear(self, stage: int, rows: Rows, said: StageOutput) -> None:
        """Take in what a stage says about the examples at `rows`."""
        self._before, self.last = None, said
        # What is known of all stages is addressed by the same positions.
        self.outputs[stage] = said if rows is None else said.placed(rows, self._n)

    def stand(self, carries: Mapping[str, Any], outputs: Sequence[StageOutput | None]) -> None:
        """Stand where somebody else has taken all examples to.

        Args:
            carries: What is held, by group; "" for the raw input.
            outputs: What has been heard of each stage.
        """
        self._carries = {group: Held(carry, None) for group, carry in carries.items()}
        self.outputs = list(outputs)

    @property
    def width(self) -> int:
        """How many classes the stages have, as the last one that was visited has answered."""
        return next(said.width for said in reversed(self.outputs) if said is not None)

    def has_heard(self, stage: int) -> bool:
        """Whether it is known what a stage says."""
        return self.outputs[stage] is not None

    @property
    def broken(self) -> bool:
        """True once an output may have held NaN or infinity."""
        return self.fallback is not None

    def at(self, path: Path, rows: Rows) -> Evidence:
        """What the policy may look at, of those who have come by `path`."""
        if rows is not self._known_of:
            self.known, self._known_of = {}, rows
        ids = self.ids if rows is None else self.ids.index_select(0, rows)
        return Evidence(self.program.policy, path, self.outputs, ids, rows, self.known)

    def paid(self, path: Path, rows: Rows) -> Tensor | None:
        """By how much what services charged on a path differs from the costs, `(m,)`."""
        differences = [
            (held.prices if rows is None else held.prices[rows]) - listed
            for k, listed in self.program.priced.items()
            if k in path and (held := self.outputs[k]) is not None and held.prices is not None
        ]
        return torch.stack(differences).sum(dim=0) if differences else None

    # ---- fewer and more

    def take(self, rows: Rows) -> "InFlight":
        """The same of some of the examples, who become all there are."""
        if rows is None:
            return self
        each = {id(held): held.take(rows) for held in self._carries.values()}
        if self.mark is not None:
            self.mark("compaction", NO_STAGE, len(rows))
        part = self._with(
            {group: each[id(held)] for group, held in self._carries.items()},
            self.ids.index_select(0, rows),
            None if self.numbers is None else self.numbers[rows.cpu().numpy()],
        )
        part.outputs = [None if held is None else held.take(rows) for held in self.outputs]
        part.fallback = None if self.fallback is None else self.fallback.take(rows)
        return part

    def concat(self, others: Sequence["InFlight"]) -> "InFlight":
        """Several as one, in order, all of whom came the same way, in one form, all finite."""
        if not others:
            return self
        each, joined = [self, *others], dict[int, Any]()
        for group, held in self._carries.items():
            if id(held.batch) not in joined:
                joined[id(held.batch)] = concat([one._carries[group].batch for one in each])
        numbers = [one.numbers for one in each if one.numbers is not None]
        whole = self._with(
            {group: joined[id(held.batch)] for group, held in self._carries.items()},
            torch.cat([one.ids for one in each]),
            np.concatenate(numbers) if numbers else None,
        )
        if self.mark is not None:
            self.mark("compaction", NO_STAGE, len(whole))
        for stage, said in enumerate(self.outputs):
            if said is not None:
                theirs = (one.outputs[stage] for one in others)
                whole.outputs[stage] = said.concat([held for held in theirs if held is not None])
        return whole

    def _with(self, carries: Mapping[str, Any], ids: Tensor, numbers: Numbers | None) -> "InFlight":
        made = InFlight(self.program, (), ids, mark=self.mark)
        made.numbers = numbers
        made._carries = {group: Held(carry, None) for group, carry in carries.items()}
        return made


@torch.inference_mode()
def enter(program: Program, batch: Raw, ids: Int[Tensor, " n"]) -> InFlight:
    """Examples for a batcher: if only some of them cannot be run, that shows later."""
    try:
        program.check_before(batch, ids.shape[0])
    except OfframpError:
        raise
    except BLAMES_BATCH:
        pass
    return InFlight(program, batch, ids)
