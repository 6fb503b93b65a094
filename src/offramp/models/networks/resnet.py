"""CIFAR residual networks of any depth 6m + 2, activation after the addition.

Module names (`conv1, bn1, layer1..3.{i}.{conv1, bn1, conv2, bn2}, linear`) are those that the
usual pretrained weights carry, so such files load as they are.

Layer: models.  Source: He, Zhang, Ren, Sun, CVPR 2016 (arXiv:1512.03385), section 4.2.
ResNet-21 is that of methods.md 2 (Bonato and Bouganis).
"""

from typing import final

from torch import Tensor, nn

from offramp._core.checks import check_positive_int
from offramp.models.depth import blocks_per_layer, filters, initialize
from offramp.models.networks.shortcuts import PadShortcut, changes_shape, check_shortcut


@final
class Block(nn.Module):
    """Two 3x3 convolutions with batch normalization, added to the shortcut, then ReLU.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        stride: Of the first convolution.
        shortcut: "identity" (option A, no parameters) or "projection" (1x1 convolution) where
            the shape changes; elsewhere the input itself.
    """

    def __init__(self, before: int, after: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if changes_shape(before, after, stride):
            self.shortcut = (
                PadShortcut(before, after, stride)
                if shortcut == "identity"
                else nn.Sequential(
                    nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, before, h, w)` to `(n, after, h / stride, w / stride)`, rounded up."""
        inner = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))  # type: ignore[no-any-return]


@final
class ResNet(nn.Module):
    """A CIFAR residual network; `cifar_resnet` builds one by depth."""

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
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = _layer(blocks, widths[0], widths[0], 1, shortcut)
        self.layer2 = _layer(blocks, widths[0], widths[1], 2, shortcut)
        self.layer3 = _layer(blocks, widths[1], widths[2], 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(n, in_channels, h, w)`, float, normalized, to logits `(n, classes)`."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.flatten(self.pool(x)))  # type: ignore[no-any-return]


def _layer(blocks: int, before: int, after: int, stride: int, shortcut: str) -> nn.Sequential:
    first = Block(before, after, stride, shortcut)
    return nn.Sequential(first, *(Block(after, after, 1, shortcut) for _ in range(blocks - 1)))


def cifar_resnet(
    depth: int,
    *,
    shortcut: str = "identity",
    width: float = 1.0,
    classes: int = 10,
    in_channels: int = 3,
    seed: int = 0,
) -> ResNet:
    """Build a CIFAR residual network.

    Args:
        depth: Layers with weights on the main path, 6m + 2: 8, 14, 20, ..., 110.
        shortcut: "identity" (option A, as the usual pretrained weights) or "projection".
        width: Multiplier of the 16/32/64 filters, > 0.
        classes: Number of logits.
        in_channels: Channels of the images.
        seed: Of the first weights.

    Returns:
        Float images `(n, in_channels, h, w)` to logits `(n, classes)`; for 32x32 and depth 20
        40.55 million multiply-adds.

    Raises:
        InputError: If `depth` is not 6m + 2 (the nearest are named), the shortcut is unknown or
            an argument is not positive.

    >>> import torch
    >>> cifar_resnet(8, width=0.25)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    blocks = blocks_per_layer(depth)
    check_shortcut(shortcut)
    check_positive_int("classes", classes)
    check_positive_int("in_channels", in_channels)
    net = ResNet(blocks, filters(width), shortcut, classes, in_channels)
    initialize(net, seed=seed)
    return net


def resnet21(*, classes: int = 10, in_channels: int = 3, seed: int = 0) -> ResNet:
    """Build the ResNet-21 of class-specific early exit: ResNet-20, two projection shortcuts."""
    return cifar_resnet(
        20, shortcut="projection", classes=classes, in_channels=in_channels, seed=seed
    )
