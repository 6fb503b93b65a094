"""`offramp report`: one page about a run.

Layer: cli.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp._core.errors import FileFormatError
from offramp._core.files import read_json
from offramp.cli import options
from offramp.cli.output import Output, note
from offramp.project.config.config import load_config
from offramp.project.folder import (
    CHOSEN,
    CLASS_EXITS,
    FRONTIER,
    JOINT,
    REPORT,
    RunFolder,
)
from offramp.project.splits import load_divided, unseen

if TYPE_CHECKING:
    from offramp._core.costs import Costs
    from offramp.policy import Candidate
    from offramp.report import ExampleImage
    from offramp.trace import Trace


def command(
    folder: Annotated[Path, typer.Argument(help="The folder of a run that fit has written.")],
    config: options.Config = None,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    timing: Annotated[
        Path | None, typer.Option(help="Numbers of `offramp bench --out`, to be shown as well.")
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(help="More tables of costs, in other units: the same decisions billed anew."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser when it is written.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Write one page about a run: the frontier, who leaves where, what it saves.

    In: the folder that fit, class-exits or train joint has written. With --config, which says where
    the images are, the page shows some that left at each stage. --costs is a JSON file,
    {"costs": [...]}, of tables with unit, segment, head, decision (a number for each stage), note.

    Out: report.html, which works offline, and report.json with every number that it shows; after
    class-exits, class_exits.html with the exits of classes; after train joint, joint.html.

    Example: offramp report runs/cifar --config run.toml --open
    """
    from offramp.project.record_pages import class_exits_page, joint_page
    from offramp.project.report import report_content, reproduction
    from offramp.report import write_report

    output = Output(as_json=json)
    run = RunFolder.open(folder)
    files, others = run.facts["files"], {}
    if CLASS_EXITS in files:
        others["class_exits"] = str(class_exits_page(run, title))
    if JOINT in files:
        others["joint"] = str(joint_page(run, title, config))
    if others and FRONTIER not in files:
        output.line(_written(others.values()))
        output.result(others)
        if show:
            _open(others.values())
        return
    seed = int(run.facts.get("seed", 0))
    trace = load_divided(run.trace_path(), seed=seed)
    if costs is not None:
        trace = replace(trace, other_costs=(*trace.other_costs, *_tables(costs)))
    frontier = run.frontier()
    choice = run.choice()
    content = report_content(
        title or f"Adaptive inference: {run.name}",
        trace,
        frontier,
        choice,
        seed=seed,
        timing=() if timing is None else read_json(timing)["timing"],
        images=() if config is None else _images(config, trace, choice.candidate),
        reproduction=reproduction(
            [str(run.facts.get("command", "offramp fit")), f"offramp report {folder}"],
            seed=seed,
            data=f"{len(trace)} recorded examples in {run.trace_path().name}",
            folder=folder,
            files=(FRONTIER, CHOSEN),
        ),
    )
    run.remember(REPORT, "report.json")
    page = write_report(folder / REPORT, content, overwrite=True)  # the run's own
    output.paragraph(choice.sentence)
    output.line(_written([str(page), *others.values()]))
    output.result(
        {
            "report": str(page),
            "numbers": str(page.with_suffix(".json")),
            "outcome": choice.outcome,
            **others,
        }
    )
    if show:
        _open([str(page), *others.values()])


def _open(pages: Iterable[str]) -> None:
    """Show pages in the browser; a machine without one is told where they lie."""
    import webbrowser

    for page in pages:
        address = Path(page).resolve().as_uri()
        try:
            opened = webbrowser.open(address)
        except webbrowser.Error:
            opened = False
        if not opened:
            note(f"no browser was found here; open {address} where there is one.")


def _written(pages: Iterable[str]) -> str:
    several = list(pages)
    return f"{'Report' if len(several) == 1 else 'Reports'}: {', '.join(several)}"


def _tables(path: Path) -> list["Costs"]:
    from offramp._core.costs import Costs
    from offramp._core.schema import from_json

    value = read_json(path)
    try:
        tables = value.get("costs", [value])
        return [from_json(Costs, table) for table in tables]
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} does not hold tables of costs: {error!r}.") from error


def _images(config: Path, trace: "Trace", candidate: "Candidate") -> "tuple[ExampleImage, ...]":
    from offramp.project.build import cascade_of, dataset_of
    from offramp.project.images import example_images

    settings = load_config(config, needs=("data", "stage"))
    if settings.data is None:  # load_config has refused it
        return ()
    examples = dataset_of(settings)
    cascade = cascade_of(settings, config.parent, examples.class_names)
    return example_images(examples, unseen(trace), candidate, cascade)
