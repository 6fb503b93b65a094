"""A candidate: one fitted policy and how it came about.

Layer: policy.
"""

from dataclasses import dataclass, field
from typing import final

from offramp._core.schema import stored
from offramp._core.topology import Topology
from offramp.policy.policy import Policy


@final
@stored(whole=True)
@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One candidate operating point.

    Args:
        policy: What decides.
        method: How it was made: "single", "random", "threshold", "learned", "agreement".
        reference: Name of the reference, the stage whose own answer defines every loss difference.
        top: The loss counts a label as right when it is among the `top` best.
        parameters: What distinguishes it from its siblings: trade-off, threshold, rate.

    >>> candidate = Candidate.single(Topology.of(["a", "b"]), "b", reference="b")
    >>> candidate.label
    'b alone'
    """

    policy: Policy
    method: str
    reference: str
    top: int = 1
    parameters: dict[str, float | int | str] = field(default_factory=dict)

    @classmethod
    def single(cls, topology: Topology, stage: str, *, reference: str, top: int = 1) -> "Candidate":
        """One stage run alone on every example: a static network."""
        return cls(
            policy=Policy(topology.chain([stage]), {}),
            method="single",
            reference=reference,
            top=top,
        )

    @property
    def label(self) -> str:
        """Short text for tables and plots."""
        if self.method == "single":
            return f"{self.policy.topology.names[self.policy.topology.root]} alone"
        details = [f"{name} {_short(value)}" for name, value in self.parameters.items()]
        if self.policy.combine != "last":
            details.insert(0, self.policy.combine)
        return f"{self.method}, {self.policy.topology.describe()} ({', '.join(details)})"


def _short(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
