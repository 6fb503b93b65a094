"""Names beside the points of a figure: measured, placed, and led to their points by a thin line.

Layer: drawing.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from offramp._core.formatting import shortened
from offramp._core.types import FloatArray
from offramp.drawing.canvas import SMALL_PT
from offramp.drawing.palette import PAPER, POINT_LOOKS
from offramp.drawing.placement import place_labels
from offramp.drawing.series import Curve, Point


def label_points(axes: Axes, curves: Sequence[Curve], points: Sequence[Point]) -> None:
    """Write the name of each point where it covers no other name, line or point."""
    order = sorted((p for p in points if p.name), key=lambda point: point.kind != "chosen")
    if not order:
        return
    figure = axes.figure
    pt = figure.dpi / 72  # pixels per point
    labels = [shortened(point.name) for point in order]
    anchors = axes.transData.transform([(p.cost_ratio, p.accuracy) for p in order])  # (k, 2)
    sizes = np.array([_text_size(figure, label) for label in labels])
    frame = axes.get_window_extent()
    corners = place_labels(
        anchors,
        sizes,
        np.concatenate([_along(curve, axes, step=10 * pt) for curve in curves] + [anchors]),
        (frame.x0 + 2, frame.y0 + 2, frame.x1, frame.y1 + 6),
        gap=8 * pt,
    )
    for point, label, offset, size in zip(order, labels, corners - anchors, sizes, strict=True):
        _annotate(axes, point, label, offset / pt, size / pt)


def _annotate(
    axes: Axes, point: Point, label: str, offset_pt: FloatArray, size_pt: FloatArray
) -> None:
    look = POINT_LOOKS[point.kind]
    nearest = np.clip(0.0, offset_pt, offset_pt + size_pt)  # of the label, from the point
    if np.hypot(*nearest) > 16:
        axes.annotate(
            "",
            xy=(point.cost_ratio, point.accuracy),
            xytext=tuple(nearest),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": look.color, "linewidth": 0.6, "shrinkB": 4},
            zorder=look.order,
        )
    axes.annotate(
        label,
        xy=(point.cost_ratio, point.accuracy),
        xytext=tuple(offset_pt),
        textcoords="offset points",
        ha="left",
        va="bottom",
        fontsize=SMALL_PT,
        color=look.color,
        fontweight="bold" if point.kind == "chosen" else "normal",
        parse_math=False,
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.72, "pad": 0.6},
        zorder=look.order + 3,
        annotation_clip=False,
    )


def _along(curve: Curve, axes: Axes, *, step: float) -> FloatArray:
    """Positions along a curve, `step` pixels apart, `(o, 2)`, pixels."""
    order = np.argsort(curve.cost_ratio, kind="stable")
    data = np.column_stack([curve.cost_ratio[order], curve.accuracy[order]])
    corners: FloatArray = axes.transData.transform(data)
    lengths = np.hypot(*np.diff(corners, axis=0).T)
    reached = np.concatenate([[0.0], np.cumsum(lengths)])
    at = np.arange(0.0, reached[-1] + step, step)
    return np.column_stack([np.interp(at, reached, corners[:, d]) for d in (0, 1)])


def _text_size(figure: Figure | SubFigure, text: str) -> tuple[float, float]:
    probe = figure.text(0, 0, text, fontsize=SMALL_PT, fontweight="bold", parse_math=False)
    box = probe.get_window_extent()
    probe.remove()
    return box.width, box.height
