"""Exit heads: small networks that make class scores of what a layer inside a network gives.

Layer: models.  Source: methods.md 1 (linear head after global average pooling; deeper heads). What
the others gain was measured: 2x2 pooling with an MLP, or one more convolution, up to 25 points.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, TypeVar, final

from torch import Tensor, nn

from offramp._core.checks import check_choice, check_positive_int
from offramp._core.errors import InputError
from offramp._core.registry import Registry
from offramp.models.depth import initialise

TOKEN_POOLINGS = ("first", "mean")
Head = TypeVar("Head", bound=nn.Module)


@final
class PooledHead(nn.Module):
    """A pooling without weights, then layers that make logits of what it gives.

    The pooled features of a frozen network never change, so a training may keep them.

    Args:
        pool: Reads what the layer gives, `(m, ...)`; gives features `(m, ...)`, far fewer.
        classify: Reads the features; gives logits `(m, c)`.

    >>> import torch
    >>> head = PooledHead(nn.Flatten(), nn.Linear(6, 3))
    >>> head(torch.zeros(5, 2, 3)).shape
    torch.Size([5, 3])
    """

    def __init__(self, pool: nn.Module, classify: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.classify = classify

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits `(m, c)`."""
        return self.classify(self.pool(x))  # type: ignore[no-any-return]


@final
class TokenPool(nn.Module):
    """One vector of tokens `(m, t, d)`: the first, which is the class token, or their mean.

    Args:
        pooling: "first" or "mean"; the mean also takes tokens in rows and columns,
            `(m, h, w, d)`.
    """

    def __init__(self, pooling: str) -> None:
        super().__init__()
        self.pooling = check_choice("pooling", pooling, TOKEN_POOLINGS)

    def forward(self, x: Tensor) -> Tensor:
        """Give the vectors `(m, d)`."""
        return x[:, 0] if self.pooling == "first" else x.flatten(1, -2).mean(dim=1)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return repr(self.pooling)


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
    return _ready(PooledHead(nn.Identity(), _standardised_linear(features, classes)), seed)


def gap_linear(channels: int, classes: int, *, seed: int = 0) -> PooledHead:
    """Build global average pooling and a linear layer: the cheapest head for maps.

    The averages are standardised first, with statistics of the training; the whole stays linear.

    Args:
        channels: Of the maps `(m, channels, h, w)`.
        classes: Number of logits.
        seed: Of the first weights.

    >>> import torch
    >>> gap_linear(16, 10)(torch.zeros(5, 16, 8, 8)).shape
    torch.Size([5, 10])
    """
    _check(channels=channels, classes=classes)
    return _ready(PooledHead(_averages(1), _standardised_linear(channels, classes)), seed)


def pool_mlp(
    channels: int, classes: int, *, grid: int = 2, hidden: int = 128, seed: int = 0
) -> PooledHead:
    """Build average pooling to a few places, and a network with one hidden layer.

    Args:
        channels: Of the maps `(m, channels, h, w)`.
        classes: Number of logits.
        grid: Averages per side: 2 keeps in which quarter of the map something is.
        hidden: Units of the hidden layer, with batch-norm and ReLU.
        seed: Of the first weights.

    >>> import torch
    >>> pool_mlp(16, 10, hidden=32)(torch.zeros(5, 16, 8, 8)).shape
    torch.Size([5, 10])
    """
    _check(channels=channels, classes=classes, grid=grid, hidden=hidden)
    classify = nn.Sequential(
        nn.Linear(channels * grid**2, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
    return _ready(PooledHead(_averages(grid), classify), seed)


def conv_head(
    channels: int,
    classes: int,
    *,
    filters: int | Sequence[int] = 64,
    pool: int = 1,
    seed: int = 0,
) -> PooledHead:
    """Build 3x3 convolutions of stride 2, each with batch-norm and ReLU, and a linear layer.

    The best of these heads at early layers, and the dearest. With large maps take fewer filters
    or pool first; two convolutions tell more classes apart than one.

    Args:
        channels: Of the maps `(m, channels, h, w)`.
        classes: Number of logits.
        filters: Of the convolution, or of each of several.
        pool: Average this many by this many places before; 1 leaves the maps as they are.
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
    layers: list[nn.Module] = []
    for before, after in pairwise([channels, *widths]):
        layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False))
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    classify = nn.Sequential(*layers, _averages(1), nn.Linear(widths[-1], classes))
    first = nn.Identity() if pool == 1 else nn.AvgPool2d(pool)
    return _ready(PooledHead(first, classify), seed)


def token_linear(
    features: int, classes: int, *, pooling: str = "first", seed: int = 0
) -> PooledHead:
    """Build a head for transformers: one vector of the tokens, layer-norm, and a linear layer.

    Inside a transformer tokens are not normalised and grow with depth, so the head does it.

    Args:
        features: Length of a token, the last axis of `(m, t, features)`.
        classes: Number of logits.
        pooling: "first" where there is a class token; "mean" takes all, padding included.
        seed: Of the first weights.

    >>> import torch
    >>> token_linear(6, 3)(torch.zeros(5, 4, 6)).shape
    torch.Size([5, 3])
    """
    _check(features=features, classes=classes)
    classify = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, classes))
    return _ready(PooledHead(TokenPool(pooling), classify), seed)


#: Heads by name.
HEADS: Registry[nn.Module] = Registry(
    "head",
    {
        "vector_linear": vector_linear,
        "gap_linear": gap_linear,
        "pool_mlp": pool_mlp,
        "conv_head": conv_head,
        "token_linear": token_linear,
    },
)


@final
@dataclass(frozen=True, kw_only=True)
class _Reads:
    """What a kind of head reads: in words, numbers of axes, and the argument of its width."""

    what: str
    axes: tuple[int, ...]
    width: str


_MAPS = _Reads(what="maps (channels, height, width)", axes=(3,), width="channels")
_READS = {
    "vector_linear": _Reads(what="a vector (features)", axes=(1,), width="features"),
    "gap_linear": _MAPS,
    "pool_mlp": _MAPS,
    "conv_head": _MAPS,
    "token_linear": _Reads(
        what="tokens (tokens, features), or with pooling='mean' (rows, columns, features)",
        axes=(2, 3),
        width="features",
    ),
}


def head_arguments(
    kind: str, shape: Sequence[int], classes: int, **options: object
) -> dict[str, Any]:
    """Arguments with which a `ModelSpec` of the name `kind` builds the head that fits a shape.

    Args:
        kind: Name of a head in `HEADS`.
        shape: What the layer gives for one example: the `shape` of a `CutPoint`.
        classes: Number of logits.
        **options: Further arguments of the head: `seed`, `hidden`, `filters`, ...

    Raises:
        UnknownNameError: If there is no such head; the nearest is suggested.
        InputError: If it does not fit the shape; those that do are named.

    >>> head_arguments("conv_head", (16, 8, 8), 10, filters=32)
    {'channels': 16, 'classes': 10, 'filters': 32}
    """
    HEADS[kind]
    reads, sides = _READS[kind], tuple(shape)
    if prod(sides) < 1:
        raise InputError(
            f"shape must have at least one element, got {sides}: there is nothing for a head to "
            "read. Choose an earlier point, or larger inputs."
        )
    if len(sides) not in reads.axes:
        raise InputError(
            f"Head {kind!r} reads {reads.what}, got shape {sides} for one example. "
            f"{_fitting(len(sides))}"
        )
    if kind == "token_linear" and len(sides) == 3 and options.get("pooling") != "mean":
        raise InputError(
            f"Tokens of shape {sides} have no first one; pass pooling='mean', or for maps "
            "(channels, height, width) choose another head."
        )
    if kind == "pool_mlp":
        _check_side("grid", sides, options.get("grid", 2))
    if kind == "conv_head":
        _check_side("pool", sides, options.get("pool", 1))
    width = sides[0] if reads is _MAPS else sides[-1]
    return {reads.width: width, "classes": classes, **options}


def make_head(kind: str, shape: Sequence[int], classes: int, **options: object) -> nn.Module:
    """Build a head that fits what a layer gives.

    Args:
        kind: "gap_linear", "pool_mlp" or "conv_head" for maps, "token_linear" for the tokens of
            a transformer, "vector_linear" for a vector.
        shape: What the layer gives for one example: the `shape` of a `CutPoint`.
        classes: Number of logits.
        **options: Further arguments of the head: `seed`, `hidden`, `filters`, ...

    Returns:
        The head, untrained, in evaluation mode.

    Raises:
        UnknownNameError: If there is no such head; the nearest is suggested.
        InputError: If it does not fit the shape (those that do are named) or refuses an option.

    >>> import torch
    >>> make_head("pool_mlp", (16, 8, 8), 10, hidden=32)(torch.zeros(5, 16, 8, 8)).shape
    torch.Size([5, 10])
    """
    arguments = head_arguments(kind, shape, classes, **options)
    factory: Callable[..., nn.Module] = HEADS[kind]
    try:
        return factory(**arguments)
    except TypeError as error:
        raise InputError(f"{kind} refuses {arguments}: {error}.") from error


def _averages(grid: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(grid), nn.Flatten())


def _standardised_linear(features: int, classes: int) -> nn.Sequential:
    """A linear map; averages differ little from example to example, so it learns them scaled."""
    return nn.Sequential(nn.BatchNorm1d(features, affine=False), nn.Linear(features, classes))


def _ready(head: Head, seed: int) -> Head:
    initialise(head, seed=seed)
    return head.eval()


def _check(**counts: int) -> None:
    for name, value in counts.items():
        check_positive_int(name, value)


def _check_side(name: str, sides: Sequence[int], places: object) -> None:
    if isinstance(places, int) and places > min(sides[1:]):
        raise InputError(
            f"{name} must be at most the smaller side of the map, {min(sides[1:])} in shape "
            f"{tuple(sides)}, got {places}. Pass a smaller {name}, or take 'gap_linear'."
        )


def _fitting(axes: int) -> str:
    kinds = [kind for kind, reads in _READS.items() if axes in reads.axes]
    if not kinds:
        return "No head is made for this shape: give a module of your own that returns logits."
    return f"For this shape there are: {', '.join(map(repr, kinds))}."
