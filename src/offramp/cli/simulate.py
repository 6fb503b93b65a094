"""`offramp simulate`: how many replicas some traffic needs, without running it.

Layer: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from offramp._core.errors import InputError
from offramp.cli import options
from offramp.cli.output import Output, amount, note

if TYPE_CHECKING:
    from offramp._core.topology import Path as Way
    from offramp._core.types import Raw
    from offramp.runtime import Adaptive
    from offramp.stages import HeldStages
    from offramp.tuning.traffic import Simulated


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle that is to be served.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Real inputs: they tell who leaves where."),
    ] = None,
    rps: Annotated[float, typer.Option(help="Examples that come each second.")] = 1000.0,
    p99: Annotated[
        float, typer.Option(help="Milliseconds within which 99 of 100 must be answered.")
    ] = 200.0,
    replicas: Annotated[
        str | None,
        typer.Option(help="Replicas of each stage, as small=3,large=2; by default the fewest."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a full batch.")] = 64,
    patience: Annotated[
        float, typer.Option(help="Milliseconds after which an example waits for no others.")
    ] = 2.0,
    overhead: Annotated[
        float, typer.Option(help="Milliseconds that a batch costs beside its stage.")
    ] = 1.0,
    front: Annotated[
        float,
        typer.Option(help="Milliseconds that an example keeps the process busy that takes it in."),
    ] = 0.0,
    fronts: Annotated[int, typer.Option(min=1, help="How many such processes there are.")] = 1,
    cores: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cores that all replicas and fronts share, as on one machine; by default each "
            "has its own.",
        ),
    ] = None,
    price: Annotated[float, typer.Option(help="Of one replica for an hour.")] = 1.0,
    array: options.Array = "images",
    backend: options.Backend = None,
    threads: options.Threads = None,
    allow_import: options.AllowImport = False,
    allow_network: options.AllowNetwork = None,
    allow_types: options.AllowTypes = None,
    json: options.Json = False,
) -> None:
    """Say how many replicas of each stage some traffic needs, and what it costs, by simulation.

    In: a bundle, and inputs like those it will meet.

    Out: for the cascade and for its reference alone the replicas, how busy they are, the seconds to
    an answer, and the price of a million examples. The stages are timed here, on one thread unless
    --threads says otherwise; a replica is such a process.

    Example: offramp simulate runs/demo/bundle runs/demo/test.npz --rps 50000 --p99 100
    """
    from offramp._core.checks import check_not_negative, check_positive
    from offramp.cli.bench import loaded_to_time, some_inputs
    from offramp.tuning.meter import measure_times
    from offramp.tuning.simulate import plan, simulate
    from offramp.tuning.traffic import Traffic

    output = Output(as_json=json)
    for name, value in {"--rps": rps, "--p99": p99, "--price": price}.items():
        check_positive(name, value)  # before anything is measured
    check_not_negative("--patience", patience)
    check_not_negative("--overhead", overhead)
    check_not_negative("--front", front)
    options.set_threads(threads or 1)
    model = loaded_to_time(
        bundle,
        backend=backend,
        allow_import=allow_import,
        allow_network=allow_network or False,
        allow_types=allow_types or (),
    )
    if any(stage.waits for stage in model.program.stages.values()):
        raise InputError(
            "The stages of the bundle must compute here, and some are services, which answer "
            "elsewhere at their own pace."
        )
    batch = some_inputs(bundle, inputs, array, most=2048)
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size <= batch_size]
    held = cast("HeldStages", model.cascade)  # as a bundle holds them
    times = measure_times(held, batch, batch_sizes=[*sizes, batch_size], rounds=3)
    traffic = Traffic(
        topology=model.policy.topology,
        times=times,
        shares=shares_of(model, batch),
        rate=rps,
        batch_size=batch_size,
        patience=patience / 1000,
        overhead=overhead / 1000,
        front=front / 1000,
        fronts=fronts,
        cores=cores,
    )
    reference = model.candidate.reference
    alone = traffic.alone(reference)
    if replicas is None:
        found, _ = plan(traffic, p99=p99 / 1000)
    else:
        found = simulate(
            traffic,
            options.by_stage(
                "--replicas", replicas, _count, "numbers of at least 1, such as small=3,large=2"
            ),
        )
    try:
        against, _ = plan(alone, p99=p99 / 1000)
    except InputError as error:
        if cores is None:
            raise
        against = None  # on so few cores the cascade may do what the reference cannot
        note(f"{reference} alone cannot serve that: {error}")
    output.line(f"{rps:g} examples each second, {times.where}")
    output.line()
    _show(output, "cascade", found, price)
    if against is not None:
        _show(output, f"{reference} alone", against, price)
    if not found.stable:
        note("More comes than these replicas can serve: queues grow without end.")
    output.result(
        {
            "bundle": str(bundle),
            "rate": rps,
            "where": times.where,
            "cascade": _told(found, price),
            "reference": None if against is None else _told(against, price),
            "cost_ratio": None
            if against is None
            else found.per_million(price) / against.per_million(price),
        }
    )


def shares_of(model: "Adaptive", batch: "Raw") -> "dict[Way, float]":
    """For each path the share of some examples that takes it."""
    import numpy as np

    from offramp._core.batch import batch_size, split_rows

    counts = np.zeros(len(model.program.paths), dtype=np.int64)
    n = batch_size(batch)
    sizes = [256] * (n // 256) + [n % 256] * (n % 256 > 0)
    for part in split_rows(batch, sizes):
        counts += np.bincount(model(part).path.numpy(), minlength=len(counts))
    pairs = zip(model.program.paths, counts.tolist(), strict=True)
    return {path: count / n for path, count in pairs if count}


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(text)
    return int(text)


def _show(output: Output, title: str, found: "Simulated", price: float) -> None:
    output.table(
        [title, "replicas", "busy", "batch", "waits", "visited"],
        [
            [
                pool.stage,
                str(pool.replicas),
                f"{pool.utilization:.0%}",
                f"{pool.batch:.1f}",
                amount(pool.waited, "seconds"),
                f"{pool.visited:.0%}",
            ]
            for pool in found.pools
        ],
    )
    if found.stable:
        half, most = amount(found.p50, "seconds"), amount(found.p99, "seconds")
        output.line(f"half are answered within {half}, 99 of 100 within {most}")
    output.line(f"{found.replicas} replicas, {found.per_million(price):.4g} for a million examples")
    output.line()


def _told(found: "Simulated", price: float) -> dict[str, Any]:
    return {
        "stable": found.stable,
        "p50_s": found.p50 if found.stable else None,
        "p99_s": found.p99 if found.stable else None,
        "replicas": found.replicas,
        "per_million": found.per_million(price),
        "pools": [vars(pool) for pool in found.pools],
    }
