"""`offramp class-exits`: find the early exit that makes a class faster while the accuracy holds.

Layer: cli.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp._core.errors import InputError
from offramp.cli import options
from offramp.cli.errors import NO_ANSWER
from offramp.cli.output import Output, percent, points
from offramp.cli.section import from_section, merged, words
from offramp.project.config.config import load_config
from offramp.project.config.sections import ClassExitsSection, RunConfig
from offramp.project.folder import CLASS_EXITS, RunFolder, check_bundle, claim_bundle

if TYPE_CHECKING:
    from offramp.project.class_exits import Designed

_FIELDS = ("constraints", "tolerance", "select", "exits", "together", "unit")
_BELIEVE = (
    "Believe `gain`: how much faster the examples of the class are, counted over them alone. "
    "`formula` is the gain by the formula of Bonato and Bouganis, which counts examples of other "
    "classes that leave here by mistake as if they were of the class."
)


@from_section(ClassExitsSection, *_FIELDS)
def command(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="Configuration in TOML with [network], [data].")
    ],
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="A class by name or position; may be given several times."),
    ] = None,
    superclass: Annotated[
        list[str] | None,
        typer.Option("--superclass", help="One of class_exits.superclasses; several times."),
    ] = None,
    given: Mapping[str, Any] = MappingProxyType({}),
    bundle: Annotated[
        Path | None, typer.Option(help="Also write a bundle to deploy: of one class, or together.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is there already.")
    ] = False,
    device: options.Device = "cpu",
    json: options.Json = False,
) -> None:
    """Find the early exit that makes a class faster while the promised accuracy holds.

    In: a configuration with [network] and [data]; [class_exits] or the options here say for which
    classes. On the first call every branch is trained, on the split "train", which takes minutes;
    an interrupted training goes on when you call it again. Heads that offramp train has trained
    are candidates too. Exits are chosen on "fit", confirmed on "calibrate", shown on "test".

    Out: class_exits.json in the folder of the run, for offramp report; with --bundle also the
    bundle that predict and bench run. Exit code 3: no class has an exit that is worth it.

    Example: offramp class-exits --config cifar.toml --class cat --tolerance 0.005
    """
    from offramp.project.build import dataset_of, warn_of_random_weights, warn_of_raw_bytes
    from offramp.project.class_exits import design_to_dict, designed, run_sweep, targets_of

    output = Output(as_json=json)
    settings = load_config(config, needs=("data", "network"))
    data = settings.data
    if data is None:  # load_config has refused it
        return
    named = _named(settings, config, classes, superclass)
    how = _merged(settings, {**given, **({} if named is None else {"classes": named})})
    settings = settings.model_copy(update={"class_exits": how}).read_from(settings.file)
    examples = dataset_of(settings)
    targets = targets_of(how, examples.class_names)
    if bundle is not None and len(targets) > 1 and not how.together:
        raise InputError(
            f"A bundle holds one cascade, and there are {len(targets)} classes: name one with "
            "--class, or put their exits into one cascade with --together."
        )
    warn_of_raw_bytes(settings, examples)
    warn_of_random_weights(settings)
    run = RunFolder.claim(settings.folder)
    if bundle is not None:
        overwrite = check_bundle(run, bundle, overwrite=overwrite, keep=[config])
    run.remember(CLASS_EXITS, "branches")
    sweep = run_sweep(settings, config, examples, run.path, device=device)
    found = designed(sweep, how, targets)
    value = design_to_dict(found, how, targets)
    value["command"] = _command_line(config, how, value["targets"])
    run.write(CLASS_EXITS, value)
    if bundle is not None:
        claim_bundle(run, bundle)
        if not _save_bundle(bundle, found, settings, overwrite=overwrite):
            bundle = None
    _show(output, value, run.path, bundle)
    if all(one["outcome"] != "exit" for one in value["classes"]):
        raise typer.Exit(NO_ANSWER)


def _command_line(config: Path, how: ClassExitsSection, targets: list[str]) -> str:
    """What to type to get this design again."""
    told = [word for target in targets for word in ("--class", target)]
    told += words(how, _FIELDS)
    return shlex.join(["offramp", "class-exits", "--config", str(config), *told])


def _named(
    settings: RunConfig, config: Path, classes: list[str] | None, superclass: list[str] | None
) -> list[str] | None:
    """The classes that the command line names."""
    if superclass and not settings.class_exits.superclasses:
        raise InputError(
            f"{config} has no superclasses to choose from; add, for example, [class_exits] "
            'superclasses = { animal = ["cat", "dog"], vehicle = ["car", "ship"] }.'
        )
    return [*(classes or []), *(superclass or [])] or None


def _merged(settings: RunConfig, given: Mapping[str, Any]) -> ClassExitsSection:
    """The section with what was given on the command line in its place."""
    how = merged(settings.class_exits, given)
    if how.together and how.constraints == "paper":
        raise InputError("--together needs constraints 'strict', got 'paper'.")
    return how


def _save_bundle(bundle: Path, found: "Designed", settings: RunConfig, *, overwrite: bool) -> bool:
    """Write the bundle; False where there is no exit to put into it."""
    from offramp import Adaptive, Candidate, save
    from offramp.fitting.class_exits import NoViableExit
    from offramp.project.inputs import image_options
    from offramp.stages import measure_flops
    from offramp.train.class_exits.cascade import LAST

    deployed, example = found.deployed, found.sweep.attachment.example
    if isinstance(deployed, NoViableExit):
        return False
    cascade, policy = found.sweep.cascade(deployed.exits)
    candidate = Candidate(policy=policy, method="class_exits", reference=LAST)
    model = Adaptive(cascade, candidate, costs=measure_flops(cascade, example))
    save(
        model,
        bundle,
        input_shape=tuple(example.shape[1:]),
        extra=image_options(settings.data),
        overwrite=overwrite,
    )
    return True


def _show(output: Output, value: dict[str, Any], folder: Path, bundle: Path | None) -> None:
    split = list(value["examples"])[-1]
    asked = value["requirements"]
    kept = (
        f"accuracy and each class's recall within {points(asked['tolerance']).lstrip('+')} points"
        if asked["constraints"] == "strict"
        else "the paper's constraints (5) to (7)"
    )
    output.paragraph(
        f"{value['branches']} branches and {value['heads']} heads; {kept}. Figures are those on "
        f"{value['examples'][split]} examples of {split!r}, time in {value['unit']}."
    )
    output.line()
    output.table(
        ["class", "exit", "KP", "above", "gain", "formula", "others", "points lost"],
        [_line(one, split) for one in value["classes"] if one["outcome"] == "exit"],
    )
    for one in value["classes"]:
        if one["outcome"] != "exit":
            output.paragraph(f"{one['class']}: no viable exit. {one['reason']}")
    output.line()
    for one in value["classes"]:
        if one["outcome"] == "exit":
            output.paragraph(_sentence(one["class"], one["rows"][split]))
    _show_more(output, value, split)
    output.paragraph(_BELIEVE)
    output.line(f"Written: {folder / CLASS_EXITS}")
    if bundle is not None:
        output.line(f"Bundle: {bundle}")
    output.result(
        {"folder": str(folder), "bundle": None if bundle is None else str(bundle), **value}
    )


def _show_more(output: Output, value: dict[str, Any], split: str) -> None:
    """The cascade of several classes, and the exit of all classes."""
    for name, what in (("together", "These classes together"), ("everyone", "One exit of all")):
        one = value[name]
        if one is None:
            continue
        if one["outcome"] != "exit":
            output.paragraph(f"{what}: no viable exit. {one['reason']}")
            continue
        row = one["rows"][split]
        spent = _mean_time(row["system"])
        output.paragraph(
            f"{what}: {1 / spent:.2f} times faster over all examples, "
            f"{points(-row['accuracy_change'])} points lost."
        )


def _mean_time(system: dict[str, Any]) -> float:
    """Mean time of all examples over t."""
    total = sum(
        time * size for time, size in zip(system["times"], system["sizes"], strict=True) if size
    )
    return float(total / system["n"] / system["time_baseline"])


def _line(one: dict[str, Any], split: str) -> list[str]:
    row, leaf = one["rows"][split], one["exits"][0]
    formula = None if row["paper"] is None else row["paper"]["gain"]
    more = len(one["exits"]) - 1
    return [
        one["class"],
        leaf["point"] + (f" +{more}" if more else ""),
        "on" if leaf["keep_previous"] else "off",
        f"{leaf['threshold']:.3f}",
        f"{row['gains'][one['class']]:.2f}",
        "broken" if formula is None else f"{formula:.2f}",
        "" if row["loss"] is None else f"{row['loss']:.3f}",
        points(-row["accuracy_change"]),
    ]


def _sentence(name: str, row: dict[str, Any]) -> str:
    """Accuracy before and after, with intervals."""
    low, high = row["gain_intervals"][name]
    less, more = row["accuracy_change_interval"]
    system, change = row["system"], row["accuracy_change"]
    return (
        f"{name}: {row['gains'][name]:.2f} times faster (95 %: {low:.2f} to {high:.2f}); accuracy "
        f"{percent(system['accuracy_baseline'])} before, {percent(system['accuracy'])} after "
        f"(change {points(change)} points, 95 %: {points(less)} to {points(more)}); "
        f"the largest loss of recall is {points(row['worst_recall'])} points, of "
        f"{row['worst_class']}."
    )
