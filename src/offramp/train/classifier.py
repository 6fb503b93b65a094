"""A plain training loop for classifiers on images.

Layer: train.  Source: AdamW (Loshchilov & Hutter, ICLR 2019); one-cycle learning rate (Smith &
Topin, arXiv:1708.07120), both as torch has them.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from offramp._core.batch import apply, to_device
from offramp._core.checks import (
    check_callable,
    check_choice,
    check_not_negative,
    check_positive_int,
)
from offramp._core.device import check_device
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
from offramp.train.distillation import Teacher, soft_label_loss
from offramp.train.features import Augment, augmented, augmented_on, in_bfloat16
from offramp.train.state import (
    Numbers,
    check_finite,
    generator_for,
    random_state_kept,
    restore_state,
    seed_for,
    seed_layers,
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
    distill_from: nn.Module | None = None,
    bfloat16: bool = False,
    checkpoint: Path | str | None = None,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[int, float], None] | None = None,
    description: str = "Training",
    progress: bool = True,
) -> tuple[float, ...]:
    """Train a network in place by cross-entropy, with a one-cycle learning rate.

    On a CPU the same seed, network and examples give the same weights; the global random state is
    left as it was. Afterwards the network is in evaluation mode, also where something raises.

    Args:
        module: Gives logits `(m, c)`; it is changed, and moved to `device`. Convolutions are
            fastest on a GPU when its weights are `torch.channels_last`.
        part: The examples to train on, usually `examples.subset("train")`.
        epochs: Passes over the examples, at least 1.
        seed: Of the order of the examples, augmentation, and of layers that draw at random.
        transform: Applied to the raw input first, as the stage will do; not trained.
        augment: Changes each raw batch before `transform`, such as `offramp.data.CropAndFlip`: a
            function of the batch and of a generator, the only one to draw from; tensors and the
            generator are on `device`.
        batch_size: Examples of a step; what a pass leaves over is left out of that pass, unless
            there are fewer examples than one batch.
        optimizer: "adamw", or "sgd" with Nesterov momentum, usual for residual networks.
        learning_rate: Its peak, > 0.
        weight_decay: Of the optimizer, >= 0.
        distill_from: A larger trained network that reads the same inputs. Its probabilities are
            then most of what `module` learns from, the labels the rest
            (`offramp.train.distillation`). It runs on every batch, in evaluation mode, and stays as
            it is. It must not have seen what `module` is judged on, nor what policies are fitted
            on.
        bfloat16: Compute convolutions and matrix products in bfloat16 where the machine is fast
            at it; weights stay as they are.
        checkpoint: A `.safetensors` file written after each epoch. If it is there, the training
            goes on from it, to the same result as without interruption.
        device: Where everything runs.
        on_epoch: Told of each epoch as it ends, and is in the checkpoint: its number, from 1, and
            its mean loss. What it raises ends the training there.
        description: For the progress bar.
        progress: Show a bar.

    Returns:
        Mean loss of each pass, in nats, soft labels included; lower is better.

    Raises:
        InputError: If an argument is outside its domain, the checkpoint belongs to another
            training, `augment` cannot work on the device, `distill_from` gives other numbers of
            logits, or the loss becomes NaN or infinite; training stops at once then, on a GPU
            within a few steps, and the last checkpoint stays.
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
    where = check_device(device)
    if on_epoch is not None:
        check_callable("on_epoch", on_epoch)
    teacher = None if distill_from is None else Teacher(distill_from, where)
    module.to(where)
    rows = _Rows(part, _copied(chained(transform), where), augment, where)
    stepper = plan.optimizer_of(module)
    identity = {**plan.identity(), "examples": part.fingerprint} if path is not None else {}
    if path is not None and teacher is not None:
        identity |= teacher.identity()
    losses: list[float] = []
    with locked(path):
        if path is not None and path.exists():
            tensors, facts = read_checkpoint(path, _Facts, identity)
            with must_fit(path, "the network"):
                restore_state(module, stepper, tensors, facts.groups)
            losses = facts.losses
        done, steps = len(losses), len(part) // min(batch_size, len(part))
        schedule = plan.schedule(stepper, steps, done)
        bar = progress_bar(description, epochs, enabled=progress, done=done)
        with random_state_kept(where), bar as advance:
            module.train()
            try:
                for epoch in range(done, epochs):
                    losses.append(_epoch(module, rows, stepper, schedule, plan, epoch, teacher))
                    if path is not None:
                        facts = _Facts(losses=losses, groups=stepper.state_dict()["param_groups"])
                        write_checkpoint(path, state_tensors(module, stepper), identity, facts)
                    if on_epoch is not None:
                        on_epoch(epoch + 1, losses[-1])
                    advance(1)
            finally:
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


def _copied(transform: nn.Module | None, device: torch.device) -> nn.Module | None:
    """On the device; whoever gave it goes on with their own where that was."""
    return None if transform is None else copy.deepcopy(transform).to(device)


@final
@dataclass(frozen=True)
class _Rows:
    """Examples as the network reads them."""

    part: Dataset
    transform: nn.Module | None
    augment: Augment | None
    device: torch.device
    look: Look = field(default_factory=lambda: Look("the network"))

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        raw = to_device(self.part.inputs_at(rows), self.device)
        raw = augmented(raw, self.augment, generator)
        if self.transform is None:
            return raw
        self.look(self.transform, raw)
        with torch.no_grad():
            read: Batch = to_device(self.transform(raw), self.device)
            return read

    def labels(self, rows: Tensor) -> Tensor:
        found: Tensor = to_device(self.part.labels[rows], self.device)
        return found

    def generator(self, seed: int, epoch: int) -> torch.Generator:
        """What an augmentation draws from in an epoch."""
        where = augmented_on(self.part, self.device)
        return generator_for(seed, "augment", epoch, device=where)


def _epoch(
    module: nn.Module,
    rows: _Rows,
    stepper: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
    plan: _Plan,
    epoch: int,
    teacher: Teacher | None,
) -> float:
    """One pass; returns its mean loss."""
    seed_layers(seed_for(plan.seed, "layers", epoch), rows.device)
    rates = {"learning_rate": plan.learning_rate}
    losses = Numbers(lambda loss: check_finite(loss, "loss", epoch, rates))
    generator = rows.generator(plan.seed, epoch)
    order = generator_for(plan.seed, "order", epoch)
    for chosen in shuffled(torch.arange(len(rows.part)), plan.batch_size, order):
        inputs = rows.batch(chosen, generator)
        with in_bfloat16(rows.device, plan.bfloat16):
            logits = extract_logits(apply(module, inputs)).float()
            soft = None if teacher is None else teacher.logits(inputs, like=logits)
        labels = rows.labels(chosen)
        if soft is None:
            loss = nn.functional.cross_entropy(logits, labels)
        else:
            loss = soft_label_loss(logits, soft, labels).mean()
        losses.add(loss)
        stepper.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        stepper.step()
        schedule.step()
    return sum(losses.all()) / len(losses.all())
