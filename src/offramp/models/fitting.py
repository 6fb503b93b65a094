"""Which heads fit what a layer gives, and the arguments that make one fit.

The shape of two axes alone does not tell maps (channels, positions) from tokens (tokens, features):
the layer must tell, or the user.

Layer: models.  Source: none.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, final

from torch import nn

from offramp._core.checks import check_choice
from offramp._core.errors import InputError
from offramp.models.heads import HEADS
from offramp.models.pooled import LAST_AND_MEAN, LAYOUTS, LayerShape, Layout
from offramp.models.spec import ModelSpec


@final
@dataclass(frozen=True, kw_only=True)
class Family:
    """What some kinds of heads read: in words, numbers of axes, layout, and the width's name."""

    what: str
    axes: tuple[int, ...]
    layout: Layout | None
    width: str


_MAPS = Family(
    what="maps (channels, ...) with 1 to 3 axes behind the channels",
    axes=(2, 3, 4),
    layout="channels_first",
    width="channels",
)
FAMILIES = {
    "vector_linear": Family(what="a vector (features)", axes=(1,), layout=None, width="features"),
    "gap_linear": _MAPS,
    "pool_mlp": _MAPS,
    "conv_head": _MAPS,
    "token_linear": Family(
        what="tokens (tokens, features), or with pooling='mean' (rows, columns, features)",
        axes=(2, 3, 4),
        layout="channels_last",
        width="features",
    ),
}
WHAT = {
    "channels_first": "maps, whose first axis holds the features, as convolutions give them",
    "channels_last": "tokens, whose last axis holds the features, as transformers give them",
}


def head_arguments(
    kind: str,
    shape: Sequence[int],
    classes: int,
    *,
    layout: str | None = None,
    **options: object,
) -> dict[str, Any]:
    """Arguments with which a `ModelSpec` of the name `kind` builds the head that fits a shape.

    For tokens the head reads what the network itself reads, the first, the last real one (and
    beside it the mean) or the mean, and leaves out padding, as far as `cut_points` could tell;
    else the mean, with a warning.

    Args:
        kind: Name of a head in `HEADS`. One that you have registered takes `shape` and `classes`,
            and says itself what does not fit.
        shape: What the layer gives for one example: the `shape` of a `CutPoint`.
        classes: Number of logits.
        layout: "channels_first" for maps (channels, positions), "channels_last" for tokens
            (tokens, features): needed for two axes where the layer does not tell, and counts more
            than what it tells.
        **options: Further arguments of the head: `seed`, `hidden`, `filters`, `pooling`, ...

    Raises:
        UnknownNameError: If there is no such head; the nearest is suggested.
        InputError: If it does not fit the shape, and those that do are named; or if nobody knows
            which of two axes holds the features.

    >>> head_arguments("conv_head", (16, 8, 8), 10, filters=32)
    {'channels': 16, 'classes': 10, 'filters': 32}
    >>> head_arguments("gap_linear", (16, 64), 4, layout="channels_first")
    {'channels': 16, 'classes': 4, 'axes': 1}
    """
    HEADS[kind]
    sides = tuple(shape)
    if prod(sides) < 1:
        raise InputError(
            f"shape must have at least one element, got {sides}: there is nothing for a head to "
            "read. Choose an earlier point, or larger inputs."
        )
    family = FAMILIES.get(kind)
    if family is None:  # a head of somebody else's, which knows itself what fits
        return {"shape": list(sides), "classes": classes, **options}
    known = _layout(shape, layout)
    _check_family(kind, sides, known)
    if family is _MAPS:
        axes = len(sides) - 1
        if kind == "pool_mlp":
            _check_side("grid", sides, options.get("grid", 2))
        if kind == "conv_head":
            _check_side("pool", sides, options.get("pool", 1))
        behind = {} if axes == 2 else {"axes": axes}
        return {family.width: sides[0], "classes": classes, **behind, **options}
    given = _reading(shape, known, options) if kind == "token_linear" else {}
    return {family.width: sides[-1], "classes": classes, **given, **options}


def make_head(
    kind: str,
    shape: Sequence[int],
    classes: int,
    *,
    layout: str | None = None,
    **options: object,
) -> nn.Module:
    """Build a head that fits what a layer gives.

    Args:
        kind: "gap_linear", "pool_mlp" or "conv_head" for maps, "token_linear" for the tokens of
            a transformer, "vector_linear" for a vector; or one that you have registered.
        shape: What the layer gives for one example: the `shape` of a `CutPoint`.
        classes: Number of logits.
        layout: As in `head_arguments`.
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
    arguments = head_arguments(kind, shape, classes, layout=layout, **options)
    factory: Callable[..., nn.Module] = HEADS[kind]
    try:
        return factory(**arguments)
    except TypeError as error:
        raise InputError(f"{kind} refuses {arguments}: {error}.") from error


def default_head(shape: Sequence[int], classes: int) -> ModelSpec:
    """The head for whoever names none: "conv_head" on maps, "token_linear" on tokens, or a line.

    Args:
        shape: The `shape` of a `CutPoint`.
        classes: Number of logits.

    Raises:
        InputError: If nobody knows which of two axes holds the features, or no head fits.

    >>> default_head(LayerShape((16, 64), layout="channels_first"), 4).name
    'conv_head'
    """
    if len(shape) == 1:
        kind = "vector_linear"
    else:
        kind = "token_linear" if _layout(shape, None) == "channels_last" else "conv_head"
    return ModelSpec(name=kind, arguments=head_arguments(kind, shape, classes))


def fitting(axes: int, layout: str | None) -> str:
    """The heads for so many axes, in words."""
    kinds = [
        kind
        for kind, family in FAMILIES.items()
        if axes in family.axes and (layout is None or family.layout in (None, layout))
    ]
    if not kinds:
        return "No head is made for this shape: give a module of your own that returns logits."
    return f"For this shape there are: {', '.join(map(repr, kinds))}."


def _layout(shape: Sequence[int], said: str | None) -> str | None:
    if said is not None:
        return check_choice("layout", said, LAYOUTS)
    return shape.layout if isinstance(shape, LayerShape) else None


def _check_family(kind: str, sides: tuple[int, ...], layout: str | None) -> None:
    family, axes = FAMILIES[kind], len(sides)
    if axes not in family.axes:
        raise InputError(
            f"Head {kind!r} reads {family.what}, got shape {sides} for one example. "
            f"{fitting(axes, layout)}"
        )
    if family.layout is None:
        return
    if layout is None and axes == 2:
        raise InputError(
            f"Head {kind!r} must know which axis of the shape {sides} holds the features, and the "
            "layer does not tell. Pass layout='channels_first' for maps (channels, positions) of "
            "1-D convolutions, which 'gap_linear', 'pool_mlp' and 'conv_head' read; or "
            "layout='channels_last' for tokens (tokens, features), which 'token_linear' reads. "
            "The shape of a CutPoint says it where the layer's kind does."
        )
    if layout is not None and layout != family.layout:
        raise InputError(
            f"Head {kind!r} reads {family.what}, but shape {sides} is of {WHAT[layout]}. "
            f"{fitting(axes, layout)} If that is wrong, pass layout={family.layout!r}."
        )


def _reading(
    shape: Sequence[int], layout: str | None, options: dict[str, object]
) -> dict[str, object]:
    """Which tokens count: as the options say, else as the network reads them itself."""
    flat, known = len(shape) == 2, shape if isinstance(shape, LayerShape) else None
    own = None if known is None else known.pooling
    pooling = options.get("pooling", LAST_AND_MEAN if own == "last" else own)
    if not flat and pooling != "mean":
        if layout is None or "pooling" in options:
            raise InputError(
                f"Tokens of shape {tuple(shape)} have no first or last one; pass pooling='mean', "
                "or for maps (channels, height, width) choose another head."
            )
        pooling = "mean"
    if pooling is None:
        warnings.warn(
            f"Nothing tells which token of {tuple(shape)} knows of the others, so the head reads "
            "their mean. Pass pooling='first' where there is a class token, 'last' for a causal "
            "network, or pooling='mean' to say that this is right.",
            stacklevel=4,
        )
        pooling = "mean"
    found: dict[str, object] = {} if pooling == "first" else {"pooling": pooling}
    if known is None or known.mask is None or not flat or found == {} or "mask" in options:
        return found
    return {**found, "mask": known.mask, **({"pad": known.pad} if known.pad else {})}


def _check_side(name: str, sides: Sequence[int], places: object) -> None:
    if isinstance(places, int) and places > min(sides[1:]):
        raise InputError(
            f"{name} must be at most the smaller side of the map, {min(sides[1:])} in shape "
            f"{tuple(sides)}, got {places}. Pass a smaller {name}, or take 'gap_linear'."
        )
