"""Image files and images of Pillow as tensors.

Layer: stages.
"""

from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from offramp._core.batch import RowList
from offramp._core.checks import check_choice
from offramp._core.errors import FileFormatError, InputError
from offramp._core.schema import stored
from offramp._core.types import Raw

_BYTES = (bytes, bytearray, memoryview)
_SHAPES = ((), (2,), (3,), (4,))  # of a pixel; 2 and 4 with transparency


@final
@stored("decode", brief=True)
class Decode(nn.Module):
    """Images as uint8, `(channels, height, width)`: of one size one tensor, else a list of tensors.

    Files are JPEG, PNG, WebP, BMP, GIF, TIFF or PPM. Pixels of 16 bits and floating-point ones
    become 0 to 255; transparency is left out; of several images in a file the first is taken.

    Args:
        mode: "RGB" for three channels, "L" for one of brightness.
        orient: True turns images as their EXIF tags say; False reads the pixels as they lie.

    Raises:
        InputError: If `mode` is another.

    >>> from PIL import Image
    >>> Decode()([Image.new("RGB", (4, 2), "white")]).shape
    torch.Size([1, 3, 2, 4])
    """

    reads_rows = True

    def __init__(self, mode: str = "RGB", orient: bool = True) -> None:
        super().__init__()
        self.mode, self.orient = check_choice("mode", mode, ("RGB", "L")), orient

    def forward(self, rows: Raw) -> Tensor | RowList:
        """Decode rows: bytes of files, images of Pillow, or uint8 arrays `(h, w)`, `(h, w, 3)`.

        Raises:
            InputError: If a row is none of these.
            FileFormatError: If one cannot be decoded; it names the row.
        """
        if not isinstance(rows, list):
            raise InputError(
                f"Decode takes a list of bytes or images, got {type(rows).__name__}. Of a table or "
                "mapping take a column first: [Columns('image'), Decode()]."
            )
        images = RowList(self._image(k, row) for k, row in enumerate(rows))
        same = len({image.shape for image in images}) == 1
        return torch.stack(images) if same else images

    def extra_repr(self) -> str:
        """Its arguments, for printing."""
        return f"mode={self.mode!r}, orient={self.orient!r}"

    def _image(self, k: int, row: Any) -> Tensor:  # noqa: ANN401  (whatever stands in a row)
        # here: Pillow is loaded where somebody decodes
        from PIL import Image

        from offramp._core.picture import decoded

        if isinstance(row, np.ndarray):
            if row.dtype != np.uint8 or row.ndim < 2 or row.shape[2:] not in _SHAPES:
                raise InputError(
                    f"Row {k} must be a uint8 array (h, w) or (h, w, 3), got {row.dtype} "
                    f"{row.shape}. Arrays with channels first go in as one array (m, 3, h, w), or "
                    "as a list of tensors, without Decode."
                )
            row = Image.fromarray(row)
        if not isinstance(row, (*_BYTES, Image.Image)):
            raise InputError(
                f"Row {k} must be the bytes of an image file or an image of Pillow, got "
                f"{type(row).__name__}. Read files with Path(name).read_bytes()."
            )
        try:
            image = decoded(bytes(row) if isinstance(row, _BYTES) else row, orient=self.orient)
        except FileFormatError as error:
            raise FileFormatError(f"Row {k}: {error}") from error
        array = np.array(image.convert(self.mode)).reshape(image.height, image.width, -1)
        return torch.from_numpy(array.transpose(2, 0, 1).copy())
