"""Saving a bundle: whole or not at all, and nothing in it that could not be loaded again.

Layer: bundle.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offramp._core.checks import check_known
from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError, InputError, OfframpError
from offramp._core.files import sha256, whole_folder, write_json
from offramp.bundle.manifest import FORMAT, FORMAT_VERSION
from offramp.bundle.names import MANIFEST, POLICY, check_extra, weight_files
from offramp.evaluate import DoNotCascade, OperatingPoint
from offramp.models import ModelSpec, build, load_weights, save_weights
from offramp.policy import Setting
from offramp.runtime.adaptive import check_made_for
from offramp.runtime.execution import plan_segments
from offramp.stages import Cascade, Stage, preprocess_from_dict

BundleChoice = Setting | OperatingPoint | DoNotCascade


def save_bundle(
    path: Path | str,
    cascade: Cascade,
    choice: BundleChoice,
    *,
    costs: Costs | None = None,
    class_names: Sequence[str] = (),
    input_shape: Sequence[int] | None = None,
    extra: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> None:
    """Write everything that is needed to run a cascade with a policy.

    The networks that the policy uses are written, and F, the fallback. Each is built once more
    from its spec and compared, so a bundle that was written can be loaded.

    Args:
        path: The folder to make.
        cascade: The networks; each that is written needs a spec of how to build it.
        choice: A setting, or what the choice of an operating point gave; its sentence and its
            numbers go into the manifest.
        costs: Cost of each stage; loaded models then say what each example cost.
        class_names: For people; by default those of the cascade.
        input_shape: Shape of one example, for whoever has to make inputs.
        extra: JSON values to keep in the bundle, by file name, such as "evaluation.json".
        overwrite: Whether a bundle at `path` may be replaced.

    Raises:
        InputError: If a stage has no spec, has a head or foreign preprocessing, or its spec
            builds another network; if policy or costs were made for other stages; if `path`
            exists; or if an extra file's name is not allowed.

    >>> import tempfile
    >>> from offramp.models import small_cnn
    >>> nets = {"a": small_cnn(width=2, depth=2).eval()}
    >>> spec = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2})
    >>> cascade = Cascade.of_models(nets, specs={"a": spec})
    >>> setting = Setting.single(cascade.topology, "a", reference="a")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_bundle(folder + "/bundle", cascade, setting)
    ...     sorted(file.name for file in Path(folder, "bundle").iterdir())
    ['a.safetensors', 'manifest.json', 'policy.json']
    """
    setting = choice if isinstance(choice, Setting) else choice.setting
    check_made_for(cascade, setting.policy.topology, costs)
    stages = _needed(cascade, setting)
    described = {stage.name: _describe(stage) for stage in stages}
    extras = {check_extra(name): value for name, value in (extra or {}).items()}
    names = weight_files([stage.name for stage in stages])
    with whole_folder(Path(path), overwrite=overwrite) as folder:
        for stage in stages:
            save_weights(stage.module, folder / names[stage.name])
            _check_rebuilt(stage, ModelSpec(**described[stage.name]["model"]), folder, names)
        write_json(folder / POLICY, setting.to_dict())
        for name, value in extras.items():
            write_json(folder / name, value)
        manifest = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "software": {"offramp": version("offramp"), "torch": str(torch.__version__)},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "reference": setting.reference,
            "class_names": list(class_names or cascade.class_names),
            "input_shape": None if input_shape is None else [int(size) for size in input_shape],
            "topology": cascade.topology.to_dict(),
            "costs": None if costs is None else costs.to_dict(),
            "choice": _why(choice, setting),
            "stages": [
                {"name": name, **entry, "weights": names[name]} for name, entry in described.items()
            ],
            "files": {
                file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
                for file in sorted(folder.iterdir())
            },
        }
        write_json(folder / MANIFEST, manifest)


def _needed(cascade: Cascade, setting: Setting) -> list[Stage]:
    """The stages whose networks the policy runs, and F."""
    check_known("stage", setting.reference, cascade.topology.names)
    used = {k for plan in plan_segments(setting.policy.topology).values() for k in plan.segments}
    used |= set(cascade.topology.lineage(cascade.topology.index(setting.reference)))
    return [cascade.stage(k) for k in sorted(used)]


def _describe(stage: Stage) -> dict[str, Any]:
    """How to build a stage again, as JSON values."""
    if stage.head is not None or stage.source is not None:
        raise InputError(
            f"Stage {stage.name!r} is an exit of another network; a bundle holds whole networks."
        )
    spec = stage.spec
    if isinstance(spec, Mapping):
        spec = ModelSpec.from_dict(spec)
    if not isinstance(spec, ModelSpec):
        raise InputError(
            f"Stage {stage.name!r} has no spec, so nobody could build its network again. Give "
            "one, for example Cascade.of_models(..., specs={"
            f"{stage.name!r}: ModelSpec(name='resnet20', arguments={{'classes': 10}})}}); any "
            "importable callable works as 'module:callable'."
        )
    return {
        "model": {"name": spec.name, "arguments": dict(spec.arguments)},
        "preprocessing": _preprocessing(stage),
    }


def _preprocessing(stage: Stage) -> dict[str, Any] | None:
    if stage.preprocess is None:
        return None
    try:
        described: dict[str, Any] = stage.preprocess.to_dict()  # type: ignore[operator]
        preprocess_from_dict(described)
    except (AttributeError, FileFormatError) as error:
        raise InputError(
            f"The preprocessing {type(stage.preprocess).__name__} of stage {stage.name!r} cannot "
            "be written to a bundle. Use offramp.stages.Normalize, or make it part of the network."
        ) from error
    return described


def _check_rebuilt(stage: Stage, spec: ModelSpec, folder: Path, names: Mapping[str, str]) -> None:
    """Build a stage's network as a loader will, and compare all weights."""
    try:
        again = build(spec)
        load_weights(again, folder / names[stage.name])
    except OfframpError as error:
        raise InputError(
            f"The spec of stage {stage.name!r} does not build its network: {error}"
        ) from error
    have, want = again.state_dict(), stage.module.state_dict()
    different = [name for name in want if not _same(have[name], want[name].cpu())]
    if different or type(again) is not type(stage.module):
        raise InputError(
            f"The spec of stage {stage.name!r} builds another network than the cascade has: "
            f"{_difference(again, stage.module, different)}."
        )


def _same(have: torch.Tensor, want: torch.Tensor) -> bool:
    return have.dtype == want.dtype and torch.equal(have.nan_to_num(), want.nan_to_num())


def _difference(again: nn.Module, module: nn.Module, different: Sequence[str]) -> str:
    if different:
        return f"values or types differ in {different[0]!r}"
    return f"a {type(again).__name__} instead of a {type(module).__name__}"


def _why(choice: BundleChoice, setting: Setting) -> dict[str, Any]:
    if isinstance(choice, Setting):
        return {"label": setting.label, "sentence": None, "numbers": {}}
    numbers: dict[str, Any] = {
        "risk": choice.risk,
        "max_loss": choice.max_loss,
        "max_cost": choice.max_cost,
    }
    if isinstance(choice, OperatingPoint):
        fields = ("split", "n", "cost_ratio", "accuracy", "reference_accuracy")
        numbers |= {name: getattr(choice.judged, name) for name in fields}
        numbers |= {"difference": choice.judged.difference, "excess": choice.judged.excess}
    else:
        numbers |= dict(choice.numbers)
    return {"label": setting.label, "sentence": choice.sentence, "numbers": numbers}
