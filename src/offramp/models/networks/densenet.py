"""DenseNet-121: each layer reads the maps of all layers before it.

Layer: models.  Source: Huang, Liu, van der Maaten, Weinberger, CVPR 2017 (arXiv:1608.06993),
table 1; names and shapes of weights are torchvision's.
"""

import re
from collections import OrderedDict
from typing import final

import torch
from torch import Tensor, nn

from offramp.models.depth import initialize
from offramp.models.networks.imagenet import check_backbone

_BLOCKS = (6, 12, 24, 16)
_GROWTH = 32  # maps that a layer adds
_BOTTLENECK = 4 * _GROWTH  # filters of a layer's 1x1 convolution
_STEM = 64
# torchvision's file numbers a layer's modules "norm.1", "conv.2"; its networks, "norm1", "conv2".
_NUMBERED = re.compile(r"(.*\.denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")


@final
class DenseLayer(nn.Module):
    """Batch normalization, ReLU and convolution, 1x1 then 3x3; the input is kept in the output.

    One tensor holds the maps of all layers so far, so a cut between layers carries one tensor.
    """

    def __init__(self, before: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(before, _BOTTLENECK, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(_BOTTLENECK)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(_BOTTLENECK, _GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, before, h, w)` to `(n, before + 32, h, w)`."""
        inner = self.conv1(self.relu1(self.norm1(x)))
        return torch.cat([x, self.conv2(self.relu2(self.norm2(inner)))], dim=1)


@final
class DenseNet(nn.Sequential):
    """A stem, four dense blocks with transitions (`features`), a classifier; see `densenet121`."""

    @staticmethod
    def own_name(published: str) -> str:
        """Name of a weight here, from its name in a file; torchvision's file has older ones.

        >>> DenseNet.own_name("features.denseblock1.denselayer2.norm.1.weight")
        'features.denseblock1.denselayer2.norm1.weight'
        """
        match = _NUMBERED.fullmatch(published)
        return published if match is None else match[1] + match[2]


def densenet121(
    *,
    classes: int | None = None,
    in_channels: int = 3,
    size: str = "imagenet",
    seed: int = 0,
) -> DenseNet:
    """Build DenseNet-121.

    Args:
        classes: Number of logits; None is 1000, or 10 with `size="cifar"`.
        in_channels: Channels of the images.
        size: "imagenet" for images of 224x224, at least 29x29; "cifar" for 32x32: 3x3
            convolution with stride 1 first, no pooling behind it, the rest unchanged.
        seed: Of the first weights.

    Returns:
        Float images `(n, in_channels, h, w)` to logits `(n, classes)`; 7.98 million parameters
        and 2.83 billion multiply-adds for ImageNet.

    Raises:
        InputError: If the size is unknown or a number is not positive.

    >>> import torch
    >>> densenet121(classes=7).eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 7])
    """
    classes = check_backbone(size, classes, in_channels)
    features = _stem(in_channels, size)
    channels = _STEM
    for i, layers in enumerate(_BLOCKS, start=1):
        features[f"denseblock{i}"] = _block(channels, layers)
        channels += layers * _GROWTH
        if i < len(_BLOCKS):
            features[f"transition{i}"] = _transition(channels)
            channels //= 2
    features["norm5"] = nn.BatchNorm2d(channels)
    net = DenseNet(
        OrderedDict(
            features=nn.Sequential(features),
            relu=nn.ReLU(),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(channels, classes),
        )
    )
    initialize(net, seed=seed)
    return net


def _stem(in_channels: int, size: str) -> OrderedDict[str, nn.Module]:
    large = size == "imagenet"
    return OrderedDict(
        conv0=nn.Conv2d(in_channels, _STEM, 7, stride=2, padding=3, bias=False)
        if large
        else nn.Conv2d(in_channels, _STEM, 3, padding=1, bias=False),
        norm0=nn.BatchNorm2d(_STEM),
        relu0=nn.ReLU(),
        pool0=nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity(),
    )


def _block(before: int, layers: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict((f"denselayer{j + 1}", DenseLayer(before + j * _GROWTH)) for j in range(layers))
    )


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )
