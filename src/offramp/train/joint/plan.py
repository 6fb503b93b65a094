"""The numbers and choices of a joint training, checked.

Layer: train.  Source: methods.md 3; Guan et al., IJCAI 2018, section 4.4 (SGD with momentum 0.9,
the policy's learning rate); He et al., CVPR 2016, section 4.2 (the classifiers': a tenth twice).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import nn

from offramp._core.checks import check_choice, check_not_negative, check_positive_int
from offramp._core.errors import InputError
from offramp.train.features import Augment

Estimator = str  # one of ESTIMATORS; the same holds for those below
Answers = str
Rollouts = str
Schedule = str
ESTIMATORS = ("supervised", "exact", "reinforce")
ANSWERS = ("best", "combined", "drawn")
ROLLOUTS = ("all", "visited")
SCHEDULES = ("steps", "cosine", "constant")
_MOMENTUM = 0.9
_POLICY_DECAY, _POLICY_EPOCHS = 0.9, 4
_RISE = 0.1  # share of the steps in which the cosine's learning rate rises first


@final
@dataclass(frozen=True, kw_only=True)
class JointPlan:
    """The arguments of `train_joint` that are numbers or choices."""

    cost_weight: float
    epochs: int
    seed: int
    warm_up: int
    estimator: Estimator
    answers: Answers
    rollouts: Rollouts
    detached: bool
    supervision: float
    frozen: bool
    top: int
    width: int
    batch_size: int
    learning_rate: float
    policy_learning_rate: float
    weight_decay: float
    schedule: Schedule
    clip_norm: float
    patience: int | None
    augment: Augment | None
    bfloat16: bool
    checkpoint: Path | None
    device: torch.device

    def __post_init__(self) -> None:
        for name in ("epochs", "top", "width", "batch_size"):
            check_positive_int(name, getattr(self, name))
        for name in ("cost_weight", "weight_decay", "supervision"):
            check_not_negative(name, getattr(self, name))
        for name in ("learning_rate", "policy_learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be finite and greater than 0, got {value!r}.")
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_choice("answers", self.answers, ANSWERS)
        check_choice("rollouts", self.rollouts, ROLLOUTS)
        check_choice("schedule", self.schedule, SCHEDULES)
        if self.patience is not None:
            check_positive_int("patience", self.patience)
        if not 0 <= self.warm_up <= self.epochs:
            raise InputError(
                f"warm_up must be in [0, epochs = {self.epochs}], got {self.warm_up!r}."
            )
        self._check_together()

    def _check_together(self) -> None:
        if self.top > 1 and self.answers == "drawn":
            raise InputError(
                f"answers='drawn' draws one label, so top must be 1, got {self.top}; "
                "answers='best' and 'combined' take any."
            )
        if self.rollouts == "visited" and self.estimator != "reinforce":
            raise InputError(
                "rollouts='visited' leaves out stages that the estimator needs; take "
                f"estimator='reinforce', not {self.estimator!r}."
            )
        if self.rollouts == "visited" and self.supervision > 0:
            raise InputError(
                f"supervision teaches every stage on every example, so rollouts must be 'all', "
                f"got supervision={self.supervision!r} with rollouts='visited'."
            )

    def identity(self) -> dict[str, str]:
        """What must be the same for a training to go on from a checkpoint."""
        left_out = ("augment", "checkpoint", "device")
        names = [name for name in self.__dataclass_fields__ if name not in left_out]
        augment = getattr(self.augment, "__qualname__", type(self.augment).__qualname__)
        return {**{name: repr(getattr(self, name)) for name in names}, "augment": augment}

    def stepper(self, classifiers: nn.Module, networks: nn.Module) -> torch.optim.SGD:
        """SGD on the classifiers, unless they are frozen, and on the stopping networks."""
        groups = (
            []
            if self.frozen
            else [
                {
                    "params": [p for p in classifiers.parameters() if p.requires_grad],
                    "weight_decay": self.weight_decay,
                }
            ]
        )
        groups.append({"params": list(networks.parameters()), "weight_decay": 0.0})
        return torch.optim.SGD(groups, lr=self.policy_learning_rate, momentum=_MOMENTUM)

    def set_rates(self, stepper: torch.optim.Optimizer, epoch: int, progress: float) -> None:
        """Set the learning rates of a step.

        Args:
            stepper: Of `stepper`.
            epoch: The present one, from 0.
            progress: Share of all steps done, in [0, 1).
        """
        *classifiers, policy = stepper.param_groups
        policy["lr"] = self.policy_learning_rate * _POLICY_DECAY ** (epoch // _POLICY_EPOCHS)
        for group in classifiers:
            group["lr"] = self.learning_rate * self._share(progress)

    def _share(self, progress: float) -> float:
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "steps":
            return float(0.1 ** ((progress >= 0.5) + (progress >= 0.75)))
        rise = min(1.0, (progress + 1e-3) / _RISE)
        return rise * (1 + math.cos(math.pi * progress)) / 2
