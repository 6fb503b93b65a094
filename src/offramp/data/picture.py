"""One image file as bytes of one size: decoded, cut and scaled.

Layer: data.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from offramp._core.checks import check_positive_int
from offramp._core.errors import FileFormatError, InputError
from offramp._core.picture import decoded

#: Width and height, or one number for both, as arguments name them: (height, width).
Side = int | Sequence[int]

# Of what is longer after scaling (times the box to cover), the middle is scaled only: a picture of
# 1 x 65,535 pixels would take 17 GB whole. All others are scaled first and cut then, which rounds
# as networks are trained.
_LONGEST = 16


def read_image(
    path: Path, *, size: Side, resize: Side, orient: bool = True
) -> UInt8[Tensor, "3 h w"]:
    """Decode one image, scale it until it just covers `resize`, cut `size` from the middle.

    Of one number for `resize` the shorter side gets this length.

    Pixels of 16 bits (12 in TIFF) are divided by their largest possible value, floating-point ones
    must be in [0, 1]; both become 0 to 255. Transparency is left out: the colors below count. Of
    several images in a file the first is taken.

    Args:
        path: The file: JPEG, PNG, WebP, BMP, GIF, TIFF or PPM, whatever its ending.
        size: Height and width of the result in pixels, or one number for a square.
        resize: Height and width to cover by scaling (bilinear, antialiased), each at least that of
            `size`, or one number for both.
        orient: True turns the image as its EXIF tag says, as telephones write it. False reads the
            pixels as they lie in the file (only TIFF is always turned, by its decoder).

    Returns:
        RGB, uint8 `(3, height, width)`; grey images are repeated in all three channels.

    Raises:
        FileFormatError: If the file cannot be decoded, has more than `MOST_PIXELS` pixels, or
            holds numbers of which nobody knows what is white; it is named.
        InputError: If `size` and `resize` are no sizes, or do not fit.
    """
    cut, cover = check_sizes(size, resize)
    image = decoded(Path(path), orient=orient)
    return torch.from_numpy(np.array(_middle(image, cut, cover))).permute(2, 0, 1).contiguous()


def check_sizes(size: Side, resize: Side) -> tuple[tuple[int, int], tuple[int, int]]:
    """Both as (height, width); raises `InputError` if `resize` does not cover `size`."""
    cut, cover = _pair("size", size), _pair("resize", resize)
    if cover[0] < cut[0] or cover[1] < cut[1]:
        raise InputError(f"resize must be at least size ({size}), got {resize}.")
    return cut, cover


def usual_resize(size: Side) -> Side:
    """What is scaled to where nobody says: 8/7 of the size, 256 for 224."""
    if isinstance(size, Sequence):
        return tuple(round(side * 8 / 7) for side in size)
    return round(size * 8 / 7)


def damage(path: Path) -> str | None:
    """Why `read_image` would not read a file, or None; of JPEGs only an eighth is decoded."""
    try:
        decoded(path, orient=False, draft=True)
    except FileFormatError as error:
        return str(error)
    return None


def _pair(name: str, side: Side) -> tuple[int, int]:
    if not isinstance(side, Sequence):
        return check_positive_int(name, side), side
    if len(side) != 2:
        raise InputError(f"{name} must be one number or (height, width), got {side!r}.")
    return check_positive_int(name, side[0]), check_positive_int(name, side[1])


def _middle(image: Image.Image, cut: tuple[int, int], cover: tuple[int, int]) -> Image.Image:
    width, height = image.size
    # rounded down: this is how the longer side is found where such networks are trained
    if cover[0] * width >= cover[1] * height:
        wide, high = cover[0] * width // height, cover[0]
    else:
        wide, high = cover[1], cover[1] * height // width
    left, top = round((wide - cut[1]) / 2), round((high - cut[0]) / 2)
    right, bottom = left + cut[1], top + cut[0]
    if max(wide, high) > _LONGEST * max(cover):
        across, down = width / wide, height / high
        box = (left * across, top * down, right * across, bottom * down)
        return image.resize((cut[1], cut[0]), Image.Resampling.BILINEAR, box=box)
    if (wide, high) != (width, height):
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
    return image.crop((left, top, right, bottom))
