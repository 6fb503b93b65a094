"""The whole cascade as one graph: who visits which stage, each stage in a branch of its own.

Each example's place is a node of the tree of visit paths. The examples on their way to a stage are
found by their node, their rows gathered, and the stage's part of the graph, weights included,
stands in an `If` that runs only if there are any (`docs/adr/0020-one-onnx-file.md`).

Layer: bundle.  Source: methods.md 6; peers.md 6 (weights inside the branch).
"""

import numpy as np

from offramp.bundle.onnx.graph import FLOAT, INT, TRUTH, Scope, Value
from offramp.bundle.onnx.parts import Parts
from offramp.bundle.onnx.visit import Known, Visit, counted, either, positions
from offramp.runtime.plans import RAW


def write_cascade(parts: Parts, scope: Scope) -> tuple[Value, Value, Value]:
    """Write a cascade into a graph; return its outputs `log_probs`, `label` and `stage`.

    Args:
        parts: The cascade's parts.
        scope: The graph; it reads `parts.inputs`.
    """
    topology = parts.policy.topology
    ends = scope.constant([path[-1] for path in parts.paths])  # by node
    known = _start(parts, scope)
    everyone = known["place", RAW, 0].name
    known = Visit(parts, scope, everyone, known, everyone=True).write(topology.root)
    for stage in topology.active[1:]:
        heading = scope.op("Gather", ends, known["state", "node", 0].name)
        rows = positions(scope, scope.op("Equal", heading, scope.constant(stage)))
        then = Scope(f"stage.{stage}.{topology.names[stage]}")
        after = Visit(parts, then, rows, known).write(stage)
        known = either(scope, rows, then, known, after)
    return _results(scope, ends, known)


def _start(parts: Parts, scope: Scope) -> Known:
    row = (parts.classes,)
    n = scope.op("Shape", parts.inputs[0].name, start=0, end=1)  # (1,)
    shape = scope.op("Concat", n, scope.constant([1]), axis=0)  # (n, 1)
    nothing = scope.constant(np.full((1, *row), np.nan), np.float32)
    zeros = scope.constant(np.zeros((1, *row)), np.float32)
    node = scope.op("Expand", scope.constant([0]), n)
    void = Value(scope.op("Expand", zeros, shape), FLOAT, row)
    return {
        ("state", "node", 0): Value(node, INT),
        ("state", "answer", 0): Value(scope.op("Expand", nothing, shape), FLOAT, row),
        ("state", "clean", 0): Value(
            scope.op("Expand", scope.constant([True], np.bool_), n), TRUTH
        ),
        **{("state", f"logits.{k}", 0): void for k in parts.plans},
        **{("carry", RAW, i): value for i, value in enumerate(parts.inputs)},
        ("place", RAW, 0): Value(counted(scope, node), INT),
    }


def _results(scope: Scope, ends: str, known: Known) -> tuple[Value, Value, Value]:
    answer = known["state", "answer", 0]
    none = scope.op("IsNaN", scope.op("Gather", answer.name, scope.constant(0), axis=1))
    best = scope.op("ArgMax", answer.name, axis=1, keepdims=0)
    return (
        answer.named(scope.op("Identity", answer.name, name="log_probs")),
        Value(scope.op("Where", none, scope.constant(-1), best, name="label"), INT),
        Value(scope.op("Gather", ends, known["state", "node", 0].name, name="stage"), INT),
    )
