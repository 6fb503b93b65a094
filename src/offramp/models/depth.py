"""Depths and filters of the CIFAR residual networks, and how their weights begin.

Layer: models.  Source: He, Zhang, Ren, Sun, CVPR 2016 (arXiv:1512.03385), section 4.2 (depth
6m + 2, filters 16/32/64); weights as in He et al., ICCV 2015 (arXiv:1502.01852), eq. 10.
"""

import math

import torch
from torch import nn

from offramp._core.checks import check_positive_int, check_seed
from offramp._core.errors import InputError

_BASE_FILTERS = (16, 32, 64)
_SMALLEST_DEPTH = 8


def blocks_per_layer(depth: int) -> int:
    """Blocks in each of the three layers of a network of `depth` = 6m + 2: m.

    Raises:
        InputError: If `depth` is not 6m + 2 with m >= 1; it names the nearest legal depths.

    >>> blocks_per_layer(20), blocks_per_layer(110)
    (3, 18)
    """
    check_positive_int("depth", depth)
    if depth >= _SMALLEST_DEPTH and (depth - 2) % 6 == 0:
        return (depth - 2) // 6
    below = 6 * ((depth - 2) // 6) + 2
    near = sorted({max(d, _SMALLEST_DEPTH) for d in (below, below + 6)})
    raise InputError(
        f"depth must be 6m + 2 with m >= 1 (8, 14, 20, ...), got {depth}. "
        f"Nearest: {' or '.join(str(d) for d in near)}."
    )


def filters(width: float) -> tuple[int, int, int]:
    """Filters of the three layers: 16, 32 and 64 times `width`, rounded, at least 1.

    Raises:
        InputError: If `width` is not finite and greater than 0.

    >>> filters(1.5)
    (24, 48, 96)
    """
    if not (math.isfinite(width) and width > 0):
        raise InputError(f"width must be a finite number greater than 0, got {width!r}.")
    first, second, third = (max(1, round(width * base)) for base in _BASE_FILTERS)
    return first, second, third


def initialize(module: nn.Module, *, seed: int) -> None:
    """Draw the weights of all convolutions and linear layers anew, from `seed` alone.

    Convolutions get normal weights of variance 2 / fan-in; linear layers uniform weights within
    1 / sqrt(fan-in); both without a shift. Normalization layers keep what they start with
    (scale 1, shift 0).
    """
    generator = torch.Generator().manual_seed(check_seed(seed))
    for part in module.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu", generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear):
            bound = part.in_features**-0.5
            nn.init.uniform_(part.weight, -bound, bound, generator=generator)
            nn.init.zeros_(part.bias)
