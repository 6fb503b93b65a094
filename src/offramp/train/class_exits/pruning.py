"""Leaving out connections to earlier layers that do not help, so that a branch gets cheaper.

Layer: train.  Source: Bonato and Bouganis, class-specific early exit, section 5, suggest it; the
way is this project's own.
"""

from collections.abc import Sequence

import torch

from offramp.fitting.class_exits.choice import ClassExitPlan
from offramp.train.class_exits.features import BranchFeatures
from offramp.train.class_exits.layout import BranchSpec
from offramp.train.class_exits.sweep import Sweep

_ROWS = 4096  # examples that importance is measured on


def importance(sweep: Sweep, column: int, *, rows: int = _ROWS) -> dict[str, float]:
    """How much what a branch says moves with each point that it reads.

    Args:
        sweep: Of `sweep_branches`.
        column: The branch, of one class.
        rows: Training examples to measure on.

    Returns:
        For each point the standard deviation of its share of the log-odds.
    """
    reads = sweep.specs[column].reads
    weight, _ = sweep.dense(column)
    features: BranchFeatures = sweep.features["train"]
    values = features.take(torch.arange(min(rows, len(features)))).cpu()
    found, start = {}, 0
    for j in reads:
        width = features.widths[j]
        share = (
            values[:, features.starts[j] : features.starts[j + 1]] @ weight[start : start + width]
        )
        found[features.points[j]] = float(share.double().std(correction=0))
        start += width
    return found


def with_pruned(sweep: Sweep, designs: Sequence[ClassExitPlan], *, progress: bool = True) -> Sweep:
    """Train, for each exit of the designs that keeps previous layers, branches that read fewer.

    The points are ranked by `importance`; for each number of them, from the exit's own point alone
    up to one fewer than all, a branch reads the most important ones. Choosing on the new sweep
    takes whichever is best by the same constraints, so a connection stays out if the time it costs
    is worth more than what it tells.

    Args:
        sweep: Of `sweep_branches`.
        designs: Chosen on that sweep, of one class each; those without KP=On add nothing.
        progress: Show a bar.

    Returns:
        The sweep with further columns. Designs of the old sweep do not belong to it.
    """
    specs: dict[BranchSpec, None] = {}
    for design in designs:
        for leaf in design.exits:
            if leaf.column < len(sweep.specs):
                specs.update(dict.fromkeys(_smaller(sweep, leaf.column)))
    fresh = [spec for spec in specs if spec not in sweep.specs]
    return sweep.with_branches(fresh, progress=progress) if fresh else sweep


def _smaller(sweep: Sweep, column: int) -> list[BranchSpec]:
    spec = sweep.specs[column]
    by_name = importance(sweep, column)
    names = [point.name for point in sweep.attachment.points]
    ranked = sorted(spec.reads[:-1], key=lambda j: (-by_name[names[j]], j))
    return [
        BranchSpec(
            reads=tuple(sorted([*ranked[:count], spec.point])),
            target=spec.target,
            keep_previous=count > 0,
        )
        for count in range(len(ranked))
    ]
