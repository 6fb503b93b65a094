"""The graph of a network, in the form that cutting needs: no side effects, one path per node.

`torch.export` follows the network once with a batch of unknown size, and sequences of unknown
length where it can. What comes out is changed so that nodes can be dealt out to segments:
operations in place become plain ones (and are marked, so that a segment may undo this where it is
safe), convolutions and batch-norms become calls of the network's own layers (so `runtime.fold`
can fold them), and what no answer needs is left out.

Layer: stages.  Source: none; torch.export's graph and its symbolic shapes.
"""

import operator
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from offramp._core.batch import batch_size, map_tensors, take_rows, to_device
from offramp._core.errors import FAILURES, InputError, UnsupportedError
from offramp._core.released import forget_operations
from offramp._core.types import Batch
from offramp.models import extract_logits
from offramp.stages.cutting.effects import without_dropout, without_effects
from offramp.stages.cutting.quiet import quiet, shortened
from offramp.stages.cutting.sizes import Followed, followed_sizes

_aten = torch.ops.aten
_ROWS = 2  # of the example; export takes a size of 0 or 1 for a constant
_SEQUENCES = (2, 3)  # axes; of inputs with more, such as pictures, no size is an unknown
_WEAKER = 0.75
_PREFIX = "net."
_CONSTANT = "constant_"

SIZE = _aten.sym_size.int
#: What takes no values of its first argument, and sizes from the others.
NEW = (
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
    _aten.new_empty.default,
)
_LAYERS: dict[Any, tuple[type[nn.Module], ...]] = {
    _aten.conv1d.default: (nn.Conv1d,),
    _aten.conv2d.default: (nn.Conv2d,),
    _aten.conv3d.default: (nn.Conv3d,),
    _aten.conv1d.padding: (nn.Conv1d,),
    _aten.conv2d.padding: (nn.Conv2d,),
    _aten.conv3d.padding: (nn.Conv3d,),
    _aten.batch_norm.default: (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
}


@final
@dataclass(frozen=True, kw_only=True)
class Captured:
    """A network as a graph.

    Args:
        inputs: The placeholders of the network's inputs; nothing else is a placeholder.
        data: Nodes computed from values of the input, in the order they run. The others are
            sizes and constants, and can be computed again anywhere.
        logits: The node whose value is the answer.
        objects: Parameters, buffers, constants and layers by the target that nodes name.
        batch: The symbol of the batch size in shapes.
        paths: For each node the names of the layers it belongs to, outermost first.
        followed: What is known of the sizes of its inputs.
    """

    inputs: tuple[fx.Node, ...]
    data: tuple[fx.Node, ...]
    logits: fx.Node
    objects: Mapping[str, Any]
    batch: Any
    paths: Mapping[fx.Node, tuple[str, ...]]
    followed: Followed


def rows_of(net: nn.Module, example: Batch) -> Batch:
    """Two examples to follow the network with, on its device; of one a second is made."""
    batch: Batch = example if isinstance(example, Tensor | Mapping) else tuple(example)
    n = batch_size(batch)
    if n == 0:
        raise InputError("example must hold at least one example, got 0.")
    where = next((p.device for p in net.parameters()), None)
    two: Batch = take_rows(batch, torch.arange(_ROWS) % n)
    if n == 1:  # two different ones, or it would not show if one had influence on the other
        two = map_tensors(two, _weakened)
    if where is not None:
        two = to_device(two, where)
    return two


def _weakened(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return torch.cat([tensor[:-1], tensor[-1:] * _WEAKER])


def capture(
    net: nn.Module, example: Batch, *, lengths: bool = True, classes: int | None = None
) -> Captured:
    """Follow a network.

    Args:
        net: In evaluation mode; stays as it is.
        example: Two rows, of `rows_of`.
        lengths: Whether to take the lengths of sequences for unknowns, where that can be done.
        classes: As `cut` takes them.

    Raises:
        InputError: If the network is in training mode.
        UnsupportedError: If it cannot be followed; the message says where.
    """
    check_evaluating(net)
    if lengths and any(map(is_sequence, _tensors(example))):
        try:
            return _functional(_export(net, example, classes, lengths=True), net)
        except UnsupportedError:
            pass  # it may be due to an unknown length
    return _functional(_export(net, example, classes, lengths=False), net)


def _functional(program: Any, net: nn.Module) -> Captured:  # noqa: ANN401  (an ExportedProgram)
    without_dropout(program.graph)
    if not without_effects(program.graph):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = program.run_decompositions({})
        if not without_effects(program.graph):
            raise UnsupportedError(
                "The network writes into tensors in a way that cannot be followed (in-place "
                "changes of views). Replace them by operations that return a new tensor."
            )
    return _captured(program, net)


def check_evaluating(net: nn.Module) -> None:
    """Raise `InputError` if any part of the network is in training mode."""
    training = [name or type(net).__name__ for name, part in net.named_modules() if part.training]
    if training:
        raise InputError(
            f"The network must be in evaluation mode, but {len(training)} of its parts are in "
            f"training mode, the first {training[0]!r}. Call net.eval() first."
        )


class _Logits(nn.Module):
    """The network as a function from tensors by position to its logits."""

    def __init__(self, net: nn.Module, names: Sequence[str] | None, classes: int | None) -> None:
        super().__init__()
        self.net = net
        self.names, self.classes = names, classes
        self.training = False

    def forward(self, *tensors: Tensor) -> Tensor:
        if self.names is None:
            return extract_logits(self.net(*tensors), self.classes)
        named = dict(zip(self.names, tensors, strict=True))
        return extract_logits(self.net(**named), self.classes)


def _tensors(batch: Batch) -> tuple[Tensor, ...]:
    if isinstance(batch, Tensor):
        return (batch,)
    return tuple(batch.values() if isinstance(batch, Mapping) else batch)


def _export(  # the ExportedProgram
    net: nn.Module, example: Batch, classes: int | None, *, lengths: bool
) -> Any:  # noqa: ANN401
    names, tensors = list(example) if isinstance(example, Mapping) else None, _tensors(example)
    shapes = (tuple(free_axes(tensor, lengths=lengths) for tensor in tensors),)
    try:
        with torch.no_grad(), quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch itself, about what it will change
            return torch.export.export(
                _Logits(net, names, classes), tensors, dynamic_shapes=shapes, strict=False
            )
    except InputError:
        raise
    except FAILURES as error:
        raise UnsupportedError(_explained(error)) from error


def is_sequence(tensor: Tensor) -> bool:
    """Whether a tensor's second axis may be the length of a sequence.

    >>> is_sequence(torch.zeros(2, 12)), is_sequence(torch.zeros(2, 3, 32, 32))
    (True, False)
    """
    return tensor.dim() in _SEQUENCES


def free_axes(tensor: Tensor, *, lengths: bool) -> dict[int, Any]:
    """What torch.export is to take for unknown: the batch, and the length of a sequence.

    A length that turns out to be a constant is left to be one. Pictures are followed with their
    sizes: with unknown ones that takes minutes where a network computes its padding from them.
    """
    found: dict[int, Any] = {0: torch.export.Dim("batch")}
    if lengths and is_sequence(tensor):
        found[1] = torch.export.Dim.AUTO
    return found


def _explained(error: Exception) -> str:
    text = str(error)
    where = _where(error)
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        return (
            f"The network decides by the values of its input what to compute{where}; such control "
            "flow has no fixed graph, so it cannot be cut. Replace it by torch.where, or give its "
            "exits as stages of your own."
        )
    if "batch" in text and ("pecializ" in text or "onstraints violated" in text):
        return (
            "The network treats the batch size as a constant, so it cannot be cut. Let it take "
            "sizes from x.shape[0] without int() or comparisons. torch.export says: "
            f"{shortened(text)}"
        )
    return f"The network cannot be followed by torch.export{where}: {shortened(text)}"


def _where(error: Exception) -> str:
    """The last line of the network's own code on the way to an error."""
    own = Path(torch.__file__).parent
    here = Path(__file__)
    found = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if own not in Path(frame.filename).parents
        and Path(frame.filename) != here
        and "jaxtyping" not in frame.filename
        and "beartype" not in frame.filename
        and frame.line
    ]
    if not found:
        return ""
    last = found[-1]
    return f" at {last.filename}:{last.lineno} ({last.line})"


def _captured(program: Any, net: nn.Module) -> Captured:  # noqa: ANN401
    graph: fx.Graph = program.graph
    inputs, objects = _bound(program, net)
    batch = inputs[0].meta["val"].shape[0].node.expr
    logits = next(n for n in graph.nodes if n.op == "output").args[0][-1]
    if not isinstance(logits, fx.Node) or logits.op == "placeholder":
        raise UnsupportedError("The network's logits do not depend on any computation of its own.")
    for node in list(graph.nodes):
        _simplify(node)
    paths = {node: _paths(node) for node in graph.nodes}
    layers = dict(net.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        _restore_layer(node, paths[node], layers, objects)
    forget_operations(inputs[0].meta["val"])
    return Captured(
        inputs=tuple(inputs),
        data=tuple(_data(graph, inputs, logits)),
        logits=logits,
        objects=objects,
        batch=batch,
        paths=paths,
        followed=followed_sizes(program, inputs, rows=_ROWS),
    )


def _bound(program: Any, net: nn.Module) -> tuple[list[fx.Node], dict[str, Any]]:  # noqa: ANN401
    """Turn the placeholders of weights into attributes; return those of inputs, and the weights."""
    own: dict[str, Tensor] = dict(net.named_parameters(remove_duplicate=False))
    own.update(net.named_buffers(remove_duplicate=False))
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    inputs: list[fx.Node] = []
    objects: dict[str, Any] = {}
    for node in list(program.graph.nodes):
        if node.op != "placeholder":
            continue
        spec = kinds[node.name]
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(node)
            continue
        target = (spec.target or "").removeprefix(_PREFIX)
        if target in own:
            value: Any = own[target]
        else:
            value = program.constants.get(spec.target)
            target = f"{_CONSTANT}{len(objects)}"
        if not isinstance(value, Tensor):
            raise UnsupportedError(
                f"The network uses {spec.target!r}, which is no tensor and cannot be shared "
                "among segments."
            )
        objects[target] = value
        node.op, node.target, node.args = "get_attr", target, ()
    for node in program.graph.nodes:
        if node.op == "get_attr" and node.target not in objects:
            objects[node.target] = operator.attrgetter(node.target)(program.graph_module)
    return inputs, objects


def _simplify(node: fx.Node) -> None:
    """Views that hold for any strides; the parts of a result follow it at once."""
    if node.target is _aten.view.default:
        # Rows that were dropped leave a tensor with other strides, where a view may be impossible.
        node.target = _aten.reshape.default
    elif isinstance(node.meta.get("val"), tuple | list):
        for user in reversed(list(node.users)):
            if user.target is operator.getitem:
                node.append(user)


def _paths(node: fx.Node) -> tuple[str, ...]:
    """Names of the layers a node belongs to, containers that are not called included."""
    stack = node.meta.get("nn_module_stack") or {}
    called = [path.removeprefix(_PREFIX) for path, _ in stack.values() if path.startswith(_PREFIX)]
    names: dict[str, None] = {}
    for path in called:
        parts = path.split(".")
        names.update(dict.fromkeys(".".join(parts[:k]) for k in range(1, len(parts) + 1)))
    return tuple(names)


def calls_of(node: fx.Node) -> dict[str, str]:
    """The called layers a node belongs to, each with what tells one run of it from another."""
    stack = node.meta.get("nn_module_stack") or {}
    return {
        path.removeprefix(_PREFIX): str(call)
        for call, (path, _) in stack.items()
        if path.startswith(_PREFIX)
    }


def _restore_layer(
    node: fx.Node,
    paths: Sequence[str],
    layers: Mapping[str, nn.Module],
    objects: dict[str, Any],
) -> None:
    kinds = _LAYERS.get(node.target)
    layer = layers.get(paths[-1]) if paths else None
    if kinds is None or type(layer) not in kinds or _is_special(layer):
        return
    objects[paths[-1]] = layer
    node.op, node.target, node.args, node.kwargs = "call_module", paths[-1], node.args[:1], {}


def _is_special(layer: nn.Module | None) -> bool:
    """True where calling the layer is more than its one operation."""
    hooks = layer is not None and (layer._forward_hooks or layer._forward_pre_hooks)
    return bool(hooks) or getattr(layer, "padding_mode", "zeros") != "zeros"


def _data(graph: fx.Graph, inputs: Sequence[fx.Node], logits: fx.Node) -> Iterator[fx.Node]:
    """Nodes that depend on values of the input and that the answer depends on, in order."""
    depends = set(inputs)
    for node in graph.nodes:
        if any(arg in depends for arg in _read(node)):
            depends.add(node)
    needed, waiting = {logits}, [logits]
    while waiting:
        node = waiting.pop()
        for arg in _read(node):
            if arg not in needed:
                needed.add(arg)
                waiting.append(arg)
    return (node for node in graph.nodes if node in depends & needed and node.op != "placeholder")


def _read(node: fx.Node) -> list[fx.Node]:
    """Arguments of which a node needs the values."""
    if node.target is SIZE:
        return []
    return node.all_input_nodes[1:] if node.target in NEW else node.all_input_nodes
