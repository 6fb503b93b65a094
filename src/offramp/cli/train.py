"""`offramp train`: heads of a network's exits, classifiers, or networks with when to stop.

Layer: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp._core.errors import InputError
from offramp._core.files import sha256
from offramp._core.memory import keep_freed_memory
from offramp._core.temporaries import locked
from offramp.cli import options
from offramp.cli.output import Output, note, percent
from offramp.cli.record import TRACE
from offramp.project.config.config import load_config
from offramp.project.config.sections import RunConfig, TrainSection
from offramp.project.folder import RunFolder

if TYPE_CHECKING:
    from offramp.data import Dataset
    from offramp.stages import Cascade
    from offramp.train import HeadHistory

_CHECKPOINT = "heads.checkpoint.safetensors"
_FEATURES = "features"


def command(
    config: Annotated[Path, typer.Option("--config", "-c", help="Configuration in TOML.")],
    what: Annotated[
        str | None,
        typer.Argument(
            help="heads, classifiers or joint; by default what the configuration is about."
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Also write a bundle to deploy; for joint.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is there already.")
    ] = False,
    device: options.Device = "cpu",
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, whatever was trained before.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Train the heads of a network's exits, classifiers, or networks together with when to stop.

    In: for heads a configuration with [network], [exits] and [data]; [train] says how, and the
    network itself is never changed. For classifiers one whose [[stage]] name classes of
    scikit-learn, and [data] with a split train, on which they are fitted. For joint one with
    several [[stage]] and [data]; [joint] says how, [fit] which point to choose. Networks without
    weights are first trained alone, to compare with; then all are trained with their stopping
    networks, once for each cost_weight.

    Out: in the folder of the run heads.safetensors, which record and fit use; accuracies are those
    on the part of the split that the heads were not trained on. Or classifiers.safetensors, used
    alike. Or joint.json, which report draws, and a trace for each cost_weight; exit code 3: one
    network alone is better.

    An interrupted training goes on when you call it again.

    Example: offramp train joint --config cifar.toml --bundle bundle
    """
    keep_freed_memory()  # each step takes what the one before has freed
    output = Output(as_json=json)
    about = _about(what, config)
    if about == "joint":
        from offramp.cli.train_joint import train_joint_command

        settings = load_config(config, needs=("data", "stage"))
        if settings.network is not None:
            raise InputError(
                f"{config} describes a [network]; joint training is of several [[stage]]. "
                "`offramp train heads` trains the heads of its exits."
            )
        if any(stage.sklearn is not None for stage in settings.stage):
            raise InputError(
                f"{config} has classifiers of scikit-learn; joint training is of networks. "
                "`offramp train classifiers` fits them."
            )
        train_joint_command(
            settings,
            config,
            output,
            bundle=bundle,
            overwrite=overwrite,
            device=device,
            restart=restart,
        )
        return
    if bundle is not None:
        raise InputError(
            "--bundle goes with joint; heads and classifiers are bundled by `offramp fit --bundle`."
        )
    if about == "classifiers":
        _fit_classifiers(config, output)
        return
    _train_heads(config, output, device=device, restart=restart)


def _about(what: str | None, config: Path) -> str:
    """What to train: as the command line says, else as the configuration."""
    from offramp._core.checks import check_choice

    if what is not None:
        return check_choice("what to train", what, ("heads", "classifiers", "joint"))
    settings = load_config(config)
    if any(stage.to_fit for stage in settings.stage):
        return "classifiers"
    return "joint" if "joint" in settings.model_fields_set else "heads"


def _fit_classifiers(config: Path, output: Output) -> None:
    from offramp.project.build import dataset_of
    from offramp.project.classifiers import CLASSIFIERS, fit_classifiers, save_classifiers

    settings = load_config(config, needs=("data", "stage"))
    if not any(stage.to_fit for stage in settings.stage):
        raise InputError(
            f"{config} has no classifier to be fitted: a [[stage]] with sklearn = "
            '"sklearn.ensemble:RandomForestClassifier", or another class.'
        )
    examples = dataset_of(settings)
    run = RunFolder.claim(settings.folder)
    rows: list[tuple[str, int, float]] = []
    found = fit_classifiers(settings, examples, lambda *fitted: rows.append(fitted))
    run.remember(CLASSIFIERS)
    before = sha256(run.path / CLASSIFIERS) if (run.path / CLASSIFIERS).exists() else ""
    save_classifiers(run.path / CLASSIFIERS, found, settings, examples)
    run.remember()  # once more: without run.json they would be nobody's
    if (run.path / TRACE).exists() and before != sha256(run.path / CLASSIFIERS):
        note(
            f"{run.path / TRACE} was recorded with other classifiers; run `offramp record -c "
            f"{config} --overwrite` before `offramp fit`."
        )
    output.table(
        ["classifier", "fitted on", "seconds"],
        [[name, str(n), f"{seconds:.2f}"] for name, n, seconds in rows],
    )
    output.line(f"Written: {run.path / CLASSIFIERS}")
    fitted = [{"name": name, "fitted_on": n, "seconds": seconds} for name, n, seconds in rows]
    output.result({"classifiers": str(run.path / CLASSIFIERS), "stages": fitted})


def _train_heads(config: Path, output: Output, *, device: str, restart: bool) -> None:
    from offramp.project.build import (
        cascade_of,
        dataset_of,
        warn_of_random_weights,
        warn_of_raw_bytes,
    )
    from offramp.project.heads import HEADS, check_heads, save_heads

    settings = load_config(config, needs=("data", "network", "exits"))
    if settings.data is None:  # load_config has refused it
        return
    examples = dataset_of(settings)
    warn_of_raw_bytes(settings, examples)
    warn_of_random_weights(settings)
    first = examples.batch(0, 1).inputs
    cascade = cascade_of(
        settings, config.parent, examples.class_names, example=first, trained=False
    )
    part = _part(settings, examples)
    run = RunFolder.claim(settings.folder)
    if (run.path / HEADS).exists() and not restart:
        check_heads(run.path / HEADS, cascade, config)
    run.remember(HEADS, _CHECKPOINT, *([_FEATURES] if settings.train.cache else []))
    found = _train(cascade, part, settings.train, run.path, device=device, restart=restart)
    save_heads(run.path / HEADS, cascade)
    run.remember()  # once more: without run.json the heads would be nobody's
    _show(output, found, settings, run.path / HEADS, len(part))


def _part(settings: RunConfig, examples: "Dataset") -> "Dataset":
    try:
        return examples.subset(settings.train.part)
    except InputError as error:
        raise InputError(
            f"The heads are trained on the split {settings.train.part!r} (train.part), which these "
            f"data do not have: give it a share in data.splits, such as "
            "{ train = 0.6, fit = 0.2, calibrate = 0.1, test = 0.1 }."
        ) from error


def _train(
    cascade: "Cascade",
    part: "Dataset",
    how: TrainSection,
    folder: Path,
    *,
    device: str,
    restart: bool,
) -> "dict[str, HeadHistory]":
    from offramp.data import CropAndFlip
    from offramp.train import train_heads
    from offramp.train.cache import remove_cached

    checkpoint = folder / _CHECKPOINT
    if restart:
        with locked(checkpoint):
            checkpoint.unlink(missing_ok=True)
            remove_cached(folder / _FEATURES)
    resumed = checkpoint.exists()
    try:
        return train_heads(
            cascade,
            part,
            epochs=how.epochs,
            seed=how.seed,
            validation=how.validation,
            patience=how.patience,
            batch_size=how.batch_size,
            learning_rate=how.learning_rate,
            weight_decay=how.weight_decay,
            augment=None if how.augment is None else CropAndFlip(),
            cache=folder / _FEATURES if how.cache else None,
            checkpoint=checkpoint,
            device=device,
        )
    except InputError as error:
        if not resumed:
            raise
        raise InputError(f"{error} `offramp train --restart` begins anew.") from error


def _show(
    output: Output,
    found: "dict[str, HeadHistory]",
    settings: RunConfig,
    path: Path,
    examples: int,
) -> None:
    how = settings.train
    judged = max(1, round(how.validation * examples))
    output.paragraph(
        f"{len(found)} heads trained on {examples - judged} examples of {how.part!r}, judged on "
        f"the other {judged}. If the network has seen these examples, the accuracies are too good."
    )
    output.line()
    output.table(
        ["head", "accuracy", "best epoch", "epochs"],
        [
            [name, percent(one.accuracy), str(one.best_epoch), str(len(one.accuracies))]
            for name, one in found.items()
        ],
    )
    output.line(f"Written: {path}")
    output.result(
        {
            "heads": str(path),
            "trained_on": examples - judged,
            "judged_on": judged,
            "stages": [
                {
                    "name": name,
                    "accuracy": one.accuracy,
                    "best_epoch": one.best_epoch,
                    "losses": list(one.losses),
                    "accuracies": list(one.accuracies),
                }
                for name, one in found.items()
            ],
        }
    )
