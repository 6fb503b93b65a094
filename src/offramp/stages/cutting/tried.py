"""Trying a cut network at other sizes: where it answers as the network does, a size is free.

Layer: stages.  Source: none.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.batch import apply
from offramp._core.errors import FAILURES
from offramp._core.types import Batch
from offramp.models import extract_logits
from offramp.stages.cutting.sizes import Followed, Size, Sizes

_TOLERANCE = 1e-5  # relative to the largest answer; the same kernels run, so nearly nothing
_ENOUGH, _LEAST = 3, 2  # sizes to try, and those that must agree
_PICTURE = 4  # axes

#: Axes of inputs, from 0 on, that change together: (input, axis).
Axes = tuple[tuple[int, int], ...]


def tried_sizes(
    net: nn.Module,
    segments: Sequence[nn.Module],
    followed: Followed,
    two: Batch,
    names: Sequence[str],
    classes: int | None,
) -> Sizes:
    """Find out which axes of a cut network are free.

    Each axis in turn, or all that share an unknown, gets other sizes, with made-up values. Where
    the network runs, its segments have to answer alike, at two sizes at least; else it is fixed.

    Args:
        net: The network.
        segments: What it was cut into, nothing at their entry.
        followed: What following it told.
        two: Two examples, of `rows_of`.
        names: Of the inputs.
        classes: As `cut` takes them.
    """
    trial = _Trial(net=net, segments=segments, followed=followed, two=two, classes=classes)
    shapes = [list[Size](shape) for shape in followed.shapes]
    tried: dict[str, frozenset[int]] = {}
    free: list[tuple[Axes, int]] = []
    for what, axes in _groups(followed).items():
        agreed = trial.agreed(what, axes)
        for k, axis in axes:
            example = _tensors(two)[k].shape[axis]
            shapes[k][axis - 1] = (what if isinstance(what, str) else None) if agreed else example
        if agreed:
            free.append((axes, agreed[0]))
            if isinstance(what, str):
                tried[what] = frozenset({*agreed, followed.lengths[what].example})
    if len(free) > 1 and trial.same(free, fresh=True) is False:  # each alone, but not together
        shapes = [list(tensor.shape[1:]) for tensor in _tensors(two)]
    return Sizes(names, shapes, _proved(followed, tried), tried)


def _proved(followed: Followed, tried: Mapping[str, frozenset[int]]) -> Followed:
    """Without the conditions that turned out not to be needed."""
    sizes = [{name: size} for name, each in tried.items() for size in each]
    needed = [
        condition
        for condition in followed.conditions
        if all(followed.meets(condition, size) for size in sizes)
    ]
    return replace(followed, conditions=tuple(needed))


@final
@dataclass(frozen=True, kw_only=True)
class _Trial:
    net: nn.Module
    segments: Sequence[nn.Module]
    followed: Followed
    two: Batch
    classes: int | None

    def agreed(self, what: str | tuple[int, int], axes: Axes) -> list[int]:
        """Other sizes at which segments answer as the network; none if they ever do not."""
        length = self.followed.lengths[what] if isinstance(what, str) else None
        size = _tensors(self.two)[axes[0][0]].shape[axes[0][1]]
        found: list[int] = []
        for other in other_sizes(size):
            if isinstance(what, str) and not self.followed.holds({what: other}):
                continue
            same = self.same([(axes, other)], fresh=True)
            if same is None and length is not None:  # values of the example itself
                same = self.same([(axes, other)], fresh=False)
            if same is False:
                return []
            found += [other] if same else []
            if len(found) == _ENOUGH:
                break
        if len(found) < _LEAST:
            return []
        # torch.export takes 1 for a case of its own, here or further inside
        small = set() if length is None else {1, length.low}
        return found + [s for s in small - {*found, size} if self.same([(axes, s)], fresh=False)]

    def same(self, changes: Sequence[tuple[Axes, int]], *, fresh: bool) -> bool | None:
        """Whether both answer alike; None where the network does not, or nothing can be seen."""
        batch = resized(self.two, changes, fresh=fresh)
        if batch is None:
            return None
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                wanted = extract_logits(apply(self.net, batch), self.classes)
            except FAILURES:
                return None
            if not wanted.isfinite().all():
                return None
            try:
                given: Any = batch
                for segment in self.segments:
                    given = apply(segment, given)
            except FAILURES:
                return False
        if given.shape != wanted.shape:
            return False
        given, wide = given.double(), wanted.double()
        relative = max(_TOLERANCE, 4 * torch.finfo(wanted.dtype).eps)
        atol = relative * float(wide.abs().max()) if wide.numel() else 0.0
        return torch.allclose(given, wide, rtol=0, atol=atol)


def _groups(followed: Followed) -> dict[str | tuple[int, int], Axes]:
    """Axes that change together: those of one unknown, or of one place and size."""
    found: dict[str | tuple[int, int], list[tuple[int, int]]] = {}
    for k, shape in enumerate(followed.shapes):
        for axis, size in enumerate(shape, 1):
            key = size if isinstance(size, str) else (axis, int(size or 0))
            found.setdefault(key, []).append((k, axis))
    return {key: tuple(axes) for key, axes in found.items()}


def other_sizes(size: int) -> list[int]:
    """Sizes to try: larger and smaller, odd and even, and multiples, if a network takes no other.

    >>> other_sizes(8)
    [9, 6, 13, 4, 16, 12, 24, 7]
    """
    near = (size + 1, size - size // 4, 3 * size // 2 + 1, size // 2)
    each = (*near, 2 * size, 3 * size // 2, 3 * size, size - 1)
    return [other for other in dict.fromkeys(each) if other > 1 and other != size]


def resized(batch: Batch, changes: Iterable[tuple[Axes, int]], *, fresh: bool) -> Batch | None:
    """A batch of the same kind with other sizes along some axes.

    Args:
        batch: Of at least one example.
        changes: Axes, and what size they are to have.
        fresh: Whether values are made up, as different as they can be, or those of the batch over
            and over.

    Returns:
        None if nothing different can be made up.

    >>> resized(torch.tensor([[7, 3]]), [(((0, 1),), 5)], fresh=False)
    tensor([[7, 3, 7, 3, 7]])
    """
    tensors = list(_tensors(batch))
    for axes, size in changes:
        for k, axis in axes:
            old = tensors[k].shape[axis]
            if old == 0:
                return None
            index = torch.arange(size, device=tensors[k].device) % old
            tensors[k] = tensors[k].index_select(axis, index)
    if fresh:
        made = [_fresh(tensor) for tensor in tensors]
        if all(tensor is None for tensor in made):
            return None
        tensors = [old if new is None else new for old, new in zip(tensors, made, strict=True)]
    if isinstance(batch, Tensor):
        return tensors[0]
    return dict(zip(batch, tensors, strict=True)) if isinstance(batch, Mapping) else tuple(tensors)


def _fresh(tensor: Tensor) -> Tensor | None:
    """Made-up values of a kind; None where only the tensor's own are known to be right."""
    count = torch.arange(1, tensor.numel() + 1, dtype=torch.float64)
    wave = (0.75 * count.sin() + 0.25).reshape(tensor.shape).to(tensor.device)  # in [-0.5, 1]
    if tensor.is_floating_point():
        return wave.to(tensor.dtype)
    if tensor.dtype == torch.bool or tensor.is_complex():
        return None
    low, high = int(tensor.min()), int(tensor.max())
    if tensor.dtype == torch.uint8 and tensor.dim() >= _PICTURE:
        low, high = 0, 255
    if high - low < 2:  # token types, masks
        return None
    return low + ((wave + 0.5) / 1.5 * (high - low)).round().to(tensor.dtype)


def _tensors(batch: Batch) -> Sequence[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    return list(batch.values() if isinstance(batch, Mapping) else batch)
