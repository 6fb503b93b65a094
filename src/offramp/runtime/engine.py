"""Routing: who visits which stage, who leaves where, and with what answer.

The engine knows policies and outputs, not networks: what a stage says is asked of a function, so
routing is tested on injected outputs. Examples are never reordered; those pending for a stage,
whichever way they came, visit it together.

Host synchronisations: one per decision, the number of examples that take each way. Where a stage
is reached on several paths, `Policy.decide` and `Policy.answer` ask once more for each path.

Layer: runtime.  Source: methods.md 6.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from offramp._core.outputs import StageOutput
from offramp._core.topology import EXIT, Path
from offramp.policy.policy import Policy, scaled_log_probs
from offramp.policy.view import View

#: Positions of examples within the batch, `(m,)` int64, ascending; None stands for all of them.
Rows = Tensor | None

#: Runs a stage for some examples: (stage, rows) -> logits `(m, c)`.
Visit = Callable[[int, Rows], Tensor]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Where each example went and what it was answered.

    Args:
        logits: Log of the combined probabilities, `(n, c)`, float32; NaN where not `valid`.
        node: Index into the policy's `topology.paths()` of the path taken, `(n,)`.
        nonfinite: Number of visited stages whose logits held NaN or infinity, `(n,)`.
        valid: False where no visited stage was finite, `(n,)`.
    """

    logits: Float[Tensor, "n c"]
    node: Int[Tensor, " n"]
    nonfinite: Int[Tensor, " n"]
    valid: Bool[Tensor, " n"]


@final
class Engine(nn.Module):
    """Takes batches through a policy's topology.

    An example whose logits at a stage hold NaN or infinity goes on to the last child, whatever
    the rules say. The last finite visited stage answers: as the policy combines there, or alone
    where a stage before it was not finite.

    Args:
        policy: What decides; its topology is walked.
    """

    _visited: Tensor
    _step: Tensor

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.paths = policy.topology.paths()
        node = {path: i for i, path in enumerate(self.paths)}
        s = len(policy.topology)
        visited = torch.zeros(len(self.paths), s, dtype=torch.bool)
        step = torch.zeros(len(self.paths), s + 1, dtype=torch.int64)  # the last column: leave
        for path, i in node.items():
            visited[i, list(path)] = True
            step[i, EXIT] = i
            for child in policy.topology.children(path[-1]):
                step[i, child] = node[*path, child]
        self.register_buffer("_visited", visited, persistent=False)
        self.register_buffer("_step", step, persistent=False)

    def route(self, visit: Visit, ids: Int[Tensor, " n"]) -> Routed:
        """Take one batch from the root to its answers.

        Args:
            visit: Called once for each stage that somebody visits, in topological order.
            ids: Keys of the examples for random policies, `(n,)`.
        """
        state = _State(self, ids)
        topology = self.policy.topology
        pending: dict[int, list[Rows]] = {topology.root: [None]}
        for stage in topology.active:
            if stage not in pending:
                continue
            rows = _merge(pending.pop(stage), len(ids))
            action = state.visit(stage, rows, visit(stage, rows))
            if action is None:
                continue
            for child, part in _divide(action, rows, topology.children(stage)):
                pending.setdefault(child, []).append(part)
        return state.routed()

    def paths_of(self, routed: Routed) -> list[Path]:
        """The path that each example took."""
        return [self.paths[i] for i in routed.node.tolist()]


class _State:
    """What is known of one batch on its way."""

    def __init__(self, engine: Engine, ids: Tensor) -> None:
        self._engine, self._policy, self._ids = engine, engine.policy, ids
        self._outputs: list[StageOutput | None] = [None] * len(engine.policy.topology)
        self._node = torch.zeros_like(ids)  # the root's path is the first
        self._nonfinite = torch.zeros_like(ids)
        self._valid = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        self._answer = torch.empty(0)

    def visit(self, stage: int, rows: Rows, logits: Float[Tensor, "m c"]) -> Tensor | None:
        """Take in a stage's logits, answer, and decide; None where nothing may follow."""
        logits = logits.float()
        if self._answer.dim() == 1:
            shape = (len(self._ids), logits.shape[1])
            self._answer = torch.full(shape, torch.nan, device=logits.device)
        self._hold(stage, rows, logits)
        node = _take(self._node, rows)
        visited = self._engine._visited[node]  # (m, s)
        view = View(self._outputs, visited, _take(self._ids, rows), rows)
        finite = torch.isfinite(logits).all(dim=1)  # (m,)
        self._take_answer(stage, rows, view, logits, finite)
        children = self._policy.topology.children(stage)
        if not children:
            return None
        action, _ = self._policy.decide(view, stage)
        action = torch.where(finite, action, children[-1])
        self._node = _put(self._node, rows, self._engine._step[node, action])
        return action

    def _hold(self, stage: int, rows: Rows, logits: Tensor) -> None:
        held = logits
        if rows is not None:  # a view addresses all stages' outputs by the same positions
            held = logits.new_zeros(len(self._ids), logits.shape[1])
            held.index_copy_(0, rows, logits)
        self._outputs[stage] = StageOutput(classes=logits.shape[1], logits=held)

    def _take_answer(
        self, stage: int, rows: Rows, view: View, logits: Tensor, finite: Tensor
    ) -> None:
        # Those who go on overwrite it at the next stage; asking who leaves would synchronise.
        answer = self._policy.answer(view, stage)
        if self._policy.combine != "last":
            alone = scaled_log_probs(logits, self._policy.temperatures[stage])
            clean = _take(self._nonfinite, rows) == 0
            answer = torch.where(clean[:, None], answer, alone)
        answer = torch.where(finite[:, None], answer, _take(self._answer, rows))
        self._answer = _put(self._answer, rows, answer)
        self._valid = _put(self._valid, rows, _take(self._valid, rows) | finite)
        self._nonfinite = _put(
            self._nonfinite, rows, _take(self._nonfinite, rows) + (~finite).long()
        )

    def routed(self) -> Routed:
        return Routed(
            logits=self._answer, node=self._node, nonfinite=self._nonfinite, valid=self._valid
        )


def _take(values: Tensor, rows: Rows) -> Tensor:
    return values if rows is None else values[rows]


def _put(values: Tensor, rows: Rows, new: Tensor) -> Tensor:
    return new if rows is None else values.index_copy_(0, rows, new)


def _merge(parts: Sequence[Rows], n: int) -> Rows:
    """All rows of the parts, ascending; None where they are the whole batch."""
    if len(parts) == 1:
        return parts[0]
    rows = torch.cat([part for part in parts if part is not None])
    return None if len(rows) == n else rows.sort().values


def _divide(action: Tensor, rows: Rows, children: Sequence[int]) -> list[tuple[int, Rows]]:
    """Who goes on to each child; the one place where the host waits for the device."""
    m = len(action)
    if m == 1:
        chosen = int(action)
        return [] if chosen == EXIT else [(chosen, rows)]
    counts = torch.stack([(action == child).sum() for child in children]).tolist()
    if m in counts:
        return [(children[counts.index(m)], rows)] if m else []
    order = action.argsort(stable=True)  # those who leave (-1) first, then child by child
    start, found = m - sum(counts), list[tuple[int, Rows]]()
    for child, count in zip(children, counts, strict=True):
        if count:
            part = order[start : start + count]
            found.append((child, part if rows is None else rows[part]))
        start += count
    return found


def route_reference(
    policy: Policy, outputs: Float[Tensor, "n s c"], ids: Int[Tensor, " n"]
) -> Routed:
    """The same, one example and one stage at a time; `outputs` of stages not visited are unused."""
    n, s, c = outputs.shape
    paths = policy.topology.paths()
    logits = torch.full((n, c), torch.nan)
    node, nonfinite, valid = torch.zeros(n).long(), torch.zeros(n).long(), torch.zeros(n).bool()
    for i in range(n):
        path: Path = (policy.topology.root,)
        while True:
            stage = path[-1]
            said = [
                StageOutput(classes=c, logits=outputs[i : i + 1, k]) if k in path else None
                for k in range(s)
            ]
            visited = torch.tensor([[k in path for k in range(s)]])
            view = View(said, visited, ids[i : i + 1])
            action = int(policy.decide(view, stage)[0])
            children = policy.topology.children(stage)
            if not bool(outputs[i, stage].isfinite().all()):
                nonfinite[i] += 1
                action = children[-1] if children else EXIT
            elif nonfinite[i] == 0:
                logits[i], valid[i] = policy.answer(view, stage)[0], True
            else:
                own = outputs[i : i + 1, stage]
                logits[i] = scaled_log_probs(own, policy.temperatures[stage])[0]
                valid[i] = True
            if action == EXIT:
                break
            path = (*path, action)
        node[i] = paths.index(path)
    return Routed(logits=logits, node=node, nonfinite=nonfinite, valid=valid)
