"""The timeline: what one batch's time went into, stage by stage.

Layer: drawing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from offramp._core.errors import InputError
from offramp._core.formatting import shortened
from offramp.drawing.canvas import (
    SMALL_PT,
    TEXT_PT,
    add_axes,
    legend_above,
    new_figure,
    quiet_about_glyphs,
)
from offramp.drawing.palette import AMBER, BLUE, GREEN, GREY, GRID, INK, MUTED, SKY, VERMILLION

SectionKind = Literal["stage", "head", "decision", "compaction", "wait", "other"]
WHOLE_BATCH = "batch"  # the lane of what belongs to no stage

#: Color and height of a bar: kinds are told apart without colors too.
_LOOKS: dict[SectionKind, tuple[str, float]] = {
    "stage": (BLUE, 0.72),
    "head": (SKY, 0.72),
    "decision": (AMBER, 0.44),
    "compaction": (GREEN, 0.28),
    "wait": (VERMILLION, 0.9),
    "other": (GREY, 0.28),
}
_LANE_IN = 0.27
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


@final
@dataclass(frozen=True, kw_only=True)
class Section:
    """A stretch of one batch's time.

    Args:
        kind: What it went into.
        stage: Name of the stage, or "" where it is the whole batch's.
        start_s: Seconds from the start of the batch.
        end_s: The same, not earlier.
    """

    kind: SectionKind
    stage: str
    start_s: float
    end_s: float


def timeline_figure(
    sections: Sequence[Section], stages: Sequence[str], *, narrow: bool = False
) -> Figure:
    """Draw what one batch's time went into, a lane for each stage.

    Args:
        sections: In any order.
        stages: Names of the lanes, the first on top.
        narrow: Lay out for a phone.

    Raises:
        InputError: If there is nothing to draw, or a section is of a stage that has no lane.

    >>> one = Section(kind="stage", stage="small", start_s=0.0, end_s=0.002)
    >>> timeline_figure([one], ["small"]).axes[0].get_xlabel()
    'time, ms'
    """
    if not sections:
        raise InputError("sections must hold at least one section to draw, got none.")
    lanes = {name: k for k, name in enumerate([*stages, ""])}
    unknown = sorted({one.stage for one in sections} - set(lanes))
    if unknown:
        raise InputError(f"stages must name every stage of the sections, {unknown} are missing.")
    if all(one.stage for one in sections):
        del lanes[""]
    legend_in = 0.6 if narrow else 0.38
    figure = new_figure(narrow=narrow, height_in=legend_in + len(lanes) * _LANE_IN + 0.6)
    names = [shortened(name or WHOLE_BATCH, 14 if narrow else 22) for name in lanes]
    left = 0.25 + 0.072 * max(map(len, names))
    axes = add_axes(figure, left, 0.5, 0.15, legend_in)
    end = max(one.end_s for one in sections)
    factor, unit = next((u for u in _UNITS if end >= u[0]), _UNITS[-1])
    for one in sections:
        color, height = _LOOKS[one.kind]
        axes.barh(
            lanes[one.stage],
            (one.end_s - one.start_s) / factor,
            left=one.start_s / factor,
            height=height,
            color=color,
            edgecolor=color,
            linewidth=0.3,  # so that the shortest can be seen
        )
    axes.set_xlim(0, end / factor)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    with quiet_about_glyphs():
        axes.set_yticks(range(len(lanes)), names, parse_math=False)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=SMALL_PT)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel(f"time, {unit}", fontsize=TEXT_PT, color=MUTED)
    _legend(figure, sections, columns=3 if narrow else 6)
    return figure


def _legend(figure: Figure, sections: Sequence[Section], *, columns: int) -> None:
    present = {one.kind for one in sections}
    kinds: list[SectionKind] = [kind for kind in get_args(SectionKind) if kind in present]
    handles = [Patch(color=_LOOKS[kind][0]) for kind in kinds]
    legend_above(figure, handles, kinds, columns=columns, handle_length=1.0, gap=1.4)
