"""What a fit consists of: which rule was chosen at each node, and the policy that they make.

Rules stay plain numbers until a policy is made of them: of many fits few become candidates.

Layer: fitting.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

from offramp._core.topology import Path, Topology
from offramp._core.types import BoolArray
from offramp.fitting.cuts import Cut, Ranking
from offramp.fitting.tables import Tables
from offramp.policy.features import Feature
from offramp.policy.policy import Node, Policy
from offramp.policy.rules import Constant, Linear, Rule

#: Features, their weights and the bias of a linear rule; of a constant one whether it is taken.
Summed = tuple[tuple[Feature, ...], tuple[float, ...], float] | bool


@final
class Choice(NamedTuple):
    """A rule and what it does to the examples fitted on.

    Args:
        summed: The rule.
        take: Where the action is taken, `(n,)`.
    """

    summed: Summed
    take: BoolArray

    @property
    def free(self) -> bool:
        """Whether it looks at nothing."""
        return isinstance(self.summed, bool)


@final
class Trial(NamedTuple):
    """A weighted sum to cut.

    Args:
        features: What is summed.
        weights: Their weights.
        ranking: Of the sums.
    """

    features: tuple[Feature, ...]
    weights: tuple[float, ...]
    ranking: Ranking

    def choice(self, cut: Cut, rows: BoolArray) -> Choice:
        """With the bias half-way between two examples that count."""
        value = self.ranking.value(cut, rows)
        return Choice((self.features, self.weights, -value), self.ranking.above(value))


Rules = tuple[tuple[Path, Summed, tuple[Summed, ...]], ...]


@final
@dataclass(frozen=True)
class Fit:
    """What one trade-off led to.

    Args:
        tables: What it was fitted on.
        topology: The part of the cascade used.
        rules: Of each path that may go on, whether to leave, and where to.
        objective: Mean loss plus cost_weight times mean cost, on the examples fitted on.
        idle: Stages where next to nobody leaves.
    """

    tables: Tables
    topology: Topology
    rules: Rules
    objective: float
    idle: tuple[int, ...]

    @cached_property
    def policy(self) -> Policy:
        """The policy."""
        combination, paths = self.tables.combination, self.topology.paths()
        pooled = combination.kind == "log_linear"
        return Policy(
            self.topology,
            {
                path: Node(_rule(leave), [_rule(route) for route in routes])
                for path, leave, routes in self.rules
            },
            temperatures=self.tables.temperatures,
            combine=combination.kind,
            weights={path: combination.weights[path] for path in paths} if pooled else None,
            outputs=self.tables.outputs,
        )


def _rule(summed: Summed) -> Rule:
    return Constant(summed) if isinstance(summed, bool) else Linear(*summed)
