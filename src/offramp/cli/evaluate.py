"""`offramp evaluate`: what a candidate costs and loses on recorded examples.

Layer: cli.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp._core.errors import InputError
from offramp._core.files import write_new_json
from offramp._core.ownership import check_file
from offramp.cli import options
from offramp.cli.errors import NO_ANSWER
from offramp.cli.output import Output, amount, percent, points
from offramp.project.folder import candidate_from_file
from offramp.project.splits import check_unlabeled, load_divided, part_of

if TYPE_CHECKING:
    from offramp.evaluation import Evaluation

_OF_LABELS = {  # what of an evaluation means nothing without labels
    "accuracy",
    "reference_accuracy",
    "accuracy_drop",
    "accuracy_drop_ci",
    "negative_flips",
    "negative_flips_ci",
    "class_outcomes",
    "class_paths",
    "class_disagreements",
}


def command(
    trace: Annotated[Path, typer.Argument(help="The trace with the recorded examples.")],
    candidate: Annotated[
        Path, typer.Argument(help="chosen.json, a candidate of your own, or the folder of a run.")
    ],
    split: Annotated[
        str, typer.Option(help="Which examples: train, fit, calibrate, test, or all.")
    ] = "test",
    max_drop: Annotated[
        float | None, typer.Option(help="With --delta: test that no more is lost on new examples.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="With --delta: test that they cost no more on average.")
    ] = None,
    max_request_cost: Annotated[
        float | None,
        typer.Option(help="With --delta: test that few examples cost more, in the trace's unit."),
    ] = None,
    over_budget: Annotated[
        float, typer.Option(help="Share of the examples that may cost more than that.")
    ] = 0.05,
    delta: Annotated[
        float | None, typer.Option(help="Largest chance of a wrong promise, such as 0.05.")
    ] = None,
    unlabeled: options.Unlabeled = False,
    risk: Annotated[
        str,
        typer.Option(
            help="Of --max-drop: accuracy_drop, negative_flips, error, disagreement, recall."
        ),
    ] = "accuracy_drop",
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples for the 95 % intervals; 0 leaves them out.")
    ] = 2000,
    seed: Annotated[int, typer.Option(help="Of the resampling, and as for fit.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this file.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file of --out that is there already.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Replay a candidate on recorded examples: what does it cost, what does it lose?

    In: a trace and a candidate that fit has chosen.

    Out: cost, accuracy and who leaves where, each against the reference, the reference network, on
    the same examples. No network runs. With --delta also whether the limits are kept on new
    examples: a test of this candidate on examples that it was not chosen on. Exit code 3: that is
    not certain.

    Example: offramp evaluate cifar.trace runs/cifar/chosen.json --split test
    """
    from offramp._core.schema import to_json
    from offramp.evaluation import confirm, evaluate
    from offramp.evaluation.judging import labeled_by

    output = Output(as_json=json)
    if out is not None:
        check_file(out, overwrite=overwrite)
    chosen = candidate_from_file(candidate)
    over = None if max_request_cost is None else {max_request_cost: over_budget}
    limits = _limits({risk: max_drop, "cost": max_cost, "over_budget": over}, delta, split)
    if unlabeled:
        check_unlabeled(delta, limits.keys())
    whole = load_divided(trace, seed=seed)
    part = part_of(whole, split)
    seen = labeled_by(part, chosen.reference) if unlabeled else part
    found = evaluate(seen, chosen, bootstrap=bootstrap, seed=seed)
    numbers = {"label": chosen.label, **found.numbers()}
    if unlabeled:
        numbers = {name: v for name, v in numbers.items() if name not in _OF_LABELS}
    promise = None
    if delta is not None:
        promise = confirm(
            part, chosen, limits, fit=whole.subset("fit"), delta=delta, labeled=not unlabeled
        )
        numbers["promise"] = to_json(promise)
    if out is not None:
        write_new_json(out, numbers, overwrite=overwrite)
    output.paragraph(chosen.label)
    output.line(f"on {found.n} examples ({found.split}); the reference is {chosen.reference}")
    output.line()
    rows = _rows(found)
    if unlabeled:
        differing = percent(found.disagreement or 0.0)
        rows = [rows[0], ["first label is not the reference's", differing, "", "", ""]]
    output.table(["", "candidate", "reference", "", "95 % interval"], rows)
    output.line()
    shares = zip(found.stages, found.visit_share, found.exit_share, strict=True)
    output.table(
        ["stage", "visited by", "left at"], [[s, percent(v), percent(e)] for s, v, e in shares]
    )
    if promise is not None:
        output.line()
        output.paragraph(promise.sentence)
    output.result(numbers)
    if promise is not None and promise.refused is not None:
        raise typer.Exit(NO_ANSWER)


def _limits(given: Mapping[str, Any], delta: float | None, split: str) -> dict[str, Any]:
    """What is to be tested, or nothing; what makes no sense together is refused."""
    limits = {name: value for name, value in given.items() if value is not None}
    if bool(limits) != (delta is not None):
        raise InputError(
            "--delta goes with --max-drop, --max-cost, --max-request-cost or several of them, got "
            f"delta {delta} and the limits {limits}."
        )
    if limits and split != "test":
        raise InputError(
            f"--split must be test with --delta, got {split!r}: where a candidate was fitted or "
            "chosen nothing can be promised of it."
        )
    return limits


def _rows(found: "Evaluation") -> list[list[str]]:
    costs = [amount(value, found.unit) for value in (found.cost, found.reference_cost)]
    accuracies = [percent(value) for value in (found.accuracy, found.reference_accuracy)]
    share = (lambda value: f"{value:+.4f}") if found.of_losses else points
    ratio, lost, new = (
        "" if ends is None else f"{show(ends[0])} to {show(ends[1])}"
        for ends, show in (
            (found.cost_ratio_ci, percent),
            (found.accuracy_drop_ci, share),
            (found.negative_flips_ci, share),
        )
    )
    if found.of_losses:
        losses = [f"{1 - value:.4f}" for value in (found.accuracy, found.reference_accuracy)]
        return [
            ["cost per example", *costs, percent(found.cost_ratio), ratio],
            ["mean loss", *losses, f"{found.accuracy_drop:+.4f}", lost],
            ["new losses", "", "", f"{found.negative_flips:.4f}", new],
        ]
    return [
        ["cost per example", *costs, percent(found.cost_ratio), ratio],
        ["accuracy", *accuracies, f"{points(found.accuracy_drop)} lost", lost],
        ["new errors", "", "", f"{points(found.negative_flips)} points", new],
    ]
