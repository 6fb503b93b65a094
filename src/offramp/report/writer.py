"""One writer for every page: a template filled in, written whole, with the same head and style.

Layer: report.  A page fetches nothing and runs no script.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from offramp._core import formatting
from offramp._core.checks import check_path
from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import new_file
from offramp.drawing.palette import css_variables
from offramp.report.inline import image_uri, meter

_FILTERS = (
    formatting.amount,
    formatting.change,
    formatting.change_interval,
    formatting.changed_words,
    formatting.percent,
    formatting.points,
    formatting.saving,
    formatting.seconds,
    formatting.share_interval,
    formatting.times,
    formatting.unit_name,
    image_uri,
    meter,
)


def fill_template(template: str, *, title: str, **values: object) -> str:
    """A page as text.

    Args:
        template: Name of a file in `templates` that extends `base.html`.
        title: Of the page.
        values: What the template names.
    """
    made = Environment(
        loader=PackageLoader("offramp.report"),
        autoescape=True,  # names of stages, classes and files are the user's own
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update({function.__name__: function for function in _FILTERS})
    page = made.get_template(template)
    return page.render(title=title, style=_style(), version=_own_version(), **values)


def page_path(path: Path) -> Path:
    """Where a page is to be written.

    Raises:
        InputError: If the path does not end in ".html".
    """
    path = check_path("path", path)
    if path.suffix != ".html":
        raise InputError(f"path must end in .html, got {str(path)!r}.")
    return path


def write_record_page(
    path: Path,
    record: Mapping[str, Any],
    *,
    kind: str,
    command: str,
    page: Callable[[], str],
    overwrite: bool,
) -> Path:
    """Write a page about a record that a command has written as JSON.

    Args:
        path: Where to write; ends in ".html".
        record: The content of the JSON file.
        kind: What it says of itself under "format", behind "offramp-".
        command: What wrote it.
        page: Gives the text; called once the record is known to be one of this kind.
        overwrite: Whether a file that is there already may be replaced.

    Raises:
        InputError: If the path does not end in ".html", or exists and may not be replaced.
        FileFormatError: If the record is of another kind, or lacks something.
    """
    path = page_path(path)
    if record.get("format") != f"offramp-{kind}" or record.get("version") != 1:
        raise FileFormatError(
            f"The record must be what `offramp {command}` wrote, version 1; got format "
            f"{record.get('format')!r}, version {record.get('version')!r}."
        )
    try:
        text = page()
    except (KeyError, TypeError, UndefinedError) as error:
        raise FileFormatError(
            f"The record of `offramp {command}` lacks something: {error!r}."
        ) from error
    with new_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _style() -> Markup:
    """The style of every page, with the palette in both schemes."""
    rules = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    light, dark = css_variables("light"), css_variables("dark")
    return Markup(
        f":root {{\n{light}\n}}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{\n{dark}\n}} }}\n{rules}"
    )


def _own_version() -> str:
    """Version of the installed package, in words where it is none."""
    try:
        return version("offramp")
    except PackageNotFoundError:
        return "(not installed)"
