"""Making the graph of a network free of side effects, so that its nodes may be dealt out.

Layer: stages.  Source: none; what compilers call functionalisation, for the simple cases.
"""

import operator
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten
_DROPOUT = (
    _aten.dropout.default,
    _aten.dropout_.default,
    _aten.feature_dropout.default,
    _aten.feature_dropout_.default,
)


def without_dropout(graph: fx.Graph) -> None:
    """In evaluation mode it returns its argument itself, which its schema does not tell."""
    for node in list(graph.nodes):
        if node.target in _DROPOUT:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def without_effects(graph: fx.Graph) -> bool:
    """Make operations in place plain ones; False if one of them changes what others still read."""
    order = {node: k for k, node in enumerate(graph.nodes)}
    shares: dict[fx.Node, set[fx.Node]] = {}  # node -> all nodes that show the same memory
    for node in list(graph.nodes):
        if not _writes(node):
            shares[node] = _sharing(node, shares)
            continue
        base, plain = node.args[0], _plain(node.target)
        if plain is None or not isinstance(base, fx.Node):
            return False
        others = shares[base] - {base}
        if any(order[user] > order[node] for other in others for user in other.users):
            return False
        with graph.inserting_before(node):
            new = graph.create_node("call_function", plain, node.args, node.kwargs)
        new.meta = dict(node.meta)
        if not others and base.op == "call_function" and plain is not _aten.detach.default:
            new.meta["in_place"] = node.target
        order[new], shares[new] = order[node], {new}
        for user in [user for user in base.users if order[user] > order[node]]:
            user.replace_input_with(base, new)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    return True


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _plain(target: Any) -> Any:  # noqa: ANN401
    """The operation that returns what `target` writes into its first argument, or None."""
    name = target._schema.name.rpartition("::")[2]
    written = [
        arg.alias_info is not None and arg.alias_info.is_write for arg in target._schema.arguments
    ]
    if target.namespace != "aten" or not name.endswith("_") or sum(written) != 1 or not written[0]:
        return None
    packet = getattr(_aten, name.removesuffix("_"), None)
    return getattr(packet, target._overloadname, None)


def _sharing(node: fx.Node, shares: dict[fx.Node, set[fx.Node]]) -> set[fx.Node]:
    """All nodes known to show the same memory as this one, which joins them."""
    schema = node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None
    views = node.target is operator.getitem or (
        schema is not None and any(ret.alias_info is not None for ret in schema.returns)
    )
    group: set[fx.Node] = {node}
    for arg in node.all_input_nodes if views else ():
        group |= shares[arg]
    for member in group:
        shares[member] = group
    return group
