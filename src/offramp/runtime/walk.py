"""Routing: who visits which stage, who leaves where, and with what answer.

The engine knows policies and outputs, not networks: what a stage says is asked of a function, so
routing is tested on injected outputs. Examples are never reordered; those pending for a stage,
whichever way they came, visit it together. The host knows which way each part of them came, so
each part decides by the rules of its own path, and answers are made where examples leave.

Host synchronisations: one for each stage that is visited and has children, for the number of
examples that take each way. On the CPU one example decides by plain ifs.

Layer: runtime.  Source: methods.md 6.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from offramp._core.outputs import StageOutput
from offramp._core.topology import EXIT, Path
from offramp.policy.evidence import View
from offramp.policy.policy import Policy, scaled_log_probs
from offramp.runtime.events import Mark, unmarked
from offramp.runtime.inflight import Answered, Journey, Part, Rows

#: Runs a stage for some examples: (stage, rows) -> logits `(m, c)`.
Visit = Callable[[int, Rows], Tensor]

#: After a stage was visited by one example: stages whose logits `(1, k, c)` came with it, or None.
Ahead = Callable[[int], tuple[Sequence[int], Tensor] | None]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Where each example went and what it was answered.

    Args:
        logits: Log of the combined probabilities, `(n, c)`, float32; NaN where not `valid`.
        parts: Indices into the policy's `topology.paths()` of the paths taken, and who took each;
            no example is in two of them.
        nonfinite: Number of visited stages whose logits held NaN or infinity, `(n,)`.
        valid: False where no visited stage was finite, `(n,)`.
        sound: True where it is known that everything was finite, and so valid.
    """

    logits: Float[Tensor, "n c"]
    parts: tuple[tuple[int, Rows], ...]
    nonfinite: Int[Tensor, " n"]
    valid: Bool[Tensor, " n"]
    sound: bool = False

    @property
    def node(self) -> Int[Tensor, " n"]:
        """Index into the policy's `topology.paths()` of the path taken, `(n,)`."""
        return self.spread(range(max((node for node, _ in self.parts), default=0) + 1), torch.int64)

    def spread(self, values: Sequence[float], dtype: torch.dtype) -> Shaped[Tensor, " n"]:
        """For each example the value of the path that it took.

        Args:
            values: For each path of the policy's topology.
            dtype: Of the result.
        """
        n, device = len(self.valid), self.valid.device
        if len(self.parts) == 1:
            return torch.full((n,), values[self.parts[0][0]], dtype=dtype, device=device)
        found = torch.empty(n, dtype=dtype, device=device)
        for node, rows in self.parts:
            found.index_fill_(0, rows, values[node])  # type: ignore[arg-type]
        return found


@final
class Engine(nn.Module):
    """Takes batches through a policy's topology.

    An example whose logits at a stage hold NaN or infinity goes on to the last child, whatever
    the rules say. The last finite visited stage answers: as the policy combines there, or alone
    where a stage before it was not finite.

    Args:
        policy: What decides; its topology is walked.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.paths = policy.topology.paths()
        self.index = {path: i for i, path in enumerate(self.paths)}

    def route(
        self,
        visit: Visit,
        ids: Int[Tensor, " n"],
        mark: Mark = unmarked,
        ahead: Ahead | None = None,
    ) -> Routed:
        """Take one batch from the root to its answers.

        Args:
            visit: Called once for each stage that somebody visits, in topological order.
            ids: Keys of the examples for random policies, `(n,)`.
            mark: Told of decisions and of waiting for the device.
            ahead: Spares one example the visits of stages that have answered already.
        """
        if ids.shape[0] == 1 and ids.device.type == "cpu":
            return self._route_one(visit, ids, mark, ahead)
        topology = self.policy.topology
        journey, answers = Journey(self.policy, ids), _Answers(ids)
        pending: dict[int, list[Part]] = {topology.root: [((topology.root,), None)]}
        for stage in topology.active:
            parts = pending.pop(stage, None)
            if parts is None:
                continue
            rows = _merge([rows for _, rows in parts], len(ids))
            journey.hold(stage, rows, visit(stage, rows).float())
            for (path, part), child in journey.decide(parts, mark):
                if child == EXIT:
                    answers.put(self.index[path], part, journey.answer(path, part))
                else:
                    pending.setdefault(child, []).append(((*path, child), part))
            mark("decision", stage, len(ids) if rows is None else len(rows))
        return answers.routed()

    def _route_one(
        self, visit: Visit, ids: Int[Tensor, " 1"], mark: Mark, ahead: Ahead | None
    ) -> Routed:
        """One example on the CPU: there is nobody to wait for, to gather or to put in order."""
        journey = Journey(self.policy, ids)
        path: Path = (self.policy.topology.root,)
        while True:
            stage = path[-1]
            if not journey.heard(stage):
                logits = visit(stage, None)
                several = None if ahead is None else ahead(stage)
                if several is None:
                    journey.hold(stage, None, logits.float())
                else:
                    journey.hold_ahead(*several)
            path, child = journey.step(path, None, mark)
            mark("decision", stage, 1)
            if child == EXIT:
                break
            path = (*path, child)
        answers = _Answers(ids)
        answers.put(self.index[path], None, journey.answer(path, None))
        mark("decision", path[-1], 0)
        return answers.routed()

    def paths_of(self, routed: Routed) -> list[Path]:
        """The path that each example took."""
        return [self.paths[i] for i in routed.node.tolist()]


class _Answers:
    """Gathers the answers of a batch in input order; each example is answered once."""

    def __init__(self, ids: Tensor) -> None:
        self._nonfinite = torch.zeros_like(ids)
        self._valid = torch.ones_like(ids, dtype=torch.bool)
        self._logits = torch.empty(0)
        self._parts: list[tuple[int, Rows]] = []
        self._sound = True

    def put(self, node: int, rows: Rows, answered: Answered) -> None:
        logits, nonfinite, valid = answered
        if rows is None:
            self._logits = logits
        else:
            if not self._parts:
                self._logits = logits.new_empty(len(self._valid), logits.shape[1])
            self._logits.index_copy_(0, rows, logits)
        self._parts.append((node, rows))
        if nonfinite is not None and valid is not None:
            everyone = slice(None) if rows is None else rows
            self._nonfinite[everyone], self._valid[everyone] = nonfinite, valid
            self._sound = False

    def routed(self) -> Routed:
        return Routed(
            logits=self._logits,
            parts=tuple(self._parts),
            nonfinite=self._nonfinite,
            valid=self._valid,
            sound=self._sound,
        )


def _merge(parts: Sequence[Rows], n: int) -> Rows:
    """All rows of the parts, ascending; None where they are the whole batch."""
    if len(parts) == 1:
        return parts[0]
    rows = torch.cat([part for part in parts if part is not None])
    return None if len(rows) == n else rows.sort().values


def route_reference(
    policy: Policy, outputs: Float[Tensor, "n s c"], ids: Int[Tensor, " n"]
) -> Routed:
    """The same, one example and one stage at a time; `outputs` of stages not visited are unused."""
    n, s, c = outputs.shape
    paths = policy.topology.paths()
    logits = torch.full((n, c), torch.nan)
    nonfinite, valid = torch.zeros(n).long(), torch.zeros(n).bool()
    parts: list[tuple[int, Rows]] = []
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
        parts.append((paths.index(path), torch.tensor([i])))
    return Routed(logits=logits, parts=tuple(parts), nonfinite=nonfinite, valid=valid)
