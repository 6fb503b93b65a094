"""A plain training loop for classifiers on images.

Layer: train.  Source: AdamW (Loshchilov & Hutter, ICLR 2019); one-cycle learning rate (Smith &
Topin, arXiv:1708.07120), both as torch has them.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from offramp._core.batch import apply
from offramp._core.checks import check_choice, check_not_negative, check_positive_int
from offramp._core.errors import InputError
from offramp._core.progress import progress_bar
from offramp._core.temporaries import locked
from offramp._core.types import Batch
from offramp.data import Dataset
from offramp.models import extract_logits
from offramp.stages import Transforms, chained
from offramp.stages.transforms import Look
from offramp.train.checkpoint import (
    check_checkpoint,
    must_fit,
    read_checkpoint,
    write_checkpoint,
)
from offramp.train.features import Augment, augmented, in_bfloat16
from offramp.train.state import (
    check_finite,
    generator_for,
    random_state_kept,
    restore_state,
    seed_for,
    shuffled,
    state_tensors,
)

Optimizer = Literal["adamw", "sgd"]
_MOMENTUM = 0.9


def train_classifier(
    module: nn.Module,
    part: Dataset,
    *,
    epochs: int,
    seed: int,
    transform: Transforms = None,
    augment: Augment | None = None,
    batch_size: int = 64,
    optimizer: Optimizer = "adamw",
    learning_rate: float = 0.01,
    weight_decay: float = 0.01,
    bfloat16: bool = False,
    checkpoint: Path | str | None = None,
    description: str = "Training",
    progress: bool = True,
) -> tuple[float, ...]:
    """Train a network in place by cross-entropy, with a one-cycle learning rate.

    On a CPU the same seed, network and examples give the same weights; the global random state is
    left as it was. Afterwards the network is in evaluation mode.

    Args:
        module: Gives logits `(m, c)`; it is changed.
        part: The examples to train on, usually `examples.subset("train")`.
        epochs: Passes over the examples, at least 1.
        seed: Of the order of the examples, augmentation, and of layers that draw at random.
        transform: Applied to the raw input first, as the stage will do; not trained.
        augment: Changes each raw batch before `transform`, such as `offramp.data.CropAndFlip`: a
            function of the batch and of a generator, the only one to draw from.
        batch_size: Examples of a step; what a pass leaves over is left out of that pass, unless
            there are fewer examples than one batch.
        optimizer: "adamw", or "sgd" with Nesterov momentum, usual for residual networks.
        learning_rate: Its peak, > 0.
        weight_decay: Of the optimizer, >= 0.
        bfloat16: Compute convolutions and matrix products in bfloat16 where the machine is fast
            at it; weights stay as they are.
        checkpoint: A `.safetensors` file written after each epoch. If it is there, the training
            goes on from it, to the same result as without interruption.
        description: For the progress bar.
        progress: Show a bar.

    Returns:
        Mean loss of each pass, in nats; lower is better.

    Raises:
        InputError: If an argument is outside its domain, the checkpoint belongs to another
            training, or the loss becomes NaN or infinite; training stops at once then, and the
            last checkpoint stays.
        BusyError: If another process is training with the same checkpoint.
        StorageError: If the disk is full.

    >>> from offramp.data import arrays
    >>> from offramp.models import small_cnn
    >>> images = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 1, 4, 4) / 8
    >>> part = arrays(images, [0, 0, 0, 0, 1, 1, 1, 1])
    >>> net = small_cnn(width=2, depth=2, classes=2)
    >>> losses = train_classifier(net, part, epochs=20, seed=0, batch_size=8)
    >>> losses[-1] < losses[0], net.training
    (True, False)
    """
    plan = _Plan(
        epochs=epochs,
        seed=seed,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        bfloat16=bfloat16,
    )
    path = None if checkpoint is None else check_checkpoint(checkpoint)
    rows = _Rows(part, chained(transform), augment)
    stepper = plan.optimizer_of(module)
    identity = {**plan.identity(), "examples": part.fingerprint} if path is not None else {}
    losses: list[float] = []
    with locked(path):
        if path is not None and path.exists():
            tensors, facts = read_checkpoint(path, _Facts, identity)
            with must_fit(path, "the network"):
                restore_state(module, stepper, tensors, facts.groups)
            losses = facts.losses
        done, steps = len(losses), len(part) // min(batch_size, len(part))
        schedule = plan.schedule(stepper, steps, done)
        with (
            random_state_kept(),
            progress_bar(description, epochs, enabled=progress, done=done) as advance,
        ):
            module.train()
            for epoch in range(done, epochs):
                losses.append(_epoch(module, rows, stepper, schedule, plan, epoch))
                if path is not None:
                    facts = _Facts(losses=losses, groups=stepper.state_dict()["param_groups"])
                    write_checkpoint(path, state_tensors(module, stepper), identity, facts)
                advance(1)
    module.eval()
    return tuple(losses)


@final
@dataclass(frozen=True, kw_only=True)
class _Facts:
    losses: list[float]
    groups: list[dict[str, Any]]  # of the optimizer, as its schedule left them


@final
@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The numbers of a training, checked."""

    epochs: int
    seed: int
    batch_size: int
    optimizer: Optimizer
    learning_rate: float
    weight_decay: float
    bfloat16: bool

    def __post_init__(self) -> None:
        check_positive_int("epochs", self.epochs)
        check_positive_int("batch_size", self.batch_size)
        check_not_negative("weight_decay", self.weight_decay)
        check_choice("optimizer", self.optimizer, ("adamw", "sgd"))
        rate = self.learning_rate
        if not (math.isfinite(rate) and rate > 0):
            raise InputError(f"learning_rate must be finite and greater than 0, got {rate!r}.")

    def identity(self) -> dict[str, str]:
        """What must be the same for a training to go on from a checkpoint."""
        return {name: repr(getattr(self, name)) for name in self.__dataclass_fields__}

    def optimizer_of(self, module: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer == "adamw":
            return torch.optim.AdamW(
                module.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
            )
        return torch.optim.SGD(
            module.parameters(),
            lr=self.learning_rate,
            momentum=_MOMENTUM,
            nesterov=True,
            weight_decay=self.weight_decay,
        )

    def schedule(
        self, stepper: torch.optim.Optimizer, steps: int, done: int
    ) -> torch.optim.lr_scheduler.OneCycleLR:
        """The learning rate from the first step after `done` epochs on."""
        return torch.optim.lr_scheduler.OneCycleLR(
            stepper,
            self.learning_rate,
            epochs=self.epochs,
            steps_per_epoch=steps,
            last_epoch=done * steps - 1,
        )


@final
@dataclass(frozen=True)
class _Rows:
    """Examples as the network reads them."""

    part: Dataset
    transform: nn.Module | None
    augment: Augment | None
    look: Look = field(default_factory=lambda: Look("the network"))

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        raw = augmented(self.part.inputs_at(rows), self.augment, generator)
        if self.transform is None:
            return raw
        self.look(self.transform, raw)
        with torch.no_grad():
            return self.transform(raw)  # type: ignore[no-any-return]


def _epoch(
    module: nn.Module,
    rows: _Rows,
    stepper: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
    plan: _Plan,
    epoch: int,
) -> float:
    """One pass; returns its mean loss."""
    total, steps = 0.0, 0
    torch.default_generator.manual_seed(seed_for(plan.seed, "layers", epoch))
    generator = generator_for(plan.seed, "augment", epoch)
    order = generator_for(plan.seed, "order", epoch)
    for chosen in shuffled(torch.arange(len(rows.part)), plan.batch_size, order):
        inputs = rows.batch(chosen, generator)
        with in_bfloat16("cpu", plan.bfloat16):
            logits = extract_logits(apply(module, inputs))
        loss = nn.functional.cross_entropy(logits.float(), rows.part.labels[chosen])
        total += check_finite(loss, "loss", epoch, {"learning_rate": plan.learning_rate})
        steps += 1
        stepper.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        stepper.step()
        schedule.step()
    return total / steps
