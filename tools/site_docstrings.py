"""Examples in docstrings are code, for the reference; an extension of griffe.

Docstrings here end with lines that begin with ">>>", without a heading. Markdown would take those
for quotations, so they are put into fences.
"""

from typing import Any

import griffe


class Examples(griffe.Extension):  # type: ignore[misc]  (griffe has no types here)
    """Puts examples into fences."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of what was read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """A docstring with each run of examples, up to the next empty line, in a fence."""
    lines: list[str] = []
    inside = False
    for line in [*text.splitlines(), ""]:
        begins, ends = line.lstrip().startswith(">>> "), not line.strip()
        if not inside and begins:
            lines += ["```python"]
            inside = True
        elif inside and ends:
            lines += ["```"]
            inside = False
        lines += [line]
    return "\n".join(lines[:-1])
