"""Training any number of branches side by side on kept features.

Every branch has its own binary cross-entropy, its own Adam moments and its own best weights, and no
gradient leads from one to another, so training them together is training each alone.

Layer: train.  Source: Bonato and Bouganis, class-specific early exit, section 3.2 (only the branch
trains; stop when the validation accuracy has not risen for 10 epochs); Adam: Kingma & Ba, 2015.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import softplus

from offramp._core.batch import to_device
from offramp._core.checks import check_choice, check_not_negative, check_positive_int
from offramp._core.errors import InputError
from offramp._core.progress import progress_bar
from offramp._core.temporaries import locked
from offramp.train.checkpoint import read_checkpoint, write_checkpoint
from offramp.train.class_exits.features import BranchFeatures
from offramp.train.class_exits.layout import BranchSpec, Layout
from offramp.train.state import generator_for, shuffled

CLASS_WEIGHTS = ("plain", "balanced")
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_WIDTH = 64  # a branch with so many features has the learning rate given
_LEAST_STD = 1e-4  # a feature that hardly varies is left as it is
_LEAST_SHARE = 1e-6  # of a class that no example is of
_CHUNK = 2048


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How branches are trained.

    Args:
        epochs: Most passes over the examples, at least 1.
        patience: A branch stops after so many epochs in which it was not better than before.
        batch_size: Examples of a step.
        learning_rate: Of a branch with 64 features, > 0; falls with the square root of their number
            and, over the epochs, along a cosine.
        weight_decay: As in AdamW, >= 0.
        class_weights: "plain" counts all examples alike, so that a branch's probability means what
            it says; "balanced" gives the class and the rest equal weight, so that probabilities
            are those of a world where half of all examples are of the class.
        seed: Of the order of the examples.

    Raises:
        InputError: If an argument is outside its domain.
    """

    epochs: int = 40
    patience: int = 10
    batch_size: int = 512
    learning_rate: float = 0.03
    weight_decay: float = 0.01
    class_weights: str = "plain"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size"):
            check_positive_int(name, getattr(self, name))
        check_not_negative("weight_decay", self.weight_decay)
        check_choice("class_weights", self.class_weights, CLASS_WEIGHTS)
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(
                f"learning_rate must be finite and greater than 0, got {self.learning_rate!r}."
            )


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedBranches:
    """Dense layers of branches, on features as they come from the pooling.

    Args:
        branches: The columns, in order.
        layout: Where each weight lies.
        weights: `(size,)`, float32.
        bias: `(b,)`.
        accuracies: Validation accuracy of each branch in its best epoch, `(b,)`, in [0, 1].
        epochs: Best epoch of each branch, from 1 on, `(b,)`.
    """

    branches: tuple[BranchSpec, ...]
    layout: Layout
    weights: Tensor
    bias: Tensor
    accuracies: tuple[float, ...]
    epochs: tuple[int, ...]

    def outputs(self, features: BranchFeatures) -> Tensor:
        """Log-odds of every branch's class for every example, `(n, b)`, float32."""
        rows = torch.split(torch.arange(len(features)), _CHUNK)
        parts = [
            self.layout.product(features.take(index), self.weights, self.bias).cpu()
            for index in rows
        ]
        return torch.cat(parts)

    def dense(self, column: int) -> tuple[Tensor, Tensor]:
        """Weights `(features, 1)` and bias `(1,)` of one branch."""
        weights = self.layout.column(self.weights, column)
        return weights[:, None].cpu(), self.bias[column : column + 1].cpu()


def train_branches(
    features: BranchFeatures,
    judged: BranchFeatures,
    branches: Sequence[BranchSpec],
    recipe: Recipe,
    *,
    labels: Tensor | None = None,
    judged_labels: Tensor | None = None,
    checkpoint: Path | None = None,
    identity: Mapping[str, str] | None = None,
    progress: bool = True,
) -> TrainedBranches:
    """Train branches, all in one product for each batch.

    Args:
        features: Of the examples to train on.
        judged: Of other examples, to judge each epoch by.
        branches: What to train.
        recipe: How.
        labels: Classes of the training examples, `(n,)`, where they are others than the examples'
            own: superclasses.
        judged_labels: The same of `judged`.
        checkpoint: A `.safetensors` file written after each epoch. If it is there, the training
            goes on from it, to the same result.
        identity: What must be the same for a checkpoint to be used.
        progress: Show a bar.

    Returns:
        Each branch with the weights of its best epoch, by accuracy, then by loss.

    Raises:
        InputError: If the checkpoint is of another training, or a loss is not finite.
        FileFormatError: If the checkpoint is damaged.
        BusyError: If another process is training with the same checkpoint.
        StorageError: If the disk is full.
    """
    trainer = _Trainer(features, branches, recipe, labels)
    judged_labels = judged.labels if judged_labels is None else judged_labels
    facts = {"recipe": repr(recipe), "branches": _digest(branches), **(identity or {})}
    done = 0
    with locked(checkpoint):
        if checkpoint is not None and checkpoint.exists():
            tensors, seen = read_checkpoint(checkpoint, _Facts, facts)
            done = trainer.restore(tensors, seen.epochs)
        with progress_bar(
            "Training branches", recipe.epochs, enabled=progress, done=done
        ) as advance:
            for epoch in range(done, recipe.epochs):
                if trainer.running().any():
                    trainer.epoch(epoch)
                    trainer.judge(judged, judged_labels, epoch)
                    if checkpoint is not None:
                        write_checkpoint(
                            checkpoint, trainer.state(), facts, _Facts(epochs=epoch + 1)
                        )
                advance(1)
    return trainer.result()


@final
@dataclass(frozen=True, kw_only=True)
class _Facts:
    epochs: int


@final
class _Trainer:
    """Weights, moments, and the best of each branch so far."""

    def __init__(
        self,
        features: BranchFeatures,
        branches: Sequence[BranchSpec],
        recipe: Recipe,
        labels: Tensor | None,
    ) -> None:
        self._features, self._recipe = features, recipe
        self._labels = features.labels if labels is None else labels
        self._branches = tuple(branches)
        self._layout = Layout(branches, features.starts)
        self._mean, self._std = _statistics(features)
        device, size, b = self._mean.device, self._layout.size, len(branches)
        self._targets = torch.tensor([branch.target for branch in branches], device=device)
        self._owner = self._layout.owners().to(device)
        read = torch.bincount(self._owner, minlength=b).clamp(min=1)
        self._rates = (_WIDTH / read).sqrt()  # (b,)
        self._positive, bias = self._class_weights()
        # Weights and biases in one row, so that the moments are one tensor each.
        self._own = torch.cat([self._owner, torch.arange(b, device=device)])
        self._now = torch.cat([torch.zeros(size, device=device), bias])
        self._first, self._second = torch.zeros_like(self._now), torch.zeros_like(self._now)
        self._best = self._now.clone()
        self._best_accuracy = torch.full((b,), -1.0, device=device)
        self._best_loss = torch.full((b,), torch.inf, device=device)
        self._best_epoch = torch.zeros(b, dtype=torch.int64, device=device)
        self._epochs = 0
        self._steps = 0

    def running(self) -> Tensor:
        """True for the branches that have not stopped, `(b,)`."""
        return self._epochs - self._best_epoch < self._recipe.patience

    def epoch(self, epoch: int) -> None:
        """One pass over the examples."""
        recipe, rows = self._recipe, torch.arange(len(self._features))
        rate = recipe.learning_rate * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
        for index in shuffled(rows, recipe.batch_size, generator_for(recipe.seed, epoch)):
            self._step(index, rate)

    def _step(self, index: Tensor, rate: float) -> None:
        inputs = self._standardized(self._features, index)
        own = self._members(self._labels[index])
        outputs = self._outputs(inputs, self._now)
        weight = torch.where(own, self._positive[0], self._positive[1])
        slopes = (outputs.sigmoid() - own.to(outputs.dtype)) * weight / len(index)
        gradient = torch.cat([self._layout.gradient(inputs, slopes), slopes.sum(dim=0)])
        self._steps += 1
        self._first.lerp_(gradient, 1 - _BETA1)
        self._second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        scale = (self._second / (1 - _BETA2**self._steps)).sqrt_().add_(_EPSILON)
        rates = rate * self._rates[self._own]
        self._now.mul_(1 - rates * self._recipe.weight_decay)
        self._now.sub_(rates * self._first / (1 - _BETA1**self._steps) / scale)

    def judge(self, judged: BranchFeatures, labels: Tensor, epoch: int) -> None:
        """Measure every branch on other examples, and keep the weights of those that got better."""
        right = torch.zeros_like(self._best_loss)
        loss = torch.zeros_like(self._best_loss)
        for index in torch.split(torch.arange(len(judged)), _CHUNK):
            outputs = self._outputs(self._standardized(judged, index), self._now)
            own = self._members(labels[index])
            right += ((outputs >= 0) == own).sum(dim=0)
            loss += softplus(torch.where(own, -outputs, outputs)).sum(dim=0)
        if not bool(loss.isfinite().all()):
            raise InputError(
                f"The loss of a branch became {float(loss[~loss.isfinite()][0])} in epoch "
                f"{epoch + 1}, with learning_rate={self._recipe.learning_rate!r}. Take a lower one."
            )
        accuracy = right / len(judged)
        better = (accuracy > self._best_accuracy) | (
            (accuracy == self._best_accuracy) & (loss < self._best_loss)
        )
        better &= self.running()
        self._epochs = epoch + 1
        self._best = torch.where(better[self._own], self._now, self._best)
        self._best_accuracy = torch.where(better, accuracy, self._best_accuracy)
        self._best_loss = torch.where(better, loss, self._best_loss)
        self._best_epoch = torch.where(better, self._epochs, self._best_epoch)

    def result(self) -> TrainedBranches:
        """The best weights, for features as they come."""
        size, feature = self._layout.size, self._layout.feature_of().to(self._mean.device)
        weights = self._best[:size] / self._std[feature]
        shift = torch.zeros(len(self._branches), dtype=torch.float64, device=weights.device)
        shift.index_add_(0, self._owner, (weights * self._mean[feature]).double())
        return TrainedBranches(
            branches=self._branches,
            layout=self._layout,
            weights=weights,
            bias=(self._best[size:] - shift).float(),
            accuracies=tuple(self._best_accuracy.tolist()),
            epochs=tuple(self._best_epoch.tolist()),
        )

    def state(self) -> dict[str, Tensor]:
        """All that the training needs to go on."""
        names = ("now", "first", "second", "best", "best_accuracy", "best_loss", "best_epoch")
        tensors = {name: getattr(self, f"_{name}") for name in names}
        return {**tensors, "steps": torch.tensor(self._steps)}

    def restore(self, tensors: Mapping[str, Tensor], epochs: int) -> int:
        """Take a state; returns how many epochs it has seen."""
        for name, old in self.state().items():
            new = tensors[name]
            if new.shape != old.shape or new.dtype != old.dtype:
                raise InputError(f"The checkpoint's {name!r} does not fit these branches.")
            setattr(self, f"_{name}", new.to(old.device))
        self._steps, self._epochs = int(tensors["steps"]), epochs
        return epochs

    def _outputs(self, inputs: Tensor, row: Tensor) -> Tensor:
        size = self._layout.size
        return self._layout.product(inputs, row[:size], row[size:])

    def _standardized(self, features: BranchFeatures, index: Tensor) -> Tensor:
        return (features.take(index) - self._mean) / self._std

    def _members(self, labels: Tensor) -> Tensor:
        """True where an example is of a branch's class, `(m, b)`."""
        own: Tensor = to_device(labels, self._targets.device)[:, None] == self._targets
        return own

    def _class_weights(self) -> tuple[Tensor, Tensor]:
        """How much an example of a branch's class counts, and another one, `(2, b)`; first biases.

        A branch begins by saying how frequent its class is, as weighted.
        """
        counts = torch.bincount(self._labels, minlength=int(self._targets.max()) + 1)
        share = (counts / len(self._labels)).to(self._targets.device)[self._targets]
        if self._recipe.class_weights == "plain":
            return torch.ones(2, len(share), device=share.device), share.logit(_LEAST_SHARE)
        weights = 0.5 / torch.stack([share, 1 - share]).clamp(min=_LEAST_SHARE)
        return weights, torch.zeros_like(share)


def _statistics(features: BranchFeatures) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature, `(d,)` each, summed in float64."""
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    for index in torch.split(torch.arange(len(features)), _CHUNK):
        rows = features.take(index).double()
        first, second = first + rows.sum(dim=0), second + rows.square().sum(dim=0)
    mean = torch.as_tensor(first) / len(features)
    std = (torch.as_tensor(second) / len(features) - mean.square()).clamp(min=0.0).sqrt()
    return mean.float(), torch.where(std < _LEAST_STD, 1.0, std).float()


def _digest(branches: Sequence[BranchSpec]) -> str:
    return f"{len(branches)}, {zlib.crc32(repr(list(branches)).encode())}"
