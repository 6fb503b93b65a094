"""The same examples with sequences of other lengths, to see which sizes a cascade takes.

Layer: backends.
"""

from collections.abc import Sequence

import torch

from offramp._core.batch import flat, to_device
from offramp._core.device import device_of
from offramp._core.errors import FAILURES
from offramp._core.types import Batch
from offramp.stages import Stage
from offramp.stages.cutting.graph import is_sequence
from offramp.stages.cutting.tried import Axes, other_sizes, resized

_COUNT = 2  # with the example's own three lengths


def other_lengths(example: Batch, stages: Sequence[Stage]) -> list[Batch]:
    """The example with other lengths, two of them; none where stages take only its own.

    Args:
        example: Some raw input.
        stages: Those that read it.

    >>> from torch import nn
    >>> mean = nn.Sequential(nn.Linear(4, 3), nn.AdaptiveAvgPool2d((1, None)), nn.Flatten())
    >>> [b.shape for b in other_lengths(torch.zeros(1, 8, 4), [Stage("a", mean.eval())])]
    [torch.Size([1, 9, 4]), torch.Size([1, 6, 4])]
    >>> other_lengths(torch.zeros(1, 4), [Stage("a", nn.Linear(4, 3))])
    []
    """
    groups: dict[int, list[tuple[int, int]]] = {}
    for k, tensor in enumerate(flat(example)):
        if is_sequence(tensor):
            groups.setdefault(tensor.shape[1], []).append((k, 1))
    found: list[list[tuple[Axes, int]]] = [[] for _ in range(_COUNT)]
    for size, axes in groups.items():
        taken = [
            (tuple(axes), other)
            for other in other_sizes(size)
            if _runs(resized(example, [(tuple(axes), other)], fresh=False), stages)
        ]
        if len(taken) >= _COUNT:
            for changes, change in zip(found, taken, strict=False):
                changes.append(change)
    made = [resized(example, changes, fresh=False) for changes in found if changes]
    return [batch for batch in made if batch is not None and _runs(batch, stages)]


def _runs(batch: Batch | None, stages: Sequence[Stage]) -> bool:
    if batch is None:
        return False
    try:
        with torch.no_grad():
            for stage in stages:
                stage.segment(to_device(batch, device_of(stage)))
    except FAILURES:
        return False
    return True
