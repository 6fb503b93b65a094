"""Which sizes a cut network takes: what following it has told, and the check at its entry.

`torch.export` computes with the sizes of its example as with constants wherever a network makes
numbers of them. So each axis but the batch is either known to be free, or fixed.

Layer: stages.  Source: none; torch.export's symbolic shapes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from offramp._core.errors import InputError, UnsupportedError

_MOST = 4096  # shapes that are remembered as allowed

#: A number: fixed. None: free. A text: free, but the same wherever it stands.
Size = int | str | None


@final
@dataclass(frozen=True, kw_only=True)
class Length:
    """A size that a network was followed with as an unknown.

    Args:
        example: What it was in the example.
        low: The smallest for which the graph holds.
        high: The largest, or None.
    """

    example: int
    low: int
    high: int | None

    def takes(self, size: int) -> bool:
        """Whether it is within the range."""
        return self.low <= size and (self.high is None or size <= self.high)


@final
@dataclass(frozen=True, kw_only=True)
class Followed:
    """What following a network told about the sizes of its inputs.

    Args:
        shapes: Of each input without the batch: numbers, and the names of unknowns.
        lengths: The unknowns by name.
        conditions: What was assumed of them: expressions of sympy without other unknowns.
    """

    shapes: tuple[tuple[Size, ...], ...]
    lengths: Mapping[str, Length]
    conditions: tuple[Any, ...] = ()

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether the graph is that of the network where the unknowns have these sizes."""
        return all(self.lengths[name].takes(size) for name, size in sizes.items()) and all(
            self.meets(condition, sizes) for condition in self.conditions
        )

    def meets(self, condition: Any, sizes: Mapping[str, int]) -> bool:  # noqa: ANN401  (of sympy)
        """Whether a condition is true of sizes; an unknown without one is as in the example."""
        given = {name: length.example for name, length in self.lengths.items()} | dict(sizes)
        return bool(condition.subs({s: given[str(s)] for s in condition.free_symbols}))


def followed_sizes(program: Any, inputs: Sequence[fx.Node], *, rows: int) -> Followed:  # noqa: ANN401
    """What a program says about the sizes of its inputs; its own checks are lost with its form.

    Args:
        program: A `torch.export.ExportedProgram`.
        inputs: Its placeholders of inputs.
        rows: The batch size with which it was followed.

    Raises:
        UnsupportedError: If a size is computed from others.
    """
    shapes = [tuple(map(_size_of, node.meta["val"].shape[1:])) for node in inputs]
    unknown = {
        str(size.node.expr): size
        for node in inputs
        for size in node.meta["val"].shape[1:]
        if not isinstance(size, int)
    }
    lengths = {}
    for name, size in unknown.items():
        if not size.node.expr.is_Symbol:
            raise UnsupportedError(f"A size of the inputs has to be {size.node.expr}.")
        bounds = program.range_constraints.get(size.node.expr)
        low, high = (None, None) if bounds is None else map(_whole, (bounds.lower, bounds.upper))
        lengths[name] = Length(example=size.node.hint, low=low or 0, high=high)
    size = inputs[0].meta["val"].shape[0]
    batch, environment = size.node.expr, size.node.shape_env
    conditions = [
        environment.replace(guard.expr).subs({batch: rows}) for guard in environment.guards
    ]
    return Followed(
        shapes=tuple(shapes),
        lengths=lengths,
        conditions=tuple(
            condition
            for condition in conditions
            if condition.free_symbols and {str(s) for s in condition.free_symbols} <= set(lengths)
        ),
    )


def _size_of(size: Any) -> Size:  # noqa: ANN401  (int or SymInt)
    return size if isinstance(size, int) else str(size.node.expr)


def _whole(bound: Any) -> int | None:  # noqa: ANN401  (of sympy)
    """A bound of a range, None if there is none."""
    return int(bound) if isinstance(bound, int) or bound.is_Integer else None


@final
class Sizes(nn.Module):
    """Refuses what a cut network would answer otherwise than the network it was made of.

    It is the first thing that the first segment runs, and so goes with it wherever it is copied,
    joined or compiled. A shape is looked at once; afterwards it is known.

    Args:
        names: Of the inputs, for messages.
        shapes: What each axis but the batch may be.
        followed: What is known of the names in `shapes`.
        tried: Sizes of the unknowns that are known to be right, whatever `followed` says.
    """

    _is_impure = True  # nothing reads what it gives: fx must not take it for dead

    def __init__(
        self,
        names: Sequence[str],
        shapes: Sequence[Sequence[Size]],
        followed: Followed,
        tried: Mapping[str, frozenset[int]],
    ) -> None:
        super().__init__()
        self.shapes = tuple(map(tuple, shapes))
        self._names = list(names)
        self._followed, self._tried = followed, tried
        self._allowed: set[tuple[torch.Size, ...]] = set()
        self.eval()

    def forward(self, *given: Tensor | fx.Proxy) -> None:
        """Raise `InputError` if a tensor has a size for which the segments do not hold."""
        if torch.compiler.is_compiling():  # also while it is exported: no shape to remember
            self._check_numbers(given)  # type: ignore[arg-type]
            return
        found = tuple([tensor.shape for tensor in given])
        if found not in self._allowed:
            self._check(found, given)

    def _check(self, found: tuple[Any, ...], given: Sequence[Tensor | fx.Proxy]) -> None:
        tensors = [tensor for tensor in given if isinstance(tensor, Tensor)]
        if not tensors:  # traced, to find layers
            return
        self._check_numbers(tensors)
        self._check_lengths(tensors)
        if len(self._allowed) >= _MOST:
            self._allowed.clear()
        self._allowed.add(found)

    def _check_numbers(self, tensors: Sequence[Tensor]) -> None:
        for name, tensor, shape in zip(self._names, tensors, self.shapes, strict=True):
            if tensor.dim() != len(shape) + 1:
                raise InputError(
                    _sentence(
                        f"{self._called(name)} must have {len(shape) + 1} axes, as the example had "
                        f"with which the network was cut, got the shape {tuple(tensor.shape)}."
                    )
                )
            for axis, (size, wanted) in enumerate(zip(tensor.shape[1:], shape, strict=True), 1):
                if isinstance(wanted, int) and size != wanted:
                    raise InputError(
                        _sentence(
                            f"{self._called(name)} must have size {wanted} along axis {axis}, got "
                            f"{size}: the network was cut with an example of size {wanted} there, "
                            "and no other size is known to be answered as the network does. Pad or "
                            f"resize to {wanted}, or cut it with an example of size {size}."
                        )
                    )

    def _check_lengths(self, tensors: Sequence[Tensor]) -> None:
        found: dict[str, int] = {}
        first: dict[str, str] = {}
        for name, tensor, shape in zip(self._names, tensors, self.shapes, strict=True):
            for axis, (size, wanted) in enumerate(zip(tensor.shape[1:], shape, strict=True), 1):
                if not isinstance(wanted, str):
                    continue
                where = f"axis {axis} of {self._called(name)}"
                if found.setdefault(wanted, size) != size:
                    raise InputError(
                        _sentence(
                            f"{first[wanted]} and {where} must have the same size, got "
                            f"{found[wanted]} and {size}."
                        )
                    )
                first.setdefault(wanted, where)
        if all(size in self._tried[name] for name, size in found.items()):
            return
        for name, size in found.items():
            length = self._followed.lengths[name]
            if size not in self._tried[name] and not length.takes(size):
                most = "" if length.high is None else f" and at most {length.high}"
                raise InputError(
                    _sentence(
                        f"{first[name]} must have a size of at least {length.low}{most}, got "
                        f"{size}: for no other does the cut network hold. Pad it or cut it off."
                    )
                )
        if not self._followed.holds(found):
            each = ", ".join(f"{size} along {first[name]}" for name, size in found.items())
            raise InputError(
                f"The cut network does not hold for the size {each}: the network would take "
                "another way there than for the example with which it was cut. Pad or resize, or "
                "cut it with an example of that size."
            )

    def _called(self, name: str) -> str:
        return f"{name!r}" if len(self._names) > 1 else "the batch"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def put_at_entry(segment: fx.GraphModule, sizes: Sizes) -> None:
    """Let a segment check its inputs before anything else."""
    name = "sizes"
    while hasattr(segment, name):
        name += "_"
    graph = segment.graph
    given = [node for node in graph.nodes if node.op == "placeholder"]
    segment.add_module(name, sizes)
    with graph.inserting_after(given[-1]):
        graph.call_module(name, tuple(given))
    segment.recompile()


def sizes_of(segment: nn.Module) -> Sizes | None:
    """The check at the entry of a segment, or None where there is none."""
    return next((part for part in segment.children() if isinstance(part, Sizes)), None)
