"""Segments: the parts of a cut network as modules that run one after the other.

A segment reads what is carried across the cut before it and gives what is carried across the next.
Sizes and constants are computed anew where they are needed, the batch size from the first tensor
that comes in, lengths from whichever has them. Parameters and layers are the network's own
objects, not copies.

Layer: stages.  Source: none.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, final

import torch
from torch import fx
from torch.fx.node import map_aggregate

from offramp._core.errors import UnsupportedError
from offramp.stages.cutting.graph import NEW, SIZE
from offramp.stages.cutting.plan import Plan

_aten = torch.ops.aten
#: The same operations by functions of torch that are called without Python between.
_DIRECT: dict[Any, Callable[..., Any]] = {
    _aten.relu.default: torch.relu,
    _aten.relu_.default: torch.relu_,
    _aten.add.Tensor: torch.add,
    _aten.mul.Tensor: torch.mul,
    _aten.cat.default: torch.cat,
    _aten.flatten.using_ints: torch.flatten,
    _aten.linear.default: torch.nn.functional.linear,
}
_ARITHMETIC = {"Mul": operator.mul, "Add": operator.add, "FloorDiv": operator.floordiv}


def build_segments(
    plan: Plan, positions: Sequence[int], names: Sequence[str]
) -> list[fx.GraphModule]:
    """Segments between the start, the given positions and the end.

    Args:
        plan: Of the network.
        positions: Rising, each one where the network can be cut.
        names: Names of the network's inputs.
    """
    bounds = [0, *positions, plan.end]
    return [Emission(plan, start, end, names).module() for start, end in pairwise(bounds)]


@final
class Emission:
    """Writes the graph of one segment; `nodes` maps the network's nodes to the segment's."""

    def __init__(self, plan: Plan, start: int, end: int, names: Sequence[str]) -> None:
        self._plan, self._captured = plan, plan.captured
        self._graph = fx.Graph()
        self._sizes: dict[Any, fx.Node] = {}
        self._device: fx.Node | None = None
        self._entered: dict[fx.Node, None] = {}
        self.nodes: dict[fx.Node, Any] = {}
        self._enter(start, names)
        for node in self._captured.data[start:end]:
            self._emit(node)
        self._leave(end)

    def module(self) -> fx.GraphModule:
        """The segment."""
        root: dict[str, Any] = {}
        for node in self._graph.nodes:
            if node.op in ("get_attr", "call_module"):
                value = self._captured.objects[str(node.target)]
                node.target = _flat_name(str(node.target), value, root)
                root[node.target] = value
        segment = fx.GraphModule(root, self._graph, class_name="Segment")
        return segment.eval()

    def _enter(self, start: int, names: Sequence[str]) -> None:
        given = self._captured.inputs if start == 0 else self._plan.carried(start)
        names = names if start == 0 else [f"carry_{k}" for k in range(len(given))]
        self._incoming = [self._graph.placeholder(name) for name in names]
        for node, placeholder in zip(given, self._incoming, strict=True):
            axis = self._plan.batch_axis(node) if start else 0
            self.nodes[node] = self._moved(placeholder, 0, axis)
            self._entered[node] = None

    def _leave(self, end: int) -> None:
        if end == self._plan.end:
            self._graph.output(self.nodes[self._captured.logits])
            return
        carried = self._plan.carried(end)
        given = [self._moved(self._emit(n), self._plan.batch_axis(n), 0) for n in carried]
        self._graph.output(given[0] if len(given) == 1 else tuple(given))

    def _moved(self, node: fx.Node, source: int, destination: int) -> fx.Node:
        if source == destination:
            return node
        return self._graph.call_function(_aten.movedim.int, (node, source, destination))

    def _emit(self, node: fx.Node) -> Any:  # noqa: ANN401  (a node, or a size that is a number)
        if node not in self.nodes:
            if node.target is SIZE:
                self.nodes[node] = self._size(node)
            elif node.target in NEW:
                self.nodes[node] = self._new(node)
            else:
                for arg in node.all_input_nodes:
                    self._emit(arg)
                self.nodes[node] = self._copied(node)
        return self.nodes[node]

    def _copied(self, node: fx.Node) -> fx.Node:
        in_place = node.meta.get("in_place")
        safe = in_place is not None and node.args[0] not in self._entered
        target: Any = in_place if safe else node.target
        return self._graph.create_node(
            node.op,
            _DIRECT.get(target, target),
            map_aggregate(node.args, self._translated),
            map_aggregate(node.kwargs, self._translated),
            name=node.name,
        )

    def _new(self, node: fx.Node) -> fx.Node:
        """What takes only type and device of its first argument takes them from the input."""
        for arg in node.all_input_nodes[1:]:
            self._emit(arg)
        given = map_aggregate(node.args[1:], self._translated)
        kwargs = {"dtype": node.meta["val"].dtype}
        args = (self._incoming[0], *given)
        return self._graph.create_node("call_function", node.target, args, kwargs)

    def _translated(self, arg: Any) -> Any:  # noqa: ANN401
        if isinstance(arg, fx.Node):
            return self.nodes[arg]
        if isinstance(arg, torch.device):  # of the example; the segment may be moved
            if self._device is None:
                self._device = self._graph.call_function(getattr, (self._incoming[0], "device"))
            return self._device
        return arg

    def _size(self, node: fx.Node) -> Any:  # noqa: ANN401  (a node or a number)
        size = node.meta["val"]
        return size if isinstance(size, int) else self._computed(size.node.expr)

    def _computed(self, size: Any) -> Any:  # noqa: ANN401  (of sympy; a node or a number)
        """A size from the shapes of what comes in."""
        if size.is_Integer:
            return int(size)
        if size not in self._sizes:
            self._sizes[size] = self._read_size(size) or self._combined(size)
        return self._sizes[size]

    def _read_size(self, size: Any) -> fx.Node | None:  # noqa: ANN401  (of sympy)
        if size == self._captured.batch:
            return self._graph.call_function(SIZE, (self._incoming[0], 0))
        for node in self._entered:
            for axis, found in enumerate(node.meta["val"].shape):
                if not isinstance(found, int) and found.node.expr == size:
                    return self._graph.call_function(SIZE, (self.nodes[node], axis))
        return None

    def _combined(self, size: Any) -> fx.Node:  # noqa: ANN401  (of sympy)
        operation = _ARITHMETIC.get(type(size).__name__)
        if operation is None:
            raise UnsupportedError(
                f"The network uses a size of {size}, which its segments cannot know from what they "
                f"are given. The batch size is {self._captured.batch}."
            )
        parts = sorted(size.args, key=lambda part: bool(part.is_Integer))  # (batch, 4)
        if type(size).__name__ == "FloorDiv":
            parts = list(size.args)
        first, *others = map(self._computed, parts)
        for other in others:
            first = self._graph.call_function(operation, (first, other))
        return first  # type: ignore[no-any-return]


def _flat_name(target: str, value: object, taken: Mapping[str, object]) -> str:
    """A name without dots: to look up a layer level by level costs 3 % of a small network."""
    name = target.replace(".", "_")
    while taken.get(name, value) is not value:
        name += "_"
    return name
