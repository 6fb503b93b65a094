"""How a result looks in a notebook: one card of escaped text, small tables and bars.

A card takes color and type from the notebook, light or dark: text and lines are `currentColor`, and
the few hues are readable on both. Styles stand at the elements, so that cards change nothing around
them; there is no script, and nothing is fetched.

Layer: _core.
"""

from collections.abc import Iterable, Sequence
from html import escape

BLUE, VERMILLION, GREY = "#2b8fd0", "#d9621f", "#8a929b"  # on white and on black
_CARD = (
    "border:1px solid color-mix(in srgb,currentColor 22%,transparent);border-radius:8px;"
    "padding:.8em 1.1em 1em;max-width:46em;margin:.3em 0;line-height:1.45"
)
_LINE = "border-bottom:1px solid color-mix(in srgb,currentColor 14%,transparent)"
_CELL = f"padding:.25em 1.2em .25em 0;{_LINE};background:none;vertical-align:baseline"
_FAINT = "opacity:.72"


class Markup(str):
    """Text that is HTML already, made here; any other text is escaped."""

    __slots__ = ()


def card(kind: str, name: str, *parts: str) -> Markup:
    """A card with a heading.

    Args:
        kind: What it is, in a word or two.
        name: Which, or the most important number.
        parts: What stands below; text becomes a paragraph.
    """
    inside = "".join(p if isinstance(p, Markup) else paragraph(p) for p in parts if p)
    head = (
        f'<div style="{_FAINT};font-size:.86em">{escape(kind)}</div>'
        f'<div style="font-weight:600;font-size:1.08em;overflow-wrap:anywhere">{escape(name)}</div>'
    )
    return Markup(f'<div style="{_CARD}">{head}{inside}</div>')


def paragraph(text: str, *, faint: bool = False) -> Markup:
    """A paragraph of text."""
    more = f";{_FAINT};font-size:.9em" if faint else ""
    return Markup(f'<p style="margin:.5em 0 0;overflow-wrap:anywhere{more}">{escape(text)}</p>')


def badge(text: str, *, good: bool) -> Markup:
    """A word or two in color: what came out."""
    color = BLUE if good else VERMILLION
    style = f"color:{color};font-weight:600;font-size:.92em;margin-top:.4em"
    return Markup(f'<div style="{style}">{escape(text)}</div>')


def code(text: str) -> Markup:
    """What to type next."""
    style = (
        "margin:.7em 0 0;padding:0;background:none;font-size:.86em;white-space:pre-wrap;" + _FAINT
    )
    return Markup(f'<pre style="{style}"><code>{escape(text)}</code></pre>')


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, marked: int = -1) -> Markup:
    """A table: the first column to the left, numbers to the right.

    Args:
        head: Words above the columns.
        rows: Cells; text is escaped, `bar` is not.
        marked: The row that matters most; -1 for none.
    """
    lines = [_row("th", head, f"font-weight:500;{_FAINT}")]
    for i, row in enumerate(rows):
        lines.append(_row("td", row, "font-weight:600" if i == marked else ""))
    style = (
        "color:inherit;border-collapse:collapse;border:0;margin:.7em 0 0;font-size:.9em;"
        "font-variant-numeric:tabular-nums"
    )
    inside = f'<table style="{style}">{"".join(lines)}</table>'
    return Markup(f'<div style="overflow-x:auto">{inside}</div>')


def _row(tag: str, cells: Sequence[str], style: str) -> str:
    found = []
    for i, cell in enumerate(cells):
        side = "left" if i == 0 else "right"
        inside = cell if isinstance(cell, Markup) else escape(cell)
        found.append(f'<{tag} style="{_CELL};text-align:{side};{style}">{inside}</{tag}>')
    return f'<tr style="background:none">{"".join(found)}</tr>'


def bar(share: float, text: str) -> Markup:
    """A number with a bar before it.

    Args:
        share: Length of the bar, in [0, 1].
        text: The number.
    """
    width = 6 * min(max(share, 0.0), 1.0)
    style = (
        f"display:inline-block;width:{width:.3g}em;height:.6em;background:{BLUE};"
        "border-radius:2px;margin-right:.5em"
    )
    return Markup(f'<span style="white-space:nowrap"><i style="{style}"></i>{escape(text)}</span>')


def scatter(
    points: Sequence[tuple[float, float]],
    marks: Sequence[tuple[float, float, str]],
    *,
    level: float | None = None,
    words: str,
) -> Markup:
    """A small picture: points on a line, marks with a name, a dotted level.

    Args:
        points: x and y, in the order of the line.
        marks: x, y and what stands beside it.
        level: A height to compare with.
        words: What it shows, for those who do not see it.
    """
    xs = [p[0] for p in points] + [m[0] for m in marks]
    ys = [p[1] for p in points] + [m[1] for m in marks] + ([] if level is None else [level])
    if not xs:
        return Markup("")
    left, right, low, high = min(0.0, *xs), max(xs) or 1.0, min(ys), max(ys)
    span = (high - low) or 1.0

    def at(x: float, y: float) -> tuple[str, str]:
        return f"{8 + 300 * (x - left) / (right - left):.1f}", f"{90 - 76 * (y - low) / span:.1f}"

    lines = []
    if level is not None:
        _, height = at(0, level)
        lines.append(
            f'<line x1="8" x2="308" y1="{height}" y2="{height}" stroke="currentColor" opacity=".5" '
            'stroke-dasharray="1.5 4" stroke-linecap="round"/>'
        )
    if points:
        way = " ".join(",".join(at(*p)) for p in points)
        lines.append(f'<polyline points="{way}" fill="none" stroke="{BLUE}" stroke-width="1.6"/>')
        lines += [
            '<circle cx="{}" cy="{}" r="2.4" fill="{}"/>'.format(*at(*p), BLUE) for p in points
        ]
    for x, y, name in marks:
        a, b = at(x, y)
        right_half = x > (left + right) / 2
        beside = (
            ("end", float(a) + 4, float(b) + 17)
            if right_half
            else ("start", float(a) + 9, float(b) + 4)
        )
        lines.append(
            f'<path d="M{a} {b}m-4 0l4-4 4 4-4 4z" fill="currentColor"/>'
            f'<text x="{beside[1]:.1f}" y="{beside[2]:.1f}" text-anchor="{beside[0]}" '
            f'font-size="10" fill="currentColor" opacity=".8">{escape(name)}</text>'
        )
    return Markup(
        f'<svg viewBox="0 0 316 100" role="img" aria-label="{escape(words)}" '
        'style="display:block;width:100%;max-width:30em;margin:.7em 0 0;overflow:visible">'
        f"{''.join(lines)}</svg>"
    )
