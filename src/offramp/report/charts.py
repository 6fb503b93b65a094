"""From results to the figures of a page, each in a wide and a narrow layout, with its words.

Layer: report.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from offramp._core.formatting import percent
from offramp.drawing.bars import overlap_figure, stage_figure
from offramp.drawing.frontier import frontier_figure
from offramp.drawing.palette import CurveKind
from offramp.drawing.series import Curve, Point
from offramp.evaluation import Evaluation, Overlap, ReferencePoint
from offramp.report.content import ReportContent
from offramp.report.inline import inline_svg

MOST_SUBSETS = 12


@final
@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure of the page: the narrow layout takes the place of the wide one on a phone."""

    wide: Markup
    narrow: Markup


def frontier_chart(content: ReportContent) -> Chart | None:
    """Accuracy against cost with every reference, or None where there is nothing to draw."""
    curves, points = frontier_curves(content), frontier_points(content)
    if not curves and len(points) < 2:
        return None
    shown = content.shown
    title = f"{content.measure.capitalize()} against cost"
    description = (
        f"{title}, the mean of examples, where {shown.candidate.reference} costs 1. "
        + " ".join(f"{c.name}: {len(c.cost_ratio)} candidates." for c in curves)
        + " "
        + " ".join(
            f"{p.name or 'Advised'}: cost {p.cost_ratio:.3f}, {percent(p.accuracy)}."
            for p in points
        )
    )
    return make_chart(
        "frontier",
        title,
        description,
        lambda narrow: frontier_figure(
            curves,
            points,
            reference_accuracy=shown.reference_accuracy,
            measure=content.measure,
            narrow=narrow,
        ),
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
    curves = [
        _curve("random exits", "random", random),
        _curve(f"thresholds{where}", "threshold", threshold),
        _curve("learned (fit)", "learned_fit", [point.fit for point in front]),
    ]
    if unseen:
        curves.append(_curve(f"learned ({unseen[0].split})", "learned", unseen))
    return [curve for curve in curves if len(curve.cost_ratio)]


def frontier_points(content: ReportContent) -> list[Point]:
    """The marked points of the frontier figure; exits have their names in a figure of their own."""
    reference = content.shown.candidate.reference
    points = [
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
    )
    return [*points, chosen]


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


def make_chart(prefix: str, title: str, description: str, draw: Callable[[bool], Figure]) -> Chart:
    """A figure in both layouts, with a prefix that makes its ids unique on the page."""
    words = {"title": title, "description": description}
    return Chart(
        wide=inline_svg(draw(False), prefix=f"{prefix}-wide", **words),
        narrow=inline_svg(draw(True), prefix=f"{prefix}-narrow", **words),
    )
