"""AlexNet.

Layer: models.  Source: Krizhevsky, "One weird trick for parallelizing convolutional neural
networks", 2014 (arXiv:1404.5997), on one device; without local response normalization, and with
the filters, names and shapes that torchvision publishes weights for.
"""

from collections import OrderedDict
from typing import final

from torch import nn

from offramp.models.depth import initialize
from offramp.models.networks.imagenet import check_backbone

_POOLED = 6  # height and width of what the classifier reads
_HIDDEN = 4096


@final
class AlexNet(nn.Sequential):
    """Five convolutions (`features`) and three linear layers (`classifier`); see `alexnet`."""


def alexnet(
    *,
    classes: int | None = None,
    in_channels: int = 3,
    size: str = "imagenet",
    seed: int = 0,
) -> AlexNet:
    """Build AlexNet.

    Args:
        classes: Number of logits; None is 1000, or 10 with `size="cifar"`.
        in_channels: Channels of the images.
        size: "imagenet" for images of 224x224, at least 63x63; "cifar" for 32x32: 3x3
            convolution with stride 1 first, no pooling behind it, the rest unchanged.
        seed: Of the first weights.

    Returns:
        Float images `(n, in_channels, h, w)` to logits `(n, classes)`; 61.10 million parameters
        and 0.71 billion multiply-adds for ImageNet.

    Raises:
        InputError: If the size is unknown or a number is not positive.

    >>> import torch
    >>> alexnet(size="cifar").eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    classes = check_backbone(size, classes, in_channels)
    net = AlexNet(
        OrderedDict(
            features=_features(in_channels, size),
            avgpool=nn.AdaptiveAvgPool2d(_POOLED),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(
                nn.Dropout(),
                nn.Linear(256 * _POOLED**2, _HIDDEN),
                nn.ReLU(),
                nn.Dropout(),
                nn.Linear(_HIDDEN, _HIDDEN),
                nn.ReLU(),
                nn.Linear(_HIDDEN, classes),
            ),
        )
    )
    initialize(net, seed=seed)
    return net


def _features(in_channels: int, size: str) -> nn.Sequential:
    stem = (
        (nn.Conv2d(in_channels, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2))
        if size == "imagenet"
        else (nn.Conv2d(in_channels, 64, 3, padding=1), nn.ReLU(), nn.Identity())
    )
    return nn.Sequential(
        *stem,
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )
