"""What the ImageNet backbones share: their two sizes, arguments and building blocks.

Each backbone has torchvision's names and shapes of weights, so its published files load. Every
activation, pooling and dropout is a module of its own, used once: a network can be cut there.

`size="cifar"` is the same network behind a small stem: the first convolution becomes 3x3 with
stride 1, and no pooling precedes the first block, so that the blocks see 32x32 pixels of a CIFAR
image, about as many as they see of an ImageNet image (27x27 to 56x56). Only the weights of the
first convolution and of the classifier change their shapes.

Layer: models.
"""

from collections import OrderedDict
from typing import final

import torch
from torch import Tensor, nn

from offramp._core.checks import check_choice, check_positive_int
from offramp._core.errors import InputError

_CLASSES = {"imagenet": 1000, "cifar": 10}
_EPS = 1e-3  # of batch normalization in the Inception family
# Per channel: what ImageNet images are usually normalized with, and what Inception was trained on.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_INCEPTION_MEAN, _INCEPTION_STD = 0.5, 0.5


def check_backbone(size: str, classes: int | None, in_channels: int) -> int:
    """Check the arguments that all backbones have.

    Args:
        size: "imagenet" or "cifar".
        classes: Number of logits, or None for 1000 and 10.
        in_channels: Channels of the images.

    Returns:
        The number of logits.

    Raises:
        InputError: If the size is unknown or a number is not positive.

    >>> check_backbone("cifar", None, 3)
    10
    """
    check_choice("size", size, _CLASSES)
    check_positive_int("in_channels", in_channels)
    return _CLASSES[size] if classes is None else check_positive_int("classes", classes)


def conv_norm_relu(
    before: int,
    after: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int | tuple[int, int] | None = None,
) -> nn.Sequential:
    """Convolution, batch normalization and ReLU, as in the Inception family.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        kernel: Height and width, or one number for both.
        stride: Of the convolution.
        padding: Pixels on each side; None takes half the kernel, which keeps the size.

    Returns:
        Modules "conv", "bn" and "relu": `(n, before, h, w)` to `(n, after, h', w')`.

    >>> import torch
    >>> conv_norm_relu(3, 8, (1, 7))(torch.zeros(2, 3, 9, 9)).shape
    torch.Size([2, 8, 9, 9])
    """
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    if padding is None:
        padding = (height // 2, width // 2)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(
                before, after, (height, width), stride=stride, padding=padding, bias=False
            ),
            bn=nn.BatchNorm2d(after, eps=_EPS),
            relu=nn.ReLU(),
        )
    )


@final
class Branches(nn.Module):
    """Chains of modules side by side on one input, their outputs joined along the channels.

    Args:
        parts: Modules by name.
        chains: Names of modules, separated by spaces, in the order in which they run; one chain
            after the other in the output. What two chains have in common at their beginnings
            runs once.

    >>> import torch
    >>> pair = Branches({"same": nn.Identity(), "mean": nn.AvgPool2d(1)}, ("same", "same mean"))
    >>> pair(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 6, 4, 4])
    """

    def __init__(self, parts: dict[str, nn.Module], chains: tuple[str, ...]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self._chains = tuple(tuple(chain.split()) for chain in chains)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, c, h, w)` to `(n, channels of all chains, h', w')`."""
        done: dict[tuple[str, ...], Tensor] = {(): x}
        for chain in self._chains:
            for length, name in enumerate(chain):
                if chain[: length + 1] not in done:
                    done[chain[: length + 1]] = getattr(self, name)(done[chain[:length]])
        return torch.cat([done[chain] for chain in self._chains], dim=1)


@final
class InceptionScale(nn.Module):
    """Images normalized by ImageNet's mean and deviation to the range that Inception reads.

    torchvision's published weights of GoogLeNet and Inception-v3 were trained on pixels mapped
    from [0, 1] to [-1, 1]. There is nothing to learn here and nothing is kept in a state dict.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        std, mean = (torch.tensor(v).reshape(3, 1, 1) for v in (_STD, _MEAN))
        self.register_buffer("scale", std / _INCEPTION_STD, persistent=False)
        self.register_buffer("shift", (mean - _INCEPTION_MEAN) / _INCEPTION_STD, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, 3, h, w)` to the same shape."""
        return x * self.scale + self.shift


def input_parts(transform_input: bool, in_channels: int) -> dict[str, nn.Module]:
    """What stands before the first convolution of an Inception network: a rescaling or nothing.

    Raises:
        InputError: If a rescaling is asked for and the images have not three channels.
    """
    if not transform_input:
        return {}
    if in_channels != 3:
        raise InputError(
            f"transform_input needs in_channels=3, red, green and blue, got {in_channels}. "
            "Leave it out and normalize the images yourself."
        )
    return {"transform_input": InceptionScale()}
