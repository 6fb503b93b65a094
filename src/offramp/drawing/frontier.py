"""The frontier figure: accuracy against cost, with every reference beside it.

Layer: drawing.  Source: methods.md 1 (which references stand in every plot).
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from offramp._core.errors import InputError
from offramp._core.types import FloatArray
from offramp.drawing.canvas import (
    SMALL_PT,
    TEXT_PT,
    add_axes,
    calm,
    head_axis,
    legend_above,
    new_figure,
    quiet_about_glyphs,
)
from offramp.drawing.labels import label_points
from offramp.drawing.palette import (
    CURVE_LOOKS,
    GREEN,
    GREY,
    GRID,
    INK,
    MUTED,
    PAPER,
    POINT_LOOKS,
    SKY,
    Look,
    PointKind,
)
from offramp.drawing.series import Area, Band, Curve, Point

_LEGEND_ROW_IN = 0.22
_DECADES = 300  # most expensive over cheapest up to which there are ticks between powers of ten
_TINT, _AREA_TINT = 0.1, 0.32  # of a band, and of an area
_COST_LABEL = "mean cost per example, reference network = 1"
_NARROW_COST_LABEL = "cost per example, reference = 1"
_CROWDED = (
    0.03  # the cheapest point's share of the most expensive below which costs are drawn as powers
)
_POINT_LEGEND: dict[PointKind, str] = {
    "static": "one network alone",
    "oracle": "oracle (sees the labels)",
    "chosen": "chosen point",
    "exit": "used by the chosen point",
}


def frontier_figure(
    curves: Sequence[Curve],
    points: Sequence[Point],
    *,
    reference_accuracy: float | None = None,
    band: Band | None = None,
    area: Area | None = None,
    cost_label: str = _COST_LABEL,
    measure: str = "accuracy",
    narrow: bool = False,
) -> Figure:
    """Accuracy against cost: what each policy reaches, and what it is compared with.

    Args:
        curves: Lines, each sorted here by cost.
        points: Marked points; their labels never cover one another while there is room.
        reference_accuracy: Accuracy of the reference network, drawn as a level.
        band: Accuracies that are promised, or allowed.
        area: Accuracies that could be, for each cost.
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
    curves = _drawable(curves, points)
    entries = _legend_entries(curves, points, [area, band])
    columns = 2 if narrow else 4
    legend_in = _LEGEND_ROW_IN * -(-len(entries) // columns) + 0.1
    figure = new_figure(narrow=narrow, height_in=(3.9 if narrow else 4.3) + legend_in)
    axes = add_axes(figure, 0.42, 0.52, 0.12, legend_in + 0.24)
    if narrow and cost_label == _COST_LABEL:
        cost_label = _NARROW_COST_LABEL
    _draw_all(axes, curves, points, reference_accuracy, band, area, cost_label, measure)
    names = [name for name, _ in entries]
    legend_above(figure, _handles(entries), names, columns=columns, handle_length=2.0, gap=1.4)
    with quiet_about_glyphs():
        label_points(axes, curves, points)
    return figure


def plot_frontier(
    curves: Sequence[Curve],
    points: Sequence[Point],
    *,
    reference_accuracy: float | None = None,
    band: Band | None = None,
    area: Area | None = None,
    cost_label: str = _COST_LABEL,
    measure: str = "accuracy",
    axes: Axes | None = None,
) -> Axes:
    """As `frontier_figure`, on axes of pyplot: a notebook shows them, and the caller goes on.

    Args:
        curves: As there; so are the others but `axes`.
        points: Marked points.
        reference_accuracy: Accuracy of the reference network, drawn as a level.
        band: Accuracies that are promised, or allowed.
        area: Accuracies that could be, for each cost.
        cost_label: What the costs are.
        measure: What stands in the place of the accuracy.
        axes: Where to draw; by default axes of a new figure.

    Raises:
        InputError: If there is nothing to draw, or `axes` are none.

    >>> import numpy as np
    >>> front = Curve(name="learned", kind="learned", cost_ratio=np.array([0.3, 1.0]),
    ...               accuracy=np.array([0.8, 0.9]))
    >>> plot_frontier([front], [], axes=Figure().add_subplot()).get_xlabel()
    'mean cost per example, reference network = 1'
    """
    curves = _drawable(curves, points)
    if axes is None:
        from matplotlib import pyplot as plt  # pyplot holds every figure, so not before it is asked

        _, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    elif not isinstance(axes, Axes):
        raise InputError(
            f"axes must be axes of matplotlib, got {type(axes).__name__}. "
            "For example: figure, axes = plt.subplots()."
        )
    calm(axes)
    _draw_all(axes, curves, points, reference_accuracy, band, area, cost_label, measure)
    entries = _legend_entries(curves, points, [area, band])
    legend = axes.legend(
        _handles(entries),
        [name for name, _ in entries],
        loc="lower right",
        fontsize=SMALL_PT,
        labelcolor=INK,
        facecolor=PAPER,
        edgecolor="none",
        framealpha=0.85,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    with quiet_about_glyphs():
        label_points(axes, curves, points)
    return axes


def _drawable(curves: Sequence[Curve], points: Sequence[Point]) -> list[Curve]:
    """The curves that have points.

    Raises:
        InputError: If there is nothing to draw.
    """
    kept = [curve for curve in curves if len(curve.cost_ratio)]
    if not kept and not points:
        raise InputError("frontier_figure needs at least one curve or point, got none.")
    return kept


def _draw_all(
    axes: Axes,
    curves: Sequence[Curve],
    points: Sequence[Point],
    level: float | None,
    band: Band | None,
    area: Area | None,
    cost_label: str,
    measure: str,
) -> None:
    _cost_axes(axes, cost_label, measure)
    if band is not None:
        axes.axhspan(band.low, band.high, color=GREEN, alpha=_TINT, linewidth=0, zorder=0)
        axes.axhline(band.low, color=GREEN, linewidth=1.0, linestyle=(0, (5, 3)), zorder=1)
    if area is not None:
        axes.fill_between(
            area.cost_ratio,
            area.low,
            area.high,
            color=SKY,
            alpha=_AREA_TINT,
            linewidth=0,
            zorder=1,
        )
    if level is not None:
        axes.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (1, 3)))
    for curve in curves:
        order = np.argsort(curve.cost_ratio, kind="stable")
        _draw(axes, curve.cost_ratio[order], curve.accuracy[order], CURVE_LOOKS[curve.kind])
    for point in points:
        look = POINT_LOOKS[point.kind]
        if point.accuracy_ci is not None:
            axes.vlines(point.cost_ratio, *point.accuracy_ci, color=look.color, linewidth=1.2)
        if point.cost_ci is not None:
            axes.hlines(point.accuracy, *point.cost_ci, color=look.color, linewidth=1.2)
        _draw(axes, [point.cost_ratio], [point.accuracy], look)
    _limits(axes, curves, points, band, cost_label)


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


def _limits(
    axes: Axes,
    curves: Sequence[Curve],
    points: Sequence[Point],
    band: Band | None,
    cost_label: str,
) -> None:
    """Show everything but the far end of random exits, which may cost twice the reference."""
    framing = _framing(curves, points)
    x = _costs(framing, points)
    y = np.concatenate([c.accuracy for c in framing] + [[p.accuracy for p in points]])
    y = np.append(y, [] if band is None else [band.low])
    room = 0.09 * (float(np.ptp(y)) or 0.1)
    cheapest, most_expensive = float(x.min()), float(x.max())
    if log_costs(curves, points):  # else the cheap networks would all lie on the left edge
        axes.set_xscale("log")
        axes.set_xlim(cheapest / 1.6, 1.6 * most_expensive)
        few = most_expensive < _DECADES * cheapest
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=6))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))
        axes.xaxis.label.set_text(f"{cost_label} (log)")
    else:
        axes.set_xlim(0, 1.06 * most_expensive or 1.0)
    axes.set_ylim(float(y.min()) - room, float(y.max()) + room)


def log_costs(curves: Sequence[Curve], points: Sequence[Point]) -> bool:
    """Whether costs differ so much that they are drawn as powers."""
    x = _costs(_framing(curves, points), points)
    return 0 < float(x.min()) < _CROWDED * float(x.max())


def _framing(curves: Sequence[Curve], points: Sequence[Point]) -> list[Curve]:
    """The curves that decide what the axes show."""
    framing = [curve for curve in curves if curve.kind != "random"]
    return framing if framing or points else list(curves)


def _costs(curves: Sequence[Curve], points: Sequence[Point]) -> FloatArray:
    return np.concatenate([c.cost_ratio for c in curves] + [[p.cost_ratio for p in points]])


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


def _legend_entries(
    curves: Sequence[Curve], points: Sequence[Point], tinted: Sequence[Band | Area | None]
) -> list[tuple[str, Look | Band | Area]]:
    entries: list[tuple[str, Look | Band | Area]] = [(c.name, CURVE_LOOKS[c.kind]) for c in curves]
    kinds = {point.kind for point in points}
    entries += [(_POINT_LEGEND[k], look) for k, look in POINT_LOOKS.items() if k in kinds]
    return entries + [(one.name, one) for one in tinted if one is not None]


def _handles(entries: Sequence[tuple[str, Look | Band | Area]]) -> list[Artist]:
    return [_handle(entry) for _, entry in entries]


def _handle(entry: Look | Band | Area) -> Artist:
    if isinstance(entry, Look):
        return Line2D([], [], **_line_style(entry))  # type: ignore[arg-type]
    return Patch(facecolor=GREEN if isinstance(entry, Band) else SKY, alpha=0.35)
