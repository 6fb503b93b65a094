"""The points at which a network can be cut, with what lies before each and what is carried.

Layer: stages.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from offramp._core.released import released
from offramp._core.types import Batch
from offramp.stages.cost import plain_attention
from offramp.stages.cut import answer, input_names
from offramp.stages.cut_graph import capture, rows_of
from offramp.stages.cut_plan import Plan
from offramp.stages.cut_segments import Emission


@final
@dataclass(frozen=True, kw_only=True)
class CutPoint:
    """A place after a layer.

    Args:
        name: The layer that ends here, the outermost if several do.
        aliases: Names of the others.
        shape: Of the tensor that the layer gave, for one example; what a head reads.
        live: Shapes for one example of all tensors that are carried, that one first.
        flops: Floating-point operations for one example up to here; a multiply-add counts as 2.
        share: What part of the whole network's that is, in [0, 1]; 0 where none can be counted.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    live: tuple[tuple[int, ...], ...]
    flops: float
    share: float


@released()
def cut_points(net: nn.Module, example: Batch) -> list[CutPoint]:
    """List where a network can be cut, in the order in which it runs.

    Operations are counted as `measure_flops` does.

    Args:
        net: In evaluation mode; stays as it is.
        example: Some raw input.

    Raises:
        InputError: If the network is in training mode or does not run on the example.
        UnsupportedError: If it cannot be followed.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> [(p.name, p.shape, p.flops) for p in cut_points(net, torch.zeros(1, 4))]
    [('0', (8,), 64.0), ('1', (8,), 64.0)]
    """
    two = rows_of(net, example)
    answer(net, two)
    plan = Plan(capture(net, two), net)
    flops = _cumulative_flops(plan, two)
    whole = max(flops[-1], 1.0)
    found = []
    for position, names in plan.points().items():
        live = tuple(plan.example_shape(node) for node in plan.carried(position))
        found.append(
            CutPoint(
                name=names[0],
                aliases=names[1:],
                shape=live[0],
                live=live,
                flops=flops[position - 1],
                share=flops[position - 1] / whole,
            )
        )
    return found


def _cumulative_flops(plan: Plan, two: Batch) -> list[float]:
    """Floating-point operations of one example up to and with each operation."""
    names = input_names(two)
    whole = Emission(plan, 0, plan.end, names)
    tensors = [two[name] for name in names] if isinstance(two, dict) else two
    given = (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors)
    with torch.no_grad(), plain_attention(), FlopCounterMode(display=False) as counter:
        counting = _Counting(whole.module(), counter)
        counting.run(*given)
    return [counting.after[whole.nodes[node].name] / len(given[0]) for node in plan.captured.data]


class _Counting(fx.Interpreter):
    """Runs a graph and notes how many operations were counted by the end of each node."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self.counter = counter
        self.after: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401  (the value of the node)
        result = super().run_node(n)
        self.after[n.name] = self.counter.get_total_flops()
        return result
