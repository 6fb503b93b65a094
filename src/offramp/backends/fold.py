"""Making a network faster without changing what it computes: folded batch-norm, channels last.

Layer: backends.  Source: measured.md (2.6 times at batch 1, 1.3 at 128, for ResNet-110 on CPU);
folding is arithmetic: a batch-norm with fixed statistics is a scale and a shift of each channel.
With one example a tenth of a small network's time is Python between its layers: in a segment, whose
forward is a graph, the functions are called that the layers would call.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from offramp._core.errors import FAILURES
from offramp.stages.fusing.piece import Piece

#: Layers that keep a vector per example a vector.
_OF_VECTORS = (nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Identity)
_PAIRS = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))


def fold(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode, with batch-norms folded and convolution weights channels last.

    The trace only finds the pairs to fold; the copy runs the module's own `forward`. A module
    that cannot be traced keeps its batch-norms. Answers agree to rounding, not to the last bit.

    Args:
        module: Any network; it stays as it is.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    >>> fold(net)[1]
    Identity()
    """
    copied = copy.deepcopy(module).eval()
    for part in copied.parts() if isinstance(copied, Piece) else (copied,):
        fold_batch_norm(part)
        if isinstance(part, fx.GraphModule):
            call_functions(part)
    return copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def fold_batch_norm(module: nn.Module) -> int:
    """Fold, in place, each batch-norm that one convolution or linear layer feeds or reads alone.

    Next to a linear layer it is folded where vectors go through both for sure, that is after a
    `nn.Flatten`. A layer whose output is read elsewhere as well, or that runs more than once,
    stays as it is.

    Returns:
        How many were folded.
    """
    layers = dict(module.named_modules(remove_duplicate=False))
    names = _appearances(layers)
    folded = 0
    for before, after, vectors in _pairs(module):
        first: Any = module.get_submodule(before)
        second: Any = module.get_submodule(after)
        if names[id(layers[before])] != 1 or names[id(layers[after])] != 1:
            continue
        if _foldable(first, second):
            kept, gone, fused = before, after, fuse_conv_bn_eval(first, second)
        elif vectors and _fixed(second) and type(first) is nn.Linear:
            kept, gone, fused = before, after, fuse_linear_bn_eval(first, second)
        elif vectors and _fixed(first) and type(second) is nn.Linear:
            kept, gone, fused = after, before, _scaled_inputs(first, second)
        else:
            continue
        module.set_submodule(kept, fused)
        module.set_submodule(gone, nn.Identity())
        folded += 1
    return folded


def call_functions(segment: fx.GraphModule) -> None:
    """Call, in place, functions instead of convolutions and batch-norms, and no identity at all.

    What it gives stays the same, to the last bit. A layer with hooks or of a derived class stays.

    Args:
        segment: In evaluation mode, for good: batch-norms use the statistics that they have.
    """
    for node in list(segment.graph.nodes):
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        layer = segment.get_submodule(str(node.target))
        if layer._forward_hooks or layer._forward_pre_hooks:
            continue
        if type(layer) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            segment.graph.erase_node(node)
        elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
            rest = (layer.stride, layer.padding, layer.dilation, layer.groups)
            _call(segment, node, torch.conv2d, [layer.weight, layer.bias], rest)
        elif type(layer) is nn.BatchNorm2d and layer.running_mean is not None:
            held = [layer.weight, layer.bias, layer.running_mean, layer.running_var]
            on_gpu = torch.backends.cudnn.enabled
            _call(segment, node, torch.batch_norm, held, (False, 0.0, layer.eps, on_gpu))
    segment.delete_all_unused_submodules()
    segment.recompile()


def _call(
    segment: fx.GraphModule,
    node: fx.Node,
    function: Callable[..., Tensor],
    held: Sequence[Tensor | None],
    rest: tuple[Any, ...],
) -> None:
    """Make of the call of a layer that of a function of its input, its tensors, and the rest."""
    names = list[str | None]()
    for k, tensor in enumerate(held):
        if tensor is None:
            names.append(None)
            continue
        name = f"{node.target}_{k}".replace(".", "_")  # without dots it is found in one step
        while hasattr(segment, name):
            name += "_"
        if isinstance(tensor, nn.Parameter):
            segment.register_parameter(name, tensor)
        else:
            segment.register_buffer(name, tensor)
        names.append(name)
    with segment.graph.inserting_before(node):
        given = [name and segment.graph.get_attr(name) for name in names]
    node.op, node.target, node.args = "call_function", function, (*node.args, *given, *rest)


def _fixed(norm: nn.Module) -> bool:
    """A batch-norm of vectors that does what its stored statistics say."""
    return type(norm) is nn.BatchNorm1d and norm.running_mean is not None and not norm.training


def _scaled_inputs(norm: nn.BatchNorm1d, linear: nn.Linear) -> nn.Linear:
    """A linear layer that standardizes its inputs itself."""
    scale = (norm.get_buffer("running_var") + norm.eps).rsqrt()
    shift = -norm.get_buffer("running_mean") * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    made = nn.Linear(linear.in_features, linear.out_features)
    bias = 0 if linear.bias is None else linear.bias
    made.weight = nn.Parameter((linear.weight * scale).detach())
    made.bias = nn.Parameter((linear.weight @ shift + bias).detach())
    return made.eval()


def _pairs(module: nn.Module) -> list[tuple[str, str, bool]]:
    """Names of layers of which the second reads the first's output, and nothing else does.

    With each pair: whether vectors, one per example, go through it for sure.
    """
    try:
        graph = fx.Tracer().trace(module)
    except FAILURES:
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    runs = Counter(node.target for node in calls)
    return [
        (str(given.target), str(node.target), _reads_vectors(module, given))
        for node in calls
        for given in node.all_input_nodes
        if given.op == "call_module"
        and len(given.users) == runs[node.target] == runs[given.target] == 1
    ]


def _reads_vectors(module: nn.Module, node: fx.Node) -> bool:
    """True if a layer gets what a flattening gave, through layers that keep vectors."""
    while node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        if type(layer) is nn.Flatten:
            return layer.start_dim == 1 and layer.end_dim == -1
        if type(layer) not in _OF_VECTORS or len(node.all_input_nodes) != 1:
            return False
        node = node.all_input_nodes[0]
    return False


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    kinds = any(type(conv) is first and type(norm) is second for first, second in _PAIRS)
    return kinds and norm.running_mean is not None and not norm.training


def _appearances(layers: dict[str, nn.Module]) -> Counter[int]:
    """How many names each module has; one with two names may run twice."""
    return Counter(id(layer) for layer in layers.values())
