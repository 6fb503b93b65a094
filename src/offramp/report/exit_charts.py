"""Charts of exits: what each policy saves, and how accurate each exit is at its depth.

Layer: report.
"""

from collections.abc import Sequence

import numpy as np

from offramp._core.formatting import percent, points, unit_name
from offramp.drawing.frontier import frontier_figure
from offramp.drawing.palette import CurveKind
from offramp.drawing.savings import SavedSeries, savings_figure
from offramp.drawing.series import Curve, Point
from offramp.evaluation import ExitPoint, Saving, UnitCost
from offramp.report.charts import Chart, make_chart
from offramp.report.content import ReportContent

_SAVING_KINDS: dict[str, CurveKind] = {"thresholds": "threshold", "random exits": "random"}
_HEAD_KINDS: tuple[CurveKind, ...] = ("head_1", "head_2", "head_3")


def savings_by_policy(savings: Sequence[Saving]) -> dict[str, list[Saving]]:
    """The savings of each policy, in their order."""
    found: dict[str, list[Saving]] = {}
    for saving in savings:
        found.setdefault(saving.policy, []).append(saving)
    return found


def savings_chart(content: ReportContent) -> Chart | None:
    """Cost saved within each loss, or None where that was not computed."""
    each = savings_by_policy(content.savings)
    if not each:
        return None
    neutral = [r.cost_ratio for r in content.references if r.name == "neutral oracle"]
    description = " ".join(
        f"{name}: "
        + ", ".join(f"{percent(s.saved)} at {points(s.max_drop)} points" for s in rows)
        + "."
        for name, rows in each.items()
    )
    losses = [saving.max_drop for saving in next(iter(each.values()))]
    series = [_series(name, rows) for name, rows in each.items()]
    return make_chart(
        "savings",
        f"Cost saved within a loss of {content.measure}",
        description,
        lambda narrow: savings_figure(
            losses,
            series,
            oracle=1 - neutral[0] if neutral else None,
            measure=content.measure,
            narrow=narrow,
        ),
    )


def _series(name: str, rows: Sequence[Saving]) -> SavedSeries:
    ends = [row.saved_ci or (row.saved, row.saved) for row in rows]
    return SavedSeries(
        name=name,
        kind=_SAVING_KINDS.get(name, "learned"),
        saved=[row.saved for row in rows],
        low=[low for low, _ in ends],
        high=[high for _, high in ends],
    )


def depth_charts(content: ReportContent) -> list[tuple[str, Chart]]:
    """Accuracy of each exit against its depth, in the first unit and in another one if known."""
    if not content.exits or not content.costs_by_unit:
        return []
    others = [
        i
        for i, bill in enumerate(content.costs_by_unit)
        if bill.unit != content.costs_by_unit[0].unit
    ]
    return [
        (_in_words(content.costs_by_unit[i]), _depth_chart(content, i)) for i in [0, *others[-1:]]
    ]


def _depth_chart(content: ReportContent, table: int) -> Chart:
    curves = exit_curves(content.exits, table)
    marked = _marked(content, table)
    level = content.shown.reference_accuracy
    unit = unit_name(content.costs_by_unit[table].unit)
    description = " ".join(
        f"{p.stage}: {percent(p.cost_ratios[table])} of the cost, {percent(p.accuracy)}"
        + (f", {percent(p.combined)} combined." if p.combined is not None else ".")
        for p in content.exits
    )
    return make_chart(
        f"depth-{table}",
        f"{content.measure.capitalize()} of each exit against its depth, in {unit}",
        description,
        lambda narrow: frontier_figure(
            curves,
            marked,
            reference_accuracy=level,
            cost_label=f"{unit} to the exit, reference network = 1",
            measure=content.measure,
            narrow=narrow,
        ),
    )


def exit_curves(exits: Sequence[ExitPoint], table: int) -> list[Curve]:
    """One line for each kind of head, told apart by the label behind the slash; combined answers.

    Args:
        exits: The stages.
        table: Which of their cost ratios to draw.
    """
    series: dict[str, list[ExitPoint]] = {}
    for point in exits:
        series.setdefault(_head_label(point), []).append(point)
    curves = [
        _curve(name, kind, [(p.cost_ratios[table], p.accuracy) for p in found])
        for (name, found), kind in zip(
            series.items(), _HEAD_KINDS * (len(series) // len(_HEAD_KINDS) + 1), strict=False
        )
    ]
    combined = [(p.cost_ratios[table], p.combined) for p in exits if p.combined is not None]
    if combined:
        curves.append(_curve("combined answer", "combined", combined))
    return curves


def _head_label(point: ExitPoint) -> str:
    if point.stage == point.group:
        return "the exit alone"
    return f"{point.stage.removeprefix(point.group + '/')} head alone"


def _curve(name: str, kind: CurveKind, found: Sequence[tuple[float, float]]) -> Curve:
    values = np.array(found, dtype=np.float64)
    return Curve(name=name, kind=kind, cost_ratio=values[:, 0], accuracy=values[:, 1])


def _marked(content: ReportContent, table: int) -> list[Point]:
    """The stages that the chosen candidate uses; all where nothing is known of that."""
    used = {use.stage for use in content.uses if use.used}
    return [
        Point(
            name=p.stage,
            kind="exit",
            cost_ratio=p.cost_ratios[table],
            accuracy=p.accuracy,
        )
        for p in content.exits
        if p.stage in used
    ]


def _in_words(bill: UnitCost) -> str:
    return f"{unit_name(bill.unit)}{f' ({bill.note})' if bill.note else ''}"
