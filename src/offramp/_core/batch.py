"""Batches: examples along the first axis of tensors, or one after the other in lists and tables.

A batch is a tensor; rows of any type, one entry for each example (`RowList`); a pandas table; or a
mapping or tuple of these. What is no tensor travels up to the transform or function that reads it.

Layer: _core.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from offramp._core.arrays import array_of, kind_of, tensor_of
from offramp._core.errors import InputError
from offramp._core.types import Batch, Raw

#: Of these a list or tuple is several inputs; of numbers and lists it is one.
_SEVERAL = (Tensor, np.ndarray)
_NUMBERS = (int, float, np.number, np.bool_)

_STAGED = frozenset({"cuda"})  # devices to which copies need no waiting
Form = tuple[Any, ...]  # what must be the same of batches that are joined, but for their number


@final
class RowList(list[Any]):
    """One entry of any type for each example; a plain list of tensors is several inputs."""


class Carried:
    """What travels like a batch in a way of its own: `Carry` and `RawInput` of `_core.carry`."""

    __slots__ = ()
    take: Callable[[Tensor], Any]  # some of the examples
    split: Callable[[Sequence[int]], list[Any]]  # parts of some sizes
    concat: Callable[[Sequence[Any]], Any]  # of several one
    form: Callable[[], Form]  # what must be the same of those that are joined
    to: Callable[[torch.device | str], Any]  # the same on another device


def as_batch(batch: object) -> Batch:
    """A batch of tensors, of whatever came: what networks read goes through here.

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
    if isinstance(batch, RowList):
        return _tensor("batch", batch)
    if isinstance(batch, Sequence) and any(isinstance(b, _SEVERAL) for b in batch):
        if all(isinstance(values, Tensor) for values in batch):
            return batch
        return tuple(_tensor(f"batch[{k}]", values) for k, values in enumerate(batch))
    empty = isinstance(batch, list | tuple) and not batch
    return () if empty else _tensor("batch", batch)


def as_rows(batch: object) -> Raw:
    """A batch whose rows may be anything: what transforms and functions on rows read.

    What is numeric becomes tensors, as `as_batch` makes them; lists of anything else, also of lists
    of numbers, stay lists of one entry for each example, and pandas tables stay tables.

    Args:
        batch: A tensor or array; a list of texts, bytes, images, dicts, lists of token ids or
            tensors; a pandas table; a mapping of such columns, or a tuple with at least one tensor
            or array. A list holds one entry for each example, whatever the entries are.

    Raises:
        InputError: If rows cannot be had: of None, a single text, a number, a generator.

    >>> as_rows(["one text", "another"]), as_rows({"age": [1, 2]})["age"]
    (['one text', 'another'], tensor([1, 2]))
    """
    if isinstance(batch, Tensor | RowList) or is_table(batch):
        return batch
    if isinstance(batch, Mapping):
        return {str(key): _column(f"batch[{key!r}]", values) for key, values in batch.items()}
    if isinstance(batch, tuple) and any(isinstance(part, _SEVERAL) for part in batch):
        return tuple(_column(f"batch[{k}]", values) for k, values in enumerate(batch))
    return _column("batch", batch)


def is_table(batch: object) -> bool:
    """True for a pandas table."""
    return type(batch).__module__.partition(".")[0] == "pandas" and hasattr(batch, "columns")


def only_tensors(batch: Raw) -> bool:
    """True for a tensor, and for tuples and mappings of tensors."""
    return all(isinstance(part, Tensor) for _, part in _named(batch))


def batch_size(batch: Raw) -> int:
    """Number of examples.

    Raises:
        InputError: If there is nothing in it, or its parts differ in length.

    >>> batch_size({"ids": torch.zeros(3, 5), "text": RowList(["a", "b", "c"])})
    3
    """
    if isinstance(batch, Tensor) and batch.dim():
        return batch.shape[0]
    sizes = {name: _length(part) for name, part in _named(batch)}
    if len(set(sizes.values())) != 1 or None in sizes.values():
        raise InputError(
            f"Every part of a batch must have the examples along its first axis, got the "
            f"lengths {sizes}."
        )
    return next(size for size in sizes.values() if size is not None)


def take_rows(batch: Raw, index: Tensor) -> Any:  # noqa: ANN401  (of the batch's own kind)
    """Some examples of a batch, by position or mask, as a batch of the same kind.

    >>> take_rows((torch.arange(3), RowList("abc")), torch.tensor([2, 0]))
    (tensor([2, 0]), ['c', 'a'])
    """
    if isinstance(batch, Tensor):
        return batch[index.to(batch.device)]
    if isinstance(batch, Mapping):
        return {name: take_rows(part, index) for name, part in batch.items()}
    if isinstance(batch, RowList) or is_table(batch):
        positions = (index.nonzero()[:, 0] if index.dtype == torch.bool else index).tolist()
        if isinstance(batch, RowList):
            return RowList(map(batch.__getitem__, positions))
        return batch.iloc[positions]
    if isinstance(batch, Carried):
        return batch.take(index)
    return tuple(take_rows(part, index) for part in batch)


def split_rows(batch: Raw, sizes: Sequence[int]) -> list[Any]:
    """A batch in parts of some sizes, in order; tensors are not copied.

    >>> [len(part) for part in split_rows(torch.zeros(5, 2), (2, 3))]
    [2, 3]
    """
    if isinstance(batch, Tensor):
        return list(torch.split(batch, list(sizes)))
    if isinstance(batch, RowList) or is_table(batch):
        parts = torch.split(torch.arange(sum(sizes)), list(sizes))
        return [take_rows(batch, part) for part in parts]
    if isinstance(batch, Carried):
        return batch.split(sizes)
    columns = [split_rows(part, sizes) for _, part in _named(batch)]
    return [_like(batch, [column[k] for column in columns]) for k in range(len(sizes))]


def to_device(batch: Raw, device: torch.device | str) -> Any:  # noqa: ANN401  (of its own kind)
    """The same batch on another device; what is no tensor stays on the host."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else _moved(batch, torch.device(device))
    if isinstance(batch, Mapping):
        return {name: to_device(part, device) for name, part in batch.items()}
    if isinstance(batch, RowList) or is_table(batch):
        return batch
    if isinstance(batch, Carried):
        return batch.to(device)
    return tuple(to_device(part, device) for part in batch)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    # Of memory that is not pinned CUDA takes a copy before the call returns. The host would wait
    # until the device has done all that it was given, and gain nothing by it.
    at_once = tensor.device.type == "cpu" and device.type in _STAGED and not tensor.is_pinned()
    return tensor.to(device, non_blocking=at_once)


def concat(batches: Sequence[Raw]) -> Any:  # noqa: ANN401  (of their own kind)
    """One batch of all the examples, in order; the batches must be of one kind.

    Raises:
        InputError: If there is no batch, or they are of different kinds.

    >>> concat([torch.tensor([1]), torch.tensor([2, 3])])
    tensor([1, 2, 3])
    """
    if not batches:
        raise InputError("concat needs at least one batch, got none.")
    first = batches[0]
    if isinstance(first, Tensor) and all(isinstance(batch, Tensor) for batch in batches):
        return torch.cat(list(batches))
    if isinstance(first, Carried):
        return first.concat(batches)
    kinds = [_kind(batch) for batch in batches]
    if any(kind != kinds[0] for kind in kinds):
        raise InputError(f"Batches to be joined must be of one kind, got the fields {kinds}.")
    if isinstance(first, RowList):
        return RowList(row for batch in batches for row in batch)
    if is_table(first):
        return sys.modules["pandas"].concat(list(batches))
    columns = zip(*([part for _, part in _named(batch)] for batch in batches), strict=True)
    return _like(first, [concat(parts) for parts in columns])


def all_alike(batch: Raw) -> bool:
    """True where all examples are known to be equal; False where that cannot be said.

    >>> all_alike(RowList(["a", "a"])), all_alike(torch.tensor([1, 2]))
    (True, False)
    """
    if isinstance(batch, Tensor):
        return torch.equal(batch, batch[:1].expand_as(batch))
    if isinstance(batch, RowList):
        return all(_equal(row, batch[0]) for row in batch[1:])
    if is_table(batch):
        return all(all_alike(_column(str(name), batch[name])) for name in batch.columns)
    return all(all_alike(part) for _, part in _named(batch))


def carry_form(batch: Raw) -> Form:
    """Shape of one example and type of each tensor; lists of rows are all alike.

    >>> carry_form({"ids": torch.zeros(3, 8)})
    (('ids', (8,), torch.float32),)
    """
    if isinstance(batch, Tensor):
        return tuple(batch.shape[1:]), batch.dtype
    if isinstance(batch, Carried):
        return batch.form()
    if isinstance(batch, RowList):
        return ("rows",)
    if is_table(batch):
        return ("table", *batch.columns)
    named = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
    return tuple((name, *carry_form(part)) for name, part in named)


def form_of(batch: Raw) -> str:
    """What a batch looks like, for people; its number of examples does not matter.

    >>> form_of({"ids": torch.zeros(3, 8, dtype=torch.int64), "text": RowList(["a"])})
    'ids: (n, 8) int64, text: a list of str'
    """
    if isinstance(batch, Tensor):
        shape = ", ".join(["n", *map(str, batch.shape[1:])])
        return f"({shape}) {str(batch.dtype).removeprefix('torch.')}"
    if isinstance(batch, RowList):
        return f"a list of {type(batch[0]).__name__ if batch else 'nothing'}"
    if is_table(batch):
        columns = zip(batch.columns, batch.dtypes, strict=True)
        return f"a table of {', '.join(f'{name}: {kind}' for name, kind in columns)}"
    named = isinstance(batch, Mapping)
    return ", ".join((f"{k}: " if named else "") + form_of(part) for k, part in _named(batch))


def apply(module: Callable[..., Any], batch: Batch) -> Any:  # noqa: ANN401  (what it gives)
    """Call a network on a batch: a tuple is passed as positional, a mapping as named arguments.

    >>> apply(lambda a, b: a + b, {"b": torch.ones(2), "a": torch.ones(2)})
    tensor([2., 2.])
    """
    if isinstance(batch, Mapping):
        return module(**batch)
    return module(batch) if isinstance(batch, Tensor) else module(*batch)


def map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """A batch of the same kind, of what becomes of each of its tensors.

    >>> map_tensors({"a": torch.ones(2)}, torch.zeros_like)
    {'a': tensor([0., 0.])}
    """
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: change(tensor) for name, tensor in batch.items()}
    return tuple(map(change, batch))


def flat(value: Any) -> list[Tensor]:  # noqa: ANN401  (what a network takes or gives)
    """The tensors of a batch, a carry or a network's output, in order; what is None is left out.

    Raises:
        InputError: If there is anything else in it, or no tensor.

    >>> [len(t) for t in flat({"a": torch.zeros(2), "b": torch.zeros(3)})]
    [2, 3]
    """
    if isinstance(value, Tensor):
        return [value]
    parts = list(value.values()) if isinstance(value, Mapping) else value
    plain = isinstance(parts, Sequence) and all(p is None or isinstance(p, Tensor) for p in parts)
    tensors = [part for part in parts if part is not None] if plain else []
    if not tensors:
        raise InputError(
            "A network must take and give a tensor, or a tuple or mapping of tensors, got "
            f"{type(value).__name__}. Wrap it in a module that does."
        )
    return tensors


def without_none(value: Any) -> Any:  # noqa: ANN401  (what a network gives)
    """The same batch, carry or output with tensors only; raises `InputError` as `flat` does.

    >>> without_none((torch.ones(1), None))
    (tensor([1.]),)
    """
    tensors = flat(value)
    if isinstance(value, Mapping):
        return {name: tensor for name, tensor in value.items() if tensor is not None}
    return value if isinstance(value, Tensor) else tuple(tensors)


def _tensor(name: str, values: object) -> Tensor:
    if isinstance(values, RowList) and values and all(isinstance(row, Tensor) for row in values):
        if len({row.shape for row in values}) == 1:
            return torch.stack(values)
        raise InputError(
            f"{name} must be one tensor, got tensors of the shapes "
            f"{sorted({tuple(row.shape) for row in values})}; a transform can bring them to one "
            "shape: Resize for images, Pad for token ids."
        )
    found = tensor_of(name, values)
    wide = found.dtype == torch.float64 and not isinstance(values, Tensor)
    return found.to(torch.float32) if wide else found


def _column(name: str, values: Any) -> Any:  # noqa: ANN401  (rows of any type)
    """One entry for each example: a tensor where these are numbers, else a list or a table."""
    if isinstance(values, Tensor | RowList) or is_table(values):
        return values
    array = hasattr(values, "__array__") and not isinstance(values, np.generic)
    if array or (isinstance(values, list | tuple) and values and _are_numbers(values)):
        found = array_of(name, values)
        if found.dtype.kind in "biuf":
            return _tensor(name, values)
        if found.ndim:
            return RowList(found.tolist())
    elif isinstance(values, Sequence) and not isinstance(values, str | bytes | bytearray):
        return RowList(values)
    raise InputError(
        f"{name} must hold one entry for each example: a tensor, an array, a list or a table, got "
        f"{kind_of(values)}.{_repair(values)}"
    )


def _are_numbers(values: Iterable[object]) -> bool:
    return all(isinstance(value, _NUMBERS) for value in values)


def _repair(values: object) -> str:
    if isinstance(values, str | bytes | bytearray) or type(values).__module__.startswith("PIL."):
        return " A single one goes into a list: [one]."
    if hasattr(values, "__next__") or isinstance(values, set | frozenset):
        return " Make a list of it: list(rows)."
    return ""


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    try:
        return type(one) is type(other) and bool(one == other)
    except (ValueError, TypeError, RuntimeError):  # arrays within rows
        return False


def _length(part: Raw) -> int | None:
    if isinstance(part, Tensor):
        return part.shape[0] if part.dim() else None
    return len(part) if isinstance(part, RowList) or is_table(part) else None


def _named(batch: Raw) -> list[tuple[str, Any]]:
    """The parts of a batch by name."""
    if isinstance(batch, Tensor | RowList) or is_table(batch):
        return [("", batch)]
    if isinstance(batch, Mapping):
        return list(batch.items())
    return [(str(i), part) for i, part in enumerate(batch)]


def _kind(batch: Raw) -> Any:  # noqa: ANN401  (only compared, and printed)
    """What has to be the same of batches that are joined."""
    if isinstance(batch, Tensor):
        return ""
    if isinstance(batch, RowList):
        return "rows"
    if is_table(batch):
        return f"a table of {list(batch.columns)}"
    return [name if not (kind := _kind(part)) else (name, kind) for name, part in _named(batch)]


def _like(batch: Raw, parts: Sequence[Any]) -> Any:  # noqa: ANN401  (of the batch's own kind)
    return dict(zip(batch, parts, strict=True)) if isinstance(batch, Mapping) else tuple(parts)
