"""How to cut a network again: what a bundle keeps of `Cascade.from_network`.

Layer: stages.  Source: none.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from offramp._core.batch import map_tensors
from offramp._core.types import Batch
from offramp.models import ModelSpec


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class CutSpec:
    """How to build a network and to cut it into the same segments.

    Args:
        model: How to build the network.
        at: Names of the layers after which it is cut, as `cut` takes them.
        example: One input to follow the network with, of `synthetic_example`.
        keep: Inputs that heads read, as `cut` takes them.
        classes: As `cut` takes them.
    """

    model: ModelSpec
    at: tuple[str, ...]
    example: Batch
    keep: tuple[str, ...] = ()
    classes: int | None = None


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentSpec:
    """Which segment of which cut; the segments of one cut share its record.

    Args:
        cut: How to get all of them.
        index: Position among them, from 0 on.
    """

    cut: CutSpec
    index: int


def synthetic_example(example: Batch) -> Batch:
    """One made-up example of the same kind, shapes and types, on the CPU.

    Floating-point values become a wave in [-1, 1]: nobody's data are kept, and the answers differ
    from layer to layer, as they would not for zeros. Whole numbers stay those of the first
    example: which of them a network takes nobody can know. An embedding has so many rows, a token
    type may have to be 0, a mask of zeros leaves nothing to look at.

    Args:
        example: At least one example.

    >>> made_up = synthetic_example({"ids": torch.tensor([[7, 3], [1, 1]]), "x": torch.rand(2, 2)})
    >>> made_up["ids"].tolist(), made_up["x"].shape
    ([[7, 3]], torch.Size([1, 2]))
    """
    return map_tensors(example, _made_up)


def _made_up(tensor: Tensor) -> Tensor:
    first = tensor[:1].detach()
    if not first.is_floating_point():
        return first.cpu().contiguous().clone()
    wave = torch.arange(1, first.numel() + 1, dtype=torch.float64).sin()
    return wave.reshape(first.shape).to(first.dtype)
