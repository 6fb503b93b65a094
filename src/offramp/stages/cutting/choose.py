"""Which of the points of a network get an exit, and how long the network takes to each.

Layer: stages.  Source: methods.md 1 (early exit: where exits are put).
"""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import accumulate, groupby
from statistics import median_low
from typing import Any

import numpy as np
import torch
from torch import nn

from offramp._core.batch import apply, to_device
from offramp._core.checks import check_positive_int
from offramp._core.device import check_device
from offramp._core.errors import InputError
from offramp._core.types import Batch
from offramp.stages.cutting.cut import cut
from offramp.stages.cutting.plan import is_run
from offramp.stages.cutting.points import CutPoint
from offramp.stages.timing import filled, median_seconds

_SHOWN = 5  # names listed in a message


def choose_points(
    points: Sequence[CutPoint],
    *,
    every: int | None = None,
    quantiles: int | None = None,
    match: str | None = None,
    inside: bool = False,
) -> list[CutPoint]:
    """Choose points for exits: all of them, every p-th, or spread evenly over the computation.

    Unless `inside` is set, only the ends of blocks are taken: points that carry as few tensors as
    any near them, which is one beside what goes along, such as masks, however many those are; and
    of several with no counted operation in between, such as a convolution, its batch-norm and its
    activation, the last whose tensor has the shape that the first has. So what only pools or
    flattens is left out: heads do that themselves. The end of one run of a layer that runs more
    than once, such as "block@2", is taken where no layer ends that has the place to itself. Points
    without elements are none; `cut_points` does not list them.

    Args:
        points: Of `cut_points`.
        every: p takes the p-th point, the 2p-th, and so on; at least 1.
        quantiles: q takes q different points, those that together are nearest to the fractions
            1/(q+1), ..., q/(q+1) of the network's operations; at least 1.
        match: Only layers of this name, where `*`, `?` and `[...]` stand for parts of a name
            between dots: "layer*.*" is layer1.0, but neither layer1 nor layer1.0.conv1; "block@*"
            is each run of block, and "block" and "*" are last runs only.
        inside: Take any point that can be cut, also inside blocks.

    Returns:
        Points in the order in which they run; one found by `match` has the name that matched.

    Raises:
        InputError: If both `every` and `quantiles` are given, or are out of range; no layer
            matches; or there are fewer points than asked for.

    >>> from offramp.models import cifar_resnet
    >>> from offramp.stages import cut_points
    >>> points = cut_points(cifar_resnet(14).eval(), torch.zeros(1, 3, 32, 32))
    >>> [point.name for point in choose_points(points, quantiles=2)]
    ['layer1', 'layer2']
    >>> [point.name for point in choose_points(points, match="layer*.0")]
    ['layer1.0', 'layer2.0', 'layer3.0']
    """
    if every is not None and quantiles is not None:
        raise InputError(f"Give either every or quantiles, got {every!r} and {quantiles!r}.")
    found = list(points)
    if not inside:
        found = _narrow(found)
    if match is not None:
        found = _matching(found, match)
    if not inside:
        found = _ends(found)
    if not found:
        raise InputError(
            "points must hold at least one point of cut_points, got none. If a network has none, "
            "cut_points says why."
        )
    if every is not None:
        return _every(found, every)
    return found if quantiles is None else _at_quantiles(found, quantiles)


def last_of(points: Sequence[CutPoint]) -> CutPoint:
    """Of some points in a row, at least one, the last that has the shape of the first.

    One whose only names are those of single runs of layers is taken if all are like that.

    >>> from offramp.stages import cut_points
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> last_of(cut_points(net, torch.zeros(1, 4))).name
    '1'
    """
    lasting = [point for point in points if not is_run(point.name)] or list(points)
    return [point for point in lasting if point.shape == lasting[0].shape][-1]


def measure_points(
    net: nn.Module,
    example: Batch,
    points: Sequence[CutPoint],
    *,
    batch_size: int = 1,
    rounds: int = 15,
    device: torch.device | str = "cpu",
    classes: int | None = None,
) -> list[float]:
    """Measure how long a network takes up to each of some points.

    The network is cut at all of them, and the segments are timed as `measure_seconds` does: in
    turns, of each the median. So the times are those of a network with that many exits, a few per
    cent above the uncut one's.

    Args:
        net: In evaluation mode; is moved to `device`.
        example: Some raw input; its examples are repeated to fill a batch.
        points: In the order in which they run, at least one.
        batch_size: Examples that run at once.
        rounds: At least 1, after two rounds of warm-up.
        device: Where to run.
        classes: As for `cut`.

    Returns:
        Seconds per example up to each point, and last those of the whole network.

    Raises:
        InputError, UnsupportedError: As `cut`.

    >>> from offramp.stages import cut_points
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> points = cut_points(net, torch.zeros(1, 4))
    >>> seconds = measure_points(net, torch.zeros(1, 4), points, batch_size=2, rounds=1)
    >>> len(seconds), seconds == sorted(seconds)
    (3, True)
    """
    check_positive_int("rounds", rounds)
    size = check_positive_int("batch_size", batch_size)
    device = check_device(device)
    net.to(device)
    given: Any = to_device(filled(example, size), device)
    segments = cut(net, [point.name for point in points], given, classes=classes)
    parts = []
    with torch.inference_mode():
        for segment in segments:
            parts.append(partial(apply, segment, given))
            given = apply(segment, given)
        taken = median_seconds(parts, rounds, device)
    return [seconds / size for seconds in accumulate(taken)]


def _narrow(points: Sequence[CutPoint]) -> list[CutPoint]:
    """Points that carry no more tensors than the narrowest one of a typical quarter."""
    quarters: dict[int, int] = {}
    for point in points:
        quarter = int(4 * point.share)
        quarters[quarter] = min(_width(point), quarters.get(quarter, len(point.live)))
    fewest = median_low(quarters.values()) if quarters else 0
    return [point for point in points if _width(point) <= fewest]


def _width(point: CutPoint) -> int:
    """Tensors that are carried, without those that only go along."""
    return len(point.live) - point.along


def _matching(points: Sequence[CutPoint], match: str) -> list[CutPoint]:
    found = []
    for point in points:
        names = (point.name, *point.aliases)
        name = next((name for name in names if _fits(name, match)), None)
        if name is not None:
            others = tuple(other for other in names if other != name)
            found.append(replace(point, name=name, aliases=others))
    if not found:
        shown = ", ".join(repr(point.name) for point in points[:_SHOWN])
        more = f" and {len(points) - _SHOWN} more" if len(points) > _SHOWN else ""
        raise InputError(
            f"match must fit the name of a layer after which there is a point, got {match!r}. "
            f"There are {shown}{more}; `*` stands for what is between two dots."
        )
    return found


def _fits(name: str, match: str) -> bool:
    if is_run(name) and "@" not in match:
        return False
    parts, wanted = name.split("."), match.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _ends(points: Sequence[CutPoint]) -> list[CutPoint]:
    """Of points between which no operation is counted, the one that `last_of` takes."""
    return [last_of(list(group)) for _, group in groupby(points, key=lambda point: point.flops)]


def _every(points: Sequence[CutPoint], every: int) -> list[CutPoint]:
    step = check_positive_int("every", every)
    if step > len(points):
        raise InputError(f"every must be at most {len(points)}, the number of points, got {every}.")
    return list(points[step - 1 :: step])


def _at_quantiles(points: Sequence[CutPoint], quantiles: int) -> list[CutPoint]:
    """The points with the least sum of distances to the fractions, each point at most once."""
    from scipy.optimize import linear_sum_assignment

    q = check_positive_int("quantiles", quantiles)
    if q > len(points):
        raise InputError(
            f"quantiles must be at most {len(points)}, the number of points, got {quantiles}."
        )
    shares = np.array([point.share for point in points])
    if not shares.any():
        raise InputError(
            "quantiles needs operations that can be counted (matrix products, convolutions, "
            "attention), and there are none before any point; choose by every or by name."
        )
    wanted = np.arange(1, q + 1) / (q + 1)
    _, taken = linear_sum_assignment(abs(wanted[:, None] - shares))
    return [points[k] for k in sorted(taken.tolist())]
