"""Which stages to run in one piece: what a call costs against what leaving in between saves.

Layer: tuning.  Source: docs/adr/0023 (the costs that are weighed).
"""

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import torch

from offramp._core.batch import batch_size as dataset_of
from offramp._core.batch import take_rows
from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp._core.types import Batch
from offramp.backends import backend_of, with_backend
from offramp.policy.policy import Node, Policy
from offramp.policy.rules import Constant
from offramp.runtime.adaptive import Adaptive
from offramp.runtime.chosen import AnyChoice, policy_of
from offramp.stages import Cascade, HeldStages
from offramp.stages.fusing.fuse import fuse
from offramp.stages.timing import time_side_by_side
from offramp.tuning.meter import measure_times

Blocks = tuple[tuple[int, ...], ...]
Stages = TypeVar("Stages", Cascade, HeldStages)


def best_blocks(
    reach: Sequence[float], seconds: Sequence[float], border: float, *, batch_size: int = 1
) -> Blocks:
    """The division of a chain of segments into blocks that takes least time, by all of them.

    Args:
        reach: For each segment the share of the examples that need it, in [0, 1], falling.
        seconds: Of each segment with its head, on a batch.
        border: Seconds that one more call costs.
        batch_size: Examples in a batch; a border is crossed where one of them gets there.

    >>> best_blocks([1.0, 1.0, 0.5], [1.0, 1.0, 1.0], border=0.1)
    ((0, 1), (2,))
    """
    best: list[tuple[float, Blocks]] = [(0.0, ())]
    for end in range(1, len(reach) + 1):
        ways = []
        for start in range(end):
            crossed = 1 - (1 - reach[start]) ** batch_size if start else 0.0
            taken = reach[start] * sum(seconds[start:end]) + crossed * border
            before, blocks = best[start]
            ways.append((before + taken, (*blocks, tuple(range(start, end)))))
        best.append(min(ways, key=lambda way: (way[0], len(way[1]))))
    return best[-1][1]


def fuse_for(
    cascade: Stages,
    choice: AnyChoice,
    examples: Batch,
    *,
    backend: str,
    batch_size: int = 1,
    threads: int | None = None,
    rounds: int = 7,
) -> Stages:
    """The cascade in a backend, stages in one piece wherever that is faster for a policy.

    Measured on this machine: the time of each stage, what a border between two calls costs, and on
    the examples who gets how far. Then all divisions into blocks are weighed.

    Args:
        cascade: Exits in PyTorch, or the part of them that somebody holds; stays as it is.
        choice: What decides: a candidate, an operating point or a policy, a chain.
        examples: Real raw inputs, some hundred: others leave elsewhere. Not those you test on.
        backend: One whose answers are equal to rounding, as in `with_backend`.
        batch_size: Of the batches that will come.
        threads: As in `with_backend`.
        rounds: Of measuring, at least 1.

    Raises:
        InputError: If the policy is no chain, there are no examples, or the backend is lossy.
        UnsupportedError: As `with_backend`, and so are other errors.
    """
    if not backend_of(backend).exact:
        raise InputError(
            f"backend must be one whose answers are those of PyTorch to rounding, got {backend!r}. "
            "For int8 join by hand, then quantize: the policy has to be fitted anew."
        )
    policy = policy_of(choice)
    topology = policy.topology
    topology.check_same_stages(cascade.topology, "the cascade")
    if any(len(topology.children(k)) > 1 for k in topology.active):
        raise InputError(
            f"choice must be a chain, got {topology.describe()}. Join by hand: fuse(cascade, ...)."
        )
    if dataset_of(examples) == 0:
        raise InputError("examples must hold at least one example, got none.")
    check_positive_int("batch_size", batch_size)
    names, asked = topology.names, [topology.names[k] for k in topology.active]
    example = take_rows(examples, torch.arange(1))

    def made(blocks: Sequence[Sequence[int]]) -> Stages:
        joined = fuse(cascade, [[names[k] for k in block] for block in blocks], asked=asked)
        return with_backend(
            joined, backend, example=example, threads=threads, head_in_segment=asked
        )

    chains = _chains(topology)
    apart, whole = made([]), made(chains)
    batch = take_rows(examples, torch.arange(batch_size) % dataset_of(examples))
    border = _border([apart, whole], topology, batch, rounds, sum(len(c) - 1 for c in chains))
    times = measure_times(apart, batch, batch_sizes=[batch_size], rounds=rounds, progress=False)
    reach = reached(Adaptive(apart, policy)(examples).stage.tolist(), topology)
    blocks = [
        tuple(chain[k] for k in block)
        for chain in chains
        for block in best_blocks(
            [reach[k] for k in chain],
            [times.seconds(k, batch_size) for k in chain],
            border,
            batch_size=batch_size,
        )
    ]
    if set(blocks) == set(chains):
        return whole
    return made(blocks) if any(len(block) > 1 for block in blocks) else apart


def reached(left_at: Sequence[int], topology: Topology) -> list[float]:
    """For each stage the share of the examples that need its segment.

    Args:
        left_at: For each example the stage at which it left, of a chain.
        topology: The chain, among all stages.

    >>> chain = Topology.of(["a", "b", "c"], sources=[-1, 0, 1]).chain(["a", "c"])
    >>> reached([0, 2, 2, 2], chain)
    [1.0, 0.75, 0.75]
    """
    reach = [0.0] * len(topology)
    for stage in topology.active:
        share = sum(left >= stage for left in left_at) / len(left_at)
        for k in topology.lineage(stage):
            reach[k] = max(reach[k], share)
    return reach


def _chains(topology: Topology) -> list[tuple[int, ...]]:
    """Stages that a policy needs, each of which continues the one before it; the longest runs."""
    needed = sorted({j for k in topology.active for j in topology.lineage(k)})
    shared = {k for k in needed if topology.groups.count(topology.groups[k]) > 1}
    chains: list[tuple[int, ...]] = []
    for k in needed:
        source = topology.sources[k]
        continued = topology.sources.count(source) == 1 and not {k, source} & shared
        if chains and chains[-1][-1] == source and continued:
            chains[-1] += (k,)
        else:
            chains.append((k,))
    return chains


def _border(
    cascades: Sequence[Cascade | HeldStages],
    topology: Topology,
    batch: Batch,
    rounds: int,
    borders: int,
) -> float:
    """Seconds of one more call: all stages apart against all that can be in one piece."""
    if borders == 0:
        return 0.0
    inner = [path for path in topology.paths() if topology.children(path[-1])]
    never = Policy(topology, {path: Node(Constant(False)) for path in inner})
    models = [Adaptive(cascade, never) for cascade in cascades]
    times = time_side_by_side(
        {name: partial(m, batch) for name, m in zip(("apart", "whole"), models, strict=True)},
        rounds=rounds,
    )
    return max(times["apart"] - times["whole"], 0.0) / borders
