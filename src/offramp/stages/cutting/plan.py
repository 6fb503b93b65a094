"""Where a network can be cut, and what has to be carried across.

A position p lies between the p-th and the next operation that depends on the input. A tensor is
live there if it was computed before and is read after. All live tensors are carried; that works if
each of them has the batch along one axis of its own, which symbolic shapes tell.

A layer that runs more than once ends more than once: "layer@2" is the end of its second run,
counted from 1, and "layer" that of its last.

Layer: stages.  Source: none; liveness as compilers define it.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, final

from torch import Tensor, fx, nn

from offramp._core.errors import InputError, UnknownNameError, UnsupportedError
from offramp.stages.cutting.graph import Captured, calls_of

_NEAR = 3
_RUN = re.compile(r"(.+)@(\d+)")


def is_run(name: str) -> bool:
    """True for the name of one of several runs of a layer.

    >>> is_run("layer@2"), is_run("layer")
    (True, False)
    """
    return _RUN.fullmatch(name) is not None


@final
class Plan:
    """Positions, names and live tensors of a captured network.

    Args:
        captured: The network's graph.
        net: The network; only names are read.
        keep: Inputs that are carried along to the last cut, behind the others.
    """

    def __init__(self, captured: Captured, net: nn.Module, keep: Sequence[fx.Node] = ()) -> None:
        self.captured = captured
        self.end = len(captured.data)
        self._known = [name for name, _ in net.named_modules(remove_duplicate=False) if name]
        index = {node: k for k, node in enumerate(captured.data)}
        self._defined = {**dict.fromkeys(captured.inputs, -1), **index}
        self._last_use = {
            node: max((index[user] for user in node.users if user in index), default=-1)
            for node in self._defined
        }
        self._last_use[captured.logits] = self.end
        self._keep = tuple(keep)
        self._mixes = self._first_mixing()
        self.positions = self._positions()

    def carried(self, position: int) -> tuple[fx.Node, ...]:
        """Live tensors: that of the last operation, others as they were computed, those kept."""
        live = [
            node
            for node, at in self._defined.items()
            if at < position and self._last_use[node] >= position and node not in self._keep
        ]
        main = self.captured.data[position - 1]
        return (main, *(node for node in live if node is not main), *self._keep)

    def lifetimes(self) -> dict[fx.Node, tuple[int, int]]:
        """For each tensor which operation gives it, -1 for inputs, and which reads it last."""
        return {node: (at, self._last_use[node]) for node, at in self._defined.items()}

    def batch_axis(self, node: fx.Node) -> int:
        """The axis of a carried tensor that is the batch."""
        shape = node.meta["val"].shape
        return next(axis for axis, size in enumerate(shape) if self._is_batch(size))

    def example_shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a carried tensor without the batch, for the example's lengths."""
        axis = self.batch_axis(node)
        return tuple(example_size(s) for k, s in enumerate(node.meta["val"].shape) if k != axis)

    def problem(self, position: int) -> str | None:
        """Why the network cannot be cut here, or None."""
        if self._mixes is not None:
            return self._mixes
        return next(filter(None, map(self._problem_of, self.carried(position))), None)

    def points(self) -> dict[int, tuple[str, ...]]:
        """Positions where the network can be cut, with the names of each.

        Names of one run among several come last, otherwise the outermost and shortest first.
        """
        names: dict[int, list[str]] = {}
        for name, position in self.positions.items():
            names.setdefault(position, []).append(name)
        return {
            position: tuple(sorted(names[position], key=_outermost))
            for position in sorted(names)
            if position < self.end and self.problem(position) is None
        }

    def why_none(self) -> str:
        """Why the network has no point where it can be cut."""
        inside = sorted({position for position in self.positions.values() if position < self.end})
        if not inside:
            return "it has no layer before the one that ends it"
        return str(self.problem(inside[0]))

    def locate(self, name: str) -> int:
        """The position after a layer.

        Raises:
            UnknownNameError: If the network has no such layer.
            InputError: If the layer computes nothing or is the last one.
            UnsupportedError: If the network cannot be cut there.
        """
        if name not in self._known and name not in self.positions:
            self._check_run(name)
            near = get_close_matches(name, self._known, n=_NEAR)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise UnknownNameError(
                f"The network has no layer {name!r}.{hint} cut_points lists where it can be cut."
            )
        if name not in self.positions:
            raise InputError(
                f"Layer {name!r} computes nothing in evaluation mode, so there is no point after "
                "it; name the layer before it."
            )
        position = self.positions[name]
        if position >= self.end:
            raise InputError(
                f"Layer {name!r} ends the network: an exit there is the network itself, which is "
                f"the last stage anyway. {self._nearest(position)}"
            )
        problem = self.problem(position)
        if problem is not None:
            kind = InputError if "no elements" in problem else UnsupportedError
            raise kind(
                f"The network cannot be cut after {name!r}: {problem}. {self._nearest(position)}"
            )
        return position

    def _check_run(self, name: str) -> None:
        """Raise `InputError` if a layer exists, but not that run of it."""
        parts = _RUN.fullmatch(name)
        if parts is None or parts[1] not in self._known:
            return
        layer = parts[1]
        runs = sum(1 for other in self.positions if is_run(other) and other.startswith(f"{layer}@"))
        if runs == 0:
            raise InputError(f"Layer {layer!r} runs at most once; name it {layer!r}, got {name!r}.")
        raise InputError(
            f"Layer {layer!r} runs {runs} times, so its runs are {layer + '@1'!r} to "
            f"{f'{layer}@{runs}'!r}, got {name!r}."
        )

    def _positions(self) -> dict[str, int]:
        found: dict[str, int] = {}
        runs: dict[str, dict[str, int]] = {}
        for k, node in enumerate(self.captured.data):
            for name in self.captured.paths[node]:
                found[name] = k + 1
            for name, call in calls_of(node).items():
                runs.setdefault(name, {})[call] = k + 1
        for name, ends in runs.items():
            if len(ends) > 1:
                numbered = enumerate(ends.values(), start=1)
                found |= {f"{name}@{run}": end for run, end in numbered}
        return {name: self._whole(position) for name, position in found.items()}

    def _whole(self, position: int) -> int:
        """Go past the parts of a result that is a tuple; they follow it at once."""
        data = self.captured.data
        producer = data[position - 1]
        if not isinstance(producer.meta.get("val"), tuple | list):
            return position
        while position < self.end and producer in data[position].all_input_nodes:
            position += 1
        return position

    def _nearest(self, position: int) -> str:
        points = self.points()
        before = [names[0] for at, names in points.items() if at < position][-1:]
        after = [names[0] for at, names in points.items() if at > position][:1]
        if not before + after:
            return "There is no point where it can be cut."
        return f"The nearest points that work: {', '.join(map(repr, before + after))}."

    def _first_mixing(self) -> str | None:
        """What makes one value of all examples, if anything does."""
        for node in self.captured.data:
            value = node.meta.get("val")
            if isinstance(value, Tensor) and sum(map(self._has_batch, value.shape)) != 1:
                return (
                    f"{self._named(node)} brings all examples of the batch together, so the "
                    "answer for one depends on the others"
                )
        return None

    def _problem_of(self, node: fx.Node) -> str | None:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return f"{self._named(node)} is no tensor, and is read further on"
        sizes = [size for size in value.shape if self._has_batch(size)]
        if len(sizes) != 1 or not self._is_batch(sizes[0]):
            shape = ", ".join(map(self._shown, value.shape))
            return (
                f"the tensor of {self._named(node)} has shape ({shape}) there, in which the "
                "examples are not one axis of their own (a region that works on windows, merged "
                "axes or pairs of examples), so examples cannot be dropped from it"
            )
        sides = self.example_shape(node)
        if 0 in sides:
            return f"the feature map of {self._named(node)} has no elements, its shape is {sides}"
        return None

    def _shown(self, size: Any) -> str:  # noqa: ANN401  (int or SymInt)
        """A size in words: the batch by its name, lengths as they are in the example."""
        if isinstance(size, int):
            return str(size)
        lengths, expr = self.captured.followed.lengths, size.node.expr
        known = {s: lengths[str(s)].example for s in expr.free_symbols if str(s) in lengths}
        return str(expr.subs(known)).replace(str(self.captured.batch), "batch")

    def _named(self, node: fx.Node) -> str:
        paths = self.captured.paths[node]
        return f"{node.name!r} in layer {paths[-1]!r}" if paths else f"{node.name!r}"

    def _has_batch(self, size: Any) -> bool:  # noqa: ANN401  (int or SymInt)
        return not isinstance(size, int) and self.captured.batch in size.node.expr.free_symbols

    def _is_batch(self, size: Any) -> bool:  # noqa: ANN401  (int or SymInt)
        return not isinstance(size, int) and bool(size.node.expr == self.captured.batch)


def _outermost(name: str) -> tuple[bool, int, int]:
    return is_run(name), name.count("."), len(name)


def example_size(size: Any) -> int:  # noqa: ANN401  (int or SymInt)
    """What a size was in the example; int() of an unknown one would fix it."""
    return size if isinstance(size, int) else int(size.node.hint)
