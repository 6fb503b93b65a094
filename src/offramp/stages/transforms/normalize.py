"""Raw numbers brought around 0.

Layer: stages.
"""

import math
from collections.abc import Mapping, Sequence, Sized
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.checks import check_number
from offramp._core.errors import InputError
from offramp._core.schema import stored
from offramp._core.types import Raw

_BYTES = 1 / 256, 1 / 127  # scales that bring bytes to [0, 1] or [0, 2]
_BYTE = 16  # larger means are those of bytes


@final
@stored("normalize", brief=True)
class Normalize(nn.Module):
    """`(x * scale - mean) / std`, the last two per channel, in float32.

    Args:
        scale: Factor of the raw values: 1/255 turns bytes into numbers in [0, 1].
        mean: Mean of each channel after scaling, or one number for all.
        std: Standard deviation of each channel after scaling, > 0, or one number for all.
        domain: Lowest and highest raw value, (0, 255) for bytes; "any" for numbers of no known
            domain. By default found by the others: (0, 255) where they bring bytes around 0,
            (0, 1) where they do so with what is scaled already, else any.

    Raises:
        InputError: If `std` is not positive, `scale` is 0, a number is not finite, `mean` and `std`
            have different lengths or are those of bytes beside a scale of bytes, or `domain` is no
            such pair.

    >>> Normalize(1 / 255, mean=[0.5], std=[0.5])(torch.full((1, 1, 1, 1), 255.0)).item()
    1.0
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        scale: float = 1.0,
        mean: Sequence[float] | float = 0.0,
        std: Sequence[float] | float = 1.0,
        domain: Sequence[float] | str | None = None,
    ) -> None:
        super().__init__()
        self.scale, self._domain = check_number("scale", scale, "other than 0"), _checked(domain)
        self._mean, self._std = _values("mean", mean), _values("std", std)
        if not all(map(math.isfinite, (self.scale, *self._mean, *self._std))):
            raise InputError(
                f"scale, mean and std must be finite, got {self.scale}, {self._mean} and "
                f"{self._std}."
            )
        if self.scale == 0:
            raise InputError("scale must be other than 0, got 0.0: every input would be alike.")
        if _BYTES[0] <= self.scale <= _BYTES[1] and max(self._mean) > _BYTE:
            raise InputError(
                f"mean and std must be those of what is scaled, got a mean of {max(self._mean):g} "
                f"with the scale {self.scale:.4g}. Of bytes themselves they go with scale=1."
            )
        if min(self._std) <= 0:
            raise InputError(f"std must be greater than 0, got {self._std}.")
        if len(self._mean) != len(self._std):
            raise InputError(
                f"mean and std must have one number per channel each, got {len(self._mean)} and "
                f"{len(self._std)}."
            )
        # Not persistent: they belong to the description of a cascade, not to its weights.
        self.register_buffer("mean", torch.tensor(self._mean), persistent=False)
        self.register_buffer("std", torch.tensor(self._std), persistent=False)

    @property
    def domain(self) -> tuple[float, float] | None:
        """Lowest and highest raw value; None where nobody knows."""
        if self._domain is not None:
            return None if isinstance(self._domain, str) else self._domain
        if _BYTES[0] <= self.scale <= _BYTES[1]:
            return 0.0, 255.0
        if self.scale != 1.0:
            return None
        if all(_BYTE < mean < 240 for mean in self._mean):
            return 0.0, 255.0
        spread = all(0 < mean < 1 for mean in self._mean) and max(self._std) <= 0.5
        return (0.0, 1.0) if spread else None  # numbers in [0, 1] deviate by at most 0.5

    def forward(self, x: Raw) -> Tensor:
        """Normalize raw input `(m, channels, ...)` of any number type; gives float32."""
        if not isinstance(x, Tensor):
            raise InputError(
                f"Normalize takes one tensor, got {_what(x)}. Of several inputs take one with "
                "Columns('pixel_values') first; bring images to one size with Resize."
            )
        if x.dim() < 2 or (len(self._mean) > 1 and x.shape[1] != len(self._mean)):
            raise InputError(
                f"The input must have shape (m, {len(self._mean)}, ...), got {tuple(x.shape)}; "
                "channels come second."
            )
        shape = (1, -1) + (1,) * (x.dim() - 2)
        scaled = x.to(torch.float32) * self.scale
        mean, std = self.mean, self.std
        if mean.device != x.device:  # cascades that share it may lie on several devices
            mean, std = mean.to(x.device), std.to(x.device)
        return (scaled - mean.reshape(shape)) / std.reshape(shape)

    def extra_repr(self) -> str:
        """Its numbers, for printing."""
        said = "" if self._domain is None else f", domain={self._domain!r}"
        return f"scale={self.scale!r}, mean={self._mean!r}, std={self._std!r}{said}"

    def __json__(self) -> dict[str, object]:  # to the last digit, not the float32 ones
        said = {} if self._domain is None else {"domain": self._domain}
        return {"scale": self.scale, "mean": self._mean, "std": self._std, **said}


def _checked(domain: Sequence[float] | str | None) -> tuple[float, float] | str | None:
    if domain is None or domain == "any":
        return domain
    if not isinstance(domain, str) and isinstance(domain, Sized) and len(domain) == 2:
        low, high = (check_number("domain", bound, "in order") for bound in domain)
        if -math.inf < low < high < math.inf:
            return low, high
    raise InputError(f"domain must be (low, high) with low < high, 'any', or None, got {domain!r}.")


def _what(x: Raw) -> str:
    if isinstance(x, Mapping):
        return f"a mapping of {sorted(map(str, x))}"
    return "a list of rows" if isinstance(x, list) else "several"


def _values(name: str, given: Sequence[float] | float) -> tuple[float, ...]:
    several = isinstance(given, Sized) and not isinstance(given, str)
    values: Sequence[Any] = given if several else [given]  # type: ignore[assignment]
    if len(values) == 0:
        raise InputError("mean and std must have at least one number, got none.")
    return tuple(check_number(name, value, "for each channel") for value in values)
