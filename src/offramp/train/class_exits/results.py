"""What a design does on a split, as the paper's tables have it, with the honest columns beside.

Layer: train.  Source: Bonato and Bouganis, class-specific early exit, tables 2 to 4; methods.md 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from offramp._core.types import BoolArray, FloatArray
from offramp.evaluation.evaluate import paired_intervals
from offramp.evaluation.results import Interval
from offramp.fitting.class_exits.data import ClassData, ClassExit, answers_and_times, route
from offramp.fitting.class_exits.figures import (
    PaperFigures,
    SystemFigures,
    paper_figures,
    system_figures,
)


@final
@dataclass(frozen=True, kw_only=True)
class ExitRow:
    """One row of the paper's Tables 2 to 4: exits on one split.

    Args:
        split: Name of the split.
        exits: In the order in which they are reached.
        paper: The paper's figures; None for exits of several or of all classes.
        system: Figures of the complete system.
        gains: `gain_true` of each class that has an exit, by name.
        gain_intervals: Their intervals, 95 %, bootstrap over the examples of the class.
        loss: Mean time of all other examples over t, measured; None if there are none.
        loss_interval: Its interval.
        accuracy_change: Accuracy of the complete system minus the baseline's, paired.
        accuracy_change_interval: Its interval.
        worst_recall: The largest loss of recall of a class, in [-1, 1].
        worst_class: Name of that class.
        worst_recall_interval: Its interval, over the examples of that class.
    """

    split: str
    exits: tuple[ClassExit, ...]
    paper: PaperFigures | None
    system: SystemFigures
    gains: dict[str, float]
    gain_intervals: dict[str, Interval]
    loss: float | None
    loss_interval: Interval | None
    accuracy_change: float
    accuracy_change_interval: Interval
    worst_recall: float
    worst_class: str
    worst_recall_interval: Interval


def exit_row(
    data: ClassData, exits: Sequence[ClassExit], *, bootstrap: int = 2000, seed: int = 0
) -> ExitRow:
    """Figures of exits on a split, with paired intervals.

    Args:
        data: The examples.
        exits: At least one, in the order in which they are reached.
        bootstrap: Number of resamples.
        seed: Of the resampling.

    >>> from offramp.fitting.class_exits.data import Branch
    >>> from offramp.fitting.class_exits.time import Timing
    >>> data = ClassData(labels=np.array([0, 0, 1, 1]), baseline=np.array([0, 0, 1, 1]),
    ...                  class_names=("cat", "dog"), evidence=np.array([[5.0], [4.0], [-3], [-9]]))
    >>> timing = Timing(baseline=10.0, reached=1.0, branch=1.0, unit="flops")
    >>> branch = Branch(point="layer1", keep_previous=False, target=0, timing=timing)
    >>> row = exit_row(data, [ClassExit(column=0, branch=branch, log_odds=3.0)])
    >>> row.gains, row.loss
    ({'cat': 5.0}, 1.1)
    """
    baseline = exits[0].branch.timing.baseline
    answers, times = answers_and_times(data, exits, route(data, exits), baseline)
    gained = (answers == data.labels).astype(np.float64) - data.right
    targets = _targets(data, exits)
    everyone = np.ones(len(data), dtype=np.bool_)
    present = np.flatnonzero(data.sizes)
    fallen = {int(k): -float(gained[data.labels == k].mean()) for k in present}
    worst = max(fallen, key=lambda k: fallen[k])
    others = ~np.isin(data.labels, targets)

    def interval(values: FloatArray, rows: BoolArray) -> Interval:
        return _interval(values[rows], bootstrap, seed)

    spans = {k: interval(times, data.labels == k) for k in targets if data.sizes[k]}
    one = len({leaf.branch.target for leaf in exits}) == 1 and exits[0].branch.target is not None
    system = system_figures(data, exits)
    return ExitRow(
        split=data.split,
        exits=tuple(exits),
        paper=paper_figures(data, exits) if one else None,
        system=system,
        gains={data.class_names[k]: system.gain(k) for k in spans},
        gain_intervals={
            data.class_names[k]: (baseline / high, baseline / low)
            for k, (low, high) in spans.items()
        },
        loss=system.loss(targets) if others.any() else None,
        loss_interval=interval(times / baseline, others) if others.any() else None,
        accuracy_change=float(gained.mean()),
        accuracy_change_interval=interval(gained, everyone),
        worst_recall=fallen[worst],
        worst_class=data.class_names[worst],
        worst_recall_interval=interval(-gained, data.labels == worst),
    )


def _targets(data: ClassData, exits: Sequence[ClassExit]) -> list[int]:
    """Classes that an exit may answer."""
    named = {leaf.branch.target for leaf in exits}
    return list(range(data.classes)) if None in named else sorted(k for k in named if k is not None)


def _interval(values: FloatArray, rounds: int, seed: int) -> Interval:
    kinds, counts = np.unique(values, return_counts=True)
    (found,) = paired_intervals(kinds[:, None], counts, rounds=rounds, seed=seed)
    return found
