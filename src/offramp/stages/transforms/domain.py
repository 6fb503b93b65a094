"""The numbers that a transform reads, and numbers that cannot be those.

A picture of floats in [0, 1] is nearly black to what divides by 255, and one of bytes is nearly
white to what reads [0, 1]: the answer would be wrong, and nothing would say so.

Layer: stages.  Source: docs/adr/0060.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.batch import RowList
from offramp._core.errors import InputError
from offramp._core.types import Raw
from offramp.stages.transforms.columns import Columns
from offramp.stages.transforms.decode import Decode
from offramp.stages.transforms.resize import Resize

#: Lowest and highest number of a picture.
Domain = tuple[float, float]

Checked = tuple[Tensor, Domain]

# Types of which torch finds no least and most number.
_NO_EXTREMES = (torch.bool, torch.uint16, torch.uint32, torch.uint64)
_DARK = 64  # fractions below this part of the highest number are of another domain


@final
class Look:
    """Looks at the first numbers of each type that a transform is given.

    Bytes say what they hold, so they are looked at only where something else than bytes is read.
    Other whole numbers, and truth values, that are 0 and 1 alone are a mask or a picture after a
    threshold, and no bytes. Numbers that are all 0 say nothing: the next ones are looked at.

    Args:
        whose: What reads them, for the message.
        domain: Of them, where it is known; else each transform says its own.

    >>> from offramp.stages.transforms.normalize import Normalize
    >>> Look("stage 'a'")(Normalize(1 / 255), torch.full((1, 3, 2, 2), 200.0))
    """

    def __init__(self, whose: str, domain: Domain | None = None) -> None:
        self._whose, self._domain = whose, domain
        self._seen: set[Any] = set()

    def __call__(self, transform: nn.Module | None, given: Raw, *, again: bool = False) -> None:
        """Look at what a transform is given.

        Args:
            transform: It; None where the domain is known.
            given: Raw input.
            again: Also at types that have been seen.

        Raises:
            InputError: If it cannot be of the domain that the transform reads.
        """
        row = given[0] if isinstance(given, list) and given else None
        kind = given.dtype if isinstance(given, Tensor) else (type(given), getattr(row, "dtype", 0))
        if (kind in self._seen and not again) or torch.compiler.is_compiling() or _captured():
            return
        said = True
        for numbers, domain in _read(transform, given, self._domain):
            said &= self._says(numbers, domain)
        if said:
            self._seen.add(kind)

    def _says(self, x: Tensor, domain: Domain) -> bool:
        """Whether numbers show that they are of a domain; raises where they are of another."""
        low, high = domain
        whole = not x.is_floating_point()
        if x.numel() == 0 or (x.dtype is torch.uint8 and high >= 255):
            return x.numel() > 0
        seen = x.long() if x.dtype in _NO_EXTREMES else x
        least, most = (float(bound) for bound in seen.aminmax())
        if not (math.isfinite(least) and math.isfinite(most)):
            finite = x[x.isfinite()]  # which tell as much as if they came alone
            if finite.numel():
                self._says(finite, domain)
            return False
        room = (high - low) / 2  # resampling overshoots
        largest = max(abs(least), abs(most))
        if least < low - room or most > high + room:
            self._refuse(x, (least, most), domain)
        dark = high > 2 and 0 < largest <= max(1.0, high / _DARK)
        if whole:  # a mask is no picture; counts in a table may all be 1
            dark = dark and largest <= 1 and (high >= 255 or _is_picture(x))
        elif dark:
            dark = largest <= 1 or not torch.equal(x, x.round())
        if dark:
            self._refuse(x, (least, most), domain)
        return largest > 0 and (not whole or high > 1)

    def _refuse(self, x: Tensor, got: Domain, domain: Domain) -> None:
        kind = str(x.dtype).removeprefix("torch.")
        reads = f"[{domain[0]:g}, {domain[1]:g}]"
        pixels = "Hand over bytes (uint8)" if domain[1] >= 255 else f"Bring them to {reads}"
        raise InputError(
            f"batch must hold numbers in {reads}, which {self._whose} reads, got {kind} in "
            f"[{got[0]:.4g}, {got[1]:.4g}]. {pixels}, or say with Normalize(..., domain=(low, "
            "high)) what is read; domain='any' looks at nothing."
        )


def domain_of(transform: nn.Module | None) -> Domain | None:
    """Of the numbers that a transform reads, behind columns that it takes; None if nobody knows.

    >>> from offramp.stages.transforms.normalize import Normalize
    >>> domain_of(Normalize(1 / 255, mean=0.5))
    (0.0, 255.0)
    """
    return _first(_steps(transform))


def _first(steps: Iterable[nn.Module | None]) -> Domain | None:
    for step in steps:
        if not getattr(step, "keeps_domain", False):
            found: Domain | None = getattr(step, "domain", None)
            return found
    return None


def _steps(transform: nn.Module | None) -> list[nn.Module | None]:
    return list(getattr(transform, "steps", [transform]))


def _read(transform: nn.Module | None, given: Raw, domain: Domain | None) -> Iterator[Checked]:
    """The numbers that a transform is given, with the domain that they must be of."""
    steps = _steps(transform)
    columns = []
    while steps and isinstance(steps[0], Columns):
        columns.append(steps[0])
        steps = steps[1:]
    files = isinstance(steps[0] if steps else None, Decode)
    domain = _first(steps[files:]) if domain is None else domain
    if domain is None:
        return
    for step in columns:
        given = step(given)
    if isinstance(given, list) and given and not isinstance(given[0], Tensor):
        if domain[1] >= 255 or not (steps and isinstance(steps[0], Decode | Resize)):
            return
        given = Decode()(RowList(given[:1]))  # images of Pillow, and files, hold bytes
    for part in [given] if isinstance(given, Tensor) else given if isinstance(given, list) else ():
        if isinstance(part, Tensor) and (domain[1] > 1 or _is_picture(part)):
            yield part, domain


def _captured() -> bool:
    """Whether a graph is made, which has no state to look at."""
    # Not merely available: asking a device that nobody uses would start it.
    in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return in_use and torch.cuda.is_current_stream_capturing()


def _is_picture(x: Tensor) -> bool:
    return x.dim() >= 3 and x.shape[-3] in (1, 3)
