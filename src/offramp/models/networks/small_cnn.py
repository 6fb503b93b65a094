"""Small convolutional networks for small images, such as the 8x8 digits of the demo.

Layer: models.  Source: none, plain networks; sizes and their accuracy were measured on digits.
"""

from typing import final

from torch import Tensor, nn

from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError
from offramp.models.depth import initialize

_POOLED = 2  # 2x2 averages keep where a stroke is; a single average loses 5 to 20 points


@final
class SmallCNN(nn.Module):
    """3x3 convolutions, 2x2 average pooling, one linear layer; `small_cnn` builds one."""

    def __init__(self, width: int, depth: int, in_channels: int, classes: int) -> None:
        super().__init__()
        layers = [_convolution(in_channels, width, 1), _convolution(width, 2 * width, 2)]
        layers += [_convolution(2 * width, 2 * width, 1) for _ in range(depth - 2)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(_POOLED)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(2 * width * _POOLED**2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(n, in_channels, h, w)`, float, to logits `(n, classes)`."""
        return self.linear(self.flatten(self.pool(self.features(x))))  # type: ignore[no-any-return]


def _convolution(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


def small_cnn(
    *, width: int = 16, depth: int = 4, in_channels: int = 1, classes: int = 10, seed: int = 0
) -> SmallCNN:
    """Build a small convolutional network.

    Args:
        width: Filters of the first convolution; the others have twice as many.
        depth: Number of convolutions, at least 2; the second one halves the image.
        in_channels: Channels of the images.
        classes: Number of logits.
        seed: Of the first weights.

    Raises:
        InputError: If an argument is not positive, or `depth` is below 2.

    >>> import torch
    >>> small_cnn(width=3, depth=2)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """
    for name, value in (("width", width), ("in_channels", in_channels), ("classes", classes)):
        check_positive_int(name, value)
    if check_positive_int("depth", depth) < 2:
        raise InputError(f"depth must be at least 2 convolutions, got {depth}.")
    net = SmallCNN(width, depth, in_channels, classes)
    initialize(net, seed=seed)
    return net
