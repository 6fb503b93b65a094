"""Building the stages that a manifest describes: whole networks, and segments of those cut.

Layer: bundle.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from offramp._core.errors import FileFormatError, InputError, UnsupportedError
from offramp._core.topology import RAW_INPUT, Topology
from offramp._core.types import Batch
from offramp.bundle.manifest import (
    CompiledEntry,
    ExampleEntry,
    ExitEntry,
    Manifest,
    NetworkEntry,
    WholeEntry,
)
from offramp.bundle.names import MANIFEST
from offramp.bundle.parts import CompiledReader, check_together
from offramp.bundle.services import AllowNetwork, ServiceEntry, service_stage
from offramp.bundle.tensors import FAILURES, built, read_tensors
from offramp.models.estimator import Estimator
from offramp.stages import CutSpec, SegmentSpec, Stage, attached
from offramp.stages.segments import run_segments

LOGITS = "logits"  # (1, k, c) of the k stages that answer, beside the inputs
INPUT = "input."  # followed by 0, 1, ...

#: The segments of a cut network, each with how to get it again.
Segments = list[tuple[nn.Module, SegmentSpec]]


def rebuild(
    folder: Path,
    manifest: Manifest,
    *,
    verify: bool,
    allow_import: bool,
    allow_network: AllowNetwork = False,
    allow_types: Collection[str] = (),
    threads: int | None = None,
) -> dict[str, Stage]:
    """Build all stages of a bundle, and try the exits on its example.

    Args:
        folder: The bundle; its files are what the manifest says.
        manifest: Of `read_manifest`.
        verify: As for `load`.
        allow_import: As for `load`.
        allow_network: As for `load`.
        allow_types: As for `load`.
        threads: As for `load`.

    Raises:
        FileFormatError: If something cannot be built, or does not fit, or answers otherwise.
        UnsupportedError: If an import is needed that is not allowed or not installed, a service
            that is not allowed, or this processor cannot run a stage.
        MissingExtraError: If the runtime of a stage is not installed.
    """
    cuts = [_cut_again(folder, k, entry, allow_import) for k, entry in enumerate(manifest.networks)]
    topology = manifest.topology
    compiled = CompiledReader(folder, topology, verify=verify, threads=threads)
    stages = {
        entry.name: compiled.stage(entry)
        if isinstance(entry, CompiledEntry)
        else service_stage(entry, allow_network)
        if isinstance(entry, ServiceEntry)
        else _stage(folder, entry, topology, cuts, allow_import)
        for entry in manifest.stages
    }
    _open_estimators(folder, stages.values(), allow_types)
    check_together(folder, list(stages.values()))
    for k, network in enumerate(manifest.networks):
        exits = [e for e in manifest.stages if isinstance(e, ExitEntry) and e.segment.network == k]
        here = [stages[entry.name] for entry in exits]
        noted_with = manifest.software.get("torch", "another version")
        classes = _check_answers(folder, here, network.example, noted_with if verify else None)
        if manifest.class_names and classes != len(manifest.class_names):
            raise FileFormatError(
                f"{folder / MANIFEST}: class_names must have {classes} entries, as the exits' "
                f"answers have, got {len(manifest.class_names)}."
            )
    return stages


def _open_estimators(folder: Path, stages: Iterable[Stage], allow_types: Collection[str]) -> None:
    """Make the classifiers of scikit-learn out of their bytes."""
    for stage in stages:
        for part in stage.modules():
            if not isinstance(part, Estimator):
                continue
            try:
                part.open(allow_types)
            except (FileFormatError, UnsupportedError) as error:
                raise type(error)(f"{folder}: the classifier of {stage.name!r}. {error}") from error


def _cut_again(folder: Path, k: int, entry: NetworkEntry, allow_import: bool) -> Segments:
    """Build a network of a bundle, load its weights, and cut it."""
    from offramp.stages import cut  # most bundles hold no cut network

    where = f"{folder / MANIFEST}: networks.{k}"
    example = _read_example(folder / entry.example.file, entry.example)
    net = built(
        entry.model.spec, folder / entry.weights, f"{where}.model", allow_import=allow_import
    )
    try:
        segments = cut(net, entry.at, example, keep=entry.keep, classes=entry.classes)
    except FAILURES as error:
        raise FileFormatError(f"{where}.at {list(entry.at)} cannot be cut: {error}") from error
    spec = CutSpec(
        model=entry.model.spec,
        at=entry.at,
        example=example,
        keep=entry.keep,
        classes=entry.classes,
    )
    return [(segment, SegmentSpec(cut=spec, index=index)) for index, segment in enumerate(segments)]


def _stage(
    folder: Path,
    entry: WholeEntry | ExitEntry,
    topology: Topology,
    cuts: Sequence[Segments],
    allow_import: bool,
) -> Stage:
    where = f"{folder}: stage {entry.name!r} of the manifest"
    if isinstance(entry, WholeEntry):
        spec = entry.model.spec
        return Stage(
            entry.name,
            built(spec, folder / entry.weights, where, allow_import=allow_import),
            transform=entry.transform,
            spec=spec,
            outputs=entry.outputs,
            classes=entry.classes,
        )
    module, segment = cuts[entry.segment.network][entry.segment.index]
    head = None
    if entry.head is not None:
        head = built(
            entry.head.model.spec,
            folder / entry.head.weights,
            f"{where}, field head",
            allow_import=allow_import,
        )
    position = topology.index(entry.name)
    source = topology.sources[position]
    return Stage(
        entry.name,
        module,
        head=None if head is None else _attached(head, module, segment, where),
        transform=entry.transform,
        source=None if source == RAW_INPUT else topology.names[source],
        group=topology.groups[position],
        spec=segment,
        head_spec=None if entry.head is None else entry.head.model.spec,
    )


def _attached(head: nn.Module, module: nn.Module, segment: SegmentSpec, where: str) -> nn.Module:
    try:
        return attached(head, module, segment.cut.keep)
    except InputError as error:
        raise FileFormatError(f"{where} cannot be built: {error}") from error


def answers_of(stages: Sequence[Stage], example: Batch) -> Tensor:
    """Logits of the exits of one cut network on an example after the transform, `(1, k, c)`.

    Args:
        stages: Some stages of the network, with all they continue; those that have no head and
            are not the network's own answer only run.
        example: What the first segment reads.
    """
    plain = [  # without its transform
        s.replaced(transform=None)
        for s in sorted(stages, key=lambda stage: segment_of(stage).index)
    ]
    with torch.inference_mode():
        logits = {
            stage.name: stage.answer(carry).scores()
            for stage, carry in run_segments(plain, example)
            if _gives_logits(stage)
        }
    return torch.stack([logits[stage.name] for stage in stages if stage.name in logits], dim=1)


def segment_of(stage: Stage) -> SegmentSpec:
    """How to get the segment of a stage again.

    Raises:
        UnsupportedError: If it is none, or nobody knows.
    """
    if not isinstance(stage.spec, SegmentSpec):
        raise UnsupportedError(f"Stage {stage.name!r} is no segment of a network cut with a spec.")
    return stage.spec


def _check_answers(
    folder: Path, stages: Sequence[Stage], example: ExampleEntry, noted_with: str | None
) -> int:
    """Run the exits of one network on the example, and compare with what they answered once.

    Without the version of torch that noted it, they only have to run. Returns the number of
    classes.
    """
    path = folder / example.file
    names = [stage.name for stage in stages if _gives_logits(stage)]
    try:
        found = answers_of(stages, _read_example(path, example))
    except FAILURES as error:
        raise FileFormatError(
            f"{folder / MANIFEST}: the stages {names} do not run on {example.file}; segments and "
            f"heads do not fit: {error}"
        ) from error
    classes = found.shape[2]
    if noted_with is None:
        return classes
    noted = read_tensors(path).get(LOGITS)
    if noted is None or noted.shape != found.shape or not noted.is_floating_point():
        raise FileFormatError(
            f"{path} must hold {LOGITS!r} of shape {tuple(found.shape)}, the answers of {names}."
        )
    noted = noted.float()
    if not torch.allclose(found, noted, rtol=0, atol=_tolerance(stages, noted), equal_nan=True):
        raise FileFormatError(
            f"{path}: the stages {names} answer otherwise than when the bundle was saved, by up to "
            f"{(found - noted).abs().max().item():.3g}. What builds the network computes something "
            f"else here, or torch does ({noted_with} then, {torch.__version__} now). Save the "
            "bundle again, or load it with verify=False and measure its accuracy."
        )
    return classes


def _gives_logits(stage: Stage) -> bool:
    segment = segment_of(stage)
    return stage.head is not None or segment.index == len(segment.cut.at)


def _tolerance(stages: Sequence[Stage], noted: Tensor) -> float:
    """Kernels of another machine round otherwise: half of the digits of the coarsest weights."""
    kinds = {p.dtype for stage in stages for p in stage.parameters() if p.is_floating_point()}
    coarsest = max(torch.finfo(kind).eps for kind in {*kinds, torch.float32})
    finite = noted[noted.isfinite()].abs()
    return float(coarsest**0.5 * max(1.0, finite.max().item() if finite.numel() else 0.0))


def _read_example(path: Path, entry: ExampleEntry) -> Batch:
    held = read_tensors(path)
    keys = [f"{INPUT}{k}" for k in range(len(held))]
    tensors = [held[key] for key in keys if key in held]
    wrong = len(tensors) != len(held) - (LOGITS in held) or not tensors
    if wrong or any(t.dim() == 0 or len(t) != 1 for t in tensors):
        raise FileFormatError(
            f"{path} must hold one example as {INPUT}0, {INPUT}1, ... and its {LOGITS!r}, got "
            f"{ {key: tuple(t.shape) for key, t in held.items()} }."
        )
    if len(tensors) != _expected(entry, tensors):
        raise FileFormatError(
            f"{path} holds {len(tensors)} inputs, which do not make a {entry.kind}"
            f"{f' of {list(entry.names)}' if entry.names else ''}."
        )
    if entry.kind == "mapping":
        return dict(zip(entry.names, tensors, strict=True))
    return tensors[0] if entry.kind == "tensor" else tuple(tensors)


def _expected(entry: ExampleEntry, tensors: Sequence[Tensor]) -> int:
    return {"tensor": 1, "tuple": len(tensors), "mapping": len(entry.names)}[entry.kind]
