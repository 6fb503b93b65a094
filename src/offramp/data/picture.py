"""One image file as bytes of one size: decoded, cut and scaled.

Layer: data.
"""

from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from offramp._core.errors import FileFormatError
from offramp._core.picture import Side, cut_out, decoded


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
    image = cut_out(Path(path), size=size, resize=resize, orient=orient)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def damage(path: Path) -> str | None:
    """Why `read_image` would not read a file, or None; of JPEGs only an eighth is decoded."""
    try:
        decoded(path, orient=False, draft=True)
    except FileFormatError as error:
        return str(error)
    return None
