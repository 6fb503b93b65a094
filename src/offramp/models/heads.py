"""Exit heads: small networks that make class scores of what a layer inside a network gives.

Layer: models.  Source: methods.md 1 (linear head after global average pooling; deeper heads). What
the others gain was measured: 2x2 pooling with an MLP, or one more convolution, up to 25 points.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from torch import nn

from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError
from offramp._core.registry import Registry
from offramp.models.depth import initialize
from offramp.models.pooled import LAST_AND_MEAN, PooledHead, Reads, TokenPool

Head = TypeVar("Head", bound=nn.Module)

#: Layers of maps with so many axes behind the channels.
_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLS: dict[int, type[nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_AVERAGES: dict[int, type[nn.Module]] = {
    1: nn.AdaptiveAvgPool1d,
    2: nn.AdaptiveAvgPool2d,
    3: nn.AdaptiveAvgPool3d,
}


def vector_linear(features: int, classes: int, *, seed: int = 0) -> PooledHead:
    """Build a linear layer on a vector, such as layers after the flattening give.

    Args:
        features: Length of the vectors `(m, features)`.
        classes: Number of logits.
        seed: Of the first weights.

    >>> import torch
    >>> vector_linear(6, 3)(torch.zeros(5, 6)).shape
    torch.Size([5, 3])
    """
    _check(features=features, classes=classes)
    reads = Reads(layout=None, axes=(1,), features=features)
    classify = _standardized_linear(features, classes)
    return _ready(PooledHead(nn.Identity(), classify, reads=reads), seed)


def gap_linear(channels: int, classes: int, *, axes: int = 2, seed: int = 0) -> PooledHead:
    """Build global average pooling and a linear layer: the cheapest head for maps.

    The averages are standardized first, with statistics of the training; the whole stays linear.

    Args:
        channels: Of the maps `(m, channels, ...)`.
        classes: Number of logits.
        axes: Behind the channels: 2 for `(m, channels, h, w)`, 1 for `(m, channels, t)` of
            sensors and sound, 3 for volumes and videos.
        seed: Of the first weights.

    >>> import torch
    >>> gap_linear(16, 10)(torch.zeros(5, 16, 8, 8)).shape
    torch.Size([5, 10])
    >>> gap_linear(16, 10, axes=1)(torch.zeros(5, 16, 64)).shape
    torch.Size([5, 10])
    """
    _check(channels=channels, classes=classes)
    classify = _standardized_linear(channels, classes)
    return _ready(PooledHead(averages(1, axes), classify, reads=_maps(channels, axes)), seed)


def pool_mlp(
    channels: int,
    classes: int,
    *,
    grid: int = 2,
    hidden: int = 128,
    axes: int = 2,
    seed: int = 0,
) -> PooledHead:
    """Build average pooling to a few places, and a network with one hidden layer.

    Args:
        channels: Of the maps `(m, channels, ...)`.
        classes: Number of logits.
        grid: Averages per side: 2 keeps in which quarter of the map something is.
        hidden: Units of the hidden layer, with batch-norm and ReLU.
        axes: Behind the channels, 1, 2 or 3.
        seed: Of the first weights.

    >>> import torch
    >>> pool_mlp(16, 10, hidden=32)(torch.zeros(5, 16, 8, 8)).shape
    torch.Size([5, 10])
    """
    _check(channels=channels, classes=classes, grid=grid, hidden=hidden)
    classify = nn.Sequential(
        nn.Linear(channels * grid ** _check_axes(axes), hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
    return _ready(PooledHead(averages(grid, axes), classify, reads=_maps(channels, axes)), seed)


def conv_head(
    channels: int,
    classes: int,
    *,
    filters: int | Sequence[int] = 64,
    pool: int = 1,
    axes: int = 2,
    seed: int = 0,
) -> PooledHead:
    """Build convolutions of size 3 and stride 2, with batch-norm and ReLU, and a linear layer.

    The best of these heads at early layers, and the most expensive. With large maps take fewer
    filters or pool first; two convolutions tell more classes apart than one.

    Args:
        channels: Of the maps `(m, channels, ...)`.
        classes: Number of logits.
        filters: Of the convolution, or of each of several.
        pool: Average so many places along each axis before; 1 leaves the maps as they are.
        axes: Behind the channels, 1, 2 or 3.
        seed: Of the first weights.

    >>> import torch
    >>> conv_head(16, 10, filters=(32, 64), pool=2)(torch.zeros(5, 16, 8, 8)).shape
    torch.Size([5, 10])
    """
    widths = [filters] if isinstance(filters, int) else list(filters)
    if not widths:
        raise InputError(f"filters must have at least one entry, got {filters!r}.")
    for width in widths:
        _check(channels=channels, classes=classes, filters=width, pool=pool)
    reads, layers = _maps(channels, axes), list[nn.Module]()
    convolution, norm = _CONVOLUTIONS[axes], _NORMS[axes]
    for before, after in pairwise([channels, *widths]):
        layers.append(convolution(before, after, 3, stride=2, padding=1, bias=False))
        layers += [norm(after), nn.ReLU()]
    classify = nn.Sequential(*layers, averages(1, axes), nn.Linear(widths[-1], classes))
    first = nn.Identity() if pool == 1 else _POOLS[axes](pool)
    return _ready(PooledHead(first, classify, reads=reads), seed)


def token_linear(
    features: int,
    classes: int,
    *,
    pooling: str = "first",
    mask: str | None = None,
    pad: int = 0,
    seed: int = 0,
) -> PooledHead:
    """Build a head for transformers: one vector of the tokens, layer-norm, and a linear layer.

    Inside a transformer tokens are not normalized and grow with depth, so the head does it.

    Args:
        features: Length of a token, the last axis of `(m, t, features)`.
        classes: Number of logits.
        pooling: "first" where there is a class token; "last" in a causal network, where the first
            sees nothing but itself; "mean" elsewhere. "last_and_mean" reads both side by side: in
            early layers of a causal network the last one does not know much of the others yet.
        mask: Name of the network's input `(m, t)` that tells real tokens from padding, such as
            "attention_mask"; then "last" and "mean" leave padding out. None: all are real.
        pad: What stands in that input at padding: 0 in an attention mask; with
            `mask="input_ids"` the id of the padding token.
        seed: Of the first weights.

    >>> import torch
    >>> token_linear(6, 3)(torch.zeros(5, 4, 6)).shape
    torch.Size([5, 3])
    """
    _check(features=features, classes=classes)
    vectors = 2 if pooling == LAST_AND_MEAN else 1
    layers = [nn.LayerNorm(features), *([nn.Flatten()] if vectors > 1 else [])]
    classify = nn.Sequential(*layers, nn.Linear(vectors * features, classes))
    reads = Reads(layout="channels_last", axes=(2, 3, 4), features=features)
    return _ready(PooledHead(TokenPool(pooling, mask=mask, pad=pad), classify, reads=reads), seed)


#: Heads by name.
HEADS: Registry[Callable[..., nn.Module]] = Registry(
    "head",
    {
        "vector_linear": vector_linear,
        "gap_linear": gap_linear,
        "pool_mlp": pool_mlp,
        "conv_head": conv_head,
        "token_linear": token_linear,
    },
)


def averages(grid: int, axes: int = 2) -> nn.Sequential:
    """Average pooling of maps to `grid` places along each axis (1: global), flattened.

    >>> import torch
    >>> averages(2, axes=1)(torch.zeros(5, 16, 9)).shape
    torch.Size([5, 32])
    """
    return nn.Sequential(_AVERAGES[_check_axes(axes)](grid), nn.Flatten())


def _maps(channels: int, axes: int) -> Reads:
    return Reads(layout="channels_first", axes=(_check_axes(axes) + 1,), features=channels)


def _check_axes(axes: int) -> int:
    if axes not in _AVERAGES:
        raise InputError(
            f"axes must be 1 (signals), 2 (images) or 3 (volumes, videos), the number of axes "
            f"behind the channels, got {axes!r}."
        )
    return axes


def _standardized_linear(features: int, classes: int) -> nn.Sequential:
    """A linear map; averages differ little from example to example, so it learns them scaled."""
    return nn.Sequential(nn.BatchNorm1d(features, affine=False), nn.Linear(features, classes))


def _ready(head: Head, seed: int) -> Head:
    initialize(head, seed=seed)
    return head.eval()


def _check(**counts: int) -> None:
    for name, value in counts.items():
        check_positive_int(name, value)
