"""`offramp record`: run the networks over labeled data once and keep what they said.

Layer: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli import options
from offramp.cli.output import Output, amount, percent
from offramp.project.config.config import load_config
from offramp.project.config.sections import RunConfig
from offramp.project.folder import RunFolder

if TYPE_CHECKING:
    from offramp.recording.nonfinite import Nonfinite
    from offramp.trace import Trace

TRACE = "record.trace"


def command(
    config: Annotated[Path, typer.Option("--config", "-c", help="Configuration in TOML.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The trace to write; by default record.trace in the run's folder."),
    ] = None,
    device: options.Device = "cpu",
    batch_size: options.BatchSize = 256,
    float16: Annotated[
        bool, typer.Option("--float16", help="Store half precision: smaller, and marked as lossy.")
    ] = False,
    overwrite: options.Overwrite = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Do not go on where an interrupted run stopped.")
    ] = False,
    on_nonfinite: Annotated[
        str | None,
        typer.Option(
            help="What becomes of examples for which a network gives NaN or infinity: error, skip "
            "(left out) or wrong (counted as wrong). By default as [record] says, else error."
        ),
    ] = None,
    max_spend: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="The most that services may cost in all, with what an interrupted run has paid.",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Calls of a service at a time; by default as its limits say."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Run every network, or every exit, over labeled data once and keep what each one said.

    In: a configuration that names the data and the networks, or one network with exits whose heads
    `offramp train` has trained; with costs, if you know them. What heads were trained on is left
    out. Or one with [answers] that were recorded elsewhere, which are only read.

    Out: a trace, the folder that policies are fitted on. An interrupted run goes on where it
    stopped when you call it again; no answer of a service is paid for twice.

    Example: offramp record --config run.toml --out cifar.trace
    """
    from offramp.project.build import (
        cascade_of,
        costs_of,
        dataset_of,
        other_costs_of,
        recorded,
        warn_of_random_weights,
        warn_of_raw_bytes,
    )
    from offramp.recording import record
    from offramp.recording.partial import check_recordable

    output = Output(as_json=json)
    settings = load_config(config, needs=("data", "stage"), instead="answers")
    if settings.answers is not None:
        _show(output, *_imported(settings, out, overwrite=overwrite))
        return
    if settings.data is None:  # load_config has refused it
        return
    examples = recorded(settings, dataset_of(settings))
    warn_of_raw_bytes(settings, examples)
    warn_of_random_weights(settings)
    run = RunFolder.claim(settings.folder) if out is None else None
    target = settings.folder / TRACE if out is None else out
    check_recordable(target, overwrite=overwrite)
    first = examples.batch(0, 1).inputs
    cascade = cascade_of(settings, config.parent, examples.class_names, example=first)
    costs = costs_of(cascade, settings.cost, examples, device=device)
    if run is not None:
        run.remember(TRACE, trace=TRACE)
    trace = record(
        cascade,
        examples,
        path=target,
        device=device,
        dtype="float16" if float16 else "float32",
        costs=costs,
        other_costs=other_costs_of(cascade, settings.cost, examples, device=device),
        seen_in_training=settings.data.seen_in_training,
        batch_size=batch_size,
        resume=not restart,
        overwrite=overwrite,
        nonfinite=_nonfinite(on_nonfinite or settings.record.on_nonfinite),
        max_spend=settings.record.max_spend if max_spend is None else max_spend,
        concurrency=concurrency or settings.record.concurrency,
    )
    if run is not None:
        run.remember()  # once more: without run.json the trace would be nobody's
    _show(output, trace, target)


def _imported(settings: RunConfig, out: Path | None, *, overwrite: bool) -> "tuple[Trace, Path]":
    """Recorded answers as a trace, and where it lies now."""
    from offramp.project.build import answers_of
    from offramp.trace import save_trace

    run = RunFolder.claim(settings.folder) if out is None else None
    target = settings.folder / TRACE if out is None else out
    trace = answers_of(settings)
    if run is not None:
        run.remember(TRACE, trace=TRACE)
    save_trace(trace, target, overwrite=overwrite)
    return trace, target


def _show(output: Output, trace: "Trace", target: Path) -> None:
    each = trace.stage_costs()
    rows = [
        [name, percent(trace.accuracy(k)), amount(float(each[k]), trace.costs.unit)]
        for k, name in enumerate(trace.stages)
    ]
    output.line(f"{len(trace)} examples of {trace.classes} classes, recorded in {target}")
    output.table(["stage", "accuracy", "cost/example"], rows)
    output.result(
        {
            "trace": str(target),
            "n": len(trace),
            "classes": trace.classes,
            "unit": trace.costs.unit,
            "notes": list(trace.notes),
            "stages": [
                {"name": name, "accuracy": trace.accuracy(k), "cost": float(each[k])}
                for k, name in enumerate(trace.stages)
            ],
        }
    )


def _nonfinite(text: str) -> "Nonfinite":
    from offramp._core.checks import check_choice
    from offramp.recording.nonfinite import HOW

    check_choice("--on-nonfinite", text, HOW)
    return text  # type: ignore[return-value]  # it is one of them
