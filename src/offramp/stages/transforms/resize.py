"""Images brought to one size.

Layer: stages.
"""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from offramp._core.batch import RowList
from offramp._core.checks import check_choice, check_number, check_positive_int
from offramp._core.errors import InputError
from offramp._core.schema import stored
from offramp._core.types import Raw
from offramp.stages.transforms.decode import Decode

# Of what is longer than this many times its shorter side only the middle is scaled: an image of
# 1 x 65,535 pixels would take 17 GB.
_LONGEST = 16
_MODES = {"bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest-exact"}

Size = int | tuple[int, int]


@final
@stored("resize", brief=True)
class Resize(nn.Module):
    """Scale images, and cut the middle out of them; gives float32 in the range they had.

    `Resize(224, crop_pct=0.875)` and `Resize(256, crop=224)` are what most networks for ImageNet
    were trained with.

    Args:
        size: The shorter side in pixels, the other in proportion; or (height, width) exactly.
        crop: Height and width cut from the middle afterwards, or one number for both.
        crop_pct: In place of `crop`, in (0, 1]: `size` is what is cut, and scaled is to `size`
            divided by this, rounded down.
        interpolation: "bilinear", "bicubic" or "nearest".
        antialias: True averages over all pixels that fall together where images become smaller, as
            Pillow does; False looks at the nearest ones only.

    Raises:
        InputError: If a size is no whole number of at least 1, `crop` is larger than `size`, or
            both `crop` and `crop_pct` are given.

    >>> Resize(4, crop_pct=0.5)(torch.zeros(2, 3, 16, 20, dtype=torch.uint8)).shape
    torch.Size([2, 3, 4, 4])
    """

    reads_rows = True
    keeps_domain = True

    def __init__(
        self,
        size: Size,
        crop: Size | None = None,
        crop_pct: float | None = None,
        interpolation: str = "bilinear",
        antialias: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.crop, self.crop_pct = _side("size", size), crop, crop_pct
        self.interpolation = check_choice("interpolation", interpolation, _MODES)
        self.antialias = antialias
        self._scaled, self._cut = self.size, None if crop is None else _pair(_side("crop", crop))
        if crop_pct is not None:
            share = check_number("crop_pct", crop_pct, "in (0, 1]")
            if not 0 < share <= 1 or crop is not None:
                raise InputError(
                    f"crop_pct must be in (0, 1], and crop left out where it is given, got "
                    f"{crop_pct} and crop={crop}."
                )
            self._cut = _pair(self.size)
            wide = [math.floor(side / share) for side in self._cut]
            self._scaled = wide[0] if isinstance(size, int) else (wide[0], wide[1])
        if self._cut is not None and any(
            cut > side for cut, side in zip(self._cut, _pair(self._scaled), strict=True)
        ):
            raise InputError(f"crop must be at most size ({size}), got {crop}.")

    def forward(self, x: Raw) -> Tensor:
        """Resize images `(m, channels, h, w)`, or a list of them, also of other sizes.

        Raises:
            InputError: If they are no images, or of a list have no common size afterwards.
        """
        if isinstance(x, Tensor):
            if x.dim() != 4:
                raise InputError(
                    f"Resize takes images (m, channels, height, width), got {tuple(x.shape)}."
                )
            return self._resized(x)
        if not isinstance(x, list):
            raise InputError(
                f"Resize takes images, got {type(x).__name__}. Of a table or mapping take a column "
                "first: [Columns('image'), Decode(), Resize(...)]."
            )
        images = x if all(isinstance(row, Tensor) for row in x) else Decode()(RowList(x))
        found = [self.forward(image[None])[0] for image in images]
        shapes = sorted({tuple(image.shape) for image in found})
        if len(shapes) > 1:
            raise InputError(
                f"The images of a batch must have one size in the end, got {shapes[0]} and "
                f"{shapes[-1]}. Give crop or crop_pct, or size=(height, width)."
            )
        return torch.stack(found) if found else torch.zeros(0, 3, *_pair(self._cut or self.size))

    def extra_repr(self) -> str:
        """Its arguments, for printing."""
        return (
            f"size={self.size!r}, crop={self.crop!r}, crop_pct={self.crop_pct!r}, "
            f"interpolation={self.interpolation!r}, antialias={self.antialias!r}"
        )

    def _resized(self, x: Tensor) -> Tensor:
        if 0 in x.shape[2:]:
            raise InputError(f"Images must have pixels, got the shape {tuple(x.shape)}.")
        x = _middle(x, _LONGEST * min(x.shape[2:])) if isinstance(self._scaled, int) else x
        wanted, mode = self._target(x.shape[2], x.shape[3]), _MODES[self.interpolation]
        found = x.to(torch.float32)
        if wanted != tuple(x.shape[2:]):
            smooth = self.antialias and mode != "nearest-exact"
            corners = None if mode == "nearest-exact" else False
            found = functional.interpolate(
                found, wanted, mode=mode, align_corners=corners, antialias=smooth
            )
            if x.dtype == torch.uint8 and mode == "bicubic":  # which overshoots
                found = found.clamp(0.0, 255.0)
        return found if self._cut is None else _cut(found, *self._cut)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self._scaled, int):
            return self._scaled
        short = self._scaled  # the longer side is rounded down, as where networks are trained
        if height <= width:
            return short, max(short * width // height, short)
        return max(short * height // width, short), short


def _side(name: str, value: Size) -> Size:
    if not isinstance(value, Sequence):
        return check_positive_int(name, value)
    if len(value) != 2:
        raise InputError(f"{name} must be one number or (height, width), got {value!r}.")
    return check_positive_int(name, value[0]), check_positive_int(name, value[1])


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _middle(x: Tensor, longest: int) -> Tensor:
    height, width = x.shape[2:]
    if max(height, width) <= longest:
        return x
    return _cut(x, min(height, longest), min(width, longest))


def _cut(x: Tensor, height: int, width: int) -> Tensor:
    top, left = round((x.shape[2] - height) / 2), round((x.shape[3] - width) / 2)
    return x[:, :, top : top + height, left : left + width]
