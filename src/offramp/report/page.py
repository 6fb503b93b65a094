"""One self-contained page from a report's content, and its numbers as JSON beside it.

Layer: report.  Nothing here computes a statistic; templates only write numbers down.
"""

import hashlib
import json
from pathlib import Path

from offramp._core.errors import InputError
from offramp._core.files import new_file
from offramp._core.schema import to_json
from offramp.evaluation import Choice
from offramp.report.charts import (
    MOST_SUBSETS,
    calibration_chart,
    frontier_chart,
    overlap_chart,
    stage_chart,
)
from offramp.report.content import ExampleImage, ReportContent
from offramp.report.exit_charts import depth_charts, savings_by_policy, savings_chart
from offramp.report.writer import fill_template, page_path

_MOST_IMAGES = 8  # per stage: the page stays light
_PROMISED = {  # what is shown of a promise, and how it is called
    "limits": "limits",
    "delta": "delta",
    "p_value": "p",
    "split": "tested on",
    "n": "examples tested on",
    "tested": "candidates tested",
    "fingerprint": "SHA-256 of the examples",
}
_MOST_CLASSES = 12  # rows of the table; all stand in the JSON
_MOST_NAMED = 4  # stages in the first sentence


def write_report(path: Path, content: ReportContent, *, overwrite: bool = False) -> Path:
    """Write a report as one HTML file, and every number it shows as JSON beside it.

    The page fetches nothing and runs no script. Both files are written, or neither.

    Args:
        path: Where to write; ends in ".html". The JSON has the same name with ".json".
        content: What to show.
        overwrite: Whether files that are there already may be replaced.

    Returns:
        The path of the page.

    Raises:
        InputError: If the path does not end in ".html", or a number is NaN or infinite; if a file
            is there and may not be replaced.
    """
    path = page_path(path)
    try:
        numbers = json.dumps(to_json(content), indent=2, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise InputError(f"Every number of a report must be finite: {error}.") from error
    beside = path.with_suffix(".json")
    text = render_page(content, json_name=beside.name, json_text=numbers + "\n")
    pages, numbers_file = (new_file(each, overwrite=overwrite) for each in (path, beside))
    with pages as page_file, numbers_file as json_file:
        json_file.write_text(numbers + "\n", encoding="utf-8")
        page_file.write_text(text, encoding="utf-8")
    return path


def render_page(content: ReportContent, *, json_name: str, json_text: str) -> str:
    """The page as text.

    Args:
        content: What to show.
        json_name: Name of the file with the numbers, shown with its checksum.
        json_text: What that file holds.
    """
    shown = content.shown
    topology = shown.candidate.policy.topology
    checksum = hashlib.sha256(json_text.encode("utf-8")).hexdigest()
    return fill_template(
        "report.html",
        title=content.title,
        content=content,
        measure=content.measure,
        worse="new losses" if shown.of_losses else "new errors",
        shown=shown,
        reference=shown.candidate.reference,
        used=[topology.names[k] for k in topology.active],
        most_named=_MOST_NAMED,
        where=f"of the {shown.split} split" if shown.split != "all" else "of all splits",
        timing=content.timing,
        headline_timing=content.timing[:1] + content.timing[1:][-1:] if content.cascade else (),
        numbers=_figures(content.chosen),
        frontier=frontier_chart(content),
        stages=stage_chart(shown),
        overlap=None if content.overlap is None else overlap_chart(content.overlap),
        most_subsets=MOST_SUBSETS,
        calibration=calibration_chart(content),
        classes=content.worst_classes[:_MOST_CLASSES],
        images=by_exit(content.images),
        left=dict(zip(shown.stages, shown.exit_share, strict=True)),
        savings=savings_chart(content),
        savings_by_policy=savings_by_policy(content.savings),
        depth=depth_charts(content),
        reproduction=content.reproduction,
        files=[*content.reproduction.files.items(), (json_name, checksum)],
        json_name=json_name,
    )


def _figures(chosen: Choice) -> list[tuple[str, str]]:
    """The figures behind a promise or a refusal, for people."""
    if chosen.guarantee is None and chosen.refused is None:
        return []
    held = chosen.numbers
    names = list(_PROMISED) if chosen.guarantee is not None else list(held)
    return [(_PROMISED.get(name, name.replace("_", " ")), _figure(held[name])) for name in names]


def _figure(value: float | int | str | None) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def by_exit(images: tuple[ExampleImage, ...]) -> list[tuple[str, list[ExampleImage], int]]:
    """Images grouped by the stage where they left, stages in order of first use."""
    groups: dict[str, list[ExampleImage]] = {}
    for image in images:
        groups.setdefault(image.exit_stage, []).append(image)
    return [(stage, group[:_MOST_IMAGES], len(group)) for stage, group in groups.items()]
