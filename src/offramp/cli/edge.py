"""`offramp edge`: a cascade split between a device and a cloud, and the device's part.

Layer: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp._core.errors import InputError
from offramp._core.files import open_npz
from offramp.cli import options
from offramp.cli.output import Output, percent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from offramp._core.costs import Costs
    from offramp._core.types import Raw
    from offramp.stages import Cascade

program = typer.Typer(
    name="edge",
    help="Split a cascade between a device and a cloud, and run the device's part.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@program.command("split", cls=options.Once)
def split_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle whose stages are placed.")],
    trace: Annotated[
        Path, typer.Argument(help="Recording of these stages, with the splits fit and calibrate.")
    ],
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Inputs as they will come, to measure times and sizes."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    link: Annotated[
        str, typer.Option(help='Bandwidth and round trip, such as "20 Mbit/s, 50 ms".')
    ],
    device_slower: Annotated[
        float,
        typer.Option(help="How many times longer stages take on the device than on this machine."),
    ] = 4.0,
    device_seconds: Annotated[
        str | None,
        typer.Option(help="Seconds of each stage on the device, such as small=0.01,large=0.2."),
    ] = None,
    cloud_seconds: Annotated[
        str | None,
        typer.Option(help="Seconds of each stage in the cloud; by default measured here."),
    ] = None,
    cloud_backend: Annotated[
        str | None,
        typer.Option(help="What runs the stages in the cloud, such as onnxruntime."),
    ] = None,
    call_ms: Annotated[
        float | None,
        typer.Option(
            help="Milliseconds of client and server for a call, beside link and stages; by "
            "default measured here, over loopback."
        ),
    ] = None,
    gateway_link: Annotated[
        str | None,
        typer.Option(help="Link from a gateway to the cloud; --link leads to the gateway then."),
    ] = None,
    gateway_slower: Annotated[
        float,
        typer.Option(help="How many times longer stages take at the gateway than in the cloud."),
    ] = 1.0,
    cloud_url: Annotated[
        str | None, typer.Option(help="Where the gateway finds the server of cloud/.")
    ] = None,
    raw_bytes: Annotated[
        float | None,
        typer.Option(help="Bytes of an input as it is sent, such as of a JPEG file."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Stages on the device, separated by commas; by default the best cut."),
    ] = None,
    send: Annotated[
        str, typer.Option(help="What may be sent: raw, float32; separated by commas.")
    ] = "raw,float32",
    max_drop: Annotated[float, typer.Option(help="Accuracy that may be lost.")] = 0.02,
    delta: Annotated[float, typer.Option(help="Largest chance of a wrong promise.")] = 0.1,
    policy: Annotated[str, typer.Option(help="Which policies are fitted.")] = "threshold",
    array: options.Array = "images",
    overwrite: options.Overwrite = False,
    allow_import: options.AllowImport = False,
    json: options.Json = False,
) -> None:
    """Choose the cut and the policy for device, link and cloud together, and write both parts.

    In: a bundle, a recording of its stages, some inputs, and what the link carries. The seconds of
    the device are those of ONNX Runtime, the seconds of the cloud those of offramp serve, each as
    measured on this machine or given, and so is what a call takes beside its link and its stages.

    Out: a folder with device/, which numpy and onnxruntime run, and cloud/, which offramp serve
    serves. Exit code 3 where the cloud or the device alone is cheaper: nothing is written then.

    Example: offramp edge split runs/demo/bundle runs/demo/digits.trace runs/demo/test.npz
    --link "20 Mbit/s, 50 ms" --out runs/split
    """
    from dataclasses import replace

    from offramp import Adaptive, Cascade, load, load_trace
    from offramp._core.addresses import checked_url
    from offramp._core.checks import check_not_negative, check_positive
    from offramp._core.link import Link
    from offramp.backends import require_onnx, with_backend
    from offramp.cli.bench import some_inputs
    from offramp.edge import split
    from offramp.serve.handling import measure_handling
    from offramp.tuning import plan_edge, sizes_of

    output, between = Output(as_json=json), Link.parse(link)
    if (gateway_link is None) != (cloud_url is None):
        raise InputError("--gateway-link and --cloud-url belong together: give both, or neither.")
    check_positive("--device-slower", device_slower)  # before anything is measured
    check_positive("--gateway-slower", gateway_slower)
    if call_ms is not None:
        check_not_negative("--call-ms", call_ms)
    if cloud_url is not None:
        checked_url(cloud_url, None)
    require_onnx()
    model = load(bundle, allow_import=allow_import)
    held, names = list(model.cascade), model.cascade.topology.names  # type: ignore[call-overload]
    if len(held) != len(names):
        raise InputError(
            f"{bundle} must hold all of {list(names)} to be split anew, and holds "
            f"{[stage.name for stage in held]}."
        )
    edges = [(names[a], names[b]) for a, b in model.cascade.topology.edges]
    cascade = Cascade(held, edges=edges, class_names=model.class_names)
    batch = some_inputs(bundle, inputs, array, most=8)
    if cloud_backend is not None:
        cascade = with_backend(cascade, cloud_backend, example=batch)
    there, here = _seconds_of(cascade, batch, device_seconds, device_slower, cloud_seconds)
    reference = model.candidate.reference
    call = measure_handling(cascade, reference, batch, here) if call_ms is None else call_ms / 1e3
    places, links = {"device": there, "cloud": here}, [replace(between, handling=call)]
    if gateway_link is not None:
        places = {"device": there, "gateway": here.slower(gateway_slower), "cloud": here}
        links.append(replace(Link.parse(gateway_link), handling=call))
        send = "raw"  # what a gateway hands on
    sizes = sizes_of(cascade, batch)
    if raw_bytes is not None:
        sizes[""] = raw_bytes
    plan = plan_edge(
        load_trace(trace),
        cascade,
        places,
        links,
        sizes=sizes,
        max_drop=max_drop,
        delta=delta,
        policy=policy,
        sends=options.names(send),  # type: ignore[arg-type]  # it looks for itself
        device=options.names(device),
        reference=reference,
    )

    gateway_offline = {} if plan.gateway_offline is None else vars(plan.gateway_offline)
    told: dict[str, Any] = {
        "device": list(plan.device),
        "send": plan.send,
        "seconds": plan.cost,
        "alone": dict(plan.alone),
        "bytes": plan.bytes,
        "worth": plan.worth,
        "choice": plan.choice.sentence,
        "places": {name: list(stages) for name, stages in plan.places.items()},
        "offline": vars(plan.offline),
        "gateway_offline": gateway_offline,
        "device_seconds": dict(zip(names, there.each, strict=True)),
        "cloud_seconds": dict(zip(names, here.each, strict=True)),
        "call_seconds": call,
        "out": None,
    }
    output.table(
        ["stage", "ms on the device", "ms in the cloud"],
        [
            [name, f"{1e3 * one:.3g}", f"{1e3 * other:.3g}"]
            for name, one, other in zip(names, there.each, here.each, strict=True)
        ],
    )
    output.paragraph(
        f"A call takes {1e3 * call:.3g} ms beside its link and its stages"
        f"{', measured over loopback' if call_ms is None else ''}."
    )
    output.paragraph(plan.sentence)
    output.paragraph(plan.choice.sentence)
    if not plan.worth:
        output.result(told)
        raise typer.Exit(3)
    made = split(
        Adaptive(cascade, plan.choice, costs=plan.costs),
        out,
        send=plan.send,
        example=batch,
        cloud_url=cloud_url,
        offline=vars(plan.offline),
        gateway_offline=gateway_offline,
        overwrite=overwrite,
    )
    output.line(f"{made.path / 'device'}: offramp edge run, or offramp.edge.Client")
    if made.gateway:
        output.line(f"{made.path / 'gateway'}: offramp serve --allow-network")
    output.line(f"{made.path / 'cloud'}: offramp serve")
    output.result({**told, "out": str(made.path), "id": made.id})


@program.command("run", cls=options.Once)
def run_command(
    folder: Annotated[Path, typer.Argument(help="The folder device/ of a split.")],
    inputs: Annotated[list[Path], typer.Argument(help="Files of arrays (npz).")],
    url: Annotated[
        str | None, typer.Option(help="Address of the cloud; without, the device answers alone.")
    ] = None,
    model: Annotated[str, typer.Option(help="What the server calls the cloud's bundle.")] = "cloud",
    timeout: Annotated[float, typer.Option(help="Seconds that the cloud is waited for.")] = 2.0,
    audit: Annotated[
        float, typer.Option(help="Share of the device's answers that the cloud hears of.")
    ] = 0.0,
    queue: Annotated[
        Path | None, typer.Option(help="Folder for what the cloud could not be asked.")
    ] = None,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable with the token of the server.")
    ] = None,
    array: options.Array = "images",
    batch_size: options.BatchSize = 1,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Answer inputs on this machine, and ask the cloud about those that are hard.

    In: the device's folder of a split, and arrays.

    Out: a line for each input: its label, the stage that answered, where, and why there; with
    --json one object with them and what was sent. Needs neither torch nor a network: without the
    cloud the last stage here answers, and says so.

    Example: offramp edge run runs/split/device runs/demo/test.npz --url https://cloud:8000
    """
    from offramp.edge import Client, Settings

    output = Output(as_json=json)
    settings = Settings(
        url=url,
        model=model,
        timeout=timeout,
        confident_audit_rate=audit,
        queue=queue,
        token_env=token_env,
    )
    client = Client(folder, settings, threads=threads or 0)
    rows: list[list[str]] = []
    for path in inputs:
        values = _array_in(path, array)
        for k in range(0, len(values), batch_size):
            told = client(values[k : k + batch_size])
            labels = [_named(int(label), client.device.class_names) for label in told.label]
            rows += [
                list(row) for row in zip(labels, told.stage, told.where, told.reason, strict=True)
            ]
    client.close()
    output.table(["label", "stage", "where", "reason"], rows)
    offline = client.counts["offline"]
    if offline and client.offline:
        at_least = percent(client.offline["at_least"])
        output.paragraph(
            f"{offline} were answered here although the cloud was wanted: the device alone is "
            f"right in at least {at_least} of the cases (delta = {client.offline['delta']:.2g})."
        )
    output.result(
        {
            "answers": [
                dict(zip(("label", "stage", "where", "reason"), r, strict=True)) for r in rows
            ],
            "counts": dict(client.counts),
            "bytes": client.bytes,
            "offline": dict(client.offline),
        }
    )


def _array_in(path: Path, name: str) -> "NDArray[Any]":
    """One array of an npz file; raises `FileFormatError` where it cannot be had."""
    with open_npz(path) as held:
        if name not in held:
            raise InputError(f"{path} holds {list(held)}, and --array says {name!r}.")
        found: NDArray[Any] = held[name]
    return found


def _named(label: int, class_names: list[str]) -> str:
    return class_names[label] if 0 <= label < len(class_names) else str(label)


def _seconds_of(
    cascade: "Cascade",
    batch: "Raw",
    device_seconds: str | None,
    times: float,
    cloud_seconds: str | None,
) -> tuple["Costs", "Costs"]:
    """Of the stages on the device and in the cloud: given, or measured as they will run there."""
    from offramp.backends import with_backend
    from offramp.stages import given_costs, measure_seconds

    def seconds(option: str, given: str | None, *, exported: bool) -> "Costs":
        if given is not None:
            what = "seconds, such as small=0.01,large=0.2"
            known = options.by_stage(option, given, float, what)
            return given_costs(list(cascade.topology.names), "seconds", known)
        run = with_backend(cascade, "onnxruntime", example=batch) if exported else cascade
        return measure_seconds(run, batch, batch_sizes=[1], rounds=9)[1]

    there = seconds("--device-seconds", device_seconds, exported=True)
    there = there.slower(times) if device_seconds is None else there
    return there, seconds("--cloud-seconds", cloud_seconds, exported=False)
