"""`offramp demo`: everything once, on real data that is always at hand.

Layer: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp._core.errors import InputError
from offramp.cli import options
from offramp.cli.errors import NO_ANSWER
from offramp.cli.output import Output, aligned, amount, percent, points, wrapped

if TYPE_CHECKING:
    from offramp.evaluation import Choice
    from offramp.project.demo import DemoResult


def command(
    out: Annotated[
        Path, typer.Option(help="Folder to write; an earlier demo in it is replaced.")
    ] = Path("runs/demo"),
    data: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            metavar="WORLD FOLDER",
            help="Another world, from real data in a folder: cifar10, services or languages.",
        ),
    ] = None,
    services: Annotated[
        bool,
        typer.Option("--services", help="Recorded answers of services, with prices; made up."),
    ] = False,
    languages: Annotated[
        bool,
        typer.Option(
            "--languages", help="Live language detectors, on texts that come with the package."
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the splits, the first weights and the training.")
    ] = 0,
    json: options.Json = False,
) -> None:
    """See it work: from three networks to a measured adaptive classifier, in about a minute.

    In: nothing; the data are handwritten digits that come with the package. --data, --services and
    --languages show other worlds.

    Out: a folder with the recorded trace, the fitted policies, a bundle, its predictions and a
    report to open in a browser. The loss of accuracy is certified, not just measured. It ends with
    three commands to go on with. Exit code 3 if nothing could be promised.

    Example: offramp demo --out runs/demo
    """
    name = _world(data, services=services, languages=languages)
    from offramp.project.demo import run_demo
    from offramp.project.worlds import WORLDS

    output = Output(as_json=json)
    found = run_demo(
        out,
        world=WORLDS[name],
        source=None if data is None else data[1],
        seed=seed,
        tell=lambda step: typer.echo(f"... {step}", err=True),
    )
    for line in summary(found):
        output.line(line)
    output.result(_numbers(found))
    if found.choice.refused is not None:
        raise typer.Exit(NO_ANSWER)


def _world(data: tuple[str, Path] | None, *, services: bool, languages: bool) -> str:
    """The world that was asked for.

    Raises:
        InputError: If several were.
    """
    flags = {"services": services, "languages": languages}
    asked = [name for name, given in flags.items() if given]
    asked += [] if data is None or data[0] in asked else [data[0]]
    if len(asked) > 1:
        raise InputError(f"One world is shown at a time, got {' and '.join(asked)}.")
    return asked[0] if asked else "digits"


def summary(found: "DemoResult") -> list[str]:
    """The demo's result in at most 22 lines."""
    chosen, reference = found.chosen, found.chosen.candidate.reference
    each = [(f"{name} alone", evaluation) for name, evaluation in found.singles.items()]
    rows = [
        [name, amount(e.cost, e.unit), f"{100 * e.cost_ratio:.2f} %", percent(e.accuracy)]
        for name, e in [*each, ("adaptive", chosen)]
    ]
    shares = zip(chosen.stages, chosen.exit_share, strict=True)
    left = ", ".join(f"{name} {percent(share)}" for name, share in shares if share)
    inputs = found.world.inputs
    return [
        f"{chosen.n} test {inputs}; the reference, what is compared with, is {reference}",
        *aligned(["", f"cost/{inputs[:-1]}", f"of {reference}", "accuracy"], rows),
        "",
        *wrapped(found.choice.candidate.label),
        *_promise(found.choice, inputs),
        f"  reached:  {_reached(found)}",
        f"  left at:  {left}",
        *_live(found),
        f"Report: {found.report}",
        "Go on with:",
        *(f"  {line}" for line in found.next),
    ]


def _promise(choice: "Choice", inputs: str) -> list[str]:
    """What was allowed and what is promised, a line each; the reason where nothing can be."""
    allowed = f"{100 * (choice.max_drop or 0):g} points lost against the reference"
    if choice.guarantee is None:
        return [f"  allowed:  {allowed}", *wrapped(f"  promised: nothing. {choice.sentence}")]
    surely = percent(1 - choice.guarantee.delta)
    return [
        f"  allowed:  {allowed}",
        f"  promised: no more on new {inputs}, {surely} sure; certified on {choice.n} others",
    ]


def _reached(found: "DemoResult") -> str:
    """The loss on test."""
    chosen = found.chosen
    lost = chosen.accuracy_drop_ci
    interval = "" if lost is None else f" (95 %: {points(lost[0])} to {points(lost[1])})"
    return (
        f"{points(chosen.accuracy_drop)} points lost on {chosen.n} test "
        f"{found.world.inputs}{interval}"
    )


def _live(found: "DemoResult") -> list[str]:
    """How the choice ran, where something can run."""
    if found.live is None:
        return ["Nothing ran: these are recorded answers."]
    live, n = found.live, found.chosen.n
    times = [f"{row['speedup']:.1f}x at batch {row['batch_size']}" for row in live.timing]
    near = f" ({live.undecided} within rounding)" if live.undecided else ""
    return [
        f"Measured speed-up over {found.chosen.candidate.reference}: {', '.join(times)}",
        f"As replay said: {live.replayed} of {n}{near}; in a fresh process: "
        f"{live.predicted} of {n}",
    ]


def _numbers(found: "DemoResult") -> dict[str, Any]:
    live = found.live
    return {
        "world": found.world.name,
        "outcome": found.choice.outcome,
        "sentence": found.choice.sentence,
        "label": found.choice.candidate.label,
        "reference": found.choice.candidate.reference,
        "test": found.chosen.numbers(),
        "singles": {name: e.numbers() for name, e in found.singles.items()},
        "timing": None if live is None else [dict(row) for row in live.timing],
        "replayed": None if live is None else live.replayed,
        "undecided": None if live is None else live.undecided,
        "predicted": None if live is None else live.predicted,
        "report": str(found.report),
        "next": list(found.next),
    }
