"""Figures of class exits: time at each layer, class against others, the best of each class.

Layer: drawing.  Source: Bonato and Bouganis, class-specific early exit, figures 4 to 6; beside what
their formulas say stands what the examples take.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from offramp._core.errors import InputError
from offramp._core.formatting import shortened, times
from offramp.drawing.canvas import SMALL_PT, TEXT_PT, add_axes, new_figure
from offramp.drawing.palette import AMBER, BLUE, GREY, GRID, INK, MUTED, VERMILLION

_PANEL_IN = 2.3
_ROW_IN = 0.2
_LEGEND_IN = 0.55
_BAR_ENDS = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)


@final
@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """An exit of one class; times over the network's own.

    Args:
        of: Name of the class.
        layer: Position of its point, from 1 on.
        keep_previous: True if it also reads the points before.
        time: Of the class by the formula, which counts impostors.
        time_true: Of the class as it is.
        others: Of the others who stay, by the formula.
        others_true: Of the others as it is.
    """

    of: str
    layer: int
    keep_previous: bool
    time: float
    time_true: float
    others: float
    others_true: float


Axis = Literal["layer", "others"]


def layer_figure(
    exits: Sequence[LayerTime], *, against: Axis = "layer", narrow: bool = False
) -> Figure:
    """Time of each class against the layer of its exit, or against the time of the others.

    Args:
        exits: Of one or more classes; each gets a panel.
        against: What runs to the right.
        narrow: Lay out for a phone.

    Raises:
        InputError: If there is nothing to draw.

    >>> one = LayerTime(of="cat", layer=3, keep_previous=True, time=0.5, time_true=0.8,
    ...                 others=1.01, others_true=1.0)
    >>> len(layer_figure([one]).axes)
    1
    """
    names = list(dict.fromkeys(one.of for one in exits))
    if not names:
        raise InputError("layer_figure needs at least one exit, got none.")
    columns = 1 if narrow else 2
    rows = -(-len(names) // columns)
    legend_in = _LEGEND_IN * (2 if narrow else 1)
    figure = new_figure(narrow=narrow, height_in=rows * _PANEL_IN + legend_in + 0.1)
    width, height = (float(size) for size in figure.get_size_inches())
    step = width / columns
    for k, name in enumerate(names):
        row, column = divmod(k, columns)
        axes = add_axes(
            figure,
            column * step + 0.42,
            height - legend_in - (row + 1) * _PANEL_IN + 0.45,
            width - (column + 1) * step + 0.12,
            legend_in + row * _PANEL_IN + 0.3,
        )
        _panel(axes, [one for one in exits if one.of == name], name, against)
    _legend(figure, against, columns)
    return figure


def _panel(axes: Axes, exits: Sequence[LayerTime], name: str, against: Axis) -> None:
    axes.set_title(shortened(name), fontsize=TEXT_PT, color=INK, loc="left")
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.axhline(1, color=GREY, linewidth=1.0, linestyle=(0, (5, 3)))
    for kept, marker in ((False, "o"), (True, "^")):
        found = [one for one in exits if one.keep_previous == kept]
        layers = [float(one.layer) for one in found]
        by_layer = against == "layer"
        formula_x = layers if by_layer else [one.others for one in found]
        fact_x = layers if by_layer else [one.others_true for one in found]
        _dots(axes, formula_x, [max(one.time, 0.0) for one in found], marker, AMBER, filled=False)
        _dots(axes, fact_x, [one.time_true for one in found], marker, BLUE)
        if by_layer:
            _dots(axes, layers, [one.others_true for one in found], "_", VERMILLION)
    axes.set_ylim(0, max(1.1, *(max(one.time_true, one.others_true) for one in exits)) * 1.04)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=against == "layer"))
    label = "layer of the exit" if against == "layer" else "time of the others, network = 1"
    axes.set_xlabel(label, fontsize=SMALL_PT, color=MUTED)


def _dots(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    marker: str,
    color: str,
    *,
    filled: bool = True,
) -> None:
    face = color if filled else "none"
    axes.plot(x, y, color=color, marker=marker, markerfacecolor=face, markersize=5, linewidth=0)


def _legend(figure: Figure, against: Axis, columns: int) -> None:
    entries = [
        ("of the class, as it is", BLUE, "o", True),
        ("by the formula", AMBER, "o", False),
        *([("others, as it is", VERMILLION, "_", True)] if against == "layer" else []),
        ("KP on: triangle", GREY, "^", True),
        ("KP off: circle", GREY, "o", True),
    ]
    _key(figure, entries, 2 if columns == 1 else 5)


def _key(figure: Figure, entries: Sequence[tuple[str, str, str, bool]], columns: int) -> None:
    handles = [
        Line2D(
            [],
            [],
            linewidth=0,
            markersize=5.5,
            color=color,
            marker=marker,
            markerfacecolor=color if filled else "none",
        )
        for _, color, marker, filled in entries
    ]
    figure.legend(
        handles,
        [name for name, *_ in entries],
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=SMALL_PT,
        labelcolor=MUTED,
        handletextpad=0.3,
        columnspacing=1.2,
    )


@final
@dataclass(frozen=True, kw_only=True)
class GainBar:
    """One of the best exits of a class.

    Args:
        name: Of the class and the exit.
        first: True for the first of a class.
        gain: By the formula; None where it has broken down.
        gain_true: Over the examples of the class alone.
        loss: Time of the others over the network's, as it is.
    """

    name: str
    first: bool
    gain: float | None
    gain_true: float
    loss: float


def gain_figure(bars: Sequence[GainBar], *, narrow: bool = False) -> Figure:
    """Gain of the class and loss of the others for the best exits, on a scale of powers.

    Args:
        bars: The exits, class by class.
        narrow: Lay out for a phone.

    Raises:
        InputError: If there is nothing to draw.

    >>> bar = GainBar(name="cat 1", first=True, gain=2.0, gain_true=1.3, loss=1.01)
    >>> len(gain_figure([bar]).axes)
    1
    """
    if not bars:
        raise InputError("gain_figure needs at least one exit, got none.")
    gaps = np.cumsum([0.6 if bar.first else 0.0 for bar in bars])
    y = np.arange(len(bars)) + gaps
    figure = new_figure(narrow=narrow, height_in=float(y[-1] + 1) * _ROW_IN + 1.1)
    axes = add_axes(figure, 1.1 if narrow else 1.6, 0.5, 0.2, 0.5)
    axes.set_xscale("log")
    axes.axvline(1, color=GREY, linewidth=1.0)
    axes.barh(y, [bar.gain_true - 1 for bar in bars], left=1, height=0.7, color=BLUE)
    known = [(at, bar.gain) for at, bar in zip(y, bars, strict=True) if bar.gain is not None]
    _dots(axes, [g for _, g in known], [at for at, _ in known], "D", AMBER, filled=False)
    _dots(axes, [1 / bar.loss for bar in bars], y.tolist(), "|", VERMILLION)
    axes.set_yticks(y, [shortened(bar.name, 12 if narrow else 20) for bar in bars])
    axes.set_ylim(y[-1] + 0.8, -0.2)
    high = max([bar.gain_true for bar in bars] + [gain for _, gain in known]) * 1.15
    low = min([1.0] + [1 / bar.loss for bar in bars]) * 0.95
    axes.set_xlim(low, max(high, 1.3))
    axes.xaxis.set_major_locator(FixedLocator([x for x in _BAR_ENDS if low <= x <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: times(x)))
    axes.set_xlabel("times faster", fontsize=SMALL_PT, color=MUTED)
    entries = [
        ("the class, as it is", BLUE, "s", True),
        ("by the formula", AMBER, "D", False),
        ("the others", VERMILLION, "|", True),
    ]
    _key(figure, entries, 2 if narrow else 3)
    return figure
