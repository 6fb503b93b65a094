"""A network as an ONNX model, with a batch size that is free, and lengths that are where they can.

Layer: backends.  Source: torch.onnx.export on torch.export's graph.
"""

import copy
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from offramp._core.batch import apply, flat
from offramp._core.errors import (
    FAILURES,
    InputError,
    MissingExtraError,
    OfframpError,
    UnsupportedError,
)
from offramp._core.released import released
from offramp._core.types import Batch
from offramp.backends.fold import fold_batch_norm
from offramp.backends.form import TensorSpec, axes_that_differ
from offramp.stages.cutting.graph import rows_of
from offramp.stages.cutting.sizes import followed_sizes

if TYPE_CHECKING:
    import onnx

_ROWS = 2  # of `rows_of`
INPUT, OUTPUT = "in.", "out."  # followed by 0, 1, ...
BATCH, LENGTH = "batch", "length"
_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")


@released()
def to_onnx(
    module: nn.Module, inputs: Batch, *, name: str, others: Sequence[Batch] = ()
) -> "onnx.ModelProto":
    """Export a network in evaluation mode, batch-norms folded, on the CPU.

    Inputs are called "in.0", "in.1"..., outputs "out.0"...; a mapping's in the order of its keys.
    The first axis of each is the batch size, "batch". Answers agree with PyTorch to rounding. Axes
    along which `others` differ are free as well, "length", or all of them are fixed: `has_lengths`.

    Args:
        module: The network, a segment of one, or a head; it stays as it is.
        inputs: What it reads; one example is enough. A tuple is passed as positional, a mapping
            as named arguments.
        name: Whose it is, for messages: "stage 'small'".
        others: The same with sequences of other lengths, which it takes as well.

    Raises:
        UnsupportedError: If the network cannot be followed, has an operator that ONNX lacks, or
            only takes one batch size; it gives `name` and the operator.
        InputError: If it takes or gives anything but tensors, or does not run on `inputs`.
        MissingExtraError: Without the extra "onnx".

    >>> model = to_onnx(nn.Linear(4, 3), torch.zeros(1, 4), name="stage 'tiny'")
    >>> [node.op_type for node in model.graph.node], model.graph.input[0].name
    (['Gemm'], 'in.0')
    """
    require_onnx()
    copied = copy.deepcopy(module).cpu().eval()
    fold_batch_norm(copied)
    two = rows_of(copied, inputs)
    wrapped = _Flat(copied, two)
    tensors = [tensor.cpu().contiguous() for tensor in flat(two)]
    outputs = _count(wrapped, tensors, name)
    free = axes_that_differ([flat(inputs), *map(flat, others)])
    if any(free):
        try:
            model = _exported(wrapped, tensors, outputs, free, name)
        except UnsupportedError:
            pass  # it may be due to an unknown length
        else:
            if all(_is_free(v, axes) for v, axes in zip(model.graph.input, free, strict=True)):
                return model
    return _exported(wrapped, tensors, outputs, ((),) * len(tensors), name)


def has_lengths(model: "onnx.ModelProto") -> bool:
    """Whether a model takes inputs of other sizes than one beside the batch size.

    >>> has_lengths(to_onnx(nn.Linear(4, 3), torch.zeros(1, 4), name="stage 'tiny'"))
    False
    """
    shapes = [value.type.tensor_type.shape for value in model.graph.input]
    return any(axis.dim_param for shape in shapes for axis in shape.dim[1:])


def _is_free(value: Any, axes: Sequence[int]) -> bool:  # noqa: ANN401  (a protobuf)
    return all(value.type.tensor_type.shape.dim[axis].dim_param for axis in axes)


def _exported(
    wrapped: nn.Module,
    tensors: Sequence[Tensor],
    outputs: int,
    free: Sequence[Sequence[int]],
    name: str,
) -> "onnx.ModelProto":
    unknown = [dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in free]
    try:
        with torch.no_grad(), _quietly(), _operators_read_once():
            # Followed here: the exporter would try in several ways, and print where each fails.
            batch = torch.export.Dim(BATCH)
            followed = torch.export.export(
                wrapped,
                tuple(tensors),
                dynamic_shapes=(tuple({0: batch, **axes} for axes in unknown),),
                strict=False,
            )
            _check_for_all(followed, name)
            program = torch.onnx.export(
                followed,
                dynamo=True,
                verbose=False,
                input_names=[f"{INPUT}{k}" for k in range(len(tensors))],
                output_names=[f"{OUTPUT}{k}" for k in range(outputs)],
            )
    except (*FAILURES, torch.onnx.OnnxExporterError) as error:
        raise UnsupportedError(_reason(name, error)) from error
    if program is None:
        raise UnsupportedError(f"{name} cannot be exported to ONNX: nothing came out.")
    return _tidied(program.model_proto, name)


def _check_for_all(followed: Any, name: str) -> None:  # noqa: ANN401  (an ExportedProgram)
    """Raise `UnsupportedError` where a graph holds only for lengths that fit into something."""
    names = set(followed.graph_signature.user_inputs)
    inputs = [node for node in followed.graph.nodes if node.name in names]
    sizes = followed_sizes(followed, inputs, rows=_ROWS)
    if any(type(condition).__name__ == "Equality" for condition in sizes.conditions):
        raise UnsupportedError(f"{name} takes some lengths only: {sizes.conditions}.")


def require_onnx() -> None:
    """Raise `MissingExtraError` where the packages that export needs are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx") from error


@final
class _Flat(nn.Module):
    """The network with tensors in and out."""

    def __init__(self, module: nn.Module, inputs: Batch) -> None:
        super().__init__()
        self.module = module
        self._form = TensorSpec.of(inputs)
        self.eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(flat(apply(self.module, self._form.pack(tensors))))


def _count(wrapped: nn.Module, tensors: Sequence[Tensor], name: str) -> int:
    try:
        with torch.no_grad():
            return len(wrapped(*tensors))
    except OfframpError:
        raise
    except FAILURES as error:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise InputError(
            f"{name} does not run on inputs of the shapes {shapes}: {error}"
        ) from error


def _reason(name: str, error: BaseException) -> str:
    cause: BaseException | None = error
    messages: list[str] = []
    while cause is not None:
        messages.append(str(cause))
        cause = cause.__cause__
    found = _OPERATOR.search("\n".join(messages))
    if found is not None:
        return (
            f"{name} cannot be exported to ONNX: it has no operator for {found[1]!r}. Write the "
            "network without it, or leave this stage to the backend 'eager' or 'compile'."
        )
    if "data-dependent" in messages[-1]:
        return (
            f"{name} cannot be exported to ONNX: it decides by the values of its input what to "
            "compute. Replace that by torch.where, or leave this stage to the backend 'eager'."
        )
    line = next((line for line in messages[-1].splitlines() if line.strip()), type(error).__name__)
    return f"{name} cannot be exported to ONNX: {line.strip()}"


def _tidied(model: Any, name: str) -> "onnx.ModelProto":  # noqa: ANN401  (a protobuf)
    """Names for the batch size and lengths, and nothing of the machine where it was exported."""
    graph = model.graph
    _name_ends(graph)
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if not first.dim_param or (first.dim_param != symbol and value in graph.output):
            raise UnsupportedError(
                f"{name} cannot be exported to ONNX: the first axis of {value.name!r} is "
                f"{first.dim_param or first.dim_value}, not the batch size."
            )
        first.dim_param = BATCH
    _name_lengths(graph, symbol)
    del graph.value_info[:], model.metadata_props[:], graph.metadata_props[:]
    for part in (*graph.input, *graph.output, *graph.node, *graph.initializer):
        part.ClearField("doc_string")
        del part.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    model.producer_name, model.producer_version = "offramp", ""
    return model  # type: ignore[no-any-return]


def _name_ends(graph: Any) -> None:  # noqa: ANN401  (a protobuf)
    """Give inputs and outputs their names: some exporters rename an input that is handed on."""
    ends = ((INPUT, graph.input), (OUTPUT, graph.output))
    names = {v.name: f"{kind}{k}" for kind, values in ends for k, v in enumerate(values)}
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
    _rename(graph, names)


def _rename(graph: Any, names: Mapping[str, str]) -> None:  # noqa: ANN401  (a protobuf)
    for node in graph.node:
        for held in (node.input, node.output):
            held[:] = [names.get(name, name) for name in held]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)


def _name_lengths(graph: Any, batch: str) -> None:  # noqa: ANN401  (a protobuf)
    """Call unknown sizes "length", "length_1"... and what is computed from them nothing."""
    names: dict[str, str] = {}
    for value in graph.input:
        for axis in value.type.tensor_type.shape.dim[1:]:
            if axis.dim_param:
                count = f"_{len(names)}" if names else ""
                names.setdefault(axis.dim_param, f"{LENGTH}{count}")
    names.pop(batch, None)
    for value in (*graph.input, *graph.output):
        for axis in value.type.tensor_type.shape.dim[1:]:
            if axis.dim_param:
                axis.dim_param = names.get(axis.dim_param, "")


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporter warns of what is absent and deprecated within itself, and prints graphs."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _operators_read_once() -> Iterator[None]:
    """The exporter parses the source of its 500 operators for every network: most of its time.

    They are the same each time, so within this they are read once; each caller still gets a
    registry that it may add to. Where PyTorch keeps them elsewhere, nothing changes but the time.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        read = ONNXRegistry.__dict__["from_torchlib"]
    except (ImportError, KeyError):
        yield
        return

    def from_torchlib(cls: Any, /, *versions: int, **named: int) -> object:  # noqa: ANN401
        kept = _operators(read.__func__, cls, versions, tuple(named.items()))
        registry = copy.copy(kept)
        registry.functions = {name: list(metas) for name, metas in kept.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = classmethod(from_torchlib)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = read  # type: ignore[method-assign]


@cache
def _operators(
    read: Callable[..., Any],
    cls: Any,  # noqa: ANN401
    versions: tuple[int, ...],
    named: tuple[tuple[str, int], ...],
) -> Any:  # noqa: ANN401  (of torch.onnx._internal)
    return read(cls, *versions, **dict(named))
