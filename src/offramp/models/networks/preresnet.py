"""CIFAR residual networks of any depth 6m + 2, activation before each convolution.

Layer: models.  Source: He, Zhang, Ren, Sun, ECCV 2016 (arXiv:1603.05027); 16/32/64 filters as the
backbones of Guan, Liu, Liu, Peng, IJCAI 2018 (methods.md 3).  Where the shape changes, a
projection reads the activated input, the identity the input itself.
"""

from typing import final

from torch import Tensor, nn

from offramp._core.checks import check_positive_int
from offramp.models.depth import blocks_per_layer, filters, initialize
from offramp.models.networks.shortcuts import PadShortcut, changes_shape, check_shortcut


@final
class PreBlock(nn.Module):
    """Twice batch normalization, ReLU and a 3x3 convolution; then the shortcut is added.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        stride: Of the first convolution.
        shortcut: "identity" (option A, no parameters) or "projection" (1x1 convolution) where
            the shape changes; elsewhere the input itself.
    """

    def __init__(self, before: int, after: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        changes = changes_shape(before, after, stride)
        self.projects = changes and shortcut == "projection"
        self.shortcut: nn.Module = nn.Identity()
        if self.projects:
            self.shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False)
        elif changes:
            self.shortcut = PadShortcut(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, before, h, w)` to `(n, after, h / stride, w / stride)`, rounded up."""
        active = self.relu(self.bn1(x))
        inner = self.conv2(self.relu(self.bn2(self.conv1(active))))
        return inner + self.shortcut(active if self.projects else x)  # type: ignore[no-any-return]


@final
class PreResNet(nn.Module):
    """A pre-activation CIFAR residual network; `cifar_preresnet` builds one by depth."""

    def __init__(
        self,
        blocks: int,
        widths: tuple[int, int, int],
        shortcut: str,
        classes: int,
        inputs: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, widths[0], 3, padding=1, bias=False)
        self.layer1 = _layer(blocks, widths[0], widths[0], 1, shortcut)
        self.layer2 = _layer(blocks, widths[0], widths[1], 2, shortcut)
        self.layer3 = _layer(blocks, widths[1], widths[2], 2, shortcut)
        self.bn = nn.BatchNorm2d(widths[2])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(n, in_channels, h, w)`, float, normalized, to logits `(n, classes)`."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(self.flatten(self.pool(self.relu(self.bn(x)))))  # type: ignore[no-any-return]


def _layer(blocks: int, before: int, after: int, stride: int, shortcut: str) -> nn.Sequential:
    first = PreBlock(before, after, stride, shortcut)
    return nn.Sequential(first, *(PreBlock(after, after, 1, shortcut) for _ in range(blocks - 1)))


def cifar_preresnet(
    depth: int,
    *,
    shortcut: str = "projection",
    width: float = 1.0,
    classes: int = 10,
    in_channels: int = 3,
    seed: int = 0,
) -> PreResNet:
    """Build a pre-activation CIFAR residual network.

    Args:
        depth: Layers with weights on the main path, 6m + 2: 8, 14, 20, ..., 110.
        shortcut: "projection" (the default here) or "identity" (option A).
        width: Multiplier of the 16/32/64 filters, > 0.
        classes: Number of logits.
        in_channels: Channels of the images.
        seed: Of the first weights.

    Returns:
        Float images `(n, in_channels, h, w)` to logits `(n, classes)`. Multiply-adds of the
        convolutions at 32x32, width 1, in millions: 6m * 2.359296 + 0.442368 + 0.262144 as Guan
        et al. count, less 2.359296 as they are (the paper charges stride 2 double).

    Raises:
        InputError: If `depth` is not 6m + 2 (the nearest are named), the shortcut is unknown or
            an argument is not positive.

    >>> import torch
    >>> cifar_preresnet(8, width=0.25)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    blocks = blocks_per_layer(depth)
    check_shortcut(shortcut)
    check_positive_int("classes", classes)
    check_positive_int("in_channels", in_channels)
    net = PreResNet(blocks, filters(width), shortcut, classes, in_channels)
    initialize(net, seed=seed)
    return net
