"""How accurate every stage is on the examples that left at each stage, and how many did.

Layer: drawing.  Source: Guan et al., IJCAI 2018, Figure 4.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from offramp._core.checks import check_shape
from offramp._core.errors import InputError
from offramp._core.formatting import NONE, percent, shortened
from offramp.drawing.canvas import SMALL_PT, TEXT_PT, add_axes, new_figure, quiet_about_glyphs
from offramp.drawing.palette import BLUE, INK, MUTED

_CELL_IN = 0.5
_NAME_IN = 1.15
_FAINT, _STRONG = 0.06, 0.5  # opacity of the least and the most accurate cell: text stays legible


def assignment_figure(
    stages: Sequence[str],
    accuracy: Sequence[Sequence[float | None]],
    share: Sequence[float],
    *,
    narrow: bool = False,
) -> Figure:
    """A field for stage i (row) on the examples that left at stage j (column), and bars of shares.

    Args:
        stages: Names, `(s,)`.
        accuracy: `accuracy[i][j]` in [0, 1], None where nobody left.
        share: Share of examples that left at each stage, `(s,)`.
        narrow: Lay out for a phone.

    Raises:
        InputError: If there is no stage, or the shapes differ.

    >>> len(assignment_figure(["a", "b"], [[0.9, 0.4], [0.95, 0.6]], [0.7, 0.3]).axes)
    2
    """
    s = len(stages)
    if not s:
        raise InputError("assignment_figure needs at least one stage, got none.")
    check_shape("share", (len(share),), (s,))
    for row in accuracy:
        check_shape("a row of accuracy", (len(row),), (s,))
    check_shape("accuracy", (len(accuracy),), (s,))
    field_in = 0.45 + s * _CELL_IN
    height = field_in + 0.3 + (s * 0.32 + 0.5 if narrow else 0)
    figure = new_figure(narrow=narrow, height_in=height)
    width = float(figure.get_size_inches()[0])
    wide_in = width - 0.1 if narrow else 0.6 * width
    names = [shortened(name, 14) for name in stages]
    field = add_axes(figure, _NAME_IN, height - field_in, width - wide_in, 0.45)
    if narrow:
        bars = add_axes(figure, _NAME_IN, 0.1, 0.6, field_in + 0.5)
    else:
        bars = add_axes(figure, wide_in + 0.35, height - field_in, 0.6, 0.45)
    with quiet_about_glyphs():
        _field(field, names, accuracy)
        _shares(bars, names if narrow else [""] * s, share)
    return figure


def _field(axes: Axes, names: Sequence[str], accuracy: Sequence[Sequence[float | None]]) -> None:
    known = [value for row in accuracy for value in row if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    for i, row in enumerate(accuracy):
        for j, value in enumerate(row):
            if value is not None:
                at = (value - low) / (high - low) if high > low else 1.0
                opacity = _FAINT + at * (_STRONG - _FAINT)
                cell = Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, color=BLUE, alpha=opacity)
                axes.add_patch(cell)
            text = NONE if value is None else f"{100 * value:.1f}"
            weight = "bold" if i == j else "normal"
            axes.text(
                *(j, i, text), ha="center", va="center", color=INK, fontsize=TEXT_PT, weight=weight
            )
    _frame(axes, len(names))
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xticks(range(len(names)), list(names))
    axes.set_yticks(range(len(names)), list(names))
    axes.xaxis.tick_top()
    axes.set_title(
        "right answers, %, of a stage (row) on what left at a stage (column)",
        fontsize=SMALL_PT,
        color=MUTED,
        loc="right",
        pad=20,
        wrap=True,
    )


def _shares(axes: Axes, names: Sequence[str], share: Sequence[float]) -> None:
    rows = np.arange(len(share))
    axes.barh(rows, share, height=0.55, color=BLUE)
    for row, value in enumerate(share):
        axes.text(value + 0.015, row, percent(value), va="center", color=INK, fontsize=SMALL_PT)
    _frame(axes, len(share))
    axes.set_xlim(0, max(*share, 0.01))
    axes.set_xticks([])
    axes.set_yticks(rows, list(names))
    axes.set_title("left there", fontsize=SMALL_PT, color=MUTED, loc="left", pad=6)


def _frame(axes: Axes, s: int) -> None:
    axes.set_ylim(s - 0.5, -0.5)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
