"""`offramp profile`: where a bundle's time goes, against what its stages have to take.

Layer: cli.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp._core.errors import InputError
from offramp._core.ownership import check_file
from offramp._core.progress import progress_bar
from offramp.cli import options
from offramp.cli.bench import loaded_to_time, some_inputs
from offramp.cli.output import Output, amount, percent

if TYPE_CHECKING:
    from offramp.tuning import Profile


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle to look into.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Real inputs: images, folders of images, npz files."),
    ] = None,
    batch_size: options.BatchSize = 32,
    examples: Annotated[int, typer.Option(min=1, help="Examples in each pass.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Passes that are timed.")] = 9,
    array: options.Array = "images",
    device: options.Device = "cpu",
    backend: options.Backend = None,
    threads: options.Threads = None,
    fold: options.Fold = True,
    allow_import: options.AllowImport = False,
    allow_network: options.AllowNetwork = None,
    allow_types: options.AllowTypes = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture of one batch's time; it ends in .svg or .png.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a picture that is there already.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Say where the time goes: stages, heads, decisions, compaction, waiting.

    In: a bundle, and inputs like those it will meet.

    Out: a table of one pass over the inputs, its total against the ideal (every stage at its best
    batch size, nothing else), and how often the host waited for the device. With --out a picture.

    Example: offramp profile runs/demo/bundle runs/demo/test.npz --out timeline.svg
    """
    import torch

    from offramp._core.batch import batch_size as count_of
    from offramp._core.batch import take_rows, to_device
    from offramp._core.schema import to_json
    from offramp.tuning import profile

    output = Output(as_json=json)
    if out is not None and out.suffix not in (".svg", ".png"):
        raise InputError(f"--out must end in .svg or .png, got {out.name!r}.")
    if out is not None:
        check_file(out, overwrite=overwrite)
    options.set_threads(threads)
    model = loaded_to_time(
        bundle,
        device=device,
        backend=backend,
        fold=fold and backend is None,
        allow_import=allow_import,
        allow_network=allow_network or False,
        allow_types=allow_types or (),
    )
    batch = some_inputs(bundle, inputs, array, most=max(examples, batch_size))
    with progress_bar("Profiling", None):
        part = to_device(take_rows(batch, torch.arange(min(examples, count_of(batch)))), device)
        found = profile(model, part, batch_size=batch_size, rounds=rounds)
    if out is not None:
        _draw(found, out, overwrite=overwrite)
    _show(output, found, model.candidate.label)
    if out is not None:
        output.line(f"Picture of one batch: {out}")
    output.result({"bundle": str(bundle), **to_json(found)})


def _show(output: Output, found: "Profile", label: str) -> None:
    from offramp.runtime.events import KINDS

    output.paragraph(label)
    output.line(
        f"{found.examples} examples, {found.batch_size} at a time, {found.where}, "
        f"{found.rounds} rounds"
    )
    output.line()
    kinds = [kind for kind in KINDS if found.seconds(kind) > 0]
    rows = [
        [
            stage.name,
            str(stage.visits),
            *_times([stage.seconds[kind] for kind in kinds]),
            _s(stage.ideal_s),
        ]
        for stage in found.stages
    ]
    rows.append(["batch", "", *_times([found.other_s[kind] for kind in kinds]), ""])
    sums = [found.seconds(kind) for kind in kinds]
    rows.append(["sum", "", *_times(sums), _s(found.ideal_s)])
    rows.append(["share", "", *(percent(each / sum(sums)) for each in sums), ""])
    output.table(["", "visits", *kinds, "ideal"], rows)
    output.line()
    output.line(
        f"total {_s(found.total_s)}, ideal {_s(found.ideal_s)}: {found.over_ideal:.2f} times the "
        f"ideal; {found.waits:.1f} waits per batch"
    )


def _times(values: Sequence[float]) -> list[str]:
    return [_s(value) for value in values]


def _s(value: float) -> str:
    return amount(value, "seconds") if value else "-"


def _draw(found: "Profile", out: Path, *, overwrite: bool) -> None:
    from offramp.drawing import Section, save_figure, timeline_figure

    sections = [
        Section(kind=span.kind, stage=span.stage, start_s=span.start_s, end_s=span.end_s)
        for span in found.spans
    ]
    figure = timeline_figure(sections, [stage.name for stage in found.stages])
    save_figure(figure, out, overwrite=overwrite)
