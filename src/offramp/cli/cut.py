"""`offramp cut`: where a network can be cut, and what the exits of a configuration cost.

Layer: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp._core.errors import InputError
from offramp.cli import options
from offramp.cli.output import Output, amount, percent
from offramp.project.config.config import load_config
from offramp.project.config.sections import NetworkSection, RunConfig

if TYPE_CHECKING:
    from offramp._core.types import Batch


def command(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Configuration in TOML with [network], [exits]."),
    ] = None,
    list_points: Annotated[
        bool, typer.Option("--list", help="Show where the network can be cut, and cut nothing.")
    ] = False,
    every_point: Annotated[
        bool, typer.Option("--all", help="With --list: also points inside blocks.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="With --list: a model by name instead of a configuration."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Its weights; random ones if there are none.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option("--input", help="Shape of one input, 3,32,32; by default that of [data]."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Examples that run at a time when time is measured.")
    ] = 1,
    device: options.Device = "cpu",
    json: options.Json = False,
) -> None:
    """Show where one network can get exits, and what exits there cost.

    In: a configuration with [network], or the name of a model and the shape of an input.

    Out: with --list the points at which it can be cut: what a head reads there, and how much of
    the network has run by then, in operations and in measured time. Without it the exits of the
    configuration, once cut and compared with the uncut network. Nothing is written: the
    configuration says it all, and the next step is offramp train.

    Example: offramp cut --list --model resnet20 --input 3,32,32
    """
    from offramp.project.build import warn_of_random_weights
    from offramp.project.cut import exit_rows, point_rows

    output = Output(as_json=json)
    settings = _settings(config, model, weights, cut=not list_points)
    folder = Path() if config is None else config.parent
    batch, names = _inputs(settings, shape, batch_size)
    if settings.network is None:  # _settings has refused it
        return
    warn_of_random_weights(settings)
    if list_points:
        found = point_rows(settings, folder, batch, names, inside=every_point, device=device)
        _show_points(output, found, inside=every_point)
    else:
        found = exit_rows(settings, folder, batch, names, device=device)
        _show_exits(output, found, settings.network.name)
    output.result(found)


def _settings(
    config: Path | None, model: str | None, weights: Path | None, *, cut: bool
) -> RunConfig:
    if (config is None) == (not model):
        raise InputError("Name a configuration with --config, or a model with --model.")
    if config is not None:
        if weights is not None:
            raise InputError("--weights goes with --model; a configuration names its own.")
        return load_config(config, needs=("network", "exits") if cut else ("network",))
    if cut:
        raise InputError("--model goes with --list; to cut, say where in a configuration.")
    if weights is not None and not weights.exists():
        raise InputError(f"--weights must be a file, and there is none at {weights}.")
    text = None if weights is None else str(weights.resolve())
    return RunConfig(network=NetworkSection(model=model or "", weights=text))


def _inputs(settings: RunConfig, shape: str | None, count: int) -> "tuple[Batch, tuple[str, ...]]":
    """Some raw inputs with the classes' names: of the configuration's data, or made up."""
    from offramp.project.build import dataset_of
    from offramp.project.networks import random_input

    if shape is not None:
        transforms = [settings.network.transform] if settings.network is not None else []
        return random_input(options.whole_numbers("--input", shape), count, transforms), ()
    if settings.data is None:
        raise InputError(
            "Say what one input looks like with --input, such as --input 3,32,32; there is no "
            "[data] that would show it."
        )
    examples = dataset_of(settings)
    return examples.batch(0, count).inputs, tuple(examples.class_names)


def _show_points(output: Output, found: dict[str, Any], *, inside: bool) -> None:
    points = found["points"]
    ends = "" if inside else f", {len(points)} of them at ends of blocks (--all shows the others)"
    output.paragraph(f"{found['model']}: {found['points_in_all']} points{ends}.")
    output.paragraph(
        "FLOPs and time per example up to each point; a multiply-add is 2 FLOPs. "
        f"{_measured(found)}"
    )
    output.line()
    rows = [
        [
            row["name"],
            _sides(row["shape"]),
            str(len(row["live"])),
            amount(row["flops"], "flops"),
            percent(row["flops_share"]),
            amount(row["seconds"], "seconds"),
            percent(row["seconds_share"]),
        ]
        for row in points
    ]
    end = ["(the end)", "", "", amount(found["flops"], "flops"), "100.0 %"]
    rows.append([*end, amount(found["seconds"], "seconds"), "100.0 %"])
    output.table(["layer", "gives", "tensors", "FLOPs", "share", "time", "share"], rows)


def _show_exits(output: Output, found: dict[str, Any], name: str) -> None:
    exits, size = found["exits"], found["batch_size"]
    output.paragraph(
        f"{len(exits)} exits before {name}, the network's own answer, which differs from that of "
        f"the uncut network by at most {found['max_difference']:.2g} (on {size} "
        f"input{'s' if size > 1 else ''})."
    )
    output.paragraph(
        f"Of the network's {amount(found['flops'], 'flops')} and "
        f"{amount(found['seconds'], 'seconds')} per example: what has run up to the exit without "
        f"heads, and its own head. {_measured(found)}"
    )
    output.line()
    output.table(
        ["exit", "reads", "kind of head", "FLOPs", "+ head", "time", "+ head"],
        [
            [
                row["name"],
                _sides(row["shape"]),
                row["head"],
                percent(row["flops_share"]),
                percent(row["head_flops_share"]),
                percent(row["seconds_share"]),
                percent(row["head_seconds_share"]),
            ]
            for row in exits
        ],
    )


def _measured(found: dict[str, Any]) -> str:
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    return (
        f"Measured with inputs of shape {_sides(found['input'])} at batch size "
        f"{found['batch_size']} on {found['device']}, {threads}."
    )


def _sides(shape: Any) -> str:  # noqa: ANN401  (numbers, or a shape for each name)
    """A shape for people.

    >>> _sides([16, 32, 32]), _sides({"ids": [8], "mask": [8]})
    ('16x32x32', 'ids 8, mask 8')
    """
    if isinstance(shape, dict):
        return ", ".join(f"{name} {_sides(sides)}" for name, sides in shape.items())
    return "x".join(map(str, shape))
