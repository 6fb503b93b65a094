"""`offramp demo`: everything once, on real data that is always at hand.

Layer: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli import options
from offramp.cli.errors import NO_ANSWER
from offramp.cli.output import Output, aligned, amount, percent, points, wrapped

if TYPE_CHECKING:
    from offramp.evaluation import Choice, Evaluation
    from offramp.project.demo import DemoResult


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
    report to open in a browser. The loss of accuracy is certified, not just measured. Exit code 3
    if nothing could be promised.

    Example: offramp demo --out runs/demo
    """
    from offramp.project.demo import run_demo

    output = Output(as_json=json)
    found = run_demo(out, seed=seed, tell=lambda step: typer.echo(f"... {step}", err=True))
    for line in summary(found):
        output.line(line)
    output.result(_numbers(found))
    if found.choice.refused is not None:
        raise typer.Exit(NO_ANSWER)


def summary(found: "DemoResult") -> list[str]:
    """The demo's result in at most 17 lines."""
    chosen, reference = found.chosen, found.chosen.candidate.reference
    rows = [
        [name, amount(e.cost, e.unit), f"{100 * e.cost_ratio:.2f} %", percent(e.accuracy)]
        for name, e in [*_alone(found), ("adaptive", chosen)]
    ]
    shares = zip(chosen.stages, chosen.exit_share, strict=True)
    left = ", ".join(f"{name} {percent(share)}" for name, share in shares if share)
    speed = ", ".join(f"{row['speedup']:.1f}x at batch {row['batch_size']}" for row in found.timing)
    near = f" ({found.undecided} within rounding)" if found.undecided else ""
    return [
        f"{chosen.n} test images; the reference, the network to compare with, is {reference}",
        *aligned(["", "cost/image", f"of {reference}", "accuracy"], rows),
        "",
        *wrapped(found.choice.candidate.label),
        *_promise(found.choice),
        f"  reached:  {_reached(chosen)}",
        f"  left at:  {left}",
        f"Measured speed-up over {reference}: {speed}",
        f"As replay said: {found.replayed} of {chosen.n}{near}; in a fresh process: "
        f"{found.predicted} of {chosen.n}",
        f"Report: {found.report}",
    ]


def _alone(found: "DemoResult") -> "list[tuple[str, Evaluation]]":
    return [(f"{name} alone", evaluation) for name, evaluation in found.singles.items()]


def _promise(choice: "Choice") -> list[str]:
    """What was allowed and what is promised, a line each; the reason where nothing can be."""
    allowed = f"{100 * (choice.max_drop or 0):g} points lost against the reference"
    if choice.guarantee is None:
        return [f"  allowed:  {allowed}", *wrapped(f"  promised: nothing. {choice.sentence}")]
    surely = percent(1 - choice.guarantee.delta)
    return [
        f"  allowed:  {allowed}",
        f"  promised: no more than that on new images, with {surely} confidence",
        f"            (certified on {choice.n} images that nothing was fitted on)",
    ]


def _reached(chosen: "Evaluation") -> str:
    """The loss on the test images."""
    lost = chosen.accuracy_drop_ci
    interval = "" if lost is None else f" (95 %: {points(lost[0])} to {points(lost[1])})"
    return f"{points(chosen.accuracy_drop)} points lost on {chosen.n} test images{interval}"


def _numbers(found: "DemoResult") -> dict[str, Any]:
    return {
        "outcome": found.choice.outcome,
        "sentence": found.choice.sentence,
        "label": found.choice.candidate.label,
        "reference": found.choice.candidate.reference,
        "test": found.chosen.numbers(),
        "singles": {name: e.numbers() for name, e in found.singles.items()},
        "timing": [dict(row) for row in found.timing],
        "replayed": found.replayed,
        "undecided": found.undecided,
        "predicted": found.predicted,
        "report": str(found.report),
    }
