"""What batches and carries look like, but for their number of examples; and their parts.

Layer: runtime.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from offramp._core.types import Batch

Form = tuple[Any, ...]  # shapes and types of a carry, without the number of examples


def carry_form(batch: Any) -> Form:  # noqa: ANN401  (a carry is what a network gives)
    """Shape of one example and type of each tensor of a carry.

    >>> carry_form({"ids": torch.zeros(3, 8)})
    (('ids', (8,), torch.float32),)
    """
    if isinstance(batch, Tensor):
        return tuple(batch.shape[1:]), batch.dtype
    named = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
    return tuple((name, *carry_form(part)) for name, part in named)


def form_of(batch: Batch) -> str:
    """What a batch looks like, for people; its number of examples does not matter.

    >>> form_of({"ids": torch.zeros(3, 8, dtype=torch.int64)})
    'ids: (n, 8) int64'
    """
    if isinstance(batch, Tensor):
        return _form(batch)
    if isinstance(batch, Mapping):
        return ", ".join(f"{name}: {_form(values)}" for name, values in batch.items())
    return ", ".join(_form(values) for values in batch)


def _form(values: Tensor) -> str:
    shape = ", ".join(["n", *map(str, values.shape[1:])])
    return f"({shape}) {str(values.dtype).removeprefix('torch.')}"


def zeros_like(batch: Batch) -> Batch:
    """One example of zeros."""
    if isinstance(batch, Tensor):
        return batch.new_zeros(1, *batch.shape[1:])
    if isinstance(batch, Mapping):
        return {name: t.new_zeros(1, *t.shape[1:]) for name, t in batch.items()}
    return tuple(t.new_zeros(1, *t.shape[1:]) for t in batch)


def split_batch(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """A batch in parts of some sizes, in order; nothing is copied.

    >>> [len(part) for part in split_batch(torch.zeros(5, 2), (2, 3))]
    [2, 3]
    """
    if isinstance(batch, Tensor):
        return list(torch.split(batch, list(sizes)))
    if isinstance(batch, Mapping):
        each = {name: torch.split(values, list(sizes)) for name, values in batch.items()}
        return [{name: parts[k] for name, parts in each.items()} for k in range(len(sizes))]
    columns = [torch.split(values, list(sizes)) for values in batch]
    return [tuple(parts[k] for parts in columns) for k in range(len(sizes))]
