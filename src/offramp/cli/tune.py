"""`offramp tune`: which backend runs a bundle's networks fastest on this machine.

Layer: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli import options
from offramp.cli.output import Output, amount, note

if TYPE_CHECKING:
    from offramp.backends import BackendTable


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle to measure; the times go into it.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Inputs as they will come, one is enough: images, folders, npz files."),
    ],
    batch_sizes: Annotated[
        str, typer.Option(help="Examples per call that matter, separated by commas.")
    ] = "1,32,128",
    backends: Annotated[
        str | None,
        typer.Option(help="Those to try, separated by commas; by default all that are installed."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that are timed.")] = 7,
    array: options.Array = "images",
    threads: options.Threads = None,
    allow_import: options.AllowImport = False,
    allow_network: options.AllowNetwork = None,
    allow_types: options.AllowTypes = None,
    json: options.Json = False,
) -> None:
    """Measure which backend runs the networks of a bundle fastest here, and keep that in it.

    In: a bundle, and inputs like those it will meet.

    Out: seconds per batch of each network in each backend whose answers are equal to rounding. Then
    --backend auto of predict, bench and profile takes the fastest.

    Example: offramp tune runs/demo/bundle runs/demo/test.npz --batch-sizes 1,32
    """
    from offramp._core.schema import to_json
    from offramp.bundle import tune
    from offramp.cli.bench import some_inputs

    output = Output(as_json=json)
    sizes = options.whole_numbers("--batch-sizes", batch_sizes)
    options.set_threads(threads)
    table = tune(
        bundle,
        some_inputs(bundle, inputs, array, most=1),
        batch_sizes=sizes,
        candidates=options.names(backends),
        rounds=rounds,
        threads=threads,
        allow_import=allow_import,
        allow_network=allow_network or False,
        allow_types=allow_types or (),
        progress=True,
    )
    _show(output, table)
    output.result({"bundle": str(bundle), "best": table.best(), **to_json(table)})


def _show(output: Output, table: "BackendTable") -> None:
    best = table.best()
    output.line(table.where)
    output.line()
    rows = []
    for stage, times in table.seconds.items():
        for name, seconds in times.items():
            fastest = "fastest" if best[stage] == name else ""
            rows.append([stage, name, *(amount(s, "seconds") for s in seconds), fastest])
    header = [f"batch of {size}" for size in table.batch_sizes]
    output.table(["network", "backend", *header, ""], rows)
    for stage, reasons in table.refused.items():
        for name, reason in reasons.items():
            note(f"{stage} in {name}: {reason}")
