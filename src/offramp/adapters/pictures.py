"""The transform that networks for images were trained with, from what their packages say of it.

Layer: adapters.
"""

from collections.abc import Sequence

from torch import nn

from offramp._core.errors import InputError, UnsupportedError
from offramp.stages import Chain, Normalize, Resize

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


def picture_transform(
    whose: str,
    *,
    size: int | tuple[int, int],
    crop: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
    interpolation: str = "bilinear",
    scale: float = 1 / 255,
    mean: Sequence[float] | float = 0.0,
    std: Sequence[float] | float = 1.0,
) -> nn.Module:
    """`Resize` and `Normalize`: of bytes of files, images of Pillow, or uint8 tensors.

    Args:
        whose: For messages.
        size: As `Resize` takes it, like the next three.
        crop: Cut from the middle afterwards.
        crop_pct: In its place.
        interpolation: Of `INTERPOLATIONS`.
        scale: As `Normalize` takes it, like the others.
        mean: Of each channel.
        std: Of each channel.

    Raises:
        UnsupportedError: If that cannot be said with the two.

    >>> picture_transform("net", size=224, crop_pct=0.875).steps[0]
    Resize(size=224, crop=None, crop_pct=0.875, interpolation='bilinear', antialias=True)
    """
    if interpolation not in INTERPOLATIONS:
        refuse(whose, "interpolation", interpolation)
    try:
        resize = Resize(size, crop=crop, crop_pct=crop_pct, interpolation=interpolation)
        return Chain([resize, Normalize(scale, mean, std)])
    except InputError as error:
        raise UnsupportedError(f"The transform of {whose} cannot be made: {error}") from error


def refuse(whose: str, field: str, value: object) -> None:
    """Raise `UnsupportedError`: a field of a transform that ours do not have."""
    raise UnsupportedError(
        f"The transform of {whose} has {field}={value!r}, which offramp.stages cannot do. Give "
        "transform= to the adapter, yours or one of offramp.stages."
    )
