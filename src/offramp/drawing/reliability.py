"""The calibration figure: for each stage how often it is right against how sure it is.

Layer: drawing.  Source: DeGroot and Fienberg, The Statistician 32 (1983) (reliability diagram).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from offramp._core.checks import check_shape
from offramp._core.errors import InputError
from offramp._core.formatting import percent, shortened
from offramp.drawing.canvas import (
    NARROW_IN,
    SMALL_PT,
    TEXT_PT,
    WIDE_IN,
    add_axes,
    new_figure,
    quiet_about_glyphs,
)
from offramp.drawing.palette import BLUE, GREY, GRID, INK, MUTED, VERMILLION

_LEFT_IN, _GAP_IN, _HEAD_IN, _FOOT_IN = 0.42, 0.34, 0.5, 0.5
_LARGEST_IN = 2.5
_NAME_LENGTH = 18


@final
@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """One panel of the figure.

    Args:
        name: Of the stage.
        confidence: Mean confidence of each group, `(b,)`, in [0, 1], rising.
        accuracy: Share of right answers in each group, `(b,)`, in [0, 1].
        counts: Examples of each group, `(b,)`.
        error: Expected calibration error, written below the name.
    """

    name: str
    confidence: Sequence[float]
    accuracy: Sequence[float]
    counts: Sequence[int]
    error: float

    def __post_init__(self) -> None:
        for name in ("accuracy", "counts"):
            check_shape(name, (len(getattr(self, name)),), (len(self.confidence),))


def calibration_figure(panels: Sequence[Calibrated], *, narrow: bool = False) -> Figure:
    """How often each stage is right against how sure it is; on the diagonal both are equal.

    Args:
        panels: One for each stage.
        narrow: Lay out for a phone.

    Raises:
        InputError: If there is no panel.

    >>> one = Calibrated(name="small", confidence=[0.6, 0.9], accuracy=[0.5, 0.9], counts=[9, 9],
    ...                  error=0.05)
    >>> len(calibration_figure([one]).axes)
    1
    """
    if not panels:
        raise InputError("calibration_figure needs at least one panel, got none.")
    width = NARROW_IN if narrow else WIDE_IN
    columns = min(len(panels), 2 if narrow else 4)
    rows = -(-len(panels) // columns)
    side = min(_LARGEST_IN, (width - columns * (_LEFT_IN + 0.05)) / columns - 0.05)
    if narrow and columns == 1:
        side = min(_LARGEST_IN, width - _LEFT_IN - 0.2)
    row_in = side + _HEAD_IN + _FOOT_IN
    figure = new_figure(narrow=narrow, height_in=rows * row_in)
    lowest = min(min((*p.confidence, *p.accuracy)) for p in panels)
    start = max(0.0, np.floor(10 * lowest - 0.2) / 10)
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        left = _LEFT_IN + column * (side + _GAP_IN + 0.12)
        bottom = (rows - 1 - row) * row_in + _FOOT_IN
        top = rows * row_in - bottom - side
        axes = add_axes(figure, left, bottom, width - left - side, top)
        with quiet_about_glyphs():
            _panel(axes, panel, start, first=column == 0)
    return figure


def _panel(axes: Axes, panel: Calibrated, start: float, *, first: bool) -> None:
    axes.grid(color=GRID, linewidth=0.7)
    axes.plot([start, 1], [start, 1], color=GREY, linewidth=1.0, linestyle=(0, (1, 3)))
    x, y = np.asarray(panel.confidence), np.asarray(panel.accuracy)
    axes.vlines(x, np.minimum(x, y), np.maximum(x, y), color=VERMILLION, linewidth=1.4, zorder=3)
    axes.plot(x, y, color=BLUE, marker="o", markersize=4.2, linewidth=1.4, clip_on=False, zorder=4)
    room = 0.02 * (1 - start)
    axes.set_xlim(start - room, 1 + room)
    axes.set_ylim(start - room, 1 + room)
    step = 0.25 if start < 0.3 else 0.1 if start > 0.65 else 0.2
    ticks = np.arange(1, start - 1e-9, -step)[::-1]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(ticks.tolist()))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f}"))
    axes.set_xlabel("sure, %", fontsize=SMALL_PT, color=MUTED)
    _above(axes, shortened(panel.name, _NAME_LENGTH), 19, INK, "bold")
    words = f"right, %; error {percent(panel.error)}" if first else f"error {percent(panel.error)}"
    _above(axes, words, 6, MUTED, "normal")


def _above(axes: Axes, text: str, at_pt: float, color: str, weight: str) -> None:
    axes.annotate(
        text,
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(0, at_pt),
        textcoords="offset points",
        fontsize=TEXT_PT if weight == "bold" else SMALL_PT,
        fontweight=weight,
        color=color,
        parse_math=False,
        annotation_clip=False,
    )
