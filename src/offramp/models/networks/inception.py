"""Inception-v3.

Layer: models.  Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016 (arXiv:1512.00567),
table 1 and figures 5 to 7 and 10; names and shapes of weights are torchvision's. The auxiliary
classifier, of use in training only, is left out.
"""

from collections import OrderedDict
from typing import final

from torch import nn

from offramp.models.depth import initialize
from offramp.models.networks.imagenet import Branches, check_backbone, conv_norm_relu, input_parts

_OUTPUTS = 2048
_DROPOUT = 0.5
_AUXILIARY = "AuxLogits."


@final
class InceptionV3(nn.Sequential):
    """Five convolutions, eleven inception blocks and a classifier; see `inception_v3`."""

    @staticmethod
    def own_name(published: str) -> str | None:
        """Name of a weight here, or None if it belongs to the auxiliary classifier of the file.

        >>> InceptionV3.own_name("fc.bias"), InceptionV3.own_name("AuxLogits.fc.bias")
        ('fc.bias', None)
        """
        return None if published.startswith(_AUXILIARY) else published


def inception_v3(
    *,
    classes: int | None = None,
    in_channels: int = 3,
    size: str = "imagenet",
    transform_input: bool = False,
    seed: int = 0,
) -> InceptionV3:
    """Build Inception-v3.

    Args:
        classes: Number of logits; None is 1000, or 10 with `size="cifar"`.
        in_channels: Channels of the images.
        size: "imagenet" for images of 299x299, at least 75x75; "cifar" for 32x32: the first three
            convolutions and the fifth keep the size of the image, and no pooling precedes the
            first inception block; the rest is unchanged.
        transform_input: True rescales images that were normalized by ImageNet's mean and
            deviation to [-1, 1]: torchvision's published weights need it.
        seed: Of the first weights.

    Returns:
        Float images `(n, in_channels, h, w)` to logits `(n, classes)`; 23.83 million parameters
        and 5.71 billion multiply-adds for ImageNet.

    Raises:
        InputError: If the size is unknown, a number is not positive, or the input of other than
            three channels is to be rescaled.

    >>> import torch
    >>> inception_v3(classes=7).eval()(torch.zeros(2, 3, 75, 75)).shape
    torch.Size([2, 7])
    """
    classes = check_backbone(size, classes, in_channels)
    net = InceptionV3(
        OrderedDict(
            **input_parts(transform_input, in_channels),
            **_stem(in_channels, size),
            Mixed_5b=_block_a(192, 32),
            Mixed_5c=_block_a(256, 64),
            Mixed_5d=_block_a(288, 64),
            Mixed_6a=_block_b(),
            Mixed_6b=_block_c(128),
            Mixed_6c=_block_c(160),
            Mixed_6d=_block_c(160),
            Mixed_6e=_block_c(192),
            Mixed_7a=_block_d(),
            Mixed_7b=_block_e(1280),
            Mixed_7c=_block_e(2048),
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
    padding = 0 if large else 1
    return {
        "Conv2d_1a_3x3": conv_norm_relu(
            in_channels, 32, 3, stride=2 if large else 1, padding=padding
        ),
        "Conv2d_2a_3x3": conv_norm_relu(32, 32, 3, padding=padding),
        "Conv2d_2b_3x3": conv_norm_relu(32, 64, 3),
        "maxpool1": nn.MaxPool2d(3, stride=2) if large else nn.Identity(),
        "Conv2d_3b_1x1": conv_norm_relu(64, 80, 1),
        "Conv2d_4a_3x3": conv_norm_relu(80, 192, 3, padding=padding),
        "maxpool2": nn.MaxPool2d(3, stride=2) if large else nn.Identity(),
    }


def _average() -> nn.AvgPool2d:
    return nn.AvgPool2d(3, stride=1, padding=1)


def _block_a(before: int, pooled: int) -> Branches:
    """1x1, 5x5 and twice 3x3: `(n, before, h, w)` to `(n, 224 + pooled, h, w)`."""
    return Branches(
        {
            "branch1x1": conv_norm_relu(before, 64, 1),
            "branch5x5_1": conv_norm_relu(before, 48, 1),
            "branch5x5_2": conv_norm_relu(48, 64, 5),
            "branch3x3dbl_1": conv_norm_relu(before, 64, 1),
            "branch3x3dbl_2": conv_norm_relu(64, 96, 3),
            "branch3x3dbl_3": conv_norm_relu(96, 96, 3),
            "pool": _average(),
            "branch_pool": conv_norm_relu(before, pooled, 1),
        },
        (
            "branch1x1",
            "branch5x5_1 branch5x5_2",
            "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
            "pool branch_pool",
        ),
    )


def _block_b() -> Branches:
    """Halves the size: `(n, 288, h, w)` to `(n, 768, (h - 1) // 2, (w - 1) // 2)`."""
    return Branches(
        {
            "branch3x3": conv_norm_relu(288, 384, 3, stride=2, padding=0),
            "branch3x3dbl_1": conv_norm_relu(288, 64, 1),
            "branch3x3dbl_2": conv_norm_relu(64, 96, 3),
            "branch3x3dbl_3": conv_norm_relu(96, 96, 3, stride=2, padding=0),
            "pool": nn.MaxPool2d(3, stride=2),
        },
        ("branch3x3", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3", "pool"),
    )


def _block_c(inner: int) -> Branches:
    """7x7 as rows and columns, once and twice: `(n, 768, h, w)` to the same shape."""
    row, column = (1, 7), (7, 1)
    return Branches(
        {
            "branch1x1": conv_norm_relu(768, 192, 1),
            "branch7x7_1": conv_norm_relu(768, inner, 1),
            "branch7x7_2": conv_norm_relu(inner, inner, row),
            "branch7x7_3": conv_norm_relu(inner, 192, column),
            "branch7x7dbl_1": conv_norm_relu(768, inner, 1),
            "branch7x7dbl_2": conv_norm_relu(inner, inner, column),
            "branch7x7dbl_3": conv_norm_relu(inner, inner, row),
            "branch7x7dbl_4": conv_norm_relu(inner, inner, column),
            "branch7x7dbl_5": conv_norm_relu(inner, 192, row),
            "pool": _average(),
            "branch_pool": conv_norm_relu(768, 192, 1),
        },
        (
            "branch1x1",
            "branch7x7_1 branch7x7_2 branch7x7_3",
            "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5",
            "pool branch_pool",
        ),
    )


def _block_d() -> Branches:
    """Halves the size: `(n, 768, h, w)` to `(n, 1280, (h - 1) // 2, (w - 1) // 2)`."""
    return Branches(
        {
            "branch3x3_1": conv_norm_relu(768, 192, 1),
            "branch3x3_2": conv_norm_relu(192, 320, 3, stride=2, padding=0),
            "branch7x7x3_1": conv_norm_relu(768, 192, 1),
            "branch7x7x3_2": conv_norm_relu(192, 192, (1, 7)),
            "branch7x7x3_3": conv_norm_relu(192, 192, (7, 1)),
            "branch7x7x3_4": conv_norm_relu(192, 192, 3, stride=2, padding=0),
            "pool": nn.MaxPool2d(3, stride=2),
        },
        (
            "branch3x3_1 branch3x3_2",
            "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4",
            "pool",
        ),
    )


def _block_e(before: int) -> Branches:
    """3x3 as rows beside columns: `(n, before, h, w)` to `(n, 2048, h, w)`."""
    row, column = (1, 3), (3, 1)
    return Branches(
        {
            "branch1x1": conv_norm_relu(before, 320, 1),
            "branch3x3_1": conv_norm_relu(before, 384, 1),
            "branch3x3_2a": conv_norm_relu(384, 384, row),
            "branch3x3_2b": conv_norm_relu(384, 384, column),
            "branch3x3dbl_1": conv_norm_relu(before, 448, 1),
            "branch3x3dbl_2": conv_norm_relu(448, 384, 3),
            "branch3x3dbl_3a": conv_norm_relu(384, 384, row),
            "branch3x3dbl_3b": conv_norm_relu(384, 384, column),
            "pool": _average(),
            "branch_pool": conv_norm_relu(before, 192, 1),
        },
        (
            "branch1x1",
            "branch3x3_1 branch3x3_2a",
            "branch3x3_1 branch3x3_2b",
            "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a",
            "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3b",
            "pool branch_pool",
        ),
    )
