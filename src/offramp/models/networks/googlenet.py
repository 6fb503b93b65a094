"""GoogLeNet, the first Inception network, with batch normalization.

Layer: models.  Source: Szegedy et al., CVPR 2015 (arXiv:1409.4842), table 1. As in torchvision,
whose names and shapes of weights these are, the branch that the paper gives 5x5 convolutions has
3x3 ones. The auxiliary classifiers, of use in training only, are left out.
"""

from collections import OrderedDict
from typing import final

from torch import nn

from offramp.models.depth import initialize
from offramp.models.networks.imagenet import Branches, check_backbone, conv_norm_relu, input_parts

# Input channels, then filters: 1x1; 1x1 before 3x3, 3x3; the same of the third branch; 1x1 behind
# the pooling.
_INCEPTION = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}
_OUTPUTS = 1024
_DROPOUT = 0.2
_AUXILIARY = ("aux1.", "aux2.")


@final
class GoogLeNet(nn.Sequential):
    """Three convolutions, nine inception blocks and a linear classifier; see `googlenet`."""

    @staticmethod
    def own_name(published: str) -> str | None:
        """Name of a weight here, or None if it belongs to an auxiliary classifier of the file.

        >>> GoogLeNet.own_name("fc.bias"), GoogLeNet.own_name("aux1.fc1.bias")
        ('fc.bias', None)
        """
        return None if published.startswith(_AUXILIARY) else published


def googlenet(
    *,
    classes: int | None = None,
    in_channels: int = 3,
    size: str = "imagenet",
    transform_input: bool = False,
    seed: int = 0,
) -> GoogLeNet:
    """Build GoogLeNet.

    Args:
        classes: Number of logits; None is 1000, or 10 with `size="cifar"`.
        in_channels: Channels of the images.
        size: "imagenet" for images of 224x224; "cifar" for 32x32: 3x3 convolution with stride 1
            first, no pooling before the first inception block, the rest unchanged.
        transform_input: True rescales images that were normalized by ImageNet's mean and
            deviation to [-1, 1]: torchvision's published weights need it.
        seed: Of the first weights.

    Returns:
        Float images `(n, in_channels, h, w)` to logits `(n, classes)`; 6.62 million parameters
        and 1.50 billion multiply-adds for ImageNet.

    Raises:
        InputError: If the size is unknown, a number is not positive, or the input of other than
            three channels is to be rescaled.

    >>> import torch
    >>> googlenet(classes=7).eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 7])
    """
    classes = check_backbone(size, classes, in_channels)
    blocks = {name: _block(*filters) for name, filters in _INCEPTION.items()}
    net = GoogLeNet(
        OrderedDict(
            **input_parts(transform_input, in_channels),
            **_stem(in_channels, size),
            **{f"inception{name}": blocks[name] for name in ("3a", "3b")},
            maxpool3=_halve(3),
            **{f"inception{name}": blocks[name] for name in ("4a", "4b", "4c", "4d", "4e")},
            maxpool4=_halve(2),
            **{f"inception{name}": blocks[name] for name in ("5a", "5b")},
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(_DROPOUT),
            fc=nn.Linear(_OUTPUTS, classes),
        )
    )
    initialize(net, seed=seed)
    return net


def _stem(in_channels: int, size: str) -> dict[str, nn.Module]:
    large = size == "imagenet"
    return {
        "conv1": conv_norm_relu(in_channels, 64, 7, stride=2)
        if large
        else conv_norm_relu(in_channels, 64, 3),
        "maxpool1": _halve(3) if large else nn.Identity(),
        "conv2": conv_norm_relu(64, 64, 1),
        "conv3": conv_norm_relu(64, 192, 3),
        "maxpool2": _halve(3) if large else nn.Identity(),
    }


def _halve(kernel: int) -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel, stride=2, ceil_mode=True)


def _block(
    before: int, one: int, reduce2: int, two: int, reduce3: int, three: int, four: int
) -> Branches:
    pool = nn.MaxPool2d(3, stride=1, padding=1)
    return Branches(
        {
            "branch1": conv_norm_relu(before, one, 1),
            "branch2": nn.Sequential(
                conv_norm_relu(before, reduce2, 1), conv_norm_relu(reduce2, two, 3)
            ),
            "branch3": nn.Sequential(
                conv_norm_relu(before, reduce3, 1), conv_norm_relu(reduce3, three, 3)
            ),
            "branch4": nn.Sequential(pool, conv_norm_relu(before, four, 1)),
        },
        ("branch1", "branch2", "branch3", "branch4"),
    )
