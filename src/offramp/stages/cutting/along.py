"""Which of the tensors that are carried across a cut only go along: masks, positions, contexts.

A skip connection is carried across the inside of its block; what goes along is carried across block
after block. The two are told apart by where a tensor comes from and how long it is needed, not by
its size: a mask of long texts is larger than what the layers give.

Layer: stages.  Source: none.
"""

from collections.abc import Sequence

from torch import fx, nn

from offramp.stages.cutting.graph import NEW, SIZE, Captured
from offramp.stages.cutting.plan import Plan

_LONG = 0.5  # of the network's operations; no block is so large a part, if there are at least two


def going_along(plan: Plan, flops: Sequence[float]) -> set[fx.Node]:
    """Tensors that go along with the network instead of being computed on.

    That is what is made of the input without weights and meets none, such as a mask, and what is
    carried, beside what the layers give, over more than half of the network's operations.

    Args:
        plan: Of the network.
        flops: Operations up to and with each node of `plan.captured.data`.
    """
    whole = flops[-1]
    found = _without_weights(plan.captured)
    for node, (first, last) in plan.lifetimes().items():
        before = flops[first] if first >= 0 else 0.0
        until = flops[last - 1] if last > 0 else 0.0
        if until - before > _LONG * whole:
            found.add(node)
    return found


def _without_weights(captured: Captured) -> set[fx.Node]:
    """What is computed of the input alone and is read by no operation that has weights."""
    nodes = list(captured.logits.graph.nodes)
    made = {*captured.inputs, *captured.data}
    weighted: set[fx.Node] = set()
    for node in nodes:
        own = node.op == "call_module" or _is_weight(node, captured)
        if own or any(arg in weighted for arg in node.all_input_nodes):
            weighted.add(node)
    weights = weighted - made
    found: set[fx.Node] = set()
    for node in reversed(nodes):
        if node in made and node not in weighted:
            readers = [user for user in node.users if user in made and not _of_shape(user, node)]
            if all(
                user in found or (user in weighted and not _has_weights(user, weights))
                for user in readers
            ):
                found.add(node)
    return found


def _is_weight(node: fx.Node, captured: Captured) -> bool:
    held = captured.objects.get(str(node.target)) if node.op == "get_attr" else None
    return isinstance(held, nn.Parameter)


def _of_shape(user: fx.Node, node: fx.Node) -> bool:
    """True where a shape is read, and no value."""
    return user.target is SIZE or (user.target in NEW and user.args[0] is node)


def _has_weights(user: fx.Node, weights: set[fx.Node]) -> bool:
    return user.op == "call_module" or any(arg in weights for arg in user.all_input_nodes)
