"""Changes of images: random crops and flips for training, and lossy JPEG as a shift of the data.

Layer: data.  Source: He et al., CVPR 2016, section 4.2 (4 pixels of padding, crop, flip).
"""

import io
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from offramp._core.checks import check_positive_int, check_seed
from offramp._core.errors import InputError


@final
@dataclass(frozen=True, kw_only=True)
class CropAndFlip:
    """Shift each image by up to `padding` pixels, zeros coming in, and mirror every other one.

    Args:
        padding: Largest shift in pixels, >= 0.
        flip: Whether images are mirrored left to right, with probability 1/2 each.
        size: Height and width of the part that is kept, in pixels; by default the whole. Networks
            that pool over all places learn from small parts first in a fraction of the time.

    >>> change = CropAndFlip(padding=1, flip=False)
    >>> change(torch.ones(2, 3, 4, 4), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 4, 4])
    """

    padding: int = 4
    flip: bool = True
    size: int | None = None

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise InputError(f"padding must be at least 0 pixels, got {self.padding!r}.")
        if self.size is not None:
            check_positive_int("size", self.size)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch, on the device where it lies.

        Args:
            images: `(m, channels, h, w)` of any type; left as they are.
            generator: What the shifts and the mirrored images are drawn from; best on the images'
                device, or what it draws has to be copied there.

        Returns:
            As many images of the same type, of the same shape or `(m, channels, size, size)`.

        Raises:
            InputError: If the images with their padding are smaller than `size`.
        """
        m, _, height, width = images.shape
        padded = torch.nn.functional.pad(images, [self.padding] * 4)
        rows = self._places(m, height, generator)  # (m, h)
        columns = self._places(m, width, generator)  # (m, w)
        mirrored = torch.rand(m, 1, generator=generator, device=generator.device) < 0.5
        if self.flip:
            columns = torch.where(mirrored, columns.flip(1), columns)
        rows, columns = rows.to(images.device), columns.to(images.device)
        each = torch.arange(m, device=images.device)[:, None, None]
        moved = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]]
        return moved.permute(0, 3, 1, 2).contiguous()

    def _places(self, m: int, length: int, generator: torch.Generator) -> Tensor:
        """For each image the places along an axis of the padded image that are kept."""
        kept, room = self.size or length, length + 2 * self.padding
        if kept > room:
            raise InputError(
                f"size must be at most that of the images with their padding, {room} pixels, got "
                f"{kept}."
            )
        where = generator.device
        first = torch.randint(0, room - kept + 1, (m, 1), generator=generator, device=where)
        return first + torch.arange(kept, device=where)


def jpeg_compressed(
    images: UInt8[Tensor, "n 3 h w"],
    *,
    qualities: tuple[int, int] = (50, 90),
    seed: int,
) -> UInt8[Tensor, "n 3 h w"]:
    """Images after lossy JPEG with halved color resolution (4:2:0).

    Args:
        images: `(n, 3, h, w)`, red, green and blue in 0..255.
        qualities: The lowest and the highest quality, 1 to 95; each image draws one of them.
        seed: Of the qualities.

    Raises:
        InputError: If the qualities are out of range or in the wrong order.

    >>> jpeg_compressed(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), seed=0).shape
    torch.Size([2, 3, 16, 16])
    """
    low, high = qualities
    if not 1 <= low <= high <= 95:
        raise InputError(f"qualities must be rising and within 1 to 95, got {qualities!r}.")
    drawn = np.random.default_rng(check_seed(seed))
    chosen = drawn.integers(low, high, size=len(images), endpoint=True)
    made = np.empty(images.shape, dtype=np.uint8)
    for k, (image, quality) in enumerate(zip(images.numpy(), chosen, strict=True)):
        held = io.BytesIO()
        picture = Image.fromarray(image.transpose(1, 2, 0))
        picture.save(held, "JPEG", quality=int(quality), subsampling=2)
        made[k] = np.asarray(Image.open(held)).transpose(2, 0, 1)
    return torch.from_numpy(made)
