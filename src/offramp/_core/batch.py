"""Batches: a tensor, a tuple of tensors or a mapping of tensors, examples along the first axis.

Layer: _core.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp._core.arrays import tensor_of
from offramp._core.errors import InputError
from offramp._core.types import Batch

#: Of these a list or tuple is several inputs; of numbers and lists it is one.
_SEVERAL = (Tensor, np.ndarray)


def as_batch(batch: object) -> Batch:
    """A batch of tensors, of whatever came: every door that takes raw input takes it through here.

    Tensors, and tuples and mappings of them, stay as they are. Of the rest float64 becomes float32:
    numpy and lists make it of any number.

    Args:
        batch: A tensor, a numpy array, a pandas table or nested lists of numbers; or a tuple, list
            or mapping of tensors and arrays, for networks with several inputs.

    Raises:
        InputError: If it is none of these, such as None, a text or pictures.

    >>> as_batch([[0.5, 1.0], [2.0, 3.0]]).dtype
    torch.float32
    """
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        if all(isinstance(values, Tensor) for values in batch.values()):
            return batch
        return {str(key): _tensor(f"batch[{key!r}]", values) for key, values in batch.items()}
    if isinstance(batch, Sequence) and any(isinstance(b, _SEVERAL) for b in batch):
        if all(isinstance(values, Tensor) for values in batch):
            return batch
        return tuple(_tensor(f"batch[{k}]", values) for k, values in enumerate(batch))
    empty = isinstance(batch, list | tuple) and not batch
    return () if empty else _tensor("batch", batch)


def batch_size(batch: Batch) -> int:
    """Number of examples.

    Raises:
        InputError: If there is no tensor, or their first axes differ in length.

    >>> batch_size({"ids": torch.zeros(3, 5), "mask": torch.zeros(3, 5)})
    3
    """
    if isinstance(batch, Tensor) and batch.dim():
        return batch.shape[0]
    sizes = {name: t.shape[0] if t.dim() else None for name, t in _named(batch)}
    if len(set(sizes.values())) != 1 or None in sizes.values():
        raise InputError(
            f"Every tensor of a batch must have the examples along its first axis, got the "
            f"lengths {sizes}."
        )
    return next(size for size in sizes.values() if size is not None)


def take_rows(batch: Batch, index: Tensor) -> Batch:
    """Some examples of a batch, by position or mask, as a batch of the same kind.

    >>> take_rows((torch.arange(3), torch.ones(3, 2)), torch.tensor([2, 0]))[0]
    tensor([2, 0])
    """
    if isinstance(batch, Tensor):
        return batch[index.to(batch.device)]
    if isinstance(batch, Mapping):
        return {name: t[index.to(t.device)] for name, t in batch.items()}
    return tuple(t[index.to(t.device)] for t in batch)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The same batch on another device."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device)
    if isinstance(batch, Mapping):
        return {name: t.to(device) for name, t in batch.items()}
    return tuple(t.to(device) for t in batch)


def concat(batches: Sequence[Batch]) -> Batch:
    """One batch of all the examples, in order; the batches must be of one kind.

    Raises:
        InputError: If there is no batch, or they are of different kinds.

    >>> concat([torch.tensor([1]), torch.tensor([2, 3])])
    tensor([1, 2, 3])
    """
    if not batches:
        raise InputError("concat needs at least one batch, got none.")
    kinds = [[name for name, _ in _named(batch)] for batch in batches]
    if any(kind != kinds[0] for kind in kinds):
        raise InputError(f"Batches to be joined must be of one kind, got the fields {kinds}.")
    joined = [torch.cat(parts) for parts in zip(*map(_tensors, batches), strict=True)]
    first = batches[0]
    if isinstance(first, Tensor):
        return joined[0]
    if isinstance(first, Mapping):
        return dict(zip(first, joined, strict=True))
    return tuple(joined)


def apply(module: Callable[..., Any], batch: Batch) -> Any:  # noqa: ANN401  (what it gives)
    """Call a network on a batch: a tuple is passed as positional, a mapping as named arguments.

    >>> apply(lambda a, b: a + b, {"b": torch.ones(2), "a": torch.ones(2)})
    tensor([2., 2.])
    """
    if isinstance(batch, Mapping):
        return module(**batch)
    return module(batch) if isinstance(batch, Tensor) else module(*batch)


def _tensor(name: str, values: object) -> Tensor:
    found = tensor_of(name, values)
    wide = found.dtype == torch.float64 and not isinstance(values, Tensor)
    return found.to(torch.float32) if wide else found


def _named(batch: Batch) -> list[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        return [("", batch)]
    if isinstance(batch, Mapping):
        return list(batch.items())
    return [(str(i), t) for i, t in enumerate(batch)]


def _tensors(batch: Batch) -> list[Tensor]:
    return [t for _, t in _named(batch)]
