"""Files of images for networks that read pixels: cut as those were that the bundle was fitted on.

Layer: bundle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from offramp._core.errors import InputError
from offramp.bundle.check import read_manifest
from offramp.bundle.load import read_extra

if TYPE_CHECKING:
    from PIL import Image

IMAGE_OPTIONS = "images.json"  # how the images that the networks know were cut
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


@final
@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """How a file of an image becomes the pixels that networks read.

    Args:
        shape: Of one input, `(channels, height, width)`, with 1 or 3 channels.
        resize: What is covered by scaling before the middle is cut; None for the usual.
        orient: True turns images as their EXIF tags say.

    Raises:
        InputError: If the shape is another.
    """

    shape: tuple[int, ...]
    resize: int | Sequence[int] | None = None
    orient: bool = True

    def __post_init__(self) -> None:
        if len(self.shape) != 3:
            raise InputError(
                f"Images can be read for inputs of shape (channels, height, width); this bundle "
                f"takes {self.shape}. Give an npz file."
            )
        if self.shape[0] not in (1, 3):
            raise InputError(f"Images have 1 or 3 channels; this bundle takes {self.shape[0]}.")

    @classmethod
    def of(cls, bundle: Path) -> "ImageFiles | None":
        """Those of a bundle; None where it was fitted on no files that were made pixels for it."""
        options = read_image_options(bundle)
        if not options or not options.get("decode", True):
            return None
        shape = read_manifest(bundle).input_shape
        if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
            return None
        return cls(shape=shape, resize=options.get("resize"), orient=options.get("orient", True))

    def pixels(self, source: "Path | bytes | Image.Image") -> np.ndarray:
        """The pixels of an image, uint8 `(channels, height, width)`.

        Raises:
            FileFormatError: If it cannot be decoded.
        """
        from offramp._core.picture import cut_out, usual_resize  # Pillow

        channels, *size = self.shape
        resize = self.resize or usual_resize(size)
        image = cut_out(source, size=size, resize=resize, orient=self.orient)  # (h, w, 3)
        if channels == 3:
            return np.ascontiguousarray(image.transpose(2, 0, 1))
        grey = image.astype(np.float32) @ np.array(_GREY, dtype=np.float32)
        return grey.round().astype(np.uint8)[None]


def read_image_options(bundle: Path) -> dict[str, Any]:
    """The options of `[data]` with which the files were read that a bundle was fitted on; or none.

    Raises:
        FileFormatError: If the bundle is damaged.
    """
    there = (bundle / IMAGE_OPTIONS).is_file()  # a file that is not ours is none of the manifest
    if not there or IMAGE_OPTIONS not in read_manifest(bundle).files:
        return {}
    # version 0.1 said nothing of orientation, and read images as they lie in the files
    return {"orient": False, **read_extra(bundle, IMAGE_OPTIONS)}
