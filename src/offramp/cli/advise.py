"""`offramp advise`: is a cascade worth building? Before anything is fitted.

Layer: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli import options
from offramp.cli.errors import NO_ANSWER
from offramp.cli.output import Output, amount, percent

if TYPE_CHECKING:
    from offramp.evaluation.advise import Advice, Promise


def command(
    trace: Annotated[Path, typer.Argument(help="The trace with the recorded, labeled outputs.")],
    max_drop: Annotated[
        float, typer.Option(help="Loss of accuracy you can bear: 0.02 is two points.")
    ] = 0.01,
    delta: Annotated[
        float, typer.Option(help="Chance of a wrong promise you can bear: 0.05 is one in twenty.")
    ] = 0.1,
    risk: Annotated[
        str, typer.Option(help="accuracy_drop: accuracy lost; negative_flips: new errors only.")
    ] = "accuracy_drop",
    reference: Annotated[
        str | None,
        typer.Option(
            help="The reference, the network to compare with; by default the most accurate."
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Right means among the so many best labels.")] = 1,
    unit: Annotated[
        str | None, typer.Option(help="Unit of the costs to count, where the trace has several.")
    ] = None,
    min_saving: Annotated[
        float, typer.Option(help="Saving that makes it worth the trouble: 0.1 is a tenth.")
    ] = 0.1,
    json: options.Json = False,
) -> None:
    """Say whether a cascade is worth building, before anything is fitted or trained.

    In: a trace with a few hundred labeled outputs, logits or labels alone.

    Out: yes or no and why; how much can be saved at most, which loss can be promised with so many
    examples, and how many more a promise takes. Exit code 3: no.

    Example: offramp advise services.trace --max-drop 0.01 --delta 0.1
    """
    from offramp._core.schema import to_json
    from offramp.evaluation.advise import advise
    from offramp.trace import load_trace

    output = Output(as_json=json)
    found = advise(
        load_trace(trace),
        max_drop=max_drop,
        delta=delta,
        risk=risk,
        reference=reference,
        top=top,
        unit=unit,
        min_saving=min_saving,
    )
    output.line(
        f"Reference: {found.reference}, {amount(found.reference_cost, found.unit)} per example; "
        f"{found.n} examples."
    )
    output.line()
    output.table(["saved of it", "share"], _savings(found))
    output.line()
    output.table(
        ["promises of a cascade that", "least loss", "examples for yours"],
        [
            _promise("never differs from the reference", found.at_best),
            _promise("differs as cheap stages do", found.as_usual),
        ],
    )
    output.line()
    output.paragraph(found.sentence)
    output.result(to_json(found))
    if not found.worth_it:
        raise typer.Exit(NO_ANSWER)


def _savings(found: "Advice") -> list[list[str]]:
    return [
        ["at most, knowing the labels, within your loss", percent(found.most_saved)],
        ["by an ideal policy, without loss", percent(found.neutral_saved)],
        [f"by one network alone, within your loss ({found.single})", percent(found.single_saved)],
    ]


def _promise(name: str, promise: "Promise") -> list[str]:
    least, needed = promise.smallest_max_drop, promise.examples_needed
    return [
        name,
        "none" if least is None else f"{100 * least:.2f} points",
        "no number" if needed is None else str(needed),
    ]
