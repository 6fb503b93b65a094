"""What exit heads begin with: the shape of a layer, and a pooling of maps or of tokens.

Layer: models.  Source: none.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from offramp._core.checks import check_choice
from offramp._core.errors import InputError

LAST_AND_MEAN = "last_and_mean"
TOKEN_POOLINGS = ("first", "mean", "last", LAST_AND_MEAN)

#: Where the features of one position stand: "channels_first" in maps (channels, ...), as
#: convolutions give them, "channels_last" in tokens (..., features), as transformers do.
Layout = Literal["channels_first", "channels_last"]
LAYOUTS: tuple[Layout, ...] = ("channels_first", "channels_last")


@final
class LayerShape(tuple[int, ...]):
    """Sizes of what a layer gives for one example: a tuple that knows a little more.

    Two axes may be (channels, positions) or (tokens, features); the numbers do not tell which.

    Args:
        sizes: Of each axis, without the batch.
        layout: Which axis holds the features, or None where nobody knows.
        pooling: How the network itself makes one vector of its tokens: "first", "last" or "mean";
            None where nobody knows.
        mask: Name of the network's input that tells real tokens from padding, or None.
        pad: What stands in that input at padding.

    >>> shape = LayerShape((16, 64), layout="channels_first")
    >>> shape == (16, 64), shape.layout
    (True, 'channels_first')
    """

    layout: Layout | None
    pooling: str | None
    mask: str | None
    pad: int

    def __new__(
        cls,
        sizes: Iterable[int],
        *,
        layout: Layout | None = None,
        pooling: str | None = None,
        mask: str | None = None,
        pad: int = 0,
    ) -> "LayerShape":
        """Make the tuple; what is known besides stands in attributes."""
        made = super().__new__(cls, sizes)
        made.layout, made.pooling, made.mask, made.pad = layout, pooling, mask, pad
        return made


@final
@dataclass(frozen=True, kw_only=True)
class Reads:
    """What a head reads of one example.

    Args:
        layout: Which axis holds the features; None for a vector.
        axes: Numbers of axes that fit.
        features: Size of that axis.
    """

    layout: Layout | None
    axes: tuple[int, ...]
    features: int


@final
class PooledHead(nn.Module):
    """A pooling without weights, then layers that make logits of what it gives.

    The pooled features of a frozen network never change, so a training may keep them.

    Args:
        pool: Reads what the layer gives, `(m, ...)`; gives features `(m, ...)`, far fewer. If it
            has an attribute `mask`, the name of one of the network's inputs, it gets that input as
            a second argument.
        classify: Reads the features; gives logits `(m, c)`.
        reads: What fits, so that a wrong layer is noticed when the head is attached.

    >>> import torch
    >>> head = PooledHead(nn.Flatten(), nn.Linear(6, 3))
    >>> head(torch.zeros(5, 2, 3)).shape
    torch.Size([5, 3])
    """

    def __init__(self, pool: nn.Module, classify: nn.Module, *, reads: Reads | None = None) -> None:
        super().__init__()
        self.pool = pool
        self.classify = classify
        self.reads = reads

    @property
    def keeps(self) -> tuple[str, ...]:
        """Inputs of the network that the head reads beside what its layer gives."""
        mask = getattr(self.pool, "mask", None)
        return () if mask is None else (str(mask),)

    def forward(self, x: Tensor, *kept: Tensor) -> Tensor:
        """Give the logits `(m, c)`."""
        return self.classify(self.pool(x, *kept))  # type: ignore[no-any-return]


@final
class TokenPool(nn.Module):
    """One vector of tokens `(m, t, d)`: the first, the last real one, or the mean of the real ones.

    Without a mask every token is real.

    Args:
        pooling: "first" is the class token, where there is one; "last" is what a causal network
            has read everything by; "mean" also takes tokens in rows and columns, `(m, h, w, d)`;
            "last_and_mean" gives both, `(m, 2, d)`.
        mask: Name of the network's input `(m, t)` that tells real tokens from padding, which may
            stand before or behind them.
        pad: What stands in that input at padding: 0 in an attention mask; of token ids the one
            that fills up.

    >>> x, mask = torch.arange(6.0).reshape(1, 3, 2), torch.tensor([[0, 1, 1]])
    >>> TokenPool("mean", mask="attention_mask")(x, mask)
    tensor([[3., 4.]])
    >>> TokenPool("last", mask="attention_mask")(x, mask.flip(1))
    tensor([[2., 3.]])
    """

    def __init__(self, pooling: str, *, mask: str | None = None, pad: int = 0) -> None:
        super().__init__()
        self.pooling = check_choice("pooling", pooling, TOKEN_POOLINGS)
        if mask is not None and pooling == "first":
            raise InputError(
                f"mask must be None where pooling is 'first', which looks at no padding, got "
                f"{mask!r}. Pass pooling='mean' or 'last', or leave mask out."
            )
        self.mask, self.pad = mask, pad

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give the vectors `(m, d)`; the mask is the input of that name, `(m, t)`."""
        real = None if mask is None else mask != self.pad  # (m, t)
        if self.pooling == "first":
            return x[:, 0]
        if self.pooling == "mean":
            return _mean(x, real)
        if self.pooling == "last":
            return _last(x, real)
        return torch.stack([_last(x, real), _mean(x, real)], dim=1)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        of = "" if self.mask is None else f", mask={self.mask!r}, pad={self.pad}"
        return f"{self.pooling!r}{of}"


def _mean(x: Tensor, real: Tensor | None) -> Tensor:
    if real is None:
        return x.flatten(1, -2).mean(dim=1)
    kept = torch.where(real[:, :, None], x, 0.0)  # NaN at padding counts nothing
    return kept.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1).to(x.dtype)


def _last(x: Tensor, real: Tensor | None) -> Tensor:
    if real is None:
        return x[:, -1]
    places = torch.ones_like(real, dtype=torch.int64).cumsum(dim=1)  # 1, 2, ..., whatever t
    last = (places * real).amax(dim=1).clamp(min=1) - 1  # (m,)
    return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
