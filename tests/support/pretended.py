"""A device that is not there: tensors that say "meta", and are computed on the CPU all the same.

What a machine without a GPU can find of a GPU's faults: tensors of two devices in one operation, an
array made of what lies on the device, and where the host waits for the device. The numbers are the
CPU's, so a result can be compared with that of a plain run. What it cannot find: kernels that
round otherwise, streams, graphs, memory. It is called "meta" because torch has that device on every
machine.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from offramp._core import batch

aten = torch.ops.aten
PRETENDED = torch.device("meta")

#: May read tensors of both devices: copies, and places given by indices that lie on the CPU.
_MIXED = {
    aten.copy_.default,
    aten._to_copy.default,
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
}
#: The host has to know what they give before it can go on.
_WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
_INDEXED = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
_MASKS = (torch.bool, torch.uint8)


class OnDevice(torch.Tensor):
    """A tensor of the pretended device, whose values lie in `host`."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> "OnDevice":
        with torch.inference_mode(False):  # or no view could be made of it there
            made = torch.Tensor._make_wrapper_subclass(
                cls,
                host.shape,
                strides=host.stride(),
                storage_offset=host.storage_offset(),
                dtype=host.dtype,
                device=PRETENDED,
            )
        made.host = host
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.host!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, Counter())


class _Operations(TorchDispatchMode):
    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, self.waits)


class _Functions(TorchFunctionMode):
    """What torch does before there is an operation to see: `tolist`, and lists of indices."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            self.waits["tolist"] += 1
            return args[0].host.tolist()
        if func in _INDEXED and isinstance(args[0], OnDevice):
            args = (args[0], _without_lists(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _without_lists(index: Any) -> Any:
    if isinstance(index, list):
        return torch.tensor(index)
    return tuple(map(_without_lists, index)) if isinstance(index, tuple) else index


def _run(func: Any, args: Any, kwargs: dict[str, Any], waits: Counter[str]) -> Any:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = [leaf for leaf in given if isinstance(leaf, OnDevice)]
    if any(leaf.is_meta and not isinstance(leaf, OnDevice) for leaf in given):
        raise NotImplementedError(f"{func} was given a tensor of nothing: mend this file.")
    if here and func not in _MIXED and any(t.dim() for t in given if not isinstance(t, OnDevice)):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} got {PRETENDED} and cpu."
        )
    wanted = kwargs.get("device")
    goes = bool(here) if wanted is None else torch.device(wanted) == PRETENDED
    _count(func, args, kwargs, bool(here), goes, waits)
    host_args, host_kwargs = tree_map(
        lambda x: x.host if isinstance(x, OnDevice) else x, (tuple(args), kwargs)
    )
    if wanted is not None:
        host_kwargs = {**host_kwargs, "device": torch.device("cpu")}
    found = func(*host_args, **host_kwargs)
    if func is aten.copy_.default:
        return args[0]
    if not goes:
        return found
    wrapped = tree_map(lambda x: OnDevice(x) if isinstance(x, torch.Tensor) else x, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if here else wrapped


def _count(func: Any, args: Any, kwargs: Any, here: bool, goes: bool, waits: Counter[str]) -> None:
    """Note why the host waits, if it does."""
    if here and func in _WAITS:
        waits[str(func)] += 1
    elif func is aten._to_copy.default and here != goes:
        if here or not kwargs.get("non_blocking"):
            waits["to the host" if here else "to the device"] += 1
    elif func is aten.copy_.default and len({isinstance(a, OnDevice) for a in args[:2]}) == 2:
        if not (args[2:] and args[2]):
            waits["copy_"] += 1
    elif func is aten.index.Tensor and here:
        indices = [index for index in args[1] if index is not None]
        if any(i.dtype in _MASKS or not isinstance(i, OnDevice) for i in indices):
            waits["index"] += 1


class _Generator(torch.Generator):
    """A generator that says where it is; its numbers are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self._where = torch.device(device)

    @property
    def device(self) -> torch.device:
        return self._where


_autocast = torch.autocast


def _cast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    """Nothing is rounded there: torch knows no autocast of it."""
    if device_type == "meta":
        return _autocast("cpu", enabled=False)
    return _autocast(device_type, *args, **kwargs)


@contextmanager
def pretended() -> Iterator[Counter[str]]:
    """Within, there is the device; yields how often the host has waited for it, by reason."""
    waits: Counter[str] = Counter()
    with (
        mock.patch.object(torch, "Generator", _Generator),
        mock.patch.object(torch, "autocast", _cast),
        mock.patch.object(batch, "_STAGED", frozenset({PRETENDED.type})),
        warnings.catch_warnings(),
        _Functions(waits),
        _Operations(waits),
    ):
        warnings.filterwarnings(
            "ignore", message=".*which is a no-op"
        )  # of weights on meta; not so
        yield waits
