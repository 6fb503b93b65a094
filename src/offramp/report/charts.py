"""From results to the figures of a page, each in a wide and a narrow layout, with its words.

Layer: report.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from offramp._core.formatting import percent, points
from offramp.drawing.bars import overlap_figure, stage_figure
from offramp.drawing.frontier import frontier_figure, log_costs
from offramp.drawing.palette import CurveKind
from offramp.drawing.reliability import Calibrated, calibration_figure
from offramp.drawing.series import Area, Band, Curve, Point
from offramp.evaluation import Evaluation, Overlap, ReferencePoint
from offramp.report.content import ReportContent
from offramp.report.inline import inline_svg

MOST_SUBSETS = 12
LEARNED = {"learned", "agreement"}  # methods whose front is called so
LOG_COSTS = "Costs stand on a logarithmic axis, where equal steps multiply by the same factor."


@final
@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure of the page: the narrow layout takes the place of the wide one on a phone.

    Args:
        wide: For a desk.
        narrow: For a phone.
        note: What one has to know to read its axes; "" where nothing.
    """

    wide: Markup
    narrow: Markup
    note: str = ""


def frontier_chart(content: ReportContent) -> Chart | None:
    """Accuracy against cost with every reference, or None where there is nothing to draw."""
    curves, marked = frontier_curves(content), frontier_points(content)
    if not curves and len(marked) < 2:
        return None
    shown = content.shown
    title = f"{content.measure.capitalize()} against cost"
    description = (
        f"{title}, the mean of examples, where {shown.candidate.reference} costs 1. "
        + " ".join(f"{c.name}: {len(c.cost_ratio)} candidates." for c in curves)
        + " "
        + " ".join(
            f"{p.name or 'Advised'}: cost {p.cost_ratio:.3f}, {percent(p.accuracy)}."
            for p in marked
        )
    )
    return make_chart(
        "frontier",
        title,
        description,
        note=LOG_COSTS if log_costs(curves, marked) else "",
        draw=lambda narrow: frontier_figure(
            curves,
            marked,
            reference_accuracy=shown.reference_accuracy,
            band=allowed_band(content),
            area=promisable_area(content),
            measure=content.measure,
            narrow=narrow,
        ),
    )


def allowed_band(content: ReportContent) -> Band | None:
    """The accuracies that the choice allows, or None where it limits another risk."""
    drop = content.allowed_drop
    if drop is None:
        return None
    level = content.shown.reference_accuracy
    kind = "promised" if content.certified is not None else "allowed"
    unit = "more loss" if content.shown.of_losses else "points"
    much = f"{drop:g}" if content.shown.of_losses else points(drop)
    return Band(name=f"{kind}: {much} {unit}", low=level - drop, high=level)


def promisable_area(content: ReportContent) -> Area | None:
    """From what each candidate of the front loses on `calibrate` to what that could promise."""
    found, delta = content.promisable, content.chosen.delta
    if len(found) < 2 or delta is None:
        return None
    level = content.shown.reference_accuracy
    return Area(
        name=f"could be promised, {percent(1 - delta, digits=0)} sure",
        cost_ratio=np.array([one.cost_ratio for one in found], dtype=np.float64),
        low=np.array([level - one.drop_bound for one in found], dtype=np.float64),
        high=np.array([level - one.accuracy_drop for one in found], dtype=np.float64),
    )


def calibration_chart(content: ReportContent) -> Chart | None:
    """How often each stage is right against how sure it is, or None where that is not known."""
    if not content.reliability:
        return None
    panels = [
        Calibrated(
            name=one.stage,
            confidence=one.confidence,
            accuracy=one.accuracy,
            counts=one.counts,
            error=one.error,
        )
        for one in content.reliability
    ]
    description = " ".join(
        f"{one.stage}: expected calibration error {percent(one.error)}; the least sure group is "
        f"{percent(one.confidence[0])} sure and {percent(one.accuracy[0])} right."
        for one in content.reliability
    )
    return make_chart(
        "calibration",
        "How often each stage is right against how sure it is",
        description,
        lambda narrow: calibration_figure(panels, narrow=narrow),
    )


def frontier_curves(content: ReportContent) -> list[Curve]:
    """The lines of the frontier figure; what was seen while fitting is told from the rest."""
    front = [point for point in content.frontier if point.on_front]
    unseen: Sequence[Evaluation] = content.frontier_test or [
        point.calibrate for point in front if point.calibrate is not None
    ]
    random = [r for r in content.references if r.kind == "random"]
    threshold: list[Evaluation | ReferencePoint] = [*content.threshold]
    threshold += [r for r in content.references if r.kind == "threshold"]
    split = {e.split for e in content.threshold}
    where = f" ({split.pop()})" if len(split) == 1 else ""
    methods = {point.candidate.method for point in front}
    front_name = "learned" if not front or methods & LEARNED else "the front"
    curves = [
        _curve("random exits", "random", random),
        _curve(f"thresholds{where}", "threshold", threshold),
        _curve(f"{front_name} (fit)", "learned_fit", [point.fit for point in front]),
    ]
    if unseen:
        curves.append(_curve(f"{front_name} ({unseen[0].split})", "learned", unseen))
    return [curve for curve in curves if len(curve.cost_ratio)]


def frontier_points(content: ReportContent) -> list[Point]:
    """The marked points of the frontier figure; exits have their names in a figure of their own."""
    reference = content.shown.candidate.reference
    marked = [
        Point(
            name=""
            if content.exits and r.kind == "static" and r.name != f"{reference} alone"
            else r.name.removesuffix(" alone").removesuffix(" oracle"),  # the legend says it
            kind=r.kind,
            cost_ratio=r.cost_ratio,
            accuracy=r.accuracy,
        )
        for r in content.references
        if r.kind == "static" or r.kind == "oracle"
    ]
    chosen = Point(
        name="chosen" if content.cascade else "",  # a single network has its own label
        kind="chosen",
        cost_ratio=content.shown.cost_ratio,
        accuracy=content.shown.accuracy,
        cost_ci=content.shown.cost_ratio_ci if content.cascade else None,
        accuracy_ci=_accuracy_ci(content.shown) if content.cascade else None,
    )
    return [*marked, chosen]


def _accuracy_ci(shown: Evaluation) -> tuple[float, float] | None:
    """The interval of the difference, seen from the level of the reference."""
    if shown.accuracy_drop_ci is None:
        return None
    low, high = shown.accuracy_drop_ci
    return shown.reference_accuracy - high, shown.reference_accuracy - low


def _curve(name: str, kind: CurveKind, results: Sequence[Evaluation | ReferencePoint]) -> Curve:
    return Curve(
        name=name,
        kind=kind,
        cost_ratio=np.array([r.cost_ratio for r in results], dtype=np.float64),
        accuracy=np.array([r.accuracy for r in results], dtype=np.float64),
    )


def stage_chart(shown: Evaluation) -> Chart:
    """Who leaves where, and where the cost goes, of the stages where anything happens."""
    every = list(
        zip(shown.stages, shown.exit_share, shown.useful_share, shown.overhead_share, strict=True)
    )
    used = shown.candidate.policy.topology.active
    rows = [row for k, row in enumerate(every) if k in used or any(row[1:])]
    names, exits, useful_shares, overhead_shares = zip(*rows, strict=True)
    description = " ".join(
        f"{name}: {percent(leave)} leave here; it takes {percent(useful)} of the cost for useful "
        f"work and {percent(other)} for overhead."
        for name, leave, useful, other in rows
    )
    return make_chart(
        "stages",
        "Exits and cost of each stage",
        f"{description} Deciding takes {percent(shown.decision_share)} of the cost.",
        lambda narrow: stage_figure(
            names,
            exits,
            useful_shares,
            overhead_shares,
            decision_share=shown.decision_share,
            narrow=narrow,
        ),
    )


def overlap_chart(overlap: Overlap) -> Chart:
    """Which networks are right together, the most frequent subsets first."""
    subsets, shares = overlap.subsets[:MOST_SUBSETS], overlap.shares[:MOST_SUBSETS]
    description = " ".join(
        f"{' and '.join(subset) if subset else 'None'}: {percent(share)}."
        for subset, share in zip(subsets, shares, strict=True)
    )
    return make_chart(
        "overlap",
        "Share of examples that exactly these networks get right",
        description,
        lambda narrow: overlap_figure(overlap.stages, subsets, shares, narrow=narrow),
    )


def make_chart(
    prefix: str,
    title: str,
    description: str,
    draw: Callable[[bool], Figure],
    *,
    note: str = "",
) -> Chart:
    """A figure in both layouts, with a prefix that makes its ids unique on the page."""
    words = {"title": title, "description": description}
    return Chart(
        wide=inline_svg(draw(False), prefix=f"{prefix}-wide", **words),
        narrow=inline_svg(draw(True), prefix=f"{prefix}-narrow", **words),
        note=note,
    )
