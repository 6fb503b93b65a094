"""Figures without global state: size, type and axes; written to files whole or not at all.

Layer: drawing.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from offramp._core.checks import check_choice
from offramp._core.files import new_file
from offramp.drawing.palette import GRID, INK, MUTED, PAPER

WIDE_IN = 8.6
NARROW_IN = 3.7  # a phone's column: text keeps its size, the figure is laid out anew
TEXT_PT = 9.5
SMALL_PT = 8.5
_PNG_DPI = 200
_FORMATS = ("png", "svg")


def new_figure(*, narrow: bool, height_in: float) -> Figure:
    """An empty figure with a canvas that can measure text."""
    figure = Figure(figsize=(NARROW_IN if narrow else WIDE_IN, height_in), facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Calm axes with margins in inches from the figure's edges."""
    width, height = (float(inches) for inches in figure.get_size_inches())
    size = ((width - left - right) / width, (height - bottom - top) / height)
    axes = figure.add_axes((left / width, bottom / height, *size))
    calm(axes)
    return axes


def calm(axes: Axes) -> None:
    """Take away what distracts: frame, ticks, loud numbers."""
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=SMALL_PT, length=0, pad=4)
    axes.set_axisbelow(True)


def head_axis(axes: Axes, text: str) -> None:
    """Write what the upright axis shows above it, where it reads from left to right."""
    axes.annotate(
        text,
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(-26, 10),
        textcoords="offset points",
        fontsize=TEXT_PT,
        color=MUTED,
        annotation_clip=False,
    )


def legend_above(
    figure: Figure,
    handles: Sequence[Artist],
    names: Sequence[str],
    *,
    columns: int,
    handle_length: float,
    gap: float,
) -> None:
    """A legend in the upper left corner of a figure; names are shown as they are.

    Args:
        figure: Where it stands.
        handles: What stands for each entry.
        names: Of the entries.
        columns: In how many columns.
        handle_length: Of a handle, in letters.
        gap: Between columns, in letters.
    """
    legend = figure.legend(
        handles,
        names,
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.3,
        borderpad=0,
        ncols=columns,
        fontsize=SMALL_PT,
        labelcolor=INK,
        frameon=False,
        handlelength=handle_length,
        handletextpad=0.5,
        columnspacing=gap,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def save_figure(figure: Figure, path: Path, *, overwrite: bool = False) -> None:
    """Write a figure as PNG or SVG, by the path's ending, whole or not at all.

    Args:
        figure: What to write.
        path: Ends in ".png" or ".svg".
        overwrite: Whether a file that is there already may be replaced.

    Raises:
        InputError: If the ending is another one, or `path` exists and may not be replaced.
    """
    form = check_choice("the ending of path", path.suffix.lower().removeprefix("."), _FORMATS)
    picture = render(figure, form=form, text_as_paths=True)
    with new_file(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(picture)


def render(figure: Figure, *, form: str, text_as_paths: bool) -> bytes:
    """A figure as a "png" or "svg" file; the same figure gives the same bytes.

    Text as paths looks the same everywhere; as text it follows the page and can be searched.
    """
    buffer = io.BytesIO()
    undated = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with _reproducible(text_as_paths):
        if form == "svg":
            figure.savefig(buffer, format="svg", metadata=undated)
        else:
            figure.savefig(buffer, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


@contextmanager
def _reproducible(text_as_paths: bool) -> Iterator[None]:
    form = "path" if text_as_paths else "none"
    with (
        matplotlib.rc_context({"svg.hashsalt": "offramp", "svg.fonttype": form}),
        quiet_about_glyphs(),
    ):
        yield


@contextmanager
def quiet_about_glyphs() -> Iterator[None]:
    """Names may be in any script; the reader's browser has fonts that matplotlib lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*[Gg]lyph.*missing.*")
        warnings.filterwarnings("ignore", message=r".*[Mm]atplotlib currently does not support.*")
        yield
