"""Saving a bundle: whole or not at all, and nothing in it that could not be loaded again.

Layer: bundle.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from offramp._core.checks import check_known
from offramp._core.costs import Costs
from offramp._core.files import atomic_folder, sha256, write_json
from offramp._core.ownership import BUNDLE
from offramp._core.schema import to_json
from offramp._core.seal import sealed
from offramp.backends import BackendTable
from offramp.bundle.compare import check_loadable
from offramp.bundle.describe import write_stages
from offramp.bundle.manifest import FORMAT, FORMAT_VERSION, ChoiceEntry, FileEntry, Manifest
from offramp.bundle.names import MANIFEST, POLICY, check_extra
from offramp.policy import Candidate
from offramp.runtime.adaptive import Choice, Explained, candidate_of
from offramp.runtime.source import check_form, check_made_for
from offramp.stages import Cascade


def save_bundle(
    path: Path | str,
    cascade: Cascade,
    choice: Choice,
    *,
    costs: Costs | None = None,
    class_names: Sequence[str] = (),
    input_shape: Sequence[int] | None = None,
    backends: BackendTable | None = None,
    extra: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> None:
    """Write everything that is needed to run a cascade with a policy.

    The networks that the policy uses are written, and the reference, the fallback. Each is built
    once more from its spec and compared, so a bundle that was written can be loaded. Of a network
    with exits all weights are written, once, and those heads that are used. With it goes one
    example, made up where its values are not whole numbers (`offramp.stages.synthetic_example`),
    and what the exits answer.

    Stages that run in ONNX Runtime or OpenVINO, of `with_backend`, `fuse_for` and
    `offramp.tuning.quantize`, are written as the models that those run. They need no spec, load
    without an export, and stay in the backend that they were saved in. A cascade in PyTorch leaves
    the choice to whoever loads it; what was measured of backends can go with it.

    Args:
        path: The folder to make.
        cascade: The networks; each that runs in PyTorch needs a spec of how to build it, as do a
            network that is cut and its heads (`Cascade.from_network`).
        choice: A candidate, or what the choice of an operating point gave, a certificate included;
            its sentence and its numbers go into the manifest.
        costs: Cost of each stage; loaded models then say what each example cost.
        class_names: For people; by default those of the cascade.
        input_shape: Shape of one example, for whoever has to make inputs.
        backends: Of `choose_backends`; `load_bundle(path, backend="auto")` takes the fastest.
        extra: JSON values to keep in the bundle, by file name, such as "evaluation.json".
        overwrite: Whether a bundle at `path` may be replaced. Anything else that is there is
            refused, whatever is said here.

    Raises:
        UnknownNameError: If backends were measured for other stages.
        InputError: If a stage or a head has no spec, or foreign preprocessing, or its spec
            builds another network; if policy or costs were made for other stages; if `path`
            exists; or if an extra file's name is not allowed.
        StorageError: If the disk is full.

    >>> import tempfile
    >>> from offramp.models import ModelSpec, small_cnn
    >>> nets = {"a": small_cnn(width=2, depth=2).eval()}
    >>> spec = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2})
    >>> cascade = Cascade.from_models(nets, specs={"a": spec})
    >>> candidate = Candidate.single(cascade.topology, "a", reference="a")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_bundle(folder + "/bundle", cascade, candidate)
    ...     sorted(file.name for file in Path(folder, "bundle").iterdir())
    ['a.safetensors', 'manifest.json', 'policy.json']
    """
    candidate = candidate_of(choice)
    check_made_for(cascade, candidate.policy.topology, costs)
    check_form(cascade, candidate.policy)
    needed = _needed(cascade, candidate)
    _check_backends(backends, cascade)
    extras = {check_extra(name): value for name, value in (extra or {}).items()}
    with atomic_folder(Path(path), BUNDLE, overwrite=overwrite) as folder:
        written = write_stages(folder, cascade, needed)
        write_json(folder / POLICY, to_json(candidate))
        for name, value in extras.items():
            write_json(folder / name, value)
        manifest = Manifest(
            format=FORMAT,
            version=FORMAT_VERSION,
            software={"offramp": version("offramp"), "torch": str(torch.__version__)},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            reference=candidate.reference,
            class_names=tuple(class_names or cascade.class_names),
            input_shape=None if input_shape is None else tuple(int(size) for size in input_shape),
            topology=cascade.topology,
            costs=costs,
            choice=_why(choice, candidate),
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


def _check_backends(backends: BackendTable | None, cascade: Cascade) -> None:
    for name in () if backends is None else backends.seconds:
        check_known("stage", name, cascade.topology.names)


def _needed(cascade: Cascade, candidate: Candidate) -> dict[str, bool]:
    """The stages that the policy or the reference runs, in order, each with whether it answers."""
    topology = cascade.topology
    reference = topology.index(check_known("stage", candidate.reference, topology.names))
    answering = {*candidate.policy.topology.active, reference}
    run = {k for stage in answering for k in topology.lineage(stage)}
    return {topology.names[k]: k in answering for k in sorted(run)}


def _why(choice: Choice, candidate: Candidate) -> ChoiceEntry:
    if not isinstance(choice, Explained):
        return ChoiceEntry(label=candidate.label, sentence=None, numbers={})
    limits = {"risk": choice.risk, "max_drop": choice.max_drop, "max_cost": choice.max_cost}
    numbers: dict[str, Any] = {**limits, **choice.numbers}
    return ChoiceEntry(label=candidate.label, sentence=choice.sentence, numbers=numbers)
