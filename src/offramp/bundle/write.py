"""Saving a bundle: whole or not at all, and nothing in it that could not be loaded again.

Layer: bundle.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from offramp._core.checks import check_kind, check_known
from offramp._core.errors import InputError
from offramp._core.files import atomic_folder, sha256, write_json
from offramp._core.ownership import BUNDLE
from offramp._core.schema import to_json
from offramp._core.seal import sealed
from offramp.backends import BackendTable
from offramp.bundle.compare import check_loadable
from offramp.bundle.describe import write_stages
from offramp.bundle.load import StoredChoice
from offramp.bundle.manifest import FORMAT, FORMAT_VERSION, ChoiceEntry, FileEntry, Manifest
from offramp.bundle.names import GEARS, MANIFEST, POLICY, check_extra
from offramp.policy import Candidate
from offramp.policy.gears import Gear
from offramp.policy.promise import Guarantee
from offramp.runtime import Adaptive, AnyChoice
from offramp.runtime.chosen import Explained
from offramp.stages import Cascade, HeldStages


def save(
    model: Adaptive,
    path: Path | str,
    *,
    input_shape: Sequence[int] | None = None,
    backends: BackendTable | None = None,
    extra: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model as a bundle: everything that is needed to run it elsewhere.

    The networks that the policy uses are written, and the reference. Each is built
    once more from its spec and compared, so a bundle that was written can be loaded. Of a network
    with exits all weights are written, once, and those heads that are used. With it goes one
    example, made up where its values are not whole numbers (`offramp.stages.synthetic_example`),
    and what the exits answer.

    Stages that run in ONNX Runtime or OpenVINO, of `with_backend`, `fuse_for` and
    `offramp.tuning.quantize`, are written as the models that those run. They need no spec, load
    without an export, and stay in the backend that they were saved in. A cascade in PyTorch leaves
    the choice to whoever loads it; what was measured of backends can go with it.

    Args:
        model: Each of its networks that runs in PyTorch needs a spec of how to build it, as do a
            network that is cut and its heads (`Cascade.from_network`). The sentence, the numbers
            and the guarantee of its choice go into the manifest, and so do its costs. Its gears
            are written, and what they run; it must itself run in one of them. What `fold` and
            measured times changed belongs to this machine, and is not written.
        path: The folder to make.
        input_shape: Shape of one example, for whoever has to make inputs; a model that was loaded
            knows it.
        backends: Of `choose_backends`; `load(path, backend="auto")` takes the fastest.
        extra: JSON values to keep in the bundle, by file name, such as "evaluation.json".
        overwrite: Whether a bundle at `path` may be replaced. Anything else that is there is
            refused, whatever is said here.

    Raises:
        UnknownNameError: If backends were measured for other stages.
        InputError: If a stage or a head has no spec, or a foreign transform, or its spec
            builds another network; if a policy alone was chosen, which names no reference; if
            the model runs in none of its gears; if `path` exists; or if an extra file's name is
            not allowed.
        StorageError: If the disk is full.

    >>> import tempfile
    >>> from offramp.models import ModelSpec, small_cnn
    >>> nets = {"a": small_cnn(width=2, depth=2).eval()}
    >>> spec = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2})
    >>> cascade = Cascade.from_models(nets, specs={"a": spec})
    >>> candidate = Candidate.single(cascade.topology, "a", reference="a")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Adaptive(cascade, candidate), folder + "/bundle")
    ...     sorted(file.name for file in Path(folder, "bundle").iterdir())
    ['a.safetensors', 'manifest.json', 'policy.json']
    """
    check_kind("model", model, Adaptive, read="offramp.load(path)")
    cascade, candidate = model.cascade, model.candidate
    if not isinstance(cascade, Cascade | HeldStages):
        raise InputError(
            f"model must be made of a cascade, or loaded, got one of {type(cascade).__name__}."
        )
    if model.gears and model.gear is None:
        raise InputError(
            f"model must run in one of its gears, {', '.join(model.gears.names)}, got "
            f"{candidate.label}: what was chosen apart from them is promised apart from them. "
            f"Make it Adaptive(cascade, gears[{model.gears.names[-1]!r}], gears=gears)."
        )
    needed = _needed(cascade, [candidate, *(gear.candidate for gear in model.gears)])
    _check_backends(backends, cascade)
    extras = {check_extra(name): value for name, value in (extra or {}).items()}
    with atomic_folder(Path(path), BUNDLE, overwrite=overwrite) as folder:
        written = write_stages(folder, cascade, needed)
        write_json(folder / POLICY, to_json(candidate))
        if model.gears:
            write_json(folder / GEARS, to_json(model.gears))
        for name, value in extras.items():
            write_json(folder / name, value)
        manifest = Manifest(
            format=FORMAT,
            version=FORMAT_VERSION,
            software={"offramp": version("offramp"), "torch": str(torch.__version__)},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            reference=candidate.reference,
            class_names=cascade.class_names,
            input_shape=_shape(cascade if input_shape is None else input_shape),
            topology=cascade.topology,
            costs=model.costs,
            choice=_why(model.choice, candidate),
            gears=model.gears.delta,
            stages=written.stages,
            networks=written.networks,
            backends=backends,
            files={
                file.name: FileEntry(bytes=file.stat().st_size, sha256=sha256(file))
                for file in sorted(folder.iterdir())
            },
        )
        write_json(folder / MANIFEST, sealed(to_json(manifest)))
        check_loadable(folder, cascade)


def _shape(given: Cascade | HeldStages | Sequence[int]) -> tuple[int, ...] | None:
    if isinstance(given, HeldStages):
        return given.input_shape
    return None if isinstance(given, Cascade) else tuple(int(size) for size in given)


def _check_backends(backends: BackendTable | None, cascade: Cascade | HeldStages) -> None:
    for name in () if backends is None else backends.seconds:
        check_known("stage", name, cascade.topology.names)


def _needed(cascade: Cascade | HeldStages, candidates: Sequence[Candidate]) -> dict[str, bool]:
    """The stages that policies or the reference run, in order, each with whether it answers."""
    topology = cascade.topology
    answering = {
        topology.index(check_known("stage", each.reference, topology.names)) for each in candidates
    }
    answering |= {k for each in candidates for k in each.policy.topology.active}
    run = {k for stage in answering for k in topology.lineage(stage)}
    return {topology.names[k]: k in answering for k in sorted(run)}


def _why(choice: AnyChoice, candidate: Candidate) -> ChoiceEntry:
    if isinstance(choice, StoredChoice):
        return choice.why
    if isinstance(choice, Gear):
        limits = [] if choice.guarantee is None else choice.guarantee.limits
        told = {} if choice.guarantee is None else choice.guarantee.numbers
        return ChoiceEntry(
            label=candidate.label,
            sentence=choice.sentence,
            numbers={
                "gear": choice.name,
                "limits": "; ".join(limit.text for limit in limits),
                "cost_ratio": choice.cost_ratio,
                **told,
            },
            guarantee=choice.guarantee,
        )
    if not isinstance(choice, Explained):
        return ChoiceEntry(label=candidate.label, sentence=None, numbers={})
    asked = {"risk": choice.risk, "max_drop": choice.max_drop, "max_cost": choice.max_cost}
    numbers: dict[str, Any] = {**asked, **choice.numbers}
    promised = getattr(choice, "guarantee", None)  # of what was certified
    return ChoiceEntry(
        label=candidate.label,
        sentence=choice.sentence,
        numbers=numbers,
        guarantee=promised if isinstance(promised, Guarantee) else None,
    )
