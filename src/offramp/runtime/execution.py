"""Execution: which segments of which stages run for whom, and what is kept for later stages.

A stage needs its own segment and those it builds upon; whatever of them an example has not run yet
is run, the heads of stages it does not visit are not. The raw input and the carries are narrowed
to the examples that need them only when a segment is about to read them.

Layer: runtime.  Source: methods.md 1 (early exit: segments and heads) and 6.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from offramp._core.topology import RAW_INPUT, Topology
from offramp._core.types import Batch
from offramp.runtime.engine import Rows
from offramp.stages import Stage, concat, take_rows

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
class Execution:
    """One batch on its way through the stages.

    Args:
        topology: What the policy uses.
        plans: Of `plan_segments`.
        stages: The stages by index; at least those whose segments or heads may run.
        batch: The raw input.
        n: Its number of examples.
        device: Where the stages are.
    """

    def __init__(
        self,
        topology: Topology,
        plans: Mapping[int, Plan],
        stages: Mapping[int, Stage],
        batch: Batch,
        n: int,
        device: torch.device,
    ) -> None:
        self._topology, self._plans, self._stages = topology, plans, stages
        self._n, self._device = n, device
        self._held = {_RAW: _Held(batch, None)}

    @property
    def held(self) -> frozenset[str]:
        """Groups whose carries are held; "" for the raw input."""
        return frozenset(self._held)

    def visit(self, stage: int, rows: Rows) -> Float[Tensor, "m c"]:
        """Run what the examples at `rows` lack up to `stage`, and its head."""
        plan, groups = self._plans[stage], self._topology.groups
        for j in plan.segments:
            lacking = self._lacking(groups[j], rows) if j in plan.by_some else rows
            if lacking is not None and len(lacking) == 0:
                continue
            source = self._topology.sources[j]
            given = self._held[_RAW if source == RAW_INPUT else groups[source]].take(lacking)
            done = _Held(self._stages[j].segment(given), lacking)
            before = self._held.get(groups[j])
            self._held[groups[j]] = done if before is None else before.joined(done, self._n)
        logits = self._stages[stage].answer(self._held[groups[stage]].take(rows))
        self._held = {group: held for group, held in self._held.items() if group in plan.keep}
        return logits

    def _lacking(self, group: str, rows: Rows) -> Rows:
        """Those among `rows` that have not run a segment; asks the device how many they are."""
        held = self._held.get(group)
        if held is None:
            return rows
        everyone = torch.arange(self._n, device=self._device)
        wanted = everyone if rows is None else rows
        if held.rows is None:
            return wanted[:0]
        has = torch.zeros(self._n, dtype=torch.bool, device=self._device)
        has[held.rows] = True
        return wanted[~has[wanted]]


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
            return take_rows(self.batch, rows)
        return take_rows(self.batch, torch.searchsorted(self.rows, rows))

    def joined(self, other: "_Held", n: int) -> "_Held":
        """Both together, by position; they have no example in common."""
        parts = [held.rows for held in (self, other) if held.rows is not None]
        rows, order = torch.cat(parts).sort()
        batch = take_rows(concat([self.batch, other.batch]), order)
        return _Held(batch, None if len(rows) == n else rows)
