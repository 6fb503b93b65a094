"""A plain training loop for small classifiers.

Layer: train.  Source: AdamW (Loshchilov & Hutter, ICLR 2019); one-cycle learning rate (Smith &
Topin, arXiv:1708.07120), both as torch has them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from offramp._core.checks import check_not_negative, check_positive_int
from offramp._core.errors import InputError
from offramp._core.progress import progress_bar
from offramp.data import Examples


def train_classifier(
    module: nn.Module,
    part: Examples,
    *,
    epochs: int,
    seed: int,
    preprocess: nn.Module | None = None,
    batch_size: int = 64,
    learning_rate: float = 0.01,
    weight_decay: float = 0.01,
    description: str = "Training",
    progress: bool = True,
) -> tuple[float, ...]:
    """Train a network in place by cross-entropy, with AdamW and a one-cycle learning rate.

    On a CPU the same seed, network and examples give the same weights; the global random state is
    left as it was. Afterwards the network is in evaluation mode.

    Args:
        module: Gives logits `(m, c)`; it is changed.
        part: The examples to train on, usually `examples.part("train")`; held in memory.
        epochs: Passes over the examples, at least 1.
        seed: Of the order of the examples, and of layers that draw at random.
        preprocess: Applied to the raw input first, as the stage will do; not trained.
        batch_size: Examples of a step; what a pass leaves over is left out of that pass, unless
            there are fewer examples than one batch.
        learning_rate: Its peak, > 0.
        weight_decay: Of AdamW, >= 0.
        description: For the progress bar.
        progress: Show a bar.

    Returns:
        Mean loss of each pass, in nats; lower is better.

    Raises:
        InputError: If a number is outside its domain, the inputs are not in memory, or the loss
            becomes NaN or infinite; training stops at once then.

    >>> from offramp.data import arrays
    >>> from offramp.models import small_cnn
    >>> images = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 1, 4, 4) / 8
    >>> part = arrays(images, [0, 0, 0, 0, 1, 1, 1, 1])
    >>> net = small_cnn(width=2, depth=2, classes=2)
    >>> losses = train_classifier(net, part, epochs=20, seed=0, batch_size=8)
    >>> losses[-1] < losses[0], net.training
    (True, False)
    """
    check_positive_int("epochs", epochs)
    check_positive_int("batch_size", batch_size)
    check_not_negative("weight_decay", weight_decay)
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be finite and greater than 0, got {learning_rate!r}.")
    if not isinstance(part.inputs, Tensor):
        raise InputError(f"The inputs of {part.name} must be in memory, got images on disk.")
    inputs = part.inputs if preprocess is None else preprocess(part.inputs)
    batch_size = min(batch_size, len(part))
    optimiser = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, epochs=epochs, steps_per_epoch=len(part) // batch_size
    )
    losses: list[float] = []
    order = torch.Generator().manual_seed(seed)
    with _seeded(seed), progress_bar(description, epochs, enabled=progress) as advance:
        module.train()
        for epoch in range(epochs):
            total, steps = 0.0, 0
            for rows in _batches(len(part), batch_size, order):
                loss = nn.functional.cross_entropy(module(inputs[rows]), part.labels[rows])
                total += _finite(loss, epoch, learning_rate)
                steps += 1
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
            losses.append(total / steps)
            advance(1)
    module.eval()
    return tuple(losses)


def _batches(n: int, size: int, order: torch.Generator) -> Iterator[Tensor]:
    shuffled = torch.randperm(n, generator=order)
    return (shuffled[start : start + size] for start in range(0, n - size + 1, size))


def _finite(loss: Tensor, epoch: int, learning_rate: float) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise InputError(
            f"The loss became {value} in epoch {epoch + 1}, with learning_rate={learning_rate!r}. "
            "Take a lower learning rate, and look for NaN or huge numbers in the inputs."
        )
    return value


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Fix what layers such as dropout draw on the CPU, and restore the global state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
