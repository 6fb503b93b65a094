"""A frontier of joint trainings in one call: one for each cost weight, started from its neighbor.

Layer: train.  Source: methods.md 3 (their Figure 2).
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from offramp._core.errors import InputError
from offramp.data import Dataset
from offramp.stages import Cascade
from offramp.train.joint.problem import read_loader
from offramp.train.joint.result import JointEpoch, JointSweep, JointTraining
from offramp.train.joint.training import train_joint
from offramp.train.state import copied_weights

COST_WEIGHTS = (0.01, 0.03, 0.1, 0.3)
_SLOWER = 0.1


def sweep_joint(
    cascade: Cascade,
    part: Dataset | Iterable[Any],
    *,
    epochs: int,
    seed: int,
    cost_weights: Sequence[float] = COST_WEIGHTS,
    epochs_next: int | None = None,
    learning_rate: float = 0.1,
    learning_rate_next: float | None = None,
    warm_up: int = 0,
    work: Path | str | None = None,
    on_epoch: Callable[[float, JointEpoch], None] | None = None,
    **options: Any,  # noqa: ANN401  (those of train_joint)
) -> JointSweep:
    """Train a cascade jointly for each cost_weight, the smallest first.

    The first training begins with the cascade's weights, each later one with those of the one
    before and without warm-up. The cascade has its own weights again afterwards;
    `JointTraining.load_into` gives it those of one of the trainings.

    Args:
        cascade: As for `train_joint`.
        part: As for `train_joint`.
        epochs: Of the first training.
        seed: As for `train_joint`.
        cost_weights: Prices of cost, each >= 0, without repetitions.
        epochs_next: Of each later training; by default as many.
        learning_rate: Of the first training's classifiers.
        learning_rate_next: Of the later ones'; by default a tenth.
        warm_up: Of the first training.
        work: Folder for checkpoints, one for each cost_weight: the same call goes on where it
            stopped.
        on_epoch: Told of each epoch as it ends, with its cost_weight.
        **options: As for `train_joint`.

    Raises:
        InputError: If there is no cost_weight, one repeats, or as `train_joint`.

    >>> import torch
    >>> from torch import nn
    >>> from offramp import Costs
    >>> from offramp.data import arrays
    >>> part = arrays(torch.eye(4).repeat(20, 1), [0, 1, 0, 1] * 20)
    >>> cascade = Cascade.from_models({"small": nn.Linear(4, 2), "large": nn.Linear(4, 2)})
    >>> costs = Costs.simple("usd", [1.0, 3.0])
    >>> sweep = sweep_joint(cascade, part, epochs=2, seed=0, cost_weights=[0.3, 0.1], costs=costs)
    >>> [training.cost_weight for training in sweep]
    [0.1, 0.3]
    """
    if not cost_weights or len(set(cost_weights)) < len(cost_weights):
        raise InputError(
            f"cost_weights must be at least one number, all different, got {list(cost_weights)}."
        )
    if "cost_weight" in options or "start" in options or "checkpoint" in options:
        raise InputError("cost_weight, start and checkpoint are the sweep's own; leave them out.")
    examples = part if isinstance(part, Dataset) else read_loader(part)
    before = copied_weights(cascade)
    found: list[JointTraining] = []
    try:
        for cost_weight in sorted(cost_weights):
            later = bool(found)
            rate = learning_rate
            if later:
                rate = learning_rate_next or learning_rate * _SLOWER
            found.append(
                train_joint(
                    cascade,
                    examples,
                    cost_weight=cost_weight,
                    epochs=(epochs_next or epochs) if later else epochs,
                    seed=seed,
                    learning_rate=rate,
                    warm_up=0 if later else warm_up,
                    start=found[-1] if later else None,
                    checkpoint=None
                    if work is None
                    else Path(work) / f"cost_weight_{cost_weight:g}.safetensors",
                    on_epoch=None if on_epoch is None else partial(on_epoch, cost_weight),
                    **options,
                )
            )
    finally:
        cascade.load_state_dict(before)
    return JointSweep(trainings=tuple(found))
