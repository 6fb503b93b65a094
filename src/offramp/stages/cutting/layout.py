"""What the graph of a network tells about its tensors: the axis of the features, the tokens read.

Convolutions and their norms have the features behind the batch, linear layers, embeddings and
attention in the last axis. From there the axis is followed through whatever moves it. Where two
tensors that are added disagree, nobody knows.

Layer: stages.  Source: none.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from offramp._core.types import Batch
from offramp.models import LayerShape
from offramp.stages.cutting.plan import Plan, example_size

_aten = torch.ops.aten
_MASK = "attention_mask"
_IDS = "input_ids"


def _packets(*names: str) -> frozenset[Any]:
    return frozenset(getattr(_aten, name) for name in names if hasattr(_aten, name))


_SECOND = _packets(
    *(f"{kind}{n}d" for kind in ("conv", "conv_transpose", "max_pool", "avg_pool") for n in "123"),
    *(f"{kind}{n}d" for kind in ("adaptive_avg_pool", "adaptive_max_pool") for n in "123"),
    *("convolution", "batch_norm", "group_norm", "instance_norm", "native_batch_norm"),
)
_LAST = _packets(
    *("linear", "embedding", "addmm", "mm", "rms_norm", "lstm", "gru"),
    "scaled_dot_product_attention",
)
_PRODUCTS = _packets("matmul", "bmm", "baddbmm", "einsum", "dot")
_RESHAPES = _packets("view", "reshape", "flatten", "unflatten", "_unsafe_view")
_PARTS = _packets("cat", "slice", "split", "chunk", "narrow", "pad", "constant_pad_nd")
_SUMS = _packets("mean", "sum")


@final
class Layouts:
    """What is known of the tensors of a network that has been followed.

    Args:
        plan: Of the network.
        net: The network; only its configuration and the padding of embeddings are read.
        example: What it was followed with.
        names: Of the network's inputs, in order.
    """

    def __init__(self, plan: Plan, net: nn.Module, example: Batch, names: Sequence[str]) -> None:
        self._plan, self._captured = plan, plan.captured
        self._axes = _feature_axes(self._captured.logits.graph.nodes)
        self._reading = self._own_reading()
        self._mask = _mask_of(net, example, names)
        self._inputs = dict(zip(names, self._captured.inputs, strict=True))

    def shape(self, position: int) -> LayerShape:
        """Shape of what the layer before a position gave, for one example."""
        node = self._plan.carried(position)[0]
        sides, batch = self._plan.example_shape(node), self._plan.batch_axis(node)
        axis = self._axes.get(node)
        if axis is None or axis == batch or len(sides) < 2:
            return LayerShape(sides)
        place = axis - (axis > batch)
        if place == 0:
            return LayerShape(sides, layout="channels_first")
        if place != len(sides) - 1:
            return LayerShape(sides)
        if len(sides) > 2 or batch != 0:
            return LayerShape(sides, layout="channels_last", pooling="mean")
        tokens = node.meta["val"].shape[1]
        mask, pad = self._mask_for(tokens)
        pooling = self._pooling_for(tokens)
        return LayerShape(sides, layout="channels_last", pooling=pooling, mask=mask, pad=pad)

    def _pooling_for(self, tokens: Any) -> str | None:  # noqa: ANN401  (int or SymInt)
        if self._reading is None:
            return None
        pooling, there = self._reading
        return pooling if same_size(tokens, there) else "mean"  # no class token is there yet

    def _mask_for(self, tokens: Any) -> tuple[str | None, int]:  # noqa: ANN401
        if self._mask is None:
            return None, 0
        name, pad = self._mask
        mask = self._inputs[name].meta["val"]
        here = mask.dim() == 2 and any(
            same_size(value.shape[1], tokens) for value in self._as_long_as(mask)
        )
        return (name, pad) if here else (None, 0)

    def _as_long_as(self, mask: Tensor) -> Iterable[Tensor]:
        """The mask, and inputs of its length: a graph that only looks it up never compares them."""
        yield mask
        for node in self._inputs.values():
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.dim() > 1:
                sizes = zip(value.shape[:2], mask.shape, strict=True)
                if all(example_size(one) == example_size(other) for one, other in sizes):
                    yield value

    def _own_reading(self) -> tuple[str, Any] | None:
        """How the network makes one vector of tokens `(m, t, d)` in the end, and their number."""
        found: tuple[str, Any] | None = None
        for node in self._captured.data:
            given = node.all_input_nodes[0] if node.all_input_nodes else None
            if given is None or self._axes.get(given) != 2:
                continue
            value = given.meta.get("val")
            if isinstance(value, Tensor) and value.dim() == 3:
                pooling = _pooling_of(node, value)
                found = found if pooling is None else (pooling, value.shape[1])
        return found


def same_size(one: Any, other: Any) -> bool:  # noqa: ANN401  (int or SymInt)
    """Whether two sizes are the same number, or the same unknown; nothing is decided thereby."""
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    if isinstance(one, int) or isinstance(other, int):
        return False
    return bool(one.node.expr == other.node.expr)


def _pooling_of(node: fx.Node, value: Tensor) -> str | None:
    packet, args = _packet(node), node.args
    if packet is _aten.select and args[1] == 1:
        length = value.shape[1]
        ends = {0: "first", -1: "last"}
        if isinstance(length, int):
            ends[length - 1] = "last"
        return ends.get(args[2]) if isinstance(args[2], int) else None
    if packet is _aten.slice and len(args) > 2 and args[1] == 1:
        begin, end = args[2], args[3] if len(args) > 3 else None
        if begin == 0 and end == 1:
            return "first"
        return "last" if begin == -1 else None
    if packet is _aten.index:
        indices = args[1]
        given = isinstance(indices, list | tuple) and [k is not None for k in indices]
        return "last" if given in ([True, True], [False, True]) else None
    if packet is _aten.gather:
        return "last" if args[1] == 1 else None
    if packet in _SUMS and len(args) > 1:
        return "mean" if args[1] in ([1], (1,), [-2], (-2,)) else None
    return None


def _mask_of(net: nn.Module, example: Batch, names: Sequence[str]) -> tuple[str, int] | None:
    """The input that tells real tokens from padding, and what stands there at padding."""
    if _MASK in names:
        return _MASK, 0
    ids = _IDS if _IDS in names else names[0] if len(names) == 1 else None
    given = example.get(_IDS) if isinstance(example, Mapping) else example
    if ids is None or not isinstance(given, Tensor) or given.is_floating_point():
        return None
    pads = (getattr(getattr(m, "config", None), "pad_token_id", None) for m in net.modules())
    rows = (m.padding_idx for m in net.modules() if isinstance(m, nn.Embedding))
    pad = next((pad for pad in (*pads, *rows) if isinstance(pad, int)), None)
    return None if pad is None else (ids, pad)


def _feature_axes(nodes: Iterable[fx.Node]) -> dict[fx.Node, int]:
    """For each tensor the axis of its features, where known."""
    found: dict[fx.Node, int] = {}
    computed: set[fx.Node] = set()  # of values of the input; the others are weights and constants
    for node in nodes:
        if node.op == "placeholder" or any(arg in computed for arg in node.all_input_nodes):
            computed.add(node)
            axis = _axis(node, found, computed)
            if axis is not None:
                found[node] = axis
    return found


def _axis(node: fx.Node, found: Mapping[fx.Node, int], computed: set[fx.Node]) -> int | None:
    value = node.meta.get("val")
    if isinstance(value, tuple | list):
        value = value[0] if value and isinstance(value[0], Tensor) else None
    if not isinstance(value, Tensor) or node.op == "placeholder":
        return None
    if node.op == "call_module":
        return 1
    packet, args = _packet(node), node.all_input_nodes
    if packet in _SECOND:
        return 1
    if packet in _LAST or (packet is _aten.layer_norm and len(node.args[1]) == 1):  # type: ignore[arg-type]
        return value.dim() - 1
    if packet in _PRODUCTS:  # with weights a linear layer; of two activations nobody knows
        return value.dim() - 1 if args[-1] not in computed else None
    first = args[0]
    there = first.meta.get("val")
    if first in found and isinstance(there, Tensor):
        moved = _MOVES.get(packet)
        if moved is not None:
            return moved(found[first], node.args, there)
        if packet in _RESHAPES:
            return _reshaped(found[first], there.shape, value.shape)
    return _agreed(node, value, found)


def _agreed(node: fx.Node, value: Tensor, found: Mapping[fx.Node, int]) -> int | None:
    """The axis of all arguments that have the axes of the result, if they agree."""
    parts = node.target is operator.getitem or _packet(node) in _PARTS
    axes = set()
    for arg in node.all_input_nodes:
        there = arg.meta.get("val")
        if isinstance(there, tuple | list):
            there = there[0]
        if arg in found and isinstance(there, Tensor) and there.dim() == value.dim():
            axis = found[arg]
            if parts or same_size(there.shape[axis], value.shape[axis]):
                axes.add(axis)
    return axes.pop() if len(axes) == 1 else None


def _packet(node: fx.Node) -> Any:  # noqa: ANN401  (an operation, whatever its arguments)
    return getattr(node.target, "overloadpacket", None)


def _reshaped(axis: int, before: Sequence[Any], after: Sequence[Any]) -> int | None:
    kept = axis + 1
    if len(after) >= kept and all(map(same_size, before[:kept], after[:kept])):
        return axis
    if kept == len(before) and same_size(before[-1], after[-1]):
        return len(after) - 1
    return None


def _transposed(axis: int, args: Sequence[Any], value: Tensor) -> int | None:
    one, other = (int(k) % value.dim() for k in args[1:3])
    return {one: other, other: one}.get(axis, axis)


def _permuted(axis: int, args: Sequence[Any], value: Tensor) -> int | None:
    return [k % value.dim() for k in args[1]].index(axis)


def _moved(axis: int, args: Sequence[Any], value: Tensor) -> int | None:
    if not isinstance(args[1], int) or not isinstance(args[2], int):
        return None
    order = [k for k in range(value.dim()) if k != args[1] % value.dim()]
    order.insert(args[2] % value.dim(), args[1] % value.dim())
    return order.index(axis)


def _unsqueezed(axis: int, args: Sequence[Any], value: Tensor) -> int | None:
    return axis + int(args[1] % (value.dim() + 1) <= axis)


def _dropped(axis: int, args: Sequence[Any], value: Tensor) -> int | None:
    if len(args) < 2 or not isinstance(args[1], int):
        return None
    gone = args[1] % value.dim()
    return None if gone == axis else axis - (gone < axis)


def _squeezed(axis: int, args: Sequence[Any], value: Tensor) -> int | None:
    if len(args) < 2 or not isinstance(args[1], int):
        return None
    size = value.shape[args[1]]
    return _dropped(axis, args, value) if isinstance(size, int) and size == 1 else axis


_MOVES: dict[Any, Callable[[int, Sequence[Any], Tensor], int | None]] = {
    _aten.transpose: _transposed,
    _aten.swapaxes: _transposed,
    _aten.permute: _permuted,
    _aten.movedim: _moved,
    _aten.unsqueeze: _unsqueezed,
    _aten.squeeze: _squeezed,
    _aten.select: _dropped,
}
