"""What each branch costs: t, d and e, in operations or in seconds.

Layer: train.  Source: Bonato and Bouganis, class-specific early exit, sections 3.1 and 4.1 (by the
arithmetic alone, and by the clock).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from offramp._core.checks import check_choice, check_positive_int
from offramp.fitting.class_exits import Timing
from offramp.stages import Cascade, CutPoint, measure_flops, measure_points
from offramp.stages.tapped import branch_pool
from offramp.stages.timing import median_seconds
from offramp.train.class_exits.layout import BranchSpec
from offramp.train.class_exits.points import width_of

UNITS = ("flops", "seconds")


@final
@dataclass(frozen=True, kw_only=True)
class Clock:
    """How time is told.

    Args:
        unit: "flops", where a multiply-add counts as 2 and pooling nothing; or "seconds".
        batch_size: Examples that run at once, where seconds are measured.
        rounds: Of the measurement; the median counts.

    Raises:
        InputError: If an argument is outside its domain.
    """

    unit: str = "flops"
    batch_size: int = 1
    rounds: int = 15

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, UNITS)
        check_positive_int("batch_size", self.batch_size)
        check_positive_int("rounds", self.rounds)


@final
@dataclass(frozen=True, kw_only=True)
class Depths:
    """How long the network takes, by itself.

    Args:
        baseline: t, the whole of it.
        reached: d, up to each of some points, by name.
        unit: Of both.
    """

    baseline: float
    reached: dict[str, float]
    unit: str

    def timing(self, point: str, branch: float) -> Timing:
        """That of a branch behind a point."""
        return Timing(
            baseline=self.baseline, reached=self.reached[point], branch=branch, unit=self.unit
        )


def depths(net: nn.Module, points: Sequence[CutPoint], example: Tensor, clock: Clock) -> Depths:
    """Measure how long a network takes up to some points, on the device of the example.

    Args:
        net: In evaluation mode.
        points: In the order in which they run.
        example: What the network reads, after the transform.
        clock: How time is told.

    >>> from offramp.models import cifar_resnet
    >>> from offramp.train.class_exits import attachment_points
    >>> net, example = cifar_resnet(8, width=0.25).eval(), torch.zeros(1, 3, 8, 8)
    >>> points = attachment_points(net, example)
    >>> depths(net, points[:1], example, Clock()).reached
    {'relu': 13824.0}
    """
    if clock.unit == "flops":
        whole = measure_flops(Cascade.from_models({"net": net}), example[:1]).segment[0]
        reached = [point.flops for point in points]
    else:
        *reached, whole = measure_points(
            net,
            example,
            points,
            batch_size=clock.batch_size,
            rounds=clock.rounds,
            device=example.device,
        )
    names = [point.name for point in points]
    return Depths(baseline=whole, reached=dict(zip(names, reached, strict=True)), unit=clock.unit)


def branch_times(
    points: Sequence[CutPoint],
    branches: Sequence[BranchSpec],
    clock: Clock,
    *,
    grid: int = 2,
    outputs: int = 1,
    device: torch.device | str = "cpu",
) -> list[float]:
    """What each branch takes: the pooling of all maps that it reads, and its dense layer.

    Args:
        points: Of `attachment_points`.
        branches: What reads them; what they cost does not depend on their class.
        clock: How time is told.
        grid: Averages per side of a map.
        outputs: Of the dense layer: 1 for one class, `c` for all.
        device: Where seconds are measured.

    >>> from offramp.models import cifar_resnet
    >>> from offramp.train.class_exits import attachment_points, every_branch
    >>> points = attachment_points(cifar_resnet(8, width=0.25).eval(), torch.zeros(1, 3, 8, 8))
    >>> branch_times(points, every_branch(len(points), [0]), Clock())[:2]
    [32.0, 64.0]
    """
    check_positive_int("outputs", outputs)
    distinct = list(dict.fromkeys(branch.reads for branch in branches))
    if clock.unit == "flops":
        widths = [width_of(point, grid) for point in points]
        extra = {reads: 2.0 * outputs * sum(widths[j] for j in reads) for reads in distinct}
    else:
        maps = [_made_up(point, clock, device) for point in points]
        extra = _dense_seconds(maps, distinct, grid, outputs, clock.rounds)
    return [extra[branch.reads] for branch in branches]


def head_times(
    points: Sequence[CutPoint],
    heads: Sequence[nn.Module],
    clock: Clock,
    *,
    device: torch.device | str = "cpu",
) -> list[float]:
    """What each head of all classes takes, at its point.

    Args:
        points: One for each head.
        heads: In evaluation mode, on the device.
        clock: How time is told.
        device: Where seconds are measured.

    >>> from offramp.stages import CutPoint
    >>> point = CutPoint(name="p", aliases=(), shape=(4,), live=((4,),), flops=0.0, share=0.0)
    >>> head_times([point], [nn.Linear(4, 3).eval()], Clock())
    [24.0]
    """
    if clock.unit == "flops":
        return [
            measure_flops(
                Cascade.from_models({"head": head}), _made_up(point, Clock(), device)
            ).segment[0]
            for point, head in zip(points, heads, strict=True)
        ]
    runs = [
        partial(head, _made_up(point, clock, device))
        for point, head in zip(points, heads, strict=True)
    ]
    with torch.inference_mode():
        found = median_seconds(runs, clock.rounds, torch.device(device)) if runs else []
    return [seconds / clock.batch_size for seconds in found]


def _made_up(point: CutPoint, clock: Clock, device: torch.device | str) -> Tensor:
    """So many examples as they come from a point; values do not matter for time."""
    return torch.zeros(clock.batch_size, *point.shape, device=device)


def _dense_seconds(
    maps: Sequence[Tensor],
    distinct: Sequence[tuple[int, ...]],
    grid: int,
    outputs: int,
    rounds: int,
) -> dict[tuple[int, ...], float]:
    """Seconds per example of pooling what is read, and of the dense layer."""
    device, size = maps[0].device, len(maps[0])
    pools = [branch_pool(grid, values.dim() - 2) for values in maps]
    with torch.inference_mode():
        pooled = [pool(values) for pool, values in zip(pools, maps, strict=True)]
        dense = {
            reads: nn.Linear(sum(pooled[j].shape[1] for j in reads), outputs).to(device)
            for reads in distinct
        }
        runs = [partial(pool, values) for pool, values in zip(pools, maps, strict=True)]
        pooling: list[float] = median_seconds(runs, rounds, device)
        answering = median_seconds(
            [partial(_answered, dense[reads], [pooled[j] for j in reads]) for reads in distinct],
            rounds,
            device,
        )
    return {
        reads: (sum(pooling[j] for j in reads) + own) / size
        for reads, own in zip(distinct, answering, strict=True)
    }


def _answered(dense: nn.Linear, parts: Sequence[Tensor]) -> Tensor:
    result: Tensor = dense(torch.cat(list(parts), dim=1))
    return result
