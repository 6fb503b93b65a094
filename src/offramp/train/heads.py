"""Training exit heads on a frozen backbone, any number at once.

Layer: train.  Source: methods.md 1 (backbone frozen, heads by cross-entropy). No gradient leads
from one head to another, so training them side by side is training each alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch.nn.functional import cross_entropy

from offramp._core.batch import to_device
from offramp._core.device import check_device
from offramp._core.progress import progress_bar
from offramp._core.temporaries import locked
from offramp.data import Dataset
from offramp.stages import Cascade, evaluating
from offramp.train.cache import CacheDtype
from offramp.train.checkpoint import (
    check_checkpoint,
    must_fit,
    read_checkpoint,
    write_checkpoint,
)
from offramp.train.features import Augment, augmented_on
from offramp.train.head_plan import Part, Plan, head_names, head_of, identity_of, parts_of
from offramp.train.learner import HeadFacts, HeadHistory, Learner
from offramp.train.state import (
    Numbers,
    check_finite,
    generator_for,
    random_state_kept,
    seed_for,
    seed_layers,
    shuffled,
)

_WARM_UP = 0.1  # share of the steps in which the learning rate rises


def train_heads(
    cascade: Cascade,
    part: Dataset,
    *,
    epochs: int,
    seed: int,
    heads: Sequence[str] | None = None,
    validation: Dataset | float = 0.1,
    patience: int = 10,
    batch_size: int = 128,
    learning_rate: float = 0.01,
    weight_decay: float = 0.01,
    class_weights: Sequence[float] | None = None,
    augment: Augment | None = None,
    cache: Path | str | None = None,
    cache_dtype: CacheDtype = "float16",
    bfloat16: bool = False,
    checkpoint: Path | str | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, HeadHistory]:
    """Train the heads of a cascade in place, by cross-entropy; nothing else of it changes.

    Each segment runs once for a batch, in evaluation mode and without gradients. Every head has
    its own AdamW; the learning rate rises, then falls along a cosine. After each epoch the heads
    are judged on validation examples; in the end each has the weights of its best epoch, also if
    the training is interrupted. On a CPU the same arguments give the same weights.

    Args:
        cascade: Of `Cascade.from_network`. Moved to `device`; in evaluation mode afterwards.
        part: Usually `examples.subset("train")`: never what policies are fitted or judged on.
        epochs: Passes over the examples, at least 1.
        seed: Of the order of the examples, the validation part, augmentation, and of layers of
            heads that draw at random.
        heads: Names of the stages whose heads to train; by default all that have one.
        validation: Share of `part`, in (0, 1), drawn class by class; or examples of their own.
        patience: A head stops after so many epochs in which it was not better than before.
        batch_size: Examples of a step; what a pass leaves over is left out of that pass, unless
            there are fewer examples than one batch.
        learning_rate: Its peak, > 0.
        weight_decay: Of AdamW, >= 0.
        class_weights: How much an example of each class counts, > 0; by default all the same.
        augment: Changes each raw batch of training, such as a random crop: a function of the
            batch and of a generator, the only one to draw from, both on `device`.
        cache: Folder in which pooled features are kept, so that the backbone runs once. For heads
            that begin with a pooling (`offramp.models.PooledHead`), without `augment`.
        cache_dtype: "float16" halves the cache and rounds; "float32" changes nothing.
        bfloat16: Compute segments and heads in bfloat16 where the machine is fast at it. Weights,
            losses and the cache are not rounded.
        checkpoint: A `.safetensors` file written after each epoch. If it is there, the training
            goes on from it, to the same result as without interruption.
        device: Where everything runs.
        progress: Show a bar.

    Returns:
        For each head how it went.

    Raises:
        UnknownNameError: If a stage of `heads` does not exist.
        InputError: If an argument is outside its domain; a head has nothing to train, shares
            weights, or has fewer outputs than there are classes; the checkpoint or the cache
            belongs to something else; or a loss becomes NaN or infinite: training stops, and the
            last checkpoint stays.
        BusyError: If another process is training with the same checkpoint.
        StorageError: If the disk is full.

    >>> from offramp.data import arrays
    >>> from offramp.models import small_cnn
    >>> images = torch.arange(20.0).reshape(20, 1, 1, 1).expand(20, 1, 4, 4) / 20
    >>> part = arrays(images, [k // 10 for k in range(20)])
    >>> net = small_cnn(width=2, depth=2, classes=2).eval()
    >>> cascade = Cascade.from_network(net, ["features"], head="gap_linear", example=images[:1])
    >>> trained = train_heads(cascade, part, epochs=3, seed=0, validation=0.2, progress=False)
    >>> len(trained["features"].losses)
    3
    """
    plan = Plan(
        epochs=epochs,
        seed=seed,
        patience=patience,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        class_weights=None if class_weights is None else tuple(map(float, class_weights)),
        augment=augment,
        cache=None if cache is None else Path(cache),
        cache_dtype=cache_dtype,
        bfloat16=bfloat16,
        checkpoint=None if checkpoint is None else check_checkpoint(checkpoint),
        device=check_device(device),
        progress=progress,
    )
    names = head_names(cascade, heads)
    cascade.to(plan.device)
    with evaluating(cascade), random_state_kept(plan.device), torch.enable_grad():
        learners = {
            name: Learner(head_of(cascade, name), weight_decay=weight_decay) for name in names
        }
        identity = {} if checkpoint is None else identity_of(cascade, part, validation, names, plan)
        done = 0
        with locked(plan.checkpoint):
            if plan.checkpoint is not None and plan.checkpoint.exists():
                done = _read(plan.checkpoint, learners, identity)
            try:
                if done < epochs and _active(learners, plan):  # else nothing is left to compute
                    parts = parts_of(cascade, part, validation, names, plan)
                    _run(learners, *parts, plan, identity, done)
            finally:
                for learner in learners.values():
                    learner.take_best()
    cascade.eval()
    return {name: learner.history() for name, learner in learners.items()}


def _run(
    learners: Mapping[str, Learner],
    train: Part,
    judged: Part,
    plan: Plan,
    identity: Mapping[str, str],
    done: int,
) -> None:
    with progress_bar("Training heads", plan.epochs, enabled=plan.progress, done=done) as advance:
        for epoch in range(done, plan.epochs):
            active = _active(learners, plan)
            if active:
                losses = _train_epoch(active, train, plan, epoch)
                _judge(active, judged, plan, losses, epoch)
                if plan.checkpoint is not None:
                    _write(plan.checkpoint, learners, identity, epoch + 1)
            advance(1)


def _active(learners: Mapping[str, Learner], plan: Plan) -> dict[str, Learner]:
    return {k: v for k, v in learners.items() if v.waited() < plan.patience}


def _train_epoch(
    learners: Mapping[str, Learner], part: Part, plan: Plan, epoch: int
) -> dict[str, float]:
    """One pass over the examples; returns the mean loss of each head."""
    for learner in learners.values():
        learner.head.train()
    weights = None
    if plan.class_weights is not None:
        weights = torch.tensor(plan.class_weights, device=plan.device)
    batches = shuffled(part.rows, plan.batch_size, generator_for(plan.seed, "order", epoch))
    losses = {name: _losses(name, plan, epoch) for name in learners}
    where = augmented_on(part.examples, plan.device)
    for step, rows in enumerate(batches):
        labels = to_device(part.labels(rows), plan.device)
        generator = generator_for(plan.seed, "augment", epoch, step, device=where)
        for name, carry in part.source.carries(rows, learners, generator):
            seed_layers(seed_for(plan.seed, name, epoch, step), plan.device)
            loss = cross_entropy(part.source.answer(name, carry), labels, weight=weights)
            learners[name].optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            losses[name].add(loss)
        rate = _rate(plan, epoch * len(batches) + step, plan.epochs * len(batches))
        for learner in learners.values():
            learner.step(rate)
    return {name: sum(each.all()) / len(batches) for name, each in losses.items()}


def _judge(
    learners: Mapping[str, Learner],
    part: Part,
    plan: Plan,
    losses: Mapping[str, float],
    epoch: int,
) -> None:
    """Measure each head on the validation examples, and note it."""
    for learner in learners.values():
        learner.head.eval()
    right = {name: torch.zeros((), dtype=torch.int64, device=plan.device) for name in learners}
    total = {name: torch.zeros((), device=plan.device) for name in learners}
    with torch.no_grad():
        for rows in torch.split(part.rows, plan.batch_size):
            labels = to_device(part.labels(rows), plan.device)
            for name, carry in part.source.carries(rows, learners):
                logits = part.source.answer(name, carry)
                right[name] += (logits.argmax(dim=1) == labels).sum()
                total[name] += cross_entropy(logits, labels, reduction="sum")
    n = len(part.rows)
    for name, learner in learners.items():
        found = _losses(name, plan, epoch)
        found.add(total[name] / n)
        learner.judge(losses[name], float(right[name]) / n, found.all()[0])


def _rate(plan: Plan, step: int, steps: int) -> float:
    """Learning rate: a rise, times a falling cosine."""
    rise = min(1.0, (step + 1) / max(1.0, _WARM_UP * steps))
    return plan.learning_rate * rise * (1 + math.cos(math.pi * step / steps)) / 2


def _losses(name: str, plan: Plan, epoch: int) -> Numbers:
    """Of one head in an epoch."""
    rates, what = {"learning_rate": plan.learning_rate}, f"loss of the head of {name!r}"
    return Numbers(lambda loss: check_finite(loss, what, epoch, rates, plan.checkpoint))


@final
@dataclass(frozen=True, kw_only=True)
class _Facts:
    epochs: int
    heads: dict[str, HeadFacts]


def _write(
    path: Path, learners: Mapping[str, Learner], identity: Mapping[str, str], epochs: int
) -> None:
    tensors = {
        f"{k}.{name}": value
        for k, learner in enumerate(learners.values())
        for name, value in learner.tensors().items()
    }
    heads = {name: learner.facts() for name, learner in learners.items()}
    write_checkpoint(path, tensors, identity, _Facts(epochs=epochs, heads=heads))


def _read(path: Path, learners: Mapping[str, Learner], identity: Mapping[str, str]) -> int:
    """Bring the learners to the state of a checkpoint; returns how many epochs it has seen."""
    tensors, facts = read_checkpoint(path, _Facts, identity)
    with must_fit(path, "the heads"):
        for k, (name, learner) in enumerate(learners.items()):
            own = {t.partition(".")[2]: v for t, v in tensors.items() if t.startswith(f"{k}.")}
            learner.restore(own, facts.heads[name])
    return facts.epochs
