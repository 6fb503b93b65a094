"""What a joint training gives: the policy, the classifiers' weights, and how it went.

Layer: train.  Source: methods.md 3.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.fitting.stopping.network import stopping_policy
from offramp.policy import Candidate, Policy
from offramp.policy.combination import Combine
from offramp.policy.stopping import Stopping
from offramp.stages import Cascade


@final
@dataclass(frozen=True, kw_only=True)
class JointEpoch:
    """One epoch, judged on the validation examples with stops where pi >= 1/2.

    Args:
        phase: "warm-up" (every stage taught on every example) or "joint".
        loss: Mean of what was minimized.
        gradient_norm: Largest norm of a step's gradient before clipping.
        cost_ratio: Mean cost over that of the most expensive stage alone.
        error: Share of wrong answers.
        exit_share: Share of examples that stop after each stage of the chain.
    """

    phase: str
    loss: float
    gradient_norm: float
    cost_ratio: float
    error: float
    exit_share: tuple[float, ...]

    def objective(self, cost_weight: float) -> float:
        """Error plus cost_weight times the cost; lower is better."""
        return self.error + cost_weight * self.cost_ratio


@final
@dataclass(frozen=True, kw_only=True)
class JointTraining:
    """Classifiers and stopping networks, tuned to one price of cost.

    Args:
        cost_weight: Loss per unit of cost.
        topology: The chain of stages.
        rules: The stopping network after each stage of it but the last.
        costs: Of the cascade's stages, with what a stopping network takes.
        reference: Name of the reference: the stage most accurate on the validation examples.
        top: A label is right when it is among the `top` best.
        history: One for each epoch.
        best_epoch: The epoch, from 1, whose weights these are.
        state: Weights of the cascade's stages, by name.
    """

    cost_weight: float
    topology: Topology
    rules: tuple[Stopping, ...]
    costs: Costs
    reference: str
    top: int
    history: tuple[JointEpoch, ...]
    best_epoch: int
    state: Mapping[str, Tensor]

    @property
    def best(self) -> JointEpoch:
        """The epoch whose weights these are."""
        return self.history[self.best_epoch - 1]

    def policy(
        self,
        *,
        combine: Combine = "stopping",
        threshold: float | None = None,
        seed: int | None = None,
    ) -> Policy:
        """What decides at test time.

        Args:
            combine: "stopping": the visited outputs weighted by the stopping probabilities.
            threshold: Stop where the probability is at least this, in (0, 1); by default 1/2.
            seed: If given, draw the stops instead, by (seed, example, stage).
        """
        return stopping_policy(
            self.topology,
            self.rules,
            combine=combine,
            threshold=threshold,
            seed=seed,
            outputs="logits",
        )

    def candidate(
        self,
        *,
        combine: Combine = "stopping",
        threshold: float | None = None,
        seed: int | None = None,
        reference: str | None = None,
    ) -> Candidate:
        """The same as a candidate operating point, for a trace of this cascade's outputs."""
        stop = {"threshold": 0.5 if threshold is None else threshold}
        parameters: dict[str, float | int | str] = {"cost_weight": self.cost_weight}
        parameters |= stop if seed is None else {"seed": seed}
        return Candidate(
            policy=self.policy(combine=combine, threshold=threshold, seed=seed),
            method="joint",
            reference=reference or self.reference,
            top=self.top,
            parameters=parameters,
        )

    def load_into(self, cascade: Cascade) -> None:
        """Give a cascade these weights.

        Raises:
            InputError: If it is another cascade: other stages, or weights of other shapes.
        """
        self.topology.check_same_stages(cascade.topology, "the cascade")
        have = {name: tuple(v.shape) for name, v in cascade.state_dict().items()}
        want = {name: tuple(v.shape) for name, v in self.state.items()}
        other = sorted(k for k in {*have, *want} if have.get(k) != want.get(k))
        if other:
            raise InputError(
                f"This training is of another cascade: {other[0]!r} has shape "
                f"{have.get(other[0])} here and {want.get(other[0])} there."
            )
        cascade.load_state_dict(dict(self.state))


@final
@dataclass(frozen=True, kw_only=True)
class JointSweep:
    """Joint trainings over cost_weight, each started from its neighbor.

    Args:
        trainings: The smallest cost_weight first.
    """

    trainings: tuple[JointTraining, ...]

    def __iter__(self) -> Iterator[JointTraining]:
        return iter(self.trainings)

    def __len__(self) -> int:
        return len(self.trainings)

    @property
    def frontier(self) -> tuple[tuple[float, float, float], ...]:
        """(cost_weight, cost ratio, error) of each, on the validation examples."""
        return tuple((t.cost_weight, t.best.cost_ratio, t.best.error) for t in self.trainings)
