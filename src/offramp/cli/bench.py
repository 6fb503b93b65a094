"""`offramp bench`: the adaptive classifier against its reference alone, on this machine.

Layer: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp._core.errors import InputError
from offramp._core.files import write_new_json
from offramp._core.ownership import check_file
from offramp.cli import options
from offramp.cli.output import Output, amount, note

if TYPE_CHECKING:
    from offramp._core.types import Raw
    from offramp.runtime import Adaptive


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle to time.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Real inputs: images, folders of images, npz files."),
    ] = None,
    batch_sizes: Annotated[
        str, typer.Option(help="Examples per call, separated by commas.")
    ] = "1,256",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that are timed.")] = 15,
    array: options.Array = "images",
    device: options.Device = "cpu",
    backend: options.Backend = None,
    threads: options.Threads = None,
    fold: options.Fold = True,
    allow_import: options.AllowImport = False,
    allow_network: options.AllowNetwork = None,
    allow_types: options.AllowTypes = None,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this file.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file of --out that is there already.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Time the adaptive classifier and its reference alone side by side.

    In: a bundle, and inputs like those it will meet.

    Out: seconds per example of both and their ratio, for each batch size; medians of interleaved
    rounds. Without inputs it takes random numbers, on which nobody leaves where real inputs do.

    Example: offramp bench runs/demo/bundle runs/demo/test.npz --batch-sizes 1,256
    """
    from offramp._core.batch import to_device
    from offramp.tuning.compare import compare

    output = Output(as_json=json)
    if out is not None:
        check_file(out, overwrite=overwrite)
    sizes = options.whole_numbers("--batch-sizes", batch_sizes)
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
    batch = some_inputs(bundle, inputs, array, most=max(256, *sizes))
    rows = compare(
        model, model.reference, to_device(batch, device), batch_sizes=sizes, rounds=rounds
    )
    reference = model.candidate.reference
    output.paragraph(model.candidate.label)
    output.line(f"against {reference} alone, {rows[0]['backend']}, {rounds} rounds")
    output.line()
    output.table(
        ["batch size", f"{reference}/example", "adaptive/example", "speed-up"],
        [
            [
                str(row["batch_size"]),
                amount(row["static_s"], "seconds"),
                amount(row["adaptive_s"], "seconds"),
                f"{row['speedup']:.2f}x",
            ]
            for row in rows
        ],
    )
    result = {
        "bundle": str(bundle),
        "reference": reference,
        "inputs": "noise" if not inputs else [str(path) for path in inputs],
        "timing": rows,
    }
    if out is not None:
        write_new_json(out, result, overwrite=overwrite)
    output.result(result)


def loaded_to_time(bundle: Path, **how: Any) -> "Adaptive":  # noqa: ANN401  (of `load`)
    """The bundle, as `load` reads it, whose services remember no answers: those take no time."""
    from offramp import load

    model = load(bundle, **how)
    services = [stage for stage in model.program.stages.values() if stage.waits]
    for stage in services:
        getattr(stage.module, "forget", lambda: None)()
    if services:
        names = ", ".join(stage.name for stage in services)
        note(f"called, and perhaps paid for, in each round: {names}.")
    return model


def some_inputs(bundle: Path, paths: list[Path] | None, array: str, *, most: int) -> "Raw":
    """At most so many inputs, or random numbers where there are none."""
    import torch

    from offramp._core.batch import as_rows, concat, take_rows
    from offramp.bundle import read_manifest
    from offramp.project.inputs import InputReader
    from offramp.project.networks import random_input

    manifest = read_manifest(bundle)
    shape = manifest.input_shape
    if paths:
        reader = InputReader.of(bundle, paths, array=array, ids=None)
        parts, count = [], 0
        for names, batch in reader.batches(min(most, 256)):
            parts.append(as_rows(batch))
            count += len(names)
            if count >= most:
                break
        if not parts:
            raise InputError(f"None of the inputs can be read: {[str(path) for path in paths]}.")
        return take_rows(concat(parts), torch.arange(min(most, count)))
    if shape is None:
        raise InputError(f"{bundle} does not say what its inputs look like; give inputs.")
    note("Random inputs leave at other stages than real ones do; give real inputs for a verdict.")
    return random_input(shape, 256, [getattr(s, "transform", None) for s in manifest.stages])
