"""Replay: what a policy would have done on recorded outputs.

Layer: evaluation.
Source: none, this is a definition; the runtime does the same with real networks.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from offramp._core.checks import check_positive_int
from offramp._core.keys import example_keys
from offramp._core.outputs import StageOutput
from offramp._core.topology import EXIT, Path, Topology
from offramp._core.types import BoolArray, FloatArray, IntArray
from offramp.policy import Evidence, Policy
from offramp.trace import Trace

_CHUNK = 65536


@final
@dataclass(frozen=True, kw_only=True)
class Replay:
    """What happened to `n` examples.

    Args:
        stages: Number of stages `s` of the topology.
        paths: The `p` visit paths of the policy's topology.
        path: Index into `paths` of the way each example took, `(n,)`.
        labels: The `top` best labels of its answer, best first, `(n, top)`.
        wrong: True where the true label is not among them, `(n,)`.
        path_cost: Cost of each of `paths`: segments, heads and decisions, `(p,)`.
        closest: How near the nearest of its leave scores came to 0, `(n,)`, >= 0; infinity where
            no decision was taken.
    """

    stages: int
    paths: tuple[Path, ...]
    path: IntArray
    labels: IntArray
    wrong: BoolArray
    path_cost: FloatArray
    closest: FloatArray

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
        return self.path_cost[self.path]


def replay(trace: Trace, policy: Policy, *, top: int = 1, chunk: int = _CHUNK) -> Replay:
    """Run `policy` over all examples of `trace`, stage by stage, survivors only.

    Args:
        trace: Recorded outputs.
        policy: Decides; it sees outputs and keys, never a label.
        top: An answer counts as right when the label is among its `top` best.
        chunk: Dataset in memory at once; it changes nothing else.

    Raises:
        InputError: If the policy was made for other stages, or fitted on another form of outputs.

    >>> from offramp.policy import Candidate
    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=50, stages=2, seed=0)
    >>> alone = Candidate.single(trace.topology, "stage1", reference="stage1")
    >>> replay(trace, alone.policy).last.tolist() == [1] * 50
    True
    """
    policy.topology.check_same_stages(trace.topology, "the trace")
    policy.check_reads(trace.outputs, "the trace")
    check_positive_int("chunk", chunk)
    topology = policy.topology
    table = _continuations(topology)
    keys = example_keys(trace.ids)
    parts = [
        _replay_chunk(_outputs(trace, topology, rows), keys[rows], policy, table, top)
        for rows in (
            torch.arange(start, min(start + chunk, len(trace)))
            for start in range(0, len(trace), chunk)
        )
    ]
    path, labels, closest = (torch.cat(column) for column in zip(*parts, strict=True))
    wrong = (labels != trace.labels[:, None]).all(dim=1)
    return Replay(
        stages=len(topology),
        paths=topology.paths(),
        path=path.numpy(),
        labels=labels.numpy(),
        wrong=wrong.numpy(),
        path_cost=path_costs(trace, policy),
        closest=closest.double().numpy(),
    )


def _outputs(trace: Trace, topology: Topology, rows: Tensor) -> list[StageOutput | None]:
    """Outputs of the stages that the policy can reach, for a run of examples."""
    held = trace if len(rows) == len(trace) else trace.take(rows)
    return [held.output(k) if k in topology.active else None for k in range(len(topology))]


def _replay_chunk(
    outputs: list[StageOutput | None], keys: Tensor, policy: Policy, table: Tensor, top: int
) -> tuple[Tensor, Tensor, Tensor]:
    m = len(keys)
    standing = torch.full((m,), policy.topology.root)  # stage that answers next; EXIT if left
    path = torch.zeros(m, dtype=torch.int64)  # the root alone is path 0
    labels = torch.zeros((m, top), dtype=torch.int64)
    closest = torch.full((m,), torch.inf)
    visited = torch.zeros((m, len(policy.topology)), dtype=torch.bool)
    for k in policy.topology.active:
        rows = (standing == k).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        visited[rows, k] = True
        action, score = policy.decide(Evidence(outputs, visited[rows], keys[rows], rows), k)
        standing[rows] = action
        closest[rows] = torch.minimum(closest[rows], score.abs())
        out, on = rows[action == EXIT], rows[action != EXIT]
        path[on] = table[path[on], standing[on]]
        if len(out):
            view = Evidence(outputs, visited[out], keys[out], out)
            labels[out] = policy.predict(view, k, top=top)
    return path, labels, closest


def _continuations(topology: Topology) -> Tensor:
    """Index of the path that follows when a stage is appended to a path, `(p, s)`, else -1."""
    index = {path: i for i, path in enumerate(topology.paths())}
    table = torch.full((len(index), len(topology)), -1)
    for path, i in index.items():
        if len(path) > 1:
            table[index[path[:-1]], path[-1]] = i
    return table


def path_costs(trace: Trace, policy: Policy) -> FloatArray:
    """Cost of each visit path of the policy's topology, `(p,)`."""
    topology = policy.topology
    return np.array([trace.costs.path(topology, p, policy.decided(p)) for p in topology.paths()])


def replay_reference(trace: Trace, policy: Policy, *, top: int = 1) -> Replay:
    """As `replay`, but one example and one stage at a time: slow and obvious."""
    topology = policy.topology
    paths, labels, closest = [], [], []
    for row in range(len(trace)):
        one = trace.take(torch.tensor([row]))
        walked: Path = ()
        action, near = topology.root, torch.inf
        while action != EXIT:
            walked = (*walked, action)
            view = _view_of_one(one, walked)
            actions, scores = policy.decide(view, walked[-1])
            action = int(actions[0])
            near = min(near, abs(float(scores[0])))
        paths.append(topology.paths().index(walked))
        labels.append(policy.predict(view, walked[-1], top=top)[0].tolist())
        closest.append(near)
    truth = trace.labels.tolist()
    return Replay(
        stages=len(topology),
        paths=topology.paths(),
        path=np.array(paths, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        wrong=np.array([true not in best for true, best in zip(truth, labels, strict=True)]),
        path_cost=path_costs(trace, policy),
        closest=np.array(closest, dtype=np.float64),
    )


def _view_of_one(one: Trace, path: Path) -> Evidence:
    """What may be seen of one example that has walked `path`: nothing of other stages."""
    s = len(one.topology)
    outputs = [one.output(k) if k in path else None for k in range(s)]
    visited = torch.tensor([[k in path for k in range(s)]])
    return Evidence(outputs, visited, example_keys(one.ids))
