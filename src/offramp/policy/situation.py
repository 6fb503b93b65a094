"""What rules are, and what they see of the examples that stand before a decision.

Layer: policy.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from offramp.policy.features import Distribution


@runtime_checkable
class Situation(Protocol):
    """What a rule sees of `m` examples that stand at one node of the tree of visit paths."""

    ids: Int[Tensor, " m"]

    def distribution(self, stage: int) -> Distribution:
        """Class probabilities of a visited stage, or of the combination."""
        ...

    def ranked(self, stage: int, count: int) -> Int[Tensor, "m count"]:
        """The best labels of a visited stage, best first."""
        ...


@runtime_checkable
class Rule(Protocol):
    """Scores examples; the action is taken where the score is at least 0."""

    free: bool  # True if it looks at nothing, so that no decision cost is charged

    def score(self, at: Situation) -> Float[Tensor, " m"]:
        """One number per example; higher speaks for the action."""
        ...
