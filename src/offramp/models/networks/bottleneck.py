"""ResNet-50: residual blocks of three convolutions, 1x1, 3x3, 1x1.

Layer: models.  Source: He, Zhang, Ren, Sun, CVPR 2016 (arXiv:1512.03385), section 4.1; the stride
stands at the 3x3 convolution, as in torchvision, whose names and shapes of weights these are.
"""

from collections import OrderedDict
from typing import final

from torch import Tensor, nn

from offramp.models.depth import initialize
from offramp.models.networks.imagenet import check_backbone

_BLOCKS = (3, 4, 6, 3)
_STEM = 64  # filters of the first convolution
_GROWTH = 4  # filters of a block's output per filter within it


@final
class Bottleneck(nn.Module):
    """Three convolutions with batch normalization, added to the shortcut, then ReLU.

    Args:
        before: Channels of the input.
        inner: Filters of the first two convolutions; the last has four times as many.
        stride: Of the 3x3 convolution.
    """

    def __init__(self, before: int, inner: int, stride: int) -> None:
        super().__init__()
        after = _GROWTH * inner
        self.conv1 = nn.Conv2d(before, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, before, h, w)` to `(n, 4 * inner, h / stride, w / stride)`, rounded up."""
        inner = self.relu1(self.bn1(self.conv1(x)))
        inner = self.relu2(self.bn2(self.conv2(inner)))
        return self.relu3(self.bn3(self.conv3(inner)) + self.downsample(x))  # type: ignore[no-any-return]


@final
class BottleneckResNet(nn.Sequential):
    """A stem, four layers of `Bottleneck` blocks and a linear classifier; see `resnet50`."""


def resnet50(
    *,
    classes: int | None = None,
    in_channels: int = 3,
    size: str = "imagenet",
    seed: int = 0,
) -> BottleneckResNet:
    """Build ResNet-50.

    Args:
        classes: Number of logits; None is 1000, or 10 with `size="cifar"`.
        in_channels: Channels of the images.
        size: "imagenet" for images of 224x224; "cifar" for 32x32: 3x3 convolution with stride 1
            first, no pooling behind it, the rest unchanged. (`cifar_resnet(50)` is another
            network, of blocks of two convolutions with at most 64 filters.)
        seed: Of the first weights.

    Returns:
        Float images `(n, in_channels, h, w)` to logits `(n, classes)`; 25.56 million parameters
        and 4.09 billion multiply-adds for ImageNet.

    Raises:
        InputError: If the size is unknown or a number is not positive.

    >>> import torch
    >>> resnet50(classes=7).eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 7])
    """
    classes = check_backbone(size, classes, in_channels)
    large = size == "imagenet"
    layers, before = {}, _STEM
    for i, blocks in enumerate(_BLOCKS):
        inner = _STEM * 2**i
        layers[f"layer{i + 1}"] = _layer(before, inner, blocks, stride=1 if i == 0 else 2)
        before = _GROWTH * inner
    net = BottleneckResNet(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, _STEM, 7, stride=2, padding=3, bias=False)
            if large
            else nn.Conv2d(in_channels, _STEM, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(_STEM),
            relu=nn.ReLU(),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity(),
            **layers,
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(before, classes),
        )
    )
    initialize(net, seed=seed)
    return net


def _layer(before: int, inner: int, blocks: int, *, stride: int) -> nn.Sequential:
    rest = (Bottleneck(_GROWTH * inner, inner, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(before, inner, stride), *rest)
