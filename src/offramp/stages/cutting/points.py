"""The points at which a network can be cut, with what lies before each and what is carried.

Layer: stages.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import fx, nn

from offramp._core.errors import UnsupportedError
from offramp._core.released import released
from offramp._core.types import Batch
from offramp.stages.cutting.along import going_along
from offramp.stages.cutting.cut import answer, input_names
from offramp.stages.cutting.graph import capture, rows_of
from offramp.stages.cutting.layout import Layouts
from offramp.stages.cutting.plan import Plan
from offramp.stages.cutting.segments import Emission
from offramp.stages.operations import Operations, plain_attention


@final
@dataclass(frozen=True, kw_only=True)
class CutPoint:
    """A place after a layer.

    Args:
        name: The layer that ends here, the outermost if several do; "layer@2" is the second of
            several runs of a layer, counted from 1, and "layer" is its last one.
        aliases: Names of the others.
        shape: Of the tensor that the layer gave, for one example; what a head reads. A
            `LayerShape`, which knows what the layer tells of its axes.
        live: Shapes for one example of all tensors that are carried, that one first.
        flops: Floating-point operations for one example up to here; a multiply-add counts as 2.
        share: What part of the whole network's that is, in [0, 1]; 0 where none can be counted.
        along: How many of the tensors carried beside the first only go along, such as masks.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    live: tuple[tuple[int, ...], ...]
    flops: float
    share: float
    along: int = 0


@released()
def cut_points(net: nn.Module, example: Batch, *, classes: int | None = None) -> list[CutPoint]:
    """List where a network can be cut, in the order in which it runs.

    Operations are counted as `measure_flops` does.

    Args:
        net: In evaluation mode; stays as it is.
        example: Some raw input.
        classes: As for `cut`, where the network returns several tensors.

    Raises:
        InputError: If the network is in training mode or does not run on the example, or which of
            several tensors are its logits is not known.
        UnsupportedError: If it cannot be followed, or has no such place: the message says why. If
            its operations cannot be counted, by an operator of torch that is named.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> [(p.name, p.shape, p.flops) for p in cut_points(net, torch.zeros(1, 4))]
    [('0', (8,), 64.0), ('1', (8,), 64.0)]
    """
    two = rows_of(net, example)
    answer(net, two, classes)
    plan = Plan(capture(net, two, classes=classes), net)
    points = plan.points()
    if not points:
        raise UnsupportedError(f"The network can be cut nowhere: {plan.why_none()}.")
    layouts = Layouts(plan, net, two, input_names(two))
    flops = _cumulative_flops(plan, two)
    whole = max(flops[-1], 1.0)
    passing = going_along(plan, flops)
    found = []
    for position, names in points.items():
        carried = plan.carried(position)
        live = tuple(plan.example_shape(node) for node in carried)
        found.append(
            CutPoint(
                name=names[0],
                aliases=names[1:],
                shape=layouts.shape(position),
                live=live,
                flops=flops[position - 1],
                share=flops[position - 1] / whole,
                along=sum(node in passing for node in carried[1:]),
            )
        )
    return found


def _cumulative_flops(plan: Plan, two: Batch) -> list[float]:
    """Floating-point operations of one example up to and with each operation."""
    names = input_names(two)
    whole = Emission(plan, 0, plan.end, names)
    tensors = [two[name] for name in names] if isinstance(two, dict) else two
    given = (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors)
    with torch.no_grad(), plain_attention(), Operations() as operations:
        counting = _Counting(whole.module(), operations)
        counting.run(*given)
    return [counting.after[whole.nodes[node].name] / len(given[0]) for node in plan.captured.data]


class _Counting(fx.Interpreter):
    """Runs a graph and notes how many operations were counted by the end of each node."""

    def __init__(self, module: fx.GraphModule, operations: Operations) -> None:
        super().__init__(module)
        self.operations = operations
        self.after: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401  (the value of the node)
        result = super().run_node(n)
        self.after[n.name] = self.operations.total
        return result
