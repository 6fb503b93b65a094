"""Execution: which segments of which stages run for whom, and what is kept for later stages.

A stage needs its own segment and those it builds upon; whatever of them an example has not run yet
is run, the heads of stages it does not visit are not. The raw input and the carries are narrowed
to the examples that need them only when a segment is about to read them.

Layer: runtime.  Source: methods.md 1 (early exit: segments and heads) and 6.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from offramp._core.errors import InputError
from offramp._core.topology import RAW_INPUT, Topology
from offramp._core.types import Batch
from offramp.runtime.events import NO_STAGE, Mark, unmarked
from offramp.runtime.inflight import Rows
from offramp.runtime.times import StageTimes
from offramp.stages import Stage, concat, take_rows
from offramp.stages.fusing.modules import column_of, is_passing, together_of

Form = tuple[Any, ...]  # shapes and types of a carry, without the number of examples

_RAW = ""  # stands for the raw input among the groups; the name of a stage is never empty


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """What visiting one stage takes, whoever comes.

    Args:
        segments: Stages whose segments somebody may lack, in the order they run.
        by_some: Those of them that have run already for some of the examples.
        keep: Groups (and the raw input) that a later stage may still read.
    """

    segments: tuple[int, ...]
    by_some: frozenset[int]
    keep: frozenset[str]


def plan_segments(topology: Topology) -> dict[int, Plan]:
    """The plan of each stage that a topology uses, from its visit paths alone.

    >>> plans = plan_segments(Topology.of(["a", "b", "c"], sources=[-1, 0, 1]).chain(["a", "c"]))
    >>> plans[2].segments  # the exit "b" is not used, but its segment runs
    (1, 2)
    """
    missing: dict[int, list[tuple[int, ...]]] = {k: [] for k in topology.active}
    for path in topology.paths():
        missing[path[-1]].append(topology.new_segments(path[:-1], path[-1]))
    by_some = {
        k: {j for j in topology.lineage(k) if 0 < sum(j in new for new in ways) < len(ways)}
        for k, ways in missing.items()
    }
    needs = {
        # What some have run and some lack is kept as well: it tells who has run it.
        k: {_read(topology, k, new) for new in ways} | {topology.groups[j] for j in by_some[k]}
        for k, ways in missing.items()
    }
    return {
        k: Plan(
            tuple(j for j in topology.lineage(k) if any(j in new for new in ways)),
            frozenset(by_some[k]),
            frozenset().union(*(needs[other] for other in topology.active if other > k)),
        )
        for k, ways in missing.items()
    }


def _read(topology: Topology, stage: int, new: tuple[int, ...]) -> str:
    """The group whose carry is read first when the segments `new` lead to a stage."""
    if not new:
        return topology.groups[stage]
    source = topology.sources[new[0]]
    return _RAW if source == RAW_INPUT else topology.groups[source]


@final
@dataclass(frozen=True, slots=True)
class Block:
    """What has run when a stage of several in one piece has, from that stage on.

    Args:
        groups: Whose carry is there then, itself first.
        stages: Those that may be asked.
        columns: Where their logits are among those that came together.
        passing: Whether an earlier stage has run all of it.
    """

    groups: tuple[str, ...]
    stages: tuple[int, ...]
    columns: slice | list[int]
    passing: bool


def blocks_of(
    topology: Topology, plans: Mapping[int, Plan], stages: Mapping[int, Stage]
) -> dict[int, Block]:
    """For each stage that runs in one piece with others, what runs with it."""
    follows = {topology.sources[k]: k for k, stage in stages.items() if is_passing(stage)}
    found: dict[int, Block] = {}
    for k, stage in stages.items():
        if k not in follows and not is_passing(stage):
            continue
        members = [k]
        while members[-1] in follows:
            members.append(follows[members[-1]])
        columns = {j: column_of(stages[j]) for j in members if j in plans}
        asked = [(j, column) for j, column in columns.items() if column is not None]
        where = [column for _, column in asked]
        row = bool(where) and where == list(range(where[0], where[-1] + 1))
        found[k] = Block(
            tuple(topology.groups[j] for j in members if j == k or stages[j].gives_carry),
            tuple(j for j, _ in asked),
            slice(where[0], where[-1] + 1) if row else where,
            is_passing(stage),
        )
    return found


@final
class Execution:
    """One batch on its way through the stages.

    Args:
        topology: What the policy uses.
        plans: Of `plan_segments`.
        stages: The stages by index; at least those whose segments or heads may run.
        batch: The raw input.
        n: Its number of examples.
        device: Where the stages are.
        blocks: Of `blocks_of`, for the stages that run in one piece.
        times: Measured times: a stage then takes a batch in parts where that is faster, and runs
            everybody who is held where gathering those wanted would cost more.
        mark: Told of segments, heads and compaction.
    """

    def __init__(
        self,
        topology: Topology,
        plans: Mapping[int, Plan],
        stages: Mapping[int, Stage],
        batch: Batch,
        n: int,
        device: torch.device,
        *,
        blocks: Mapping[int, Block] | None = None,
        times: StageTimes | None = None,
        mark: Mark = unmarked,
    ) -> None:
        self._topology, self._plans, self._stages = topology, plans, stages
        self._blocks = {} if blocks is None else blocks
        self._said: Any = None  # the carry that one example's last stage answered from
        self._n, self._device, self._times, self._mark = n, device, times, mark
        self._held = {_RAW: _Held(batch, None)}

    @property
    def held(self) -> frozenset[str]:
        """Groups whose carries are held; "" for the raw input."""
        return frozenset(self._held)

    @property
    def form(self) -> Form:
        """What the carries held look like; only those of one form can be joined."""
        return tuple((group, carry_form(held.batch)) for group, held in sorted(self._held.items()))

    def visit(self, stage: int, rows: Rows) -> Float[Tensor, "m c"]:
        """Run what the examples at `rows` lack up to `stage`, and its head."""
        plan = self._plans[stage]
        for j in plan.segments:
            if self._has_passed(j):
                continue
            lacking = self._lacking(j, rows) if j in plan.by_some else rows
            if lacking is None or len(lacking):
                self._run(j, lacking, shared=j in plan.by_some)
        logits = self._answer(stage, rows)
        if len(self._held) > len(plan.keep) or not plan.keep.issuperset(self._held):
            self._held = {group: held for group, held in self._held.items() if group in plan.keep}
        return logits

    def _has_passed(self, stage: int) -> bool:
        """Whether a segment ran with that of an earlier stage, for everybody who got there."""
        block = self._blocks.get(stage)
        return block is not None and block.passing and self._topology.groups[stage] in self._held

    def ahead(self, stage: int) -> tuple[Sequence[int], Tensor] | None:
        """Stages that answered when the only example visited one, and their logits `(1, k, c)`."""
        block = self._blocks.get(stage)
        if block is None or len(block.stages) == 1:
            return None
        return block.stages, together_of(self._said)[:, block.columns].float()

    def narrowed(self, rows: Rows) -> "Execution":
        """The same for some of the examples, who become all there are."""
        each = {id(held): held.take(rows) for held in self._held.values()}
        carries = {group: each[id(held)] for group, held in self._held.items()}
        self._mark("compaction", NO_STAGE, self._n if rows is None else len(rows))
        return self._with(carries, self._n if rows is None else len(rows))

    def joined(self, others: Sequence["Execution"]) -> "Execution":
        """Several batches as one, in order; all hold carries of the same groups."""
        each = [self, *others]
        whole: dict[int, Any] = {}
        for group, held in self._held.items():
            if id(held.batch) not in whole:
                whole[id(held.batch)] = concat([one._held[group].batch for one in each])
        carries = {group: whole[id(held.batch)] for group, held in self._held.items()}
        n = sum(one._n for one in each)
        self._mark("compaction", NO_STAGE, n)
        return self._with(carries, n)

    def _with(self, carries: Mapping[str, Any], n: int) -> "Execution":
        made = Execution(
            self._topology,
            self._plans,
            self._stages,
            (),
            n,
            self._device,
            blocks=self._blocks,
            times=self._times,
            mark=self._mark,
        )
        made._held = {group: _Held(carry, None) for group, carry in carries.items()}
        return made

    def _run(self, stage: int, lacking: Rows, *, shared: bool) -> None:
        """Run a segment for those who lack it, and hold what it gives."""
        source, group = self._topology.sources[stage], self._topology.groups[stage]
        held = self._held[_RAW if source == RAW_INPUT else self._topology.groups[source]]
        block = self._blocks.get(stage)
        if block is not None and block.passing:
            lacking = held.rows  # nothing has to be computed, so nothing is gathered
        elif self._times is not None and lacking is not None and not shared:
            count = self._n if held.rows is None else len(held.rows)
            if self._times.whole_is_cheaper(stage, source, count, len(lacking)):
                lacking = held.rows
        m = self._n if lacking is None else len(lacking)
        given = held.take(lacking)
        if given is not held.batch:
            self._mark("compaction", stage, m)
        done = _Held(self._segment(stage, given, m), lacking)
        self._mark("stage", stage, m)
        before = self._held.get(group)
        done = done if before is None else before.joined(done, self._n)
        for name in (group,) if block is None else block.groups:
            self._held[name] = done

    def _segment(self, stage: int, given: Batch, m: int) -> Any:  # noqa: ANN401
        """What a segment gives, taken in parts where that is faster."""
        here = self._stages[stage]
        parts = (m,) if self._times is None else self._times.split(stage, m)
        if len(parts) == 1:
            return here.segment(given)
        given_parts = split_batch(given, parts)
        if here.gives_carry or stage not in self._plans:  # there nobody answers, so no head is held
            return concat([here.segment(part) for part in given_parts])
        # What a whole network returns may hold more than can be joined; its logits can.
        return torch.cat([here.answer(here.segment(part)) for part in given_parts])

    def _answer(self, stage: int, rows: Rows) -> Float[Tensor, "m c"]:
        here, held = self._stages[stage], self._held[self._topology.groups[stage]]
        if self._n == 1:
            self._said = held.batch
        picks = stage in self._blocks  # costs nothing, so nothing is gathered for it
        if (picks or self._times is not None) and held.holds_more_than(rows):
            everyone = here.answer(held.batch)
            logits: Tensor = _Held(everyone, held.rows).take(rows)
        else:
            logits = here.answer(held.take(rows))
        m = logits.shape[0]
        if m != (self._n if rows is None else rows.shape[0]):
            raise InputError(
                f"Stage {here.name!r} must answer for each of the "
                f"{self._n if rows is None else len(rows)} examples that it was given, got {m} "
                "answers. A network must keep the batch's rows and their order."
            )
        self._mark("head", stage, m)
        return logits

    def _lacking(self, stage: int, rows: Rows) -> Rows:
        """Those among `rows` that have not run a segment; asks the device how many they are."""
        held = self._held.get(self._topology.groups[stage])
        if held is None:
            return rows
        everyone = torch.arange(self._n, device=self._device)
        wanted = everyone if rows is None else rows
        if held.rows is None:
            return wanted[:0]
        has = torch.zeros(self._n, dtype=torch.bool, device=self._device)
        has[held.rows] = True
        found = wanted[~has[wanted]]
        self._mark("wait", stage, len(found))
        return found


@final
@dataclass(frozen=True, slots=True)
class _Held:
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

    def joined(self, other: "_Held", n: int) -> "_Held":
        """Both together, by position; they have no example in common."""
        parts = [held.rows for held in (self, other) if held.rows is not None]
        rows, order = torch.cat(parts).sort()
        batch = take_rows(concat([self.batch, other.batch]), order)
        return _Held(batch, None if len(rows) == n else rows)


def carry_form(batch: Any) -> Form:  # noqa: ANN401  (a carry is what a network gives)
    """Shape of one example and type of each tensor of a carry.

    >>> carry_form({"ids": torch.zeros(3, 8)})
    (('ids', (8,), torch.float32),)
    """
    if isinstance(batch, Tensor):
        return tuple(batch.shape[1:]), batch.dtype
    named = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
    return tuple((name, *carry_form(part)) for name, part in named)


def gather(batch: Any, rows: Tensor) -> Any:  # noqa: ANN401  (a carry is what a network gives)
    """Some examples of a carry, by position, in the memory format that it has.

    Three times as fast as indexing where examples lie one after the other in memory.
    """
    if not isinstance(batch, Tensor):
        return take_rows(batch, rows)
    if batch.is_contiguous():
        return batch.index_select(0, rows)
    if batch.dim() == 4 and batch.is_contiguous(memory_format=torch.channels_last):
        return batch.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return take_rows(batch, rows)


def split_batch(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """A batch in parts of some sizes, in order; nothing is copied.

    >>> [len(part) for part in split_batch(torch.zeros(5, 2), (2, 3))]
    [2, 3]
    """
    if isinstance(batch, Tensor):
        return list(torch.split(batch, list(sizes)))
    if isinstance(batch, Mapping):
        each = {name: torch.split(values, list(sizes)) for name, values in batch.items()}
        return [{name: parts[k] for name, parts in each.items()} for k in range(len(sizes))]
    columns = [torch.split(values, list(sizes)) for values in batch]
    return [tuple(parts[k] for parts in columns) for k in range(len(sizes))]
