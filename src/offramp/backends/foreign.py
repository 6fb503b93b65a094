"""Models of other runtimes that came in a file: looked at before anything runs them.

What offramp writes is one flat graph with its weights in it. All else is refused: names of other
files, graphs within graphs, functions and loops (which need not end), and tensors of a size that
is out of all proportion.

Layer: backends.
"""

import re
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from offramp._core.errors import FileFormatError

if TYPE_CHECKING:
    import onnx

MOST_NUMBERS = 2**29  # of all values in a model for one example
_SMALL = 1024  # numbers of a constant that may be a shape
_NESTED = re.compile(rb"<\s*(body|then_body|else_body|port_map|back_edges)\b")


def check_onnx(model: bytes, name: str) -> None:
    """Raise `FileFormatError` unless an ONNX model is one flat graph of a size that may be.

    Args:
        model: The content of its file.
        name: Whose it is, for messages.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx.external_data_helper import uses_external_data

    try:
        held = onnx.load_from_string(model)
    except DecodeError as error:
        raise FileFormatError(f"The model of {name} cannot be read: {error}") from error
    graph = held.graph
    attributes = [a for node in graph.node for a in node.attribute]
    nested = [a for a in attributes if a.HasField("g") or a.graphs]
    if nested or held.functions or held.training_info:
        raise FileFormatError(
            f"The model of {name} has branches, loops or functions; what offramp writes has none."
        )
    sparse = [a for a in attributes if a.HasField("sparse_tensor") or a.sparse_tensors]
    tensors = [t for a in attributes for t in (*([a.t] if a.HasField("t") else []), *a.tensors)]
    if (
        sparse
        or graph.sparse_initializer
        or any(map(uses_external_data, (*graph.initializer, *tensors)))
    ):
        raise FileFormatError(
            f"The model of {name} refers to other files, or has sparse tensors; what offramp "
            "writes has neither."
        )
    numbers = sum(_sizes(held))
    if numbers > MOST_NUMBERS:
        raise FileFormatError(
            f"The model of {name} makes {numbers} numbers for one example; more than "
            f"{MOST_NUMBERS} are not run."
        )


def _sizes(model: "onnx.ModelProto") -> Iterator[int]:
    """Numbers in each value whose shape follows from the model, sizes that are free taken as 1."""
    import onnx

    for constant in model.graph.initializer:
        if prod(constant.dims) > _SMALL:  # its values tell no shape, and would be copied
            constant.ClearField("raw_data")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError):
        return  # the runtime says what is wrong
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        yield prod(max(1, d.dim_value) for d in value.type.tensor_type.shape.dim)


def check_openvino(operations: bytes, name: str) -> None:
    """Raise `FileFormatError` where the operations of an OpenVINO model have a body, as loops have.

    >>> check_openvino(b'<net><layer type="Loop"><body></body></layer></net>', "x")
    Traceback (most recent call last):
    ...
    offramp._core.errors.FileFormatError: The model of x has branches or loops; they need not end.
    """
    if b"\0" in operations:  # UTF-16 and UTF-32, in which nothing would be found
        raise FileFormatError(f"The model of {name} must be written in UTF-8.")
    if _NESTED.search(operations):
        raise FileFormatError(f"The model of {name} has branches or loops; they need not end.")
