"""`offramp demo`: everything once, on real data that is always at hand.

Layer: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli import options
from offramp.cli.errors import NO_ANSWER
from offramp.cli.output import Output, amount, percent

if TYPE_CHECKING:
    from offramp.cli.demo_run import DemoResult


def command(
    out: Annotated[
        Path, typer.Option(help="Folder to write; an earlier demo in it is replaced.")
    ] = Path("runs/demo"),
    seed: Annotated[
        int, typer.Option(min=0, help="Of the splits, the first weights and the training.")
    ] = 0,
    json: options.Json = False,
) -> None:
    """See it work: from three networks to a measured adaptive classifier, in about a minute.

    In: nothing; the data are the handwritten digits that come with scikit-learn.
    Out: a folder with the recorded trace, the fitted policies, a bundle, its predictions and a
    report to open in a browser. Exit code 3 if no cascade was worth it.

    Example: offramp demo --out runs/demo
    """
    from offramp.cli.demo_run import run_demo
    from offramp.evaluate import DoNotCascade

    output = Output(as_json=json)
    found = run_demo(out, seed=seed, tell=lambda step: typer.echo(f"... {step}", err=True))
    for line in summary(found):
        output.line(line)
    output.result(_numbers(found))
    if isinstance(found.choice, DoNotCascade):
        raise typer.Exit(NO_ANSWER)


def summary(found: "DemoResult") -> list[str]:
    """The demo's result in at most 15 lines."""
    from offramp.cli.output import aligned

    chosen, reference = found.chosen, found.chosen.setting.reference
    rows = [
        [f"{name} alone", amount(e.cost, e.unit), percent(e.cost_ratio), percent(e.accuracy)]
        for name, e in found.singles.items()
    ]
    rows.append(
        [
            "adaptive",
            amount(chosen.cost, chosen.unit),
            percent(chosen.cost_ratio),
            percent(chosen.accuracy),
        ]
    )
    shares = zip(chosen.stages, chosen.exit_share, strict=True)
    left = ", ".join(f"{name} {percent(share)}" for name, share in shares)
    speed = ", ".join(
        f"{row['speedup']:.1f} times as fast at batch {row['batch_size']}" for row in found.timing
    )
    rest = f", {found.undecided} within rounding of a threshold" if found.undecided else ""
    return [
        f"{chosen.n} test images, costs per image, F is {reference}",
        "",
        *aligned(["", "cost", f"of {reference}", "accuracy"], rows),
        "",
        *_choice_lines(found),
        f"Left at: {left}",
        f"Measured against {reference}: {speed}",
        f"As replay said: {found.replayed} of {chosen.n}{rest}; "
        f"in a fresh process: {found.predicted}",
        f"Report: {found.report}",
    ]


def _choice_lines(found: "DemoResult") -> list[str]:
    from offramp.evaluate import DoNotCascade

    if isinstance(found.choice, DoNotCascade):
        return [found.choice.reason]
    setting = found.choice.setting
    return [f"Chosen for a loss of at most {100 * (found.choice.max_loss or 0):g} points:"] + [
        f"  {setting.label}"
    ]


def _numbers(found: "DemoResult") -> dict[str, Any]:
    from offramp.cli.run_folder import choice_to_dict, evaluation_to_dict

    chosen = choice_to_dict(found.choice)
    return {
        "outcome": chosen["outcome"],
        "sentence": chosen["sentence"],
        "label": found.choice.setting.label,
        "reference": found.choice.setting.reference,
        "test": evaluation_to_dict(found.chosen),
        "singles": {name: evaluation_to_dict(e) for name, e in found.singles.items()},
        "timing": [dict(row) for row in found.timing],
        "replayed": found.replayed,
        "undecided": found.undecided,
        "predicted": found.predicted,
        "report": str(found.report),
    }
