"""Colors and line styles of every figure and page, safe for color-blind readers.

Hues are those of Okabe and Ito, darkened where they would be faint on white; series differ in
marker and dash as well. A page replaces each color by a CSS variable (`css_variables`), so that
figures follow the reader's light or dark scheme.

Layer: drawing.  Source: Okabe & Ito, Color Universal Design, 2008 (the hues).
"""

from dataclasses import dataclass
from typing import Literal, final

CurveKind = Literal[
    "learned",
    "learned_fit",
    "threshold",
    "random",
    "head_1",
    "head_2",
    "head_3",
    "combined",
    "joint",
    "frozen",
    "early_exit",
    "classes",
]
PointKind = Literal["static", "oracle", "chosen", "exit"]

INK = "#1d2329"
MUTED = "#5c6670"
GRID = "#e3e6ea"
PAPER = "#fefefe"
BLUE = "#0072b2"
SKY = "#8cc6ea"
AMBER = "#c77700"
GREEN = "#00795a"
VERMILLION = "#d1480a"
GREY = "#8a929b"

#: Name of the CSS variable, light color, dark color.
COLOURS: tuple[tuple[str, str, str], ...] = (
    ("ink", INK, "#e7eaee"),
    ("muted", MUTED, "#a5aeb8"),
    ("grid", GRID, "#343b43"),
    ("paper", PAPER, "#171b20"),
    ("blue", BLUE, "#58b4ee"),
    ("sky", SKY, "#2f6488"),
    ("amber", AMBER, "#e9a13b"),
    ("green", GREEN, "#3ccb9d"),
    ("vermillion", VERMILLION, "#ff8f5e"),
    ("grey", GREY, "#7d8691"),
)


@final
@dataclass(frozen=True, kw_only=True)
class Look:
    """How a series is drawn.

    Args:
        color: One of the palette's colors.
        marker: A matplotlib marker, "" for none.
        dash: A matplotlib line style, "" for none.
        width_pt: Width of the line, in points.
        size_pt: Size of the marker, in points.
        filled: False draws the marker's outline only.
        order: Drawn above everything with a lower order.
    """

    color: str
    marker: str = ""
    dash: str = ""
    width_pt: float = 1.6
    size_pt: float = 4.0
    filled: bool = True
    order: float = 3.0


CURVE_LOOKS: dict[CurveKind, Look] = {
    "random": Look(color=GREY, dash=":", order=3.0),
    "threshold": Look(color=AMBER, marker="s", dash="-.", width_pt=1.3, size_pt=3.2, order=3.2),
    "learned_fit": Look(color=SKY, dash="--", width_pt=1.5, order=3.4),
    "learned": Look(color=BLUE, marker="o", dash="-", width_pt=2.0, order=3.6),
    "head_1": Look(color=AMBER, marker="s", dash="-", width_pt=1.3, size_pt=4.5, order=3.2),
    "head_2": Look(color=GREEN, marker="^", dash="--", width_pt=1.3, size_pt=5.5, order=3.3),
    "head_3": Look(color=GREY, marker="D", dash="-.", width_pt=1.3, size_pt=4.5, order=3.1),
    "joint": Look(color=VERMILLION, marker="o", dash="-", width_pt=2.0, order=3.7),
    "frozen": Look(color=BLUE, marker="s", dash="--", width_pt=1.5, size_pt=3.6, order=3.5),
    "early_exit": Look(color=AMBER, marker="^", dash="--", width_pt=1.6, size_pt=4.8, order=3.5),
    "classes": Look(color=GREY, marker="s", dash="-.", width_pt=1.4, size_pt=3.6, order=3.3),
    "combined": Look(color=BLUE, marker="o", dash=":", width_pt=1.8, size_pt=4.5, order=3.4),
}
POINT_LOOKS: dict[PointKind, Look] = {
    "static": Look(color=INK, marker="D", size_pt=5.5, order=4.0),
    "oracle": Look(color=GREEN, marker="*", size_pt=9.5, order=4.2),
    "chosen": Look(color=VERMILLION, marker="o", size_pt=11.0, width_pt=2.2, filled=False, order=5),
    "exit": Look(color=VERMILLION, marker="o", size_pt=10.0, width_pt=1.6, filled=False, order=4.4),
}


def css_variables(scheme: Literal["light", "dark"]) -> str:
    """The palette as CSS declarations.

    >>> css_variables("light").splitlines()[0]
    '--ink: #1d2329;'
    """
    column = 1 if scheme == "light" else 2
    return "\n".join(f"--{color[0]}: {color[column]};" for color in COLOURS)
