"""The savings figure: what each policy saves within a given loss of accuracy.

Layer: drawing.  Source: methods.md 1 (savings at 0, 1, 2 and 5 points).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from offramp._core.checks import check_shape
from offramp._core.errors import InputError
from offramp.drawing.canvas import TEXT_PT, add_axes, head_axis, legend_above, new_figure
from offramp.drawing.palette import CURVE_LOOKS, GREEN, GRID, MUTED, PAPER, CurveKind

_APART = 0.14  # of the distance between two losses
_LEGEND_ROW_IN = 0.22


@final
@dataclass(frozen=True, kw_only=True)
class SavedSeries:
    """One policy of the savings figure.

    Args:
        name: In the legend.
        kind: Decides color and marker.
        saved: Share of the reference's cost saved within each loss, `(k,)`.
        low: Lower end of its interval, `(k,)`; equal to `saved` where there is none.
        high: Upper end, `(k,)`.
    """

    name: str
    kind: CurveKind
    saved: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            check_shape(name, (len(getattr(self, name)),), (len(self.saved),))


def savings_figure(
    losses: Sequence[float],
    series: Sequence[SavedSeries],
    *,
    oracle: float | None = None,
    measure: str = "accuracy",
    narrow: bool = False,
) -> Figure:
    """Share of cost saved against the loss allowed, with intervals.

    Args:
        losses: The losses allowed, `(k,)`, as shares: 0.01 is one point.
        series: One for each policy.
        oracle: What the neutral oracle saves, drawn as a level.
        measure: What is lost, for the axis.
        narrow: Lay out for a phone.

    Raises:
        InputError: If there is nothing to draw, or a series has not one value for each loss.

    >>> learned = SavedSeries(name="learned", kind="learned", saved=[0.2, 0.3], low=[0.1, 0.2],
    ...                       high=[0.3, 0.4])
    >>> len(savings_figure([0.0, 0.01], [learned]).axes)
    1
    """
    if not series:
        raise InputError("savings_figure needs at least one series, got none.")
    for one in series:
        check_shape("saved", (len(one.saved),), (len(losses),))
    columns = 2 if narrow else 4
    legend_in = _LEGEND_ROW_IN * -(-(len(series) + (oracle is not None)) // columns) + 0.1
    figure = new_figure(narrow=narrow, height_in=3.2 + legend_in)
    axes = add_axes(figure, 0.45, 0.5, 0.12, legend_in + 0.3)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.spines["left"].set_visible(False)
    axes.axhline(0, color=GRID, linewidth=1.2)
    if oracle is not None:
        axes.axhline(oracle, color=GREEN, linewidth=1.1, linestyle=(0, (5, 3)))
    for i, one in enumerate(series):
        _draw(axes, one, (i - (len(series) - 1) / 2) * _APART)
    _label_axes(axes, losses, measure)
    _legend(figure, series, oracle is not None, columns)
    return figure


def _draw(axes: Axes, one: SavedSeries, shift: float) -> None:
    look = CURVE_LOOKS[one.kind]
    x, saved = np.arange(len(one.saved)) + shift, np.asarray(one.saved, dtype=np.float64)
    axes.vlines(x, one.low, one.high, color=look.color, linewidth=1.6, zorder=look.order)
    axes.plot(
        x,
        saved,
        color=look.color,
        marker=look.marker or "x",
        markersize=7,
        markeredgecolor=PAPER if look.marker else look.color,
        linewidth=0,
        zorder=look.order + 1,
    )


def _label_axes(axes: Axes, losses: Sequence[float], measure: str) -> None:
    axes.set_xlim(-0.5, len(losses) - 0.5)
    axes.set_xticks(range(len(losses)), [f"{100 * loss:g}" for loss in losses])
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g}"))
    axes.set_xlabel(f"loss allowed, points of {measure}", fontsize=TEXT_PT, color=MUTED)
    head_axis(axes, "cost saved, %")


def _legend(figure: Figure, series: Sequence[SavedSeries], oracle: bool, columns: int) -> None:
    looks = [(one.name, CURVE_LOOKS[one.kind]) for one in series]
    handles = [
        Line2D([], [], color=look.color, marker=look.marker or "x", markersize=6, linewidth=1.6)
        for _, look in looks
    ]
    names = [name for name, _ in looks]
    if oracle:
        handles.append(Line2D([], [], color=GREEN, linewidth=1.1, linestyle=(0, (5, 3))))
        names.append("neutral oracle")
    legend_above(figure, handles, names, columns=columns, handle_length=1.4, gap=1.0)
