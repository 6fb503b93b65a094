"""Where branches are attached: behind every convolution, or at p points of a large network.

Layer: train.  Source: Bonato and Bouganis, class-specific early exit, section 3.2.
"""

from collections.abc import Sequence
from itertools import groupby

from torch import nn

from offramp._core.errors import InputError
from offramp._core.types import Batch
from offramp.models import LayerShape
from offramp.stages import CutPoint, choose_points, cut_points
from offramp.stages.cutting.choose import last_of

_MAPS = (3, 4)  # axes of (channels, height, width), and of volumes and videos


def attachment_points(
    net: nn.Module, example: Batch, *, sampled: int | None = None, grid: int = 2
) -> list[CutPoint]:
    """List the points behind the convolutions of a network, in the order in which it runs.

    Of the points between two convolutions the last one whose maps have the shape that the
    convolution gave: behind its batch-norm, and behind the addition where a block ends with it.

    Args:
        net: In evaluation mode.
        example: What the network reads, after the transform.
        sampled: Take so many of them, spread evenly over the network's operations; default all.
        grid: Averages per side that the branches make of a map; smaller maps get none.

    Raises:
        InputError: If there is no such point, or fewer than `sampled`.
        UnsupportedError: If the network cannot be followed.

    >>> import torch
    >>> from offramp.models import resnet21
    >>> points = attachment_points(resnet21().eval(), torch.zeros(1, 3, 32, 32))
    >>> len(points), points[0].name, points[2].name, points[-1].name
    (21, 'relu', 'layer1.0', 'layer3')
    """
    found = []
    for _, group in groupby(cut_points(net, example), key=lambda point: point.flops):
        behind = list(group)
        first = behind[0].shape
        if _is_map(first) and min(first[1:]) >= grid:
            found.append(last_of(behind))
    if not found:
        raise InputError(
            "The network has no point behind a convolution whose maps have at least "
            f"{grid} places along each axis, so there is nothing to attach a branch to."
        )
    return found if sampled is None else choose_points(found, quantiles=sampled, inside=True)


def width_of(point: CutPoint, grid: int) -> int:
    """Features that a branch reads of a point, once its maps are pooled.

    >>> point = CutPoint(name="p", aliases=(), shape=(16, 8, 8), live=((16, 8, 8),), flops=0.0,
    ...                  share=0.0)
    >>> width_of(point, 2)
    64
    """
    return int(point.shape[0] * grid ** (len(point.shape) - 1))


def _is_map(shape: Sequence[int]) -> bool:
    """Whether the channels stand in front; of two axes only the layer can tell."""
    layout = shape.layout if isinstance(shape, LayerShape) else None
    if layout is None:
        return len(shape) in _MAPS
    return layout == "channels_first" and len(shape) <= max(_MAPS)
