"""Writing an ONNX graph and its branches: operations, constants, and networks put in whole.

Layer: bundle.  Source: the specification of ONNX; it asks that names are unique over all branches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from offramp._core.errors import UnsupportedError

_UNNAMED = "any"  # of a size that is computed from lengths
MOST = 2**31 - 2**20  # bytes; a protobuf may have 2 GiB, and some are left for the operations
FLOAT, INT, TRUTH = 1, 7, 9  # onnx.TensorProto.FLOAT, INT64, BOOL


@final
@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of a graph, examples along its first axis.

    Args:
        name: In the graph.
        kind: The number that ONNX has for the type of its elements.
        row: Shape of one example; a free size by name.
    """

    name: str
    kind: int
    row: tuple[int | str, ...] = ()

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The type of its elements, as numpy has it."""
        from onnx import helper

        return np.dtype(helper.tensor_dtype_to_np_dtype(self.kind))

    def named(self, name: str) -> "Value":
        """A tensor of the same kind."""
        return Value(name, self.kind, self.row)


@final
class Scope:
    """A graph, or a branch of one, while it is written.

    What is computed or held in a scope can be read in the branches within it, and nowhere else.

    Args:
        prefix: What its names begin with; unique within the model.

    >>> scope = Scope("main")
    >>> scope.op("Add", "x", scope.constant([1.0], np.float32))
    'main/Add.2'
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._nodes: list[Any] = []
        self._held: list[Any] = []
        self._count = 0

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:  # noqa: ANN401
        """Add an operation of one output; return the output's name, which is `name` if given."""
        from onnx import helper

        result = name or self._new(kind)
        self._nodes.append(helper.make_node(kind, inputs, [result], name=result, **attributes))
        return result

    def constant(self, values: ArrayLike, dtype: Any = np.int64) -> str:  # noqa: ANN401
        """Hold an array; return its name."""
        from onnx import numpy_helper

        name = self._new("constant")
        self._held.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def splice(self, model: Any, given: Sequence[str], label: str) -> list[str]:  # noqa: ANN401
        """Put in a model, its weights held by this scope; return the names of its outputs.

        Args:
            model: An `onnx.ModelProto`.
            given: What stands for its inputs.
            label: For the names of what is in it.
        """
        from onnx import compose, inliner

        graph = inliner.inline_local_functions(model).graph
        prefix = self._new(label) + "/"
        names = {held.name: prefix + held.name for held in graph.initializer}
        names |= zip((value.name for value in graph.input), given, strict=True)
        compose.add_prefix_graph(graph, prefix, rename_inputs=False, inplace=True, name_map=names)
        self._nodes += graph.node
        self._held += graph.initializer
        return [value.name for value in graph.output]

    def branch(
        self,
        condition: str,
        then: "Scope",
        otherwise: "Scope",
        pairs: Sequence[tuple[Value, str]],
    ) -> list[Value]:
        """Go on with one of two scopes; return what comes out.

        Args:
            condition: Name of a truth value.
            then: Where it is true.
            otherwise: Where it is false.
            pairs: For each result the value in `then`, and what it is called in `otherwise`.
        """
        from onnx import helper

        results = [value.named(self._new("If")) for value, _ in pairs]
        node = helper.make_node(
            "If",
            [condition],
            [value.name for value in results],
            name=self._new("If"),
            then_branch=then.graph([value for value, _ in pairs]),
            else_branch=otherwise.graph([value.named(name) for value, name in pairs]),
        )
        self._nodes.append(node)
        return results

    def graph(self, outputs: Sequence[Value], inputs: Sequence[Value] = ()) -> Any:  # noqa: ANN401
        """The finished `onnx.GraphProto`; an output that was made elsewhere is passed on."""
        own = {name for node in self._nodes for name in node.output}
        results = [
            value if value.name in own else value.named(self.op("Identity", value.name))
            for value in outputs
        ]
        return self._made([_described(v) for v in inputs], [_described(v) for v in results])

    def _made(self, inputs: list[Any], outputs: list[Any]) -> Any:  # noqa: ANN401
        from onnx import helper

        return helper.make_graph(self._nodes, self.prefix, inputs, outputs, self._held)

    def _new(self, hint: str) -> str:
        self._count += 1
        return f"{self.prefix}/{hint}.{self._count}"


def values_of(described: Sequence[Any]) -> tuple[Value, ...]:
    """The inputs or outputs of an `onnx.GraphProto`."""
    kinds = [(value.name, value.type.tensor_type) for value in described]
    return tuple(
        Value(name, kind.elem_type, tuple(map(_size, kind.shape.dim[1:]))) for name, kind in kinds
    )


def _size(axis: Any) -> int | str:  # noqa: ANN401  (a protobuf)
    return int(axis.dim_value) if axis.HasField("dim_value") else axis.dim_param or _UNNAMED


def _described(value: Value) -> Any:  # noqa: ANN401
    from onnx import helper

    # Branches have different numbers of examples, so only the model's own are given a name; and
    # each network has its own names for lengths.
    inner = "/" in value.name
    row = [None if isinstance(size, str) and inner else size for size in value.row]
    return helper.make_tensor_value_info(value.name, value.kind, [None if inner else "batch", *row])


def check_fits(what: str, size: int) -> None:
    """Raise `UnsupportedError` if something is too large for one ONNX file.

    >>> check_fits("The cascade", 1_000_000)
    """
    if size > MOST:
        raise UnsupportedError(
            f"{what} takes {size / 2**30:.2f} GiB, and one ONNX file holds at most 2. Export a "
            "folder, in which each stage has files of its own, or use smaller networks."
        )
