"""The figures behind the paper's Tables 2 to 5 and Figures 4 to 6, for validation and test.

As in the paper, exits are chosen on one split, "fit", which is its validation set, by its
constraints, among its own binary branches, and nothing confirms them. Beside each of its figures
stands the honest one.

Layer: train.  Source: Bonato and Bouganis, class-specific early exit, sections 4.1 and 4.2.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from offramp._core.types import Split
from offramp.fitting.class_exits import (
    Branch,
    ClassExit,
    ClassExitPlan,
    Requirements,
    choose_exits,
    paper_figures,
    system_figures,
)
from offramp.fitting.class_exits.figures import as_json
from offramp.train.class_exits.results import exit_row
from offramp.train.class_exits.sweep import Sweep

_BEST = 3  # designs of a class in figure 6


def paper_tables(
    sweep: Sweep,
    targets: Sequence[int],
    *,
    branches: Sequence[Branch],
    thresholds: tuple[float, float] = (0.95, 1.0),
) -> dict[str, Any]:
    """Everything that the paper's tables and figures show, in one unit of time, as JSON values.

    Args:
        sweep: Of `sweep_branches`.
        targets: The classes.
        branches: Of `Sweep.branches`: the unit is theirs.
        thresholds: Range of alpha; the default is the paper's.

    Returns:
        "table2" (each class with KP off and on, by time saved over time inflicted), "table3" (KP
        on, by time saved), "table4" (what the baseline's exit gets wrong), "layers" (figures 4
        and 5) and "best" (figure 6), each a list of rows.
    """
    own = [
        b if sweep.label(k) == "branch" else replace(b, target=None) for k, b in enumerate(branches)
    ]
    asked = Requirements(constraints="paper", thresholds=thresholds)
    table2, table3, layers, best = [], [], [], []
    for target in targets:
        for kept in (False, True):
            found = _chosen(sweep, own, target, replace(asked, select="saved_over_inflicted"), kept)
            table2.append(_row(sweep, target, kept, found))
        on = _chosen(sweep, own, target, replace(asked, select="saved"), True)
        table3.append(_row(sweep, target, True, on))
        every = _chosen(sweep, own, target, asked, None)
        candidates = () if every is None else every.candidates
        rows = [_layer(sweep, target, c.exits[0], c.on_front) for c in candidates]
        layers += rows
        best += rows[:_BEST]  # the candidates are ranked
    return {
        "unit": branches[0].timing.unit,
        "baseline": branches[0].timing.baseline,
        "thresholds": list(thresholds),
        "points": [point.name for point in sweep.attachment.points],
        "table2": table2,
        "table3": table3,
        "table4": _missed(sweep, table3),
        "layers": layers,
        "best": best,
    }


def _chosen(
    sweep: Sweep,
    branches: Sequence[Branch],
    target: int,
    asked: Requirements,
    keep_previous: bool | None,
) -> ClassExitPlan | None:
    """The best on "fit" among the branches with KP on, or off, or among all."""
    kept = [
        b if keep_previous in (None, b.keep_previous) else replace(b, target=None) for b in branches
    ]
    if all(branch.target != target for branch in kept):
        return None
    found = choose_exits(sweep.data("fit"), kept, target=target, requirements=asked)
    return found if isinstance(found, ClassExitPlan) else None


def _missed(sweep: Sweep, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Examples of each class that the baseline's exit gets wrong, and the complete system."""
    found = []
    for row in rows:
        if not row["viable"]:
            continue
        splits = {}
        for split, figures in row["rows"].items():
            system = figures["system"]
            errors = [
                size - round(recall * size) if size else 0
                for size, recall in zip(system["sizes"], system["recalls"], strict=True)
            ]
            splits[split] = {
                "missed": system["missed"],
                "missed_baseline": system["missed_baseline"],
                "errors": errors,
            }
        found.append(
            {key: row[key] for key in ("class", "point", "threshold")} | {"splits": splits}
        )
    return found


def _splits(sweep: Sweep) -> list[Split]:
    return [split for split in sweep.baselines if split != "calibrate"]


def _row(sweep: Sweep, target: int, kept: bool, design: ClassExitPlan | None) -> dict[str, Any]:
    row: dict[str, Any] = {"class": sweep.class_names[target], "keep_previous": kept}
    if design is None:
        return {**row, "viable": False}
    leaf = design.exits[0]
    return {
        **row,
        "viable": True,
        "point": leaf.branch.point,
        "threshold": leaf.threshold,
        "rows": {
            split: as_json(exit_row(sweep.data(split), [leaf], bootstrap=500))
            for split in _splits(sweep)
        },
    }


def _layer(sweep: Sweep, target: int, leaf: ClassExit, on_front: bool) -> dict[str, Any]:
    """T'' and t' over t on each split: by the formulas, and as they are."""
    baseline = leaf.branch.timing.baseline
    splits: dict[str, dict[str, float]] = {}
    for split in _splits(sweep):
        data = sweep.data(split)
        system = system_figures(data, [leaf])
        splits[split] = {
            "time": paper_figures(data, [leaf]).time / baseline,
            "time_true": system.times[target] / baseline,
            "others": leaf.branch.timing.staying / baseline,
            "others_true": system.loss([target]),
        }
    return {
        "class": sweep.class_names[target],
        "point": leaf.branch.point,
        "keep_previous": leaf.branch.keep_previous,
        "threshold": leaf.threshold,
        "on_front": on_front,
        "splits": splits,
    }
