"""Bar figures: who leaves where, where the cost goes, and which networks are right together.

Layer: drawing.  Source: methods.md 1 (statistics at an operating point, overlap).
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from offramp._core.checks import check_shape
from offramp._core.errors import InputError
from offramp._core.formatting import percent, shortened
from offramp.drawing.canvas import (
    SMALL_PT,
    TEXT_PT,
    WIDE_IN,
    add_axes,
    new_figure,
    quiet_about_glyphs,
)
from offramp.drawing.palette import BLUE, GREEN, GREY, GRID, INK, MUTED

_ROW_IN = 0.32
_NAME_LENGTH = 16


def stage_figure(
    stages: Sequence[str],
    exit_share: Sequence[float],
    useful_share: Sequence[float],
    overhead_share: Sequence[float],
    *,
    decision_share: float = 0.0,
    narrow: bool = False,
) -> Figure:
    """Who leaves where, and where the cost goes.

    Args:
        stages: Names of the stages, `(s,)`.
        exit_share: Share of examples that leave after each stage, `(s,)`.
        useful_share: Share of the total cost spent in each stage on work that the answer needs.
        overhead_share: Share of the total cost spent in each stage on other work, `(s,)`.
        decision_share: Share of the total cost spent on deciding; a row of its own if not 0.
        narrow: Lay out for a phone.

    Raises:
        InputError: If the lengths differ.
    """
    for name, values in (("exit_share", exit_share), ("useful_share", useful_share),
                         ("overhead_share", overhead_share)):  # fmt: skip
        check_shape(name, (len(values),), (len(stages),))
    names = [shortened(name, _NAME_LENGTH) for name in stages]
    deciding = [decision_share] if decision_share > 0 else []
    rows = [*names, "deciding"] if deciding else names
    figure, left, right = _two_panels(names, rows, narrow=narrow)
    useful, other = [*useful_share, *[0.0 for _ in deciding]], [*overhead_share, *deciding]
    with quiet_about_glyphs():
        exits = [percent(share) for share in exit_share]
        _bars(left, len(names) if narrow else len(rows), [(exit_share, BLUE)], exits)
        _bars(right, len(rows), [(useful, GREEN), (other, GREY)], _both(useful, other))
        _row_names(left, names if narrow else rows)
        if narrow:
            _row_names(right, rows)
        # On a phone the headings start at the edge: long names leave the panels little room.
        start = 4 - right.get_window_extent().x0 * 72 / figure.dpi if narrow else 0.0
        _note(left, "examples that leave here", start, MUTED)
        _note(right, "share of cost:", start, MUTED)
        _color_key(right, "useful", start + 80, GREEN)
        _color_key(right, "overhead", start + 130, GREY)
    return figure


def _two_panels(
    names: Sequence[str], rows: Sequence[str], *, narrow: bool
) -> tuple[Figure, Axes, Axes]:
    """Axes for the exits and for the costs: side by side, or one below the other."""
    upper, lower = _ROW_IN * len(names), _ROW_IN * len(rows)
    head, names_in = 0.34, 0.2 + 0.075 * max(len(name) for name in rows)
    if narrow:
        figure = new_figure(narrow=True, height_in=upper + lower + 2 * head + 0.3)
        return (
            figure,
            add_axes(figure, names_in, lower + head + 0.25, 0.1, head),
            add_axes(figure, names_in, 0.05, 0.1, upper + 2 * head + 0.25),
        )
    figure = new_figure(narrow=False, height_in=lower + head + 0.05)
    middle = names_in + (WIDE_IN - names_in) * 0.45
    return (
        figure,
        add_axes(figure, names_in, 0.05, WIDE_IN - middle, head),
        add_axes(figure, middle + 0.3, 0.05, 0.1, head),
    )


def _both(useful: Sequence[float], overhead: Sequence[float]) -> list[str]:
    return [
        f"{percent(u)} + {percent(o)}" if u and o else percent(u or o)
        for u, o in zip(useful, overhead, strict=True)
    ]


def _bars(
    axes: Axes, rows: int, parts: Sequence[tuple[Sequence[float], str]], texts: Sequence[str]
) -> None:
    """Stacked horizontal bars, the first row on top, each with its text behind it."""
    ends = np.zeros(len(texts))
    places = np.arange(len(texts))
    for values, color in parts:
        widths = np.asarray(values, dtype=np.float64)
        axes.barh(places, widths, left=ends, height=0.62, color=color, linewidth=0)
        ends = ends + widths
    width_in = float(axes.get_window_extent().width) / axes.figure.dpi
    room = [min(0.7, 0.075 * (2 + len(text)) / width_in) for text in texts]  # share of the width
    needed = max((end / (1 - r) for end, r in zip(ends, room, strict=True)), default=0.0)
    axes.set_xlim(0, needed or 1.0)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["bottom"].set_visible(False)
    for place, end, text in zip(places, ends, texts, strict=True):
        _beside(axes, (float(end), float(place)), text, 4, size_pt=SMALL_PT)


def _row_names(axes: Axes, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        _beside(axes, (0, place), name, -6, size_pt=TEXT_PT)


def _beside(
    axes: Axes, at: tuple[float, float], text: str, offset_pt: float, *, size_pt: float
) -> None:
    """Text to the right of a place, or to the left where the offset is negative."""
    axes.annotate(
        text,
        xy=at,
        xytext=(offset_pt, 0),
        textcoords="offset points",
        ha="left" if offset_pt > 0 else "right",
        va="center",
        fontsize=size_pt,
        color=INK,
        parse_math=False,
        annotation_clip=False,
    )


def _note(axes: Axes, text: str, at_pt: float, color: str) -> None:
    """A word above the axes, `at_pt` points from their left edge."""
    axes.annotate(
        text,
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(at_pt, 7),
        textcoords="offset points",
        annotation_clip=False,
        fontsize=TEXT_PT,
        color=color,
    )


def _color_key(axes: Axes, text: str, at_pt: float, color: str) -> None:
    """A small square of a color and what it stands for, above the axes."""
    place = ScaledTranslation(at_pt / 72, 10.5 / 72, axes.figure.dpi_scale_trans)
    axes.plot(
        [0], [1], "s", color=color, markersize=8, clip_on=False, transform=axes.transAxes + place
    )
    _note(axes, text, at_pt + 8, INK)


def overlap_figure(
    stages: Sequence[str],
    subsets: Sequence[Sequence[str]],
    shares: Sequence[float],
    *,
    narrow: bool = False,
) -> Figure:
    """Which networks get the same examples right: a row per subset, dots mark who is right.

    Args:
        stages: Names of the stages, `(s,)`.
        subsets: Subsets of stages in the order of the rows; the empty one: nobody is right.
        shares: Share of examples that exactly each subset gets right.
        narrow: Lay out for a phone.

    Raises:
        InputError: If there are no subsets, or not one share for each.
    """
    if not subsets:
        raise InputError("overlap_figure needs at least one subset, got none.")
    check_shape("shares", (len(shares),), (len(subsets),))
    names = [shortened(name, _NAME_LENGTH) for name in stages]
    columns_in = min(0.3, (1.9 if narrow else 3.6) / len(stages)) * len(stages)
    head_in = 0.2 + 0.056 * max(len(name) for name in names)  # names stand at 45 degrees
    rows_in = _ROW_IN * len(subsets)
    figure = new_figure(narrow=narrow, height_in=rows_in + head_in + 0.05)
    width = float(figure.get_size_inches()[0])
    dots = add_axes(figure, 0.05, 0.05, width - 0.05 - columns_in, head_in)
    # Slanted names reach over the bars, which stand lower: nothing overlaps.
    bars = add_axes(figure, columns_in + 0.15, 0.05, 0.1, head_in)
    with quiet_about_glyphs():
        _dot_matrix(dots, stages, names, subsets)
        _bars(bars, len(subsets), [(shares, BLUE)], _named(subsets, shares, len(stages)))
    return figure


def _named(subsets: Sequence[Sequence[str]], shares: Sequence[float], s: int) -> list[str]:
    words = {0: ", none", s: ", all"}
    return [
        percent(share) + words.get(len(subset), "")
        for subset, share in zip(subsets, shares, strict=True)
    ]


def _dot_matrix(
    axes: Axes, stages: Sequence[str], names: Sequence[str], subsets: Sequence[Sequence[str]]
) -> None:
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.set_ylim(len(subsets) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    for row, subset in enumerate(subsets):
        inside = [k for k, name in enumerate(stages) if name in subset]
        outside = [k for k in range(len(stages)) if k not in inside]
        axes.plot(outside, [row] * len(outside), "o", color=GRID, markersize=6, linewidth=0)
        axes.plot(inside, [row] * len(inside), "o-", color=BLUE, markersize=7, linewidth=1.6)
    for k, name in enumerate(names):
        axes.text(
            k,
            -0.62,
            name,
            rotation=45,
            rotation_mode="anchor",
            fontsize=SMALL_PT,
            color=INK,
            parse_math=False,
        )
