"""Plans: which segments of which stages run for whom, and what is kept for later stages.

A stage needs its own segment and those it builds upon; whatever of them an example has not run yet
is run, the heads of stages it does not visit are not.

Layer: runtime.  Source: methods.md 1 (early exit: segments and heads) and 6.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from offramp._core.topology import RAW_INPUT, Topology
from offramp.stages import Stage
from offramp.stages.segments import kept_after

RAW = ""  # stands for the raw input among the groups; the name of a stage is never empty


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
    keep = kept_after([needs[k] for k in topology.active])
    return {
        k: Plan(
            tuple(j for j in topology.lineage(k) if any(j in new for new in missing[k])),
            frozenset(by_some[k]),
            kept,
        )
        for k, kept in zip(topology.active, keep, strict=True)
    }


def _read(topology: Topology, stage: int, new: tuple[int, ...]) -> str:
    """The group whose carry is read first when the segments `new` lead to a stage."""
    if not new:
        return topology.groups[stage]
    source = topology.sources[new[0]]
    return RAW if source == RAW_INPUT else topology.groups[source]


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
    follows = {topology.sources[k]: k for k, stage in stages.items() if stage.part.ran}
    found: dict[int, Block] = {}
    for k, stage in stages.items():
        if k not in follows and not stage.part.ran:
            continue
        members = [k]
        while members[-1] in follows:
            members.append(follows[members[-1]])
        columns = {j: stages[j].part.column for j in members if j in plans}
        asked = [(j, column) for j, column in columns.items() if column is not None]
        where = [column for _, column in asked]
        row = bool(where) and where == list(range(where[0], where[-1] + 1))
        found[k] = Block(
            tuple(topology.groups[j] for j in members),
            tuple(j for j, _ in asked),
            slice(where[0], where[-1] + 1) if row else where,
            stage.part.ran,
        )
    return found
