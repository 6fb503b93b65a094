"""`offramp train joint`: networks and stopping networks, trained together for each cost weight.

Layer: cli.
"""

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from offramp._core.errors import InputError
from offramp.cli.errors import NO_ANSWER
from offramp.cli.output import Output, amount, percent, points
from offramp.project.config.sections import RunConfig
from offramp.project.folder import JOINT, RunFolder, check_bundle, claim_bundle

if TYPE_CHECKING:
    from offramp.evaluation import Choice
    from offramp.project.joint import Trained
    from offramp.train import JointEpoch


def train_joint_command(
    settings: RunConfig,
    config: Path,
    output: Output,
    *,
    bundle: Path | None,
    overwrite: bool,
    device: str,
    restart: bool,
) -> None:
    """Train, record, compare and choose; write `joint.json` and perhaps a bundle.

    Args:
        settings: With data and stages.
        config: The configuration's file.
        output: Where results go.
        bundle: Folder of the bundle to write.
        overwrite: Whether a bundle that is there may be replaced.
        device: Where networks run.
        restart: Begin anew.
    """
    from offramp.project.build import dataset_of, warn_of_raw_bytes
    from offramp.project.joint import (
        STATIC_TRACE,
        WORK,
        chosen_from,
        joint_to_dict,
        parts_of,
        trace_name,
        train_all,
    )

    if settings.data is None:  # load_config has refused it
        return
    examples = dataset_of(settings)
    parts_of(examples, settings.joint)  # before anything is written
    warn_of_raw_bytes(settings, examples)
    run = RunFolder.claim(settings.folder)
    if bundle is not None:
        overwrite = check_bundle(run, bundle, overwrite=overwrite, keep=[config])
    names = [trace_name(cost_weight) for cost_weight in settings.joint.cost_weights]
    run.remember(WORK, STATIC_TRACE, *names)
    earlier = (run.path / WORK).exists() and not restart
    try:
        found = train_all(
            settings,
            examples,
            run.path,
            device=device,
            restart=restart,
            told=lambda cost_weight, epoch: output.line(_epoch(cost_weight, epoch)),
        )
    except InputError as error:
        if not earlier:
            raise
        raise InputError(f"{error} `offramp train joint --restart` begins anew.") from error
    choice = chosen_from(found.frontier, settings.fit)
    value = joint_to_dict(found, settings, choice)
    value["command"] = shlex.join(["offramp", "train", "joint", "--config", str(config)])
    run.write(JOINT, value)
    if bundle is not None:
        claim_bundle(run, bundle)
        _save_bundle(bundle, found, choice, settings, overwrite=overwrite)
    _show(output, value, run.path, bundle)
    if choice.refused is not None:
        raise typer.Exit(NO_ANSWER)


def _epoch(cost_weight: float, epoch: "JointEpoch") -> str:
    """One line of the running frontier, as judged on the validation examples."""
    left = " ".join(f"{100 * share:.0f}" for share in epoch.exit_share)
    of = "alone" if math.isnan(cost_weight) else f"cost_weight {cost_weight:g}"
    return (
        f"{of:<12} {epoch.phase:<8} cost {percent(epoch.cost_ratio):>7} error "
        f"{percent(epoch.error):>7} leave after each (%): {left}"
    )


def _save_bundle(
    bundle: Path, found: "Trained", choice: "Choice", settings: RunConfig, *, overwrite: bool
) -> None:
    from torch import Tensor

    from offramp import Adaptive, save
    from offramp.project.build import dataset_of
    from offramp.project.inputs import image_options

    if settings.data is None:  # load_config has refused it
        return
    found.load_for(choice.candidate)
    first = dataset_of(settings).batch(0, 1).inputs
    save(
        Adaptive(found.cascade.cpu(), choice, costs=found.costs),
        bundle,
        input_shape=tuple(first.shape[1:]) if isinstance(first, Tensor) else None,
        extra=image_options(settings.data),
        overwrite=overwrite,
    )


def _show(output: Output, value: dict[str, Any], folder: Path, bundle: Path | None) -> None:
    from_scratch = "as given" if value["given"] else "trained alone"
    output.line()
    output.paragraph(
        f"On {value['examples']} examples of {value['split']!r}; reference {value['reference']}, "
        f"{from_scratch}."
    )
    rows = [
        [f"{one['name']}, {from_scratch}", one["cost"], one["error"]] for one in value["static"]
    ]
    for name, title in (("chosen", "trained jointly"), ("frozen", "stopping networks only")):
        if value[name]["cascade"]:
            rows.append([title, value[name]["cost"], value[name]["error"]])
    largest = next(one for one in value["static"] if one["name"] == value["reference"])
    output.table(
        ["", "error", "cost/example", "of the reference", "points lost"],
        [
            [
                name,
                percent(error),
                amount(cost, value["unit"]),
                percent(cost / largest["cost"]),
                points(error - largest["error"]),
            ]
            for name, cost, error in rows
        ],
    )
    output.line()
    output.paragraph(value["sentence"])
    output.line(f"Written: {folder / JOINT}")
    if bundle is not None:
        output.line(f"Bundle: {bundle}")
    output.result(
        {"folder": str(folder), "bundle": None if bundle is None else str(bundle), **value}
    )
