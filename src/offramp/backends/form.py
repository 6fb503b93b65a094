"""The form of what goes into a network and comes out of it: a tensor, a tuple or a mapping.

Layer: backends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from offramp._core.batch import flat
from offramp._core.errors import InputError
from offramp._core.schema import omitted, stored

Kind = Literal["tensor", "tuple", "mapping"]


@final
@stored(whole=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Kind, names, shapes and types of a batch, a carry or an output.

    Args:
        kind: "tensor", "tuple" or "mapping".
        names: The keys of a mapping, in order; empty otherwise.
        shapes: Of each tensor, without the batch axis.
        dtypes: Of each tensor, as torch calls them: "float32".
        free: For each tensor the axes, from 1 on, that may have other sizes than in `shapes`:
            lengths of sequences. Empty where there are none.

    >>> form = TensorSpec.of((torch.zeros(5, 3), torch.zeros(5)))
    >>> form.shapes, form.dtypes
    (((3,), ()), ('float32', 'float32'))
    >>> [tuple(t.shape) for t in form.zeros(2)]
    [(2, 3), (2,)]
    """

    kind: Kind
    names: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    free: tuple[tuple[int, ...], ...] = omitted(())

    def __post_init__(self) -> None:
        count = len(self.shapes)
        named = len(self.names) if self.kind == "mapping" else count
        if not count or len(self.dtypes) != count or named != count:
            raise InputError(
                f"A form must have as many types and names as shapes, and one shape at least, got "
                f"{self.shapes}, {self.dtypes}, {self.names}."
            )
        within = all(
            0 < axis <= len(shape) and shape[axis - 1] > 0
            for shape, axes in zip(self.shapes, self.free, strict=False)
            for axis in axes
        )
        if self.free and (len(self.free) != count or not within):
            raise InputError(f"free must be axes of {self.shapes}, got {self.free}.")
        for name in self.dtypes:
            if not isinstance(getattr(torch, name, None), torch.dtype):
                raise InputError(f"dtypes must be names of torch's types, got {name!r}.")

    @classmethod
    def of(cls, value: Any, others: Sequence[Any] = ()) -> "TensorSpec":  # noqa: ANN401
        """The form of a batch, a carry or an output; raises `InputError` as `flat` does.

        Args:
            value: The batch.
            others: The same for other lengths: axes that differ are free.

        >>> TensorSpec.of(torch.zeros(2, 5, 3), [torch.zeros(2, 7, 3)]).free
        ((1,),)
        """
        tensors = flat(value)
        free = axes_that_differ([tensors, *map(flat, others)])
        mapping = isinstance(value, Mapping)
        kind: Kind = "mapping" if mapping else "tensor" if isinstance(value, Tensor) else "tuple"
        return cls(
            kind=kind,
            names=tuple(n for n, t in value.items() if t is not None) if mapping else (),
            shapes=tuple(tuple(int(size) for size in t.shape[1:]) for t in tensors),
            dtypes=tuple(str(t.dtype).removeprefix("torch.") for t in tensors),
            free=free if any(free) else (),
        )

    def pack(self, tensors: Sequence[Tensor]) -> Any:  # noqa: ANN401  (a batch of this kind)
        """The tensors as a batch of this kind."""
        if self.kind == "tensor":
            return tensors[0]
        if self.kind == "mapping":
            return dict(zip(self.names, tensors, strict=True))
        return tuple(tensors)

    def unpack(self, args: Sequence[Any], named: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """The tensors that a module was called with, by position, by name, or all in one.

        Raises:
            InputError: If there are others than expected.
        """
        if len(args) == 1 and not named and isinstance(args[0], Tensor):
            if len(self.shapes) == 1:
                return args
            given: Sequence[Any] = args
        else:
            whole = args[0] if len(args) == 1 and not named else named or args
            given = self._by_name(whole) if isinstance(whole, Mapping) else whole
        if len(given) != len(self.shapes) or not all(isinstance(t, Tensor) for t in given):
            raise InputError(f"The batch must be {self.described()}, got {_kinds(given)}.")
        return given

    def _by_name(self, given: Mapping[str, Tensor]) -> list[Tensor]:
        if set(given) != set(self.names):
            raise InputError(f"The batch must be {self.described()}, got {sorted(given)}.")
        return [given[name] for name in self.names]

    def parts(self, n: int) -> list[Tensor]:
        """The tensors of so many examples of zeros."""
        each = zip(self.shapes, self.torch_dtypes, strict=True)
        return [torch.zeros(n, *shape, dtype=dtype) for shape, dtype in each]

    def zeros(self, n: int) -> Any:  # noqa: ANN401  (a batch of this kind)
        """So many examples of zeros."""
        return self.pack(self.parts(n))

    @property
    def torch_dtypes(self) -> tuple[torch.dtype, ...]:
        """The types as objects."""
        return tuple(getattr(torch, name) for name in self.dtypes)

    def described(self) -> str:
        """For messages.

        >>> TensorSpec.of(torch.zeros(5, 3)).described()
        'a tensor (m, 3) of float32'
        """
        names = self.names or ("",) * len(self.shapes)
        free = self.free or ((),) * len(self.shapes)
        each = [
            f"{f'{name!r} ' if name else ''}({', '.join(['m', *_sizes(shape, axes)])}) of {dtype}"
            for name, shape, dtype, axes in zip(names, self.shapes, self.dtypes, free, strict=True)
        ]
        return f"a {self.kind} {', '.join(each)}"


def axes_that_differ(batches: Sequence[Sequence[Tensor]]) -> tuple[tuple[int, ...], ...]:
    """For each tensor the axes but the first along which the batches' sizes differ.

    >>> axes_that_differ([[torch.zeros(2, 5, 3)], [torch.zeros(2, 7, 3)]])
    ((1,),)
    """
    return tuple(
        tuple(k for k in range(1, tensors[0].dim()) if len({t.shape[k] for t in tensors}) > 1)
        for tensors in zip(*batches, strict=True)
    )


def _sizes(shape: Sequence[int], free: Sequence[int]) -> list[str]:
    return ["any" if axis in free else str(size) for axis, size in enumerate(shape, 1)]


def _kinds(given: Sequence[Any]) -> list[str]:
    return [type(part).__name__ for part in given]
