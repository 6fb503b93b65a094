"""Replay: what a policy would have done on recorded outputs.

Layer: evaluation.
Source: none, this is a definition; the runtime does the same with real networks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offramp._core.checks import check_kind, check_positive_int
from offramp._core.costs import PricedCosts
from offramp._core.keys import example_keys
from offramp._core.topology import Path
from offramp._core.types import BoolArray, FloatArray, IntArray
from offramp.policy import Evidence, Policy
from offramp.policy.features import Distribution
from offramp.policy.situation import Situation
from offramp.trace import Trace

_CHUNK = 65536
_NUMBERS = 2**21  # of one stage's distribution held at once


@final
@dataclass(frozen=True, kw_only=True)
class Replay:
    """What happened to `n` examples.

    Args:
        stages: Number of stages `s` of the topology.
        paths: The `p` visit paths of the policy's topology.
        path: Index into `paths` of the way each example took, `(n,)`.
        labels: The `top` best labels of its answer, best first, `(n, top)`; none without labels.
        loss: Loss of its answer, `(n,)`: 1 where the true label is not among them.
        path_cost: Cost of each of `paths`: segments, heads and decisions, `(p,)`; of mean prices
            where examples have their own.
        paid: What each example cost where they have prices of their own, `(n,)`, else None.
        closest: How near the nearest of its leave scores came to 0, `(n,)`, >= 0; infinity where
            no decision was taken.
    """

    stages: int
    paths: tuple[Path, ...]
    path: IntArray
    labels: IntArray
    loss: FloatArray
    path_cost: FloatArray
    closest: FloatArray
    paid: FloatArray | None = None

    @property
    def wrong(self) -> BoolArray:
        """True where an answer has any loss: where it is wrong, `(n,)`."""
        return self.loss > 0

    @property
    def last(self) -> IntArray:
        """Stage after which each example left, `(n,)`."""
        return np.array([path[-1] for path in self.paths], dtype=np.int64)[self.path]

    @property
    def visited(self) -> BoolArray:
        """True where an example visited a stage, `(n, s)`."""
        table = np.zeros((len(self.paths), self.stages), dtype=np.bool_)
        for row, path in enumerate(self.paths):
            table[row, list(path)] = True
        return table[self.path]

    @property
    def cost(self) -> FloatArray:
        """Cost of everything that ran for each example, `(n,)`."""
        return self.path_cost[self.path] if self.paid is None else self.paid


class Departure(NamedTuple):
    """What a policy decides at the end of a path.

    Args:
        path: That path.
        here: Who has come by it, `(m,)`.
        leaving: Who of them leaves.
        score: The score of leaving, of everybody; None where nothing follows.
    """

    path: Path
    here: Bool[Tensor, " m"]
    leaving: Bool[Tensor, " m"]
    score: Float[Tensor, " m"] | None


def departures(policy: Policy, m: int, at: Callable[[Path], Situation]) -> Iterator[Departure]:
    """Walk a policy over `m` examples whose outputs are all there, path by path.

    Args:
        policy: Decides.
        m: Number of examples.
        at: What rules see of all of them at the end of a path, as if all had come by it.

    Yields:
        Of each path that somebody comes by, before its continuations.
    """
    topology = policy.topology
    standing: dict[Path, Tensor] = {(topology.root,): torch.ones(m, dtype=torch.bool)}
    for path in topology.paths():
        here = standing.pop(path, None)
        if here is None or not bool(here.any()):
            continue
        children = topology.children(path[-1])
        if not children:
            yield Departure(path, here, here, None)
            continue
        situation, node = at(path), policy.node(path)
        score = node.leave.score(situation)
        leaving = here & (score >= 0)
        on = here & ~leaving
        for child, rule in zip(children, node.routes, strict=False):  # the last has no rule
            chosen = on & (rule.score(situation) >= 0)  # type: ignore[operator]
            standing[(*path, child)] = chosen
            on = on & ~chosen
        standing[(*path, children[-1])] = on
        yield Departure(path, here, leaving, score)


def replay(trace: Trace, policy: Policy, *, top: int = 1, chunk: int | None = None) -> Replay:
    """Run `policy` over all examples of `trace`.

    Args:
        trace: Recorded outputs.
        policy: Decides; it sees outputs and keys, never a label.
        top: An answer counts as right when the label is among its `top` best.
        chunk: Examples looked at together; it changes nothing else.

    Raises:
        InputError: If the policy was made for other stages, or fitted on another form of outputs.

    >>> from offramp.policy import Candidate
    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=50, stages=2, seed=0)
    >>> alone = Candidate.single(trace.topology, "stage1", reference="stage1")
    >>> replay(trace, alone.policy).last.tolist() == [1] * 50
    True
    """
    check_kind("trace", trace, Trace, read="offramp.load_trace(path)")
    policy.topology.check_same_stages(trace.topology, "the trace")
    policy.check_reads(trace.outputs, "the trace", trace.feature_counts)
    size = min(_CHUNK, max(256, _NUMBERS // trace.classes)) if chunk is None else chunk
    rows = torch.split(torch.arange(len(trace)), check_positive_int("chunk", size))
    held = [trace] if len(rows) == 1 else map(trace.take, rows)
    parts = [_replay_chunk(part, policy, top) for part in held]
    path, labels, closest = (torch.cat(column) for column in zip(*parts, strict=True))
    if trace.losses is None:
        loss = (labels != trace.labels[:, None]).all(dim=1)
    else:
        ends = torch.tensor([way[-1] for way in policy.topology.paths()])[path]
        loss = trace.losses.gather(1, ends[:, None])[:, 0]
        for stage in trace.silent & set(ends.tolist()):
            trace.loss(stage)  # raises: nobody may leave there
    return Replay(
        stages=len(policy.topology),
        paths=policy.topology.paths(),
        path=path.numpy(),
        paid=paid_costs(trace, policy, path.numpy()),
        labels=labels.numpy(),
        loss=loss.double().numpy(),
        path_cost=path_costs(trace, policy),
        closest=closest.double().numpy(),
    )


def _replay_chunk(part: Trace, policy: Policy, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Index of the path, best labels and smallest score of each example."""
    m, active = len(part), policy.topology.active
    outputs = [part.output(k) if k in active else None for k in range(len(policy.topology))]
    keys, known = example_keys(part.ids), dict[int, Distribution]()

    def at(path: Path) -> Evidence:
        return Evidence(policy, path, outputs, keys, known=known)

    index = {path: i for i, path in enumerate(policy.topology.paths())}
    taken = torch.zeros(m, dtype=torch.int64)
    labels = torch.zeros((m, top if part.labeled else 0), dtype=torch.int64)
    closest = torch.full((m,), torch.inf)
    for path, here, leaving, score in departures(policy, m, at):
        if score is not None:
            closest = torch.where(here, torch.minimum(closest, score.abs()), closest)
        if bool(leaving.any()):
            taken[leaving] = index[path]
            if part.labeled:
                labels[leaving] = policy.predict(at(path), top=top)[leaving]
    return taken, labels, closest


def path_costs(trace: Trace, policy: Policy) -> FloatArray:
    """Cost of each visit path of the policy's topology, `(p,)`."""
    topology = policy.topology
    return np.array([trace.costs.path(topology, p, policy.decided(p)) for p in topology.paths()])


def paid_costs(trace: Trace, policy: Policy, path: IntArray) -> FloatArray | None:
    """Cost of each example by its own prices on the path that it took, or None without prices."""
    bill, topology = trace.bill, policy.topology
    if not isinstance(bill, PricedCosts):
        return None
    found = np.zeros(len(path))
    for index, way in enumerate(topology.paths()):
        rows = path == index
        if rows.any():
            found[rows] = bill.take(rows).path(topology, way, policy.decided(way))
    return found
