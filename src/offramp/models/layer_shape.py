"""The shape of what a layer gives, with what the network tells about it besides.

Layer: models.  Source: none.
"""

from collections.abc import Iterable
from typing import Literal, final

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
