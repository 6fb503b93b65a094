"""What a residual block adds to its output where the shape changes.

Layer: models.  Source: He, Zhang, Ren, Sun, CVPR 2016 (arXiv:1512.03385), section 3.3: options A
(zero padding, no parameters) and B (1x1 convolution).
"""

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from offramp._core.checks import check_choice

SHORTCUTS = ("identity", "projection")


@final
class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels before and after; no parameters.

    Args:
        before: Channels of the input.
        after: Channels of the output, at least `before`; the new ones are zero, half in front.
        stride: Step between the pixels kept.

    >>> import torch
    >>> PadShortcut(1, 3, 2)(torch.arange(4.0).reshape(1, 1, 2, 2)).flatten().tolist()
    [0.0, 0.0, 0.0]
    >>> PadShortcut(1, 3, 2)(torch.ones(1, 1, 2, 2)).flatten().tolist()
    [0.0, 1.0, 0.0]
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.front = (after - before) // 2
        self.back = after - before - self.front
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, before, h, w)` to `(n, after, h / stride, w / stride)`, rounded up."""
        kept = x[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, self.front, self.back))


def changes_shape(before: int, after: int, stride: int) -> bool:
    """True where the input of a block cannot be added to its output as it is."""
    return stride != 1 or before != after


def check_shortcut(shortcut: str) -> str:
    """Return `shortcut` if it is known; else raise `InputError`."""
    return check_choice("shortcut", shortcut, SHORTCUTS)
