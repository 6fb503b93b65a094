"""What the choice of exits looks at, from the branches' outputs, with the policy's own arithmetic.

Layer: train.  Source: methods.md 2.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp._core.batch import to_device
from offramp._core.device import device_of
from offramp._core.types import FloatArray, IntArray
from offramp.data import Dataset
from offramp.fitting.class_exits.data import ClassData
from offramp.models import class_logits
from offramp.policy.features import Distribution
from offramp.policy.rules import class_log_odds
from offramp.stages import Stage, Transforms
from offramp.train.class_exits.layout import BranchSpec


def predictions(
    net: nn.Module,
    examples: Dataset,
    *,
    transform: Transforms = None,
    batch_size: int = 128,
) -> IntArray:
    """Labels that a network predicts, `(n,)`; it runs where its weights are.

    >>> from offramp.data import arrays
    >>> net = nn.Linear(2, 3)
    >>> predictions(net, arrays(torch.zeros(4, 2), [0, 1, 2, 0])).shape
    (4,)
    """
    found, stage = [], Stage("network", net, transform=transform)
    device = device_of(net)
    with torch.inference_mode():
        for start in range(0, len(examples), batch_size):
            given: Any = examples.batch(start, start + batch_size).inputs
            given = to_device(given, device)
            said, _ = stage.run(given)
            found.append(said.top(1)[:, 0].cpu())
    return torch.cat(found).numpy()


def joined(branches: Sequence[BranchSpec], classes: int) -> list[tuple[tuple[int, ...], list[int]]]:
    """Where there is a branch for every class on the same features: what it reads, its columns.

    The columns, in the order of the classes, make one exit of all classes.
    """
    found: dict[tuple[int, ...], dict[int, int]] = {}
    for column, branch in enumerate(branches):
        found.setdefault(branch.reads, {}).setdefault(branch.target, column)
    return [
        (reads, [columns[k] for k in range(classes)])
        for reads, columns in found.items()
        if len(columns) == classes
    ]


def class_data_of(
    outputs: Tensor,
    branches: Sequence[BranchSpec],
    labels: IntArray,
    baseline: IntArray,
    class_names: Sequence[str],
    *,
    split: str,
) -> ClassData:
    """Evidence of every branch, then that of every exit of all classes.

    Args:
        outputs: Of the branches' dense layers, `(n, b)`.
        branches: The columns.
        labels: True labels, `(n,)`.
        baseline: Predictions of the network, `(n,)`.
        class_names: Names of the `c` classes.
        split: Name of the split.
    """
    classes = len(class_names)
    evidence = [
        _log_odds(class_logits(outputs[:, k : k + 1], classes, branch.target), branch.target)
        for k, branch in enumerate(branches)
    ]
    own = [np.full(len(labels), branch.target) for branch in branches]
    for _, columns in joined(branches, classes):
        distribution = Distribution(outputs[:, columns].log_softmax(dim=1))
        evidence.append(distribution.log_margin.double().numpy())
        own.append(distribution.label.numpy())
    return ClassData(
        labels=labels,
        baseline=baseline,
        class_names=tuple(class_names),
        evidence=np.stack(evidence, axis=1),
        own=np.stack(own, axis=1),
        split=split,
    )


def _log_odds(logits: Tensor, target: int) -> FloatArray:
    distribution = Distribution(logits.log_softmax(dim=1))
    return class_log_odds(distribution, target).double().numpy()
