"""Images of any file or of Pillow: decoded, brought to 8 bits and turned upright.

Layer: _core.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from offramp._core.errors import FileFormatError

#: Most pixels that an image may have; from such files a decoder takes up to 1.5 GB.
MOST_PIXELS = 178_956_970

# Who may look into a file, whatever its ending: others (EPS) start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_OPENED = (None, "MPO", *FORMATS)  # of images that somebody else has opened; MPO is JPEG
_ORIENTATION = 0x0112  # tag of EXIF
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
