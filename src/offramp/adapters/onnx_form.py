"""ONNX models of others in the form that a bundle keeps: names, outputs, the order of classes.

Layer: adapters.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from offramp._core.errors import InputError, UnsupportedError
from offramp.backends import TensorSpec
from offramp.backends.onnx_export import BATCH, INPUT, OUTPUT

if TYPE_CHECKING:
    import onnx

Gives = Literal["logits", "probabilities", "labels"]

_TYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
_OWN = "own."  # in front of the names that a file came with
_WHOLE = frozenset({*range(2, 8), 9, 12, 13})  # element types of ONNX: integers and truth values


def free_sizes(given: Any) -> Mapping[str, Sequence[int]]:  # noqa: ANN401  (what a network reads)
    """Sizes beside the batch of what a transform gives, by name; "" where it is one tensor."""
    parts = given if isinstance(given, Mapping) else {"": given}
    for name, part in parts.items():
        if not isinstance(part, Tensor):
            raise InputError(
                f"The transform must give tensors, or a mapping of tensors by the names of the "
                f"inputs, got {type(part).__name__} {name!r}."
            )
    return {name: tuple(part.shape[1:]) for name, part in parts.items()}


def input_spec(
    model: "onnx.ModelProto", sizes: Mapping[str, Sequence[int]] | None, path: str
) -> TensorSpec:
    """What a model reads.

    Args:
        model: The model.
        sizes: Of `free_sizes`, where something is known of them.
        path: Its file, for messages.

    Raises:
        UnsupportedError: If the batch size is fixed, or an input is no tensor of numbers.
        InputError: If a size is free and nothing is known of it.
    """
    weights = {constant.name for constant in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in weights]
    if not values:
        raise UnsupportedError(f"{path} has no input.")
    shapes, free, dtypes = [], [], []
    for value in values:
        known = None if sizes is None else sizes.get(value.name, sizes.get(""))
        shape, axes = _shape(value, known, path)
        shapes.append(shape)
        free.append(axes)
        dtypes.append(_dtype(value, path))
    single = len(values) == 1
    return TensorSpec(
        kind="tensor" if single and (sizes is None or "" in sizes) else "mapping",
        names=() if single and (sizes is None or "" in sizes) else tuple(v.name for v in values),
        shapes=tuple(shapes),
        dtypes=tuple(dtypes),
        free=tuple(free) if any(free) else (),
    )


def check_labels_whole(model: "onnx.ModelProto", output: str, path: str) -> None:
    """Raise `InputError` unless an output holds whole numbers; a cast would cut off the others."""
    from onnx import TensorProto

    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    if kinds[output] not in _WHOLE:
        raise InputError(
            f"The labels of {path} must be whole numbers, got {output!r} of "
            f"{TensorProto.DataType.Name(kinds[output])}. output=(labels, confidences) says which "
            "outputs hold them."
        )


def rewritten(
    model: "onnx.ModelProto", gives: Gives, outputs: Sequence[str], order: Sequence[int] | None
) -> "onnx.ModelProto":
    """The model with inputs "in.0", ... and outputs "out.0", ..., in the order of the classes.

    Args:
        model: Stays as it is.
        gives: What its outputs hold; it stays what it is.
        outputs: Those that are read; others are left out.
        order: For each class of the answer, which of the model's it is.
    """
    from onnx import ModelProto, TensorProto, helper, numpy_helper

    made = ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    weights = {constant.name for constant in graph.initializer}
    values = [value for value in graph.input if value.name not in weights]
    _rename(graph, {value.name: f"{INPUT}{k}" for k, value in enumerate(values)})
    del graph.output[:]

    def add(kind: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        name = f"offramp.{len(graph.node)}"
        graph.node.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(values: Any, dtype: str) -> str:  # noqa: ANN401
        name = f"offramp.constant.{len(graph.initializer)}"
        graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    for k, name in enumerate(outputs):
        labels = gives == "labels" and k == 0
        kind = TensorProto.INT64 if labels else TensorProto.FLOAT
        found = add("Cast", f"{_OWN}{name}", to=kind)
        if order is not None and labels:  # those that name no class stay
            below, above = constant(0, "int64"), constant(len(order), "int64")
            inside = add("And", add("Not", add("Less", found, below)), add("Less", found, above))
            places = constant(np.argsort(order), "int64")
            turned = add("Gather", places, add("Where", inside, found, below), axis=0)
            found = add("Where", inside, turned, found)
        elif order is not None and gives != "labels":
            found = add("Gather", found, constant(order, "int64"), axis=1)
        graph.node.append(helper.make_node("Identity", [found], [f"{OUTPUT}{k}"]))
        graph.output.append(helper.make_tensor_value_info(f"{OUTPUT}{k}", kind, None))
    return made


def shaped(model: "onnx.ModelProto", outputs: TensorSpec) -> bytes:
    """The content of a model that says its shapes, as whoever joins models reads them there."""
    for value in model.graph.input:
        if value.name.startswith(INPUT):
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    for value, shape in zip(model.graph.output, outputs.shapes, strict=True):
        dims = value.type.tensor_type.shape.dim
        dims.add().dim_param = BATCH
        for size in shape:
            dims.add().dim_value = size
    content: bytes = model.SerializeToString()
    return content


def _rename(graph: "onnx.GraphProto", given: Mapping[str, str]) -> None:
    """Give inputs their new names, and put something in front of all others."""

    def new(name: str) -> str:
        return given.get(name, f"{_OWN}{name}") if name else name  # an empty one is no input

    del graph.value_info[:], graph.quantization_annotation[:]
    for value in (*graph.input, *graph.initializer):
        value.name = new(value.name)
    for node in graph.node:
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]


def _shape(
    value: "onnx.ValueInfoProto", known: Sequence[int] | None, path: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes beside the batch, and the axes along which they may be others."""
    dims = value.type.tensor_type.shape.dim
    if not dims:
        raise UnsupportedError(f"The input {value.name!r} of {path} has no axes.")
    if dims[0].HasField("dim_value"):
        raise UnsupportedError(
            f"The input {value.name!r} of {path} has a fixed batch of {dims[0].dim_value}. Export "
            "it again with a free first axis: torch.onnx.export(..., dynamic_shapes={'x': {0: "
            "torch.export.Dim('batch')}}), or dynamic_axes of older exporters."
        )
    free = tuple(k for k, dim in enumerate(dims) if k and not dim.HasField("dim_value"))
    if free and known is None:
        raise InputError(
            f"example must be given: sizes of the input {value.name!r} of {path} are free along "
            f"the axes {list(free)}."
        )
    if known is not None and len(known) != len(dims) - 1:
        raise InputError(
            f"The input {value.name!r} of {path} must have {len(dims)} axes, and the example has "
            f"the sizes {tuple(known)} beside the batch."
        )
    sizes = known if known is not None else [dim.dim_value for dim in dims[1:]]
    shape = tuple(
        int(sizes[k - 1]) if k in free else int(dim.dim_value) for k, dim in enumerate(dims) if k
    )
    return shape, free


def _dtype(value: "onnx.ValueInfoProto", path: str) -> str:
    from onnx import helper

    number = value.type.tensor_type.elem_type
    name = str(np.dtype(helper.tensor_dtype_to_np_dtype(number))) if number else "nothing"
    if name not in _TYPES:
        raise UnsupportedError(
            f"The input {value.name!r} of {path} must be a tensor of numbers, got {name}. Texts "
            "become numbers in a transform, such as Tokenize."
        )
    return name
