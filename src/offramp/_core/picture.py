"""Images of any file or of Pillow: decoded, brought to 8 bits, turned upright, and to one size.

Layer: _core.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offramp._core.checks import check_positive_int
from offramp._core.errors import FileFormatError, InputError

#: Width and height, or one number for both, as arguments name them: (height, width).
Side = int | Sequence[int]

#: Most pixels that an image may have; from such files a decoder takes up to 1.5 GB.
MOST_PIXELS = 178_956_970

# Who may look into a file, whatever its ending: others (EPS) start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_OPENED = (None, "MPO", *FORMATS)  # of images that somebody else has opened; MPO is JPEG
_ORIENTATION = 0x0112  # tag of EXIF
# Of what is longer after scaling (times the box to cover), the middle is scaled only: a picture of
# 1 x 65,535 pixels would take 17 GB whole. All others are scaled first and cut then, which rounds
# as networks are trained.
_LONGEST = 16
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF


def decoded(
    source: Path | bytes | Image.Image, *, orient: bool, draft: bool = False
) -> Image.Image:
    """An image as RGB of 8 bits.

    Args:
        source: A file, its content, or an image of Pillow.
        orient: True turns it as its EXIF tag says.
        draft: True decodes of JPEGs an eighth only, for a look at whether it works.

    Raises:
        FileFormatError: If it cannot be decoded, has more than `MOST_PIXELS` pixels, or holds
            numbers of which nobody knows what is white; a path is named.
    """
    try:
        if isinstance(source, Image.Image):
            return _upright(source, orient=orient, draft=draft)
        file = BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as image:
            return _upright(image, orient=orient, draft=draft)
    except Exception as error:
        name = str(source) if isinstance(source, Path) else "This"
        said = str(error) or type(error).__name__
        raise FileFormatError(f"{name} cannot be read as an image: {said}") from error


def cut_out(
    source: Path | bytes | Image.Image, *, size: Side, resize: Side, orient: bool
) -> NDArray[np.uint8]:
    """The middle of an image that was scaled until it just covers `resize`, `(height, width, 3)`.

    Args:
        source: As for `decoded`.
        size: Of what is cut, (height, width) or one number for both.
        resize: What is covered before, at least as large.
        orient: As for `decoded`.

    Raises:
        InputError: If `resize` does not cover `size`.
        FileFormatError: If it cannot be decoded.
    """
    cut, cover = check_sizes(size, resize)
    return np.array(fitted(decoded(source, orient=orient), cut, cover))


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


def fitted(image: Image.Image, cut: tuple[int, int], cover: tuple[int, int]) -> Image.Image:
    """The middle of an image that was scaled until it just covers a size, (height, width) both."""
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


def _upright(image: Image.Image, *, orient: bool, draft: bool) -> Image.Image:
    if image.format not in _OPENED:
        raise ValueError(
            f"its format must be one of {', '.join(FORMATS)}, got {image.format}; where that can "
            "be trusted, hand over image.convert('RGB')"
        )
    pixels = image.width * image.height
    if pixels > MOST_PIXELS:
        raise ValueError(f"it has {pixels} pixels, and at most {MOST_PIXELS} are read")
    if draft:
        image.draft("RGB", (1, 1))
    image.load()
    turn = _turn(image) if orient else None  # after loading: PNG may say it at the end
    upright = _rgb(image)
    return upright if turn is None else upright.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  (a damaged tag beside sound pixels says nothing)
        return None


def _rgb(image: Image.Image) -> Image.Image:
    """RGB of 8 bits; Pillow itself would clip wider numbers at 255 instead of scaling them."""
    if image.mode.startswith("I"):
        image = _from_whole_numbers(image)
    elif image.mode == "F":
        image = _from_fractions(image)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colors, which Pillow warns about otherwise
    return image.convert("RGB")


def _from_whole_numbers(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})  # of TIFF
    bits = tags.get(_BITS, (16,))[0]
    if image.mode == "I" and (tags or image.format not in ("PNG", "PPM")):
        raise ValueError(
            f"its pixels are signed or of 32 bits (mode {image.mode}), whose white nobody knows; "
            "save it with 8 bits, or 16 without sign"
        )
    top = 2**bits - 1
    values = np.asarray(image)
    if values.min() < 0 or values.max() > top:
        raise ValueError(f"its pixels must be in [0, {top}], got {values.min()} to {values.max()}")
    table = np.round(np.arange(top + 1) * (255 / top)).astype(np.uint8)
    return Image.fromarray((table[::-1] if _negative(image) else table)[values])


def _from_fractions(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):  # NaN is refused too
        raise ValueError(
            f"its pixels are floating-point numbers (mode F), which must be in [0, 1], got {low:g} "
            f"to {high:g}; divide them by what white is, or save it with 8 or 16 bits"
        )
    grey = np.round(values * 255).astype(np.uint8)
    return Image.fromarray(255 - grey if _negative(image) else grey)


def _negative(image: Image.Image) -> bool:
    """True for TIFF whose zero is white, which Pillow minds for pixels of 8 bits only."""
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _pair(name: str, side: Side) -> tuple[int, int]:
    if not isinstance(side, Sequence):
        return check_positive_int(name, side), side
    if len(side) != 2:
        raise InputError(f"{name} must be one number or (height, width), got {side!r}.")
    return check_positive_int(name, side[0]), check_positive_int(name, side[1])
