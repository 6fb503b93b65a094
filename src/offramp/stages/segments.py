"""Running the segments of several stages, each once, and what is kept for those that follow.

Layer: stages.  Source: methods.md 1 (early exit: segments and heads).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from offramp._core.topology import Topology
from offramp._core.types import Raw
from offramp.stages.stage import Stage, with_shared


def run_segments(
    stages: Sequence[Stage],
    batch: Raw,
    topology: Topology | None = None,
    *,
    run: Callable[[Stage, Any], Any] = Stage.segment,
) -> Iterator[tuple[Stage, Any]]:
    """Each stage with what its segment gives; a segment that stages share runs once.

    So do equal transforms. What no later stage reads is let go.

    Args:
        stages: In topological order; of each group that others continue at least one.
        batch: Raw input.
        topology: Of the whole cascade, where not all of its stages are here.
        run: Runs the segment of a stage on what it reads.
    """
    groups = {stage.name: stage.group for stage in stages}
    if topology is not None:
        groups |= dict(zip(topology.names, topology.groups, strict=True))
    sources = [None if stage.source is None else groups[stage.source] for stage in stages]
    reads = [
        {stage.group} if source is None else {stage.group, source}
        for stage, source in zip(stages, sources, strict=True)
    ]
    held: dict[str, Any] = {}
    batch = with_shared(stages, batch)
    for stage, source, keep in zip(stages, sources, kept_after(reads), strict=True):
        if stage.group not in held:
            held[stage.group] = run(stage, batch if source is None else held[source])
        result = held[stage.group]
        held = {group: carry for group, carry in held.items() if group in keep}
        yield stage, result
        del result  # or it would stay while the next segment runs


def kept_after(reads: Sequence[Collection[str]]) -> list[frozenset[str]]:
    """For each of several steps, given what each reads, what a later one still reads.

    >>> [sorted(keep) for keep in kept_after([{"x"}, {"x", "a"}, {"a"}])]
    [['a', 'x'], ['a'], []]
    """
    kept, later = list[frozenset[str]](), frozenset[str]()
    for read in reversed(reads):
        kept.append(later)
        later |= frozenset(read)
    return kept[::-1]
