"""Figures and images as parts of one page: nothing is fetched, nothing is scripted.

Layer: report.
"""

import base64
import io
import re

import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from offramp._core.formatting import percent
from offramp.drawing.canvas import render
from offramp.drawing.palette import COLOURS

_LARGEST_SIDE = 128  # pixels; larger images are made smaller, the page stays light


def inline_svg(figure: Figure, *, prefix: str, title: str, description: str) -> Markup:
    """A figure as an SVG element whose text is text and whose colors follow the page.

    Args:
        figure: What to show.
        prefix: Makes the ids of this figure unique on the page: letters, digits, hyphens.
        title: Its name, for screen readers.
        description: What it shows, for those who do not see it.
    """
    svg = render(figure, form="svg", text_as_paths=False).decode("utf-8")
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    opening, body = svg.split(">", 1)
    view_box = re.search(r'viewBox="([^"]+)"', opening)
    body = re.sub(r"(<[^<>]*? id=\")", rf"\g<1>{prefix}-", body)
    body = re.sub(r"(xlink:href=\"#|url\(#)", rf"\g<1>{prefix}-", body)
    body = body.replace("xlink:href", "href")
    body = _with_variables(body)
    return Markup(
        f'<svg class="{prefix}" viewBox="{view_box[1] if view_box else ""}" role="img" '
        f'aria-labeledby="{prefix}-title {prefix}-desc">'
        f'<title id="{prefix}-title">{escape(title)}</title>'
        f'<desc id="{prefix}-desc">{escape(description)}</desc>{_lean(body)}'
    )


def _with_variables(body: str) -> str:
    for name, light, _ in COLOURS:
        body = re.sub(rf"(?<=: ){light}\b", f"var(--{name})", body)
    return body


def _lean(body: str) -> str:
    """Drop line breaks between elements: they weigh, and show nothing."""
    return re.sub(r">\s+<", "><", body)


def meter(share: float) -> Markup:
    """A share with a bar behind it, for a cell of a table.

    >>> str(meter(0.25))[:42]
    '<span class="meter" style="--share:25.0%">'
    """
    text = escape(percent(share))
    return Markup(f'<span class="meter" style="--share:{100 * share:.1f}%">{text}</span>')


def image_uri(pixels: NDArray[np.uint8]) -> str:
    """An image as a PNG data URI, at most 128 pixels wide and high.

    Args:
        pixels: `(h, w)`, `(h, w, 1)` or `(h, w, 3)`, uint8.

    >>> import numpy as np
    >>> image_uri(np.zeros((2, 2), np.uint8))[:22]
    'data:image/png;base64,'
    """
    flat = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    image = Image.fromarray(np.ascontiguousarray(flat))
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
