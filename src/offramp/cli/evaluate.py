"""`offramp evaluate`: what a setting costs and loses on recorded examples.

Layer: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp._core.files import write_json
from offramp.cli import options
from offramp.cli.output import Output, amount, percent, points
from offramp.cli.run_folder import evaluation_to_dict, setting_from_file
from offramp.cli.traces import load_divided, part_of

if TYPE_CHECKING:
    from offramp.evaluate import Evaluation


def command(
    trace: Annotated[Path, typer.Argument(help="The trace with the recorded examples.")],
    setting: Annotated[
        Path, typer.Argument(help="chosen.json, a setting of your own, or the folder of a run.")
    ],
    split: Annotated[
        str, typer.Option(help="Which examples: train, fit, calibrate, test, or all.")
    ] = "test",
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples for the 95 % intervals; 0 leaves them out.")
    ] = 2000,
    seed: Annotated[int, typer.Option(help="Of the resampling, and as for fit.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this file.")] = None,
    json: options.Json = False,
) -> None:
    """Replay a setting on recorded examples: what does it cost, what does it lose?

    In: a trace and a setting that fit has chosen.

    Out: cost, accuracy and who leaves where, each against F, the reference network, on the same
    examples. No network runs.

    Example: offramp evaluate cifar.trace runs/cifar/chosen.json --split test
    """
    from offramp.evaluate import evaluate

    output = Output(as_json=json)
    chosen = setting_from_file(setting)
    found = evaluate(
        part_of(load_divided(trace, seed=seed), split), chosen, bootstrap=bootstrap, seed=seed
    )
    numbers = {"label": chosen.label, **evaluation_to_dict(found)}
    if out is not None:
        write_json(out, numbers)
    output.paragraph(chosen.label)
    output.line(f"on {found.n} examples ({found.split}); F is {chosen.reference}")
    output.line()
    output.table(["", "setting", "F", "", "95 % interval"], _rows(found))
    output.line()
    shares = zip(found.stages, found.visit_share, found.exit_share, strict=True)
    output.table(
        ["stage", "visited by", "left at"], [[s, percent(v), percent(e)] for s, v, e in shares]
    )
    output.result(numbers)


def _rows(found: "Evaluation") -> list[list[str]]:
    costs = [amount(value, found.unit) for value in (found.cost, found.reference_cost)]
    accuracies = [percent(value) for value in (found.accuracy, found.reference_accuracy)]
    ratio, lost, new = (
        "" if ends is None else f"{show(ends[0])} to {show(ends[1])}"
        for ends, show in (
            (found.cost_ratio_ci, percent),
            (found.difference_ci, points),
            (found.excess_ci, points),
        )
    )
    return [
        ["cost per example", *costs, percent(found.cost_ratio), ratio],
        ["accuracy", *accuracies, f"{points(found.difference)} lost", lost],
        ["new errors", "", "", f"{points(found.excess)} points", new],
    ]
