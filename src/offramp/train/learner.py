"""One exit head in training: its optimizer, its history, and its best state so far.

Layer: train.  Source: AdamW (Loshchilov & Hutter, ICLR 2019), as torch has it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from offramp.train.state import copied_weights, restore_state, state_tensors


@final
@dataclass(frozen=True, kw_only=True)
class HeadHistory:
    """How the training of one head went.

    Args:
        losses: Mean training loss of each epoch, in nats; lower is better.
        accuracies: Validation accuracy after each epoch, in [0, 1].
        best_epoch: The epoch, from 1, whose weights the head has; 0 if none was completed.
    """

    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    best_epoch: int

    @property
    def accuracy(self) -> float:
        """Validation accuracy of the weights that the head has; NaN if nobody measured it."""
        return self.accuracies[self.best_epoch - 1] if self.best_epoch else math.nan


@final
class Learner:
    """A head with all that its training needs to go on.

    Args:
        head: With at least one parameter to train.
        weight_decay: Of AdamW.
    """

    def __init__(self, head: nn.Module, *, weight_decay: float) -> None:
        self.head = head
        trained = [p for p in head.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, weight_decay=weight_decay)
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.best_epoch = 0
        self.best_loss = math.inf  # of validation, in the best epoch
        self._best = copied_weights(head)

    def step(self, learning_rate: float) -> None:
        """Change the weights along the gradient that is there."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    def judge(self, loss: float, accuracy: float, validation_loss: float) -> None:
        """Note an epoch; keep its weights if they are better, by accuracy, then by loss."""
        best = (self.history().accuracy, -self.best_loss) if self.best_epoch else (-1.0, 0.0)
        self.losses.append(loss)
        self.accuracies.append(accuracy)
        if (accuracy, -validation_loss) > best:
            self.best_epoch, self.best_loss = len(self.accuracies), validation_loss
            self._best = copied_weights(self.head)

    def waited(self) -> int:
        """Epochs since the best one."""
        return len(self.accuracies) - self.best_epoch

    def take_best(self) -> None:
        """Give the head its best weights, and leave training mode."""
        self.head.load_state_dict(self._best)
        self.head.eval()

    def history(self) -> HeadHistory:
        """How it went up to here."""
        return HeadHistory(
            losses=tuple(self.losses),
            accuracies=tuple(self.accuracies),
            best_epoch=self.best_epoch,
        )

    def facts(self) -> "HeadFacts":
        """What of the training is not tensors."""
        return HeadFacts(
            losses=self.losses,
            accuracies=self.accuracies,
            best_epoch=self.best_epoch,
            best_loss=self.best_loss,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Weights, best weights and moments of the optimizer."""
        return state_tensors(self.head, self.optimizer, self._best)

    def restore(self, tensors: Mapping[str, Tensor], facts: "HeadFacts") -> None:
        """Go on from what `tensors` and `facts` gave; raises `RuntimeError` if it does not fit."""
        self._best = restore_state(self.head, self.optimizer, tensors)
        self.losses, self.accuracies = list(facts.losses), list(facts.accuracies)
        self.best_epoch, self.best_loss = facts.best_epoch, facts.best_loss


@final
@dataclass(frozen=True, kw_only=True)
class HeadFacts:
    """What a checkpoint says of one head."""

    losses: list[float]
    accuracies: list[float]
    best_epoch: int
    best_loss: float
