"""The frontier figure: accuracy against cost, with every reference beside it.

Layer: drawing.  Source: methods.md 1 (which references stand in every plot).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from offramp._core.checks import check_shape
from offramp._core.errors import InputError
from offramp._core.formatting import shortened
from offramp._core.types import FloatArray
from offramp.drawing.canvas import (
    SMALL_PT,
    TEXT_PT,
    add_axes,
    head_axis,
    legend_above,
    new_figure,
    quiet_about_glyphs,
)
from offramp.drawing.palette import (
    CURVE_LOOKS,
    GREY,
    GRID,
    MUTED,
    PAPER,
    POINT_LOOKS,
    CurveKind,
    Look,
    PointKind,
)
from offramp.drawing.placement import place_labels

_LEGEND_ROW_IN = 0.22
_COST_LABEL = "mean cost per example, reference network = 1"
_CROWDED = (
    0.03  # the cheapest point's share of the most expensive below which costs are drawn as powers
)
_POINT_LEGEND: dict[PointKind, str] = {
    "static": "one network alone",
    "oracle": "oracle (sees the labels)",
    "chosen": "chosen point",
    "exit": "used by the chosen point",
}


@final
@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of the frontier figure.

    Args:
        name: Its name in the legend.
        kind: Decides color, marker and dash.
        cost_ratio: Mean cost over that of the reference network, `(p,)`, any order.
        accuracy: Share of right answers, `(p,)`, in [0, 1].
    """

    name: str
    kind: CurveKind
    cost_ratio: FloatArray
    accuracy: FloatArray

    def __post_init__(self) -> None:
        check_shape("accuracy", self.accuracy.shape, self.cost_ratio.shape)


@final
@dataclass(frozen=True, kw_only=True)
class Point:
    """A marked and labeled point of the frontier figure.

    Args:
        name: Its label; "" writes none.
        kind: Decides color and marker.
        cost_ratio: Mean cost over that of the reference network.
        accuracy: Share of right answers, in [0, 1].
    """

    name: str
    kind: PointKind
    cost_ratio: float
    accuracy: float


def frontier_figure(
    curves: Sequence[Curve],
    points: Sequence[Point],
    *,
    reference_accuracy: float | None = None,
    cost_label: str = _COST_LABEL,
    measure: str = "accuracy",
    narrow: bool = False,
) -> Figure:
    """Accuracy against cost: what each policy reaches, and what it is compared with.

    Args:
        curves: Lines, each sorted here by cost.
        points: Marked points; their labels never cover one another while there is room.
        reference_accuracy: Accuracy of the reference network, drawn as a level.
        cost_label: What the costs are.
        measure: What stands in the place of the accuracy, of traces without labels.
        narrow: Lay out for a phone.

    Raises:
        InputError: If there is nothing to draw.

    >>> import numpy as np
    >>> front = Curve(name="learned", kind="learned", cost_ratio=np.array([0.3, 1.0]),
    ...               accuracy=np.array([0.8, 0.9]))
    >>> len(frontier_figure([front], []).axes)
    1
    """
    curves = [curve for curve in curves if len(curve.cost_ratio)]
    if not curves and not points:
        raise InputError("frontier_figure needs at least one curve or point, got none.")
    entries = _legend_entries(curves, points)
    columns = 2 if narrow else 4
    legend_in = _LEGEND_ROW_IN * -(-len(entries) // columns) + 0.1
    figure = new_figure(narrow=narrow, height_in=(3.9 if narrow else 4.3) + legend_in)
    axes = add_axes(figure, 0.42, 0.52, 0.12, legend_in + 0.24)
    _cost_axes(axes, cost_label, measure)
    if reference_accuracy is not None:
        axes.axhline(reference_accuracy, color=GREY, linewidth=0.9, linestyle=(0, (1, 3)))
    for curve in curves:
        order = np.argsort(curve.cost_ratio, kind="stable")
        _draw(axes, curve.cost_ratio[order], curve.accuracy[order], CURVE_LOOKS[curve.kind])
    for point in points:
        _draw(axes, [point.cost_ratio], [point.accuracy], POINT_LOOKS[point.kind])
    _limits(axes, curves, points, cost_label)
    _legend(figure, entries, columns)
    with quiet_about_glyphs():
        _label_points(figure, axes, curves, points)
    return figure


def _cost_axes(axes: Axes, cost_label: str, measure: str) -> None:
    axes.grid(color=GRID, linewidth=0.7)
    axes.spines["left"].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.set_xlabel(cost_label, fontsize=TEXT_PT, color=MUTED, parse_math=False)
    head_axis(axes, f"{measure}, %")


def _tick(value: float, _: int | None) -> str:
    return f"{value:.4g}"


def _limits(axes: Axes, curves: Sequence[Curve], points: Sequence[Point], cost_label: str) -> None:
    """Show everything but the far end of random exits, which may cost twice the reference."""
    framing = [curve for curve in curves if curve.kind != "random"]
    if not framing and not points:
        framing = list(curves)
    x = np.concatenate([c.cost_ratio for c in framing] + [[p.cost_ratio for p in points]])
    y = np.concatenate([c.accuracy for c in framing] + [[p.accuracy for p in points]])
    room = 0.09 * (float(np.ptp(y)) or 0.1)
    cheapest, most_expensive = float(x.min()), float(x.max())
    if (
        0 < cheapest < _CROWDED * most_expensive
    ):  # else the cheap networks would all lie on the left edge
        axes.set_xscale("log")
        axes.set_xlim(cheapest / 1.6, 1.6 * most_expensive)
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))
        axes.xaxis.label.set_text(f"{cost_label} (log scale)")
    else:
        axes.set_xlim(0, 1.06 * most_expensive or 1.0)
    axes.set_ylim(float(y.min()) - room, float(y.max()) + room)


def _draw(
    axes: Axes, x: FloatArray | Sequence[float], y: FloatArray | Sequence[float], look: Look
) -> None:
    clip = look.color == CURVE_LOOKS["random"].color
    axes.plot(x, y, zorder=look.order, clip_on=clip, **_line_style(look))  # type: ignore[arg-type]


def _line_style(look: Look) -> dict[str, object]:
    return {
        "color": look.color,
        "linestyle": look.dash or "none",
        "linewidth": look.width_pt,
        "marker": look.marker or "none",
        "markersize": look.size_pt,
        "markerfacecolor": look.color if look.filled else "none",
        "markeredgecolor": PAPER if look.filled else look.color,
        "markeredgewidth": 0.5 if look.filled else look.width_pt,
    }


def _legend_entries(curves: Sequence[Curve], points: Sequence[Point]) -> list[tuple[str, Look]]:
    entries = [(curve.name, CURVE_LOOKS[curve.kind]) for curve in curves]
    kinds = {point.kind for point in points}
    return entries + [(_POINT_LEGEND[k], look) for k, look in POINT_LOOKS.items() if k in kinds]


def _legend(figure: Figure, entries: Sequence[tuple[str, Look]], columns: int) -> None:
    handles = [Line2D([], [], **_line_style(look)) for _, look in entries]  # type: ignore[arg-type]
    names = [name for name, _ in entries]
    legend_above(figure, handles, names, columns=columns, handle_length=2.0, gap=1.4)


def _label_points(
    figure: Figure, axes: Axes, curves: Sequence[Curve], points: Sequence[Point]
) -> None:
    order = sorted((p for p in points if p.name), key=lambda point: point.kind != "chosen")
    if not order:
        return
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


def _text_size(figure: Figure, text: str) -> tuple[float, float]:
    probe = figure.text(0, 0, text, fontsize=SMALL_PT, fontweight="bold", parse_math=False)
    box = probe.get_window_extent()
    probe.remove()
    return box.width, box.height
