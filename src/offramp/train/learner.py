"""One exit head in training: its optimizer, its history, and its best state so far.

Layer: train.  Source: AdamW (Loshchilov & Hutter, ICLR 2019), as torch has it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

_STATE, _BEST, _ADAM = "state.", "best.", "adam."


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
        self._best = _copied(head.state_dict())

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
            self._best = _copied(self.head.state_dict())

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

    def facts(self) -> dict[str, Any]:
        """What of the training is not tensors, as JSON values."""
        return {
            "losses": self.losses,
            "accuracies": self.accuracies,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Weights, best weights and moments of the optimizer."""
        found = {_STATE + name: value for name, value in self.head.state_dict().items()}
        found |= {_BEST + name: value for name, value in self._best.items()}
        for k, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"{_ADAM}{k}.{name}": value for name, value in moments.items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `facts` gave; raises `RuntimeError` if it does not fit."""
        self.head.load_state_dict(_under(_STATE, tensors))
        best = _under(_BEST, tensors)
        if {k: v.shape for k, v in best.items()} != {k: v.shape for k, v in self._best.items()}:
            raise RuntimeError("the best weights are not those of this head")
        self._best = {k: v.to(self._best[k].device) for k, v in best.items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(_ADAM, tensors).items():
            k, _, what = name.partition(".")
            moments.setdefault(int(k), {})[what] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.losses, self.accuracies = list(facts["losses"]), list(facts["accuracies"])
        self.best_epoch, self.best_loss = facts["best_epoch"], facts["best_loss"]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
