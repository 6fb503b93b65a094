"""What happens after a stage, on tensors alone: the part of the engine that a graph needs.

The policy itself runs here (`Policy.decide`, `Policy.answer`), so an exported graph holds the
operations that replay and runtime run, and no formula is written twice.

Layer: bundle.  Source: methods.md 6.
"""

from collections.abc import Iterator, Mapping
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from offramp._core.errors import UnsupportedError
from offramp._core.outputs import StageOutput
from offramp.policy import Evidence, Policy, Stopping
from offramp.policy.features import Distribution, scaled_log_probs
from offramp.policy.rules import Random, Rule

Ways = Mapping[int, Evidence]  # by the node at which a path ends


@final
class Decision(nn.Module):
    """Takes examples that have just heard a stage to where they go next.

    An example's place is a *node*: the index into `topology.paths()` of the path that ends at the
    stage it is on its way to, or has left at.

    Args:
        policy: What decides.
        stage: The stage that has just answered.
    """

    def __init__(self, policy: Policy, stage: int) -> None:
        super().__init__()
        self.policy = policy
        self.stage = stage
        paths = policy.topology.paths()
        self._node = {path: k for k, path in enumerate(paths)}
        self._ways = [path for path in paths if path[-1] == stage]
        self._children = policy.topology.children(stage)
        #: Stages before this one on some way here: their logits may be looked at.
        self.before = tuple(sorted({k for path in self._ways for k in path[:-1]}))

    def forward(
        self,
        logits: Float[Tensor, "m c"],
        node: Int[Tensor, " m"],
        answer: Float[Tensor, "m c"],
        clean: Bool[Tensor, " m"],
        *before: Float[Tensor, "m c"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Answer so far, node and `clean` of each example, after the stage.

        Args:
            logits: What the stage said.
            node: Where the examples were on their way to: a path that ends at this stage.
            answer: Log-probabilities from the stages before; NaN where none was finite.
            clean: True where all stages before were finite.
            before: Logits of the stages `before`; anything where one has not been visited.
        """
        finite = torch.isfinite(logits).all(dim=1)  # (m,)
        held = dict(zip((*self.before, self.stage), (*before, logits), strict=True))
        outputs = [
            StageOutput(classes=logits.shape[1], logits=held[k]) if k in held else None
            for k in range(len(self.policy.topology))
        ]
        known = dict[int, Distribution]()
        ways = {  # the ids are not looked at
            self._node[path]: Evidence(self.policy, path, outputs, node, known=known)
            for path in self._ways
        }
        answer = torch.where(finite[:, None], self._answered(ways, logits, node, clean), answer)
        return answer, self._moved(ways, node, finite), clean & finite

    def _answered(self, ways: Ways, logits: Tensor, node: Tensor, clean: Tensor) -> Tensor:
        if self.policy.combine == "last":  # whatever the way here
            return self.policy.answer(next(iter(ways.values())))
        found = _chosen(node, ((here, self.policy.answer(at)) for here, at in ways.items()))
        alone = scaled_log_probs(logits, self.policy.temperatures[self.stage])
        return torch.where(clean[:, None], found, alone)

    def _moved(self, ways: Ways, node: Tensor, finite: Tensor) -> Tensor:
        if not self._children:
            return node
        return _chosen(node, ((here, self._step(at, finite)) for here, at in ways.items()))

    def _step(self, at: Evidence, finite: Tensor) -> Tensor:
        """The node after a path for those who came by it."""
        action, _ = self.policy.decide(at)
        action = torch.where(finite, action, self._children[-1])
        node = torch.full_like(action, self._node[at.path])
        for child in self._children:
            node = torch.where(action == child, self._node[*at.path, child], node)
        return node


def check_expressible(policy: Policy) -> None:
    """Raise `UnsupportedError` unless a graph can decide as the policy does.

    >>> from offramp._core.topology import Topology
    >>> check_expressible(Policy(Topology.of(["a"]), {}))
    """
    for path in policy.topology.paths():
        if policy.topology.children(path[-1]):
            node = policy.node(path)
            for rule in (node.leave, *node.routes):
                _check_rule(rule, policy.topology.names[path[-1]])


def _check_rule(rule: Rule, stage: str) -> None:
    drawn = isinstance(rule, Random) or (isinstance(rule, Stopping) and rule.seed is not None)
    if drawn:
        raise UnsupportedError(
            f"The policy cannot be exported: after stage {stage!r} it draws at random, by the key "
            "of each example, and a graph is given no keys. Rules that can be exported: constants, "
            "weighted sums of features (thresholds among them), agreement, class thresholds, and "
            "stopping networks that stop from a threshold on."
        )


def _chosen(node: Tensor, each: Iterator[tuple[int, Tensor]]) -> Tensor:
    """For each example what was computed for its node; examples at no such node are void."""
    (_, found), *others = each
    for here, values in others:
        on = (node == here).reshape(-1, *[1] * (values.dim() - 1))
        found = torch.where(on, values, found)
    return found
