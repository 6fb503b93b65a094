"""What stands in a manifest about the stages of a cascade, and the files that go with it.

Layer: bundle.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from safetensors.torch import save_file
from torch import nn

from offramp._core.errors import FileFormatError, InputError, OfframpError
from offramp._core.files import atomic_file
from offramp._core.schema import from_json, to_json
from offramp._core.types import Batch
from offramp.backends.form import Kind
from offramp.bundle.compare import write_module
from offramp.bundle.manifest import (
    ExampleEntry,
    ExitEntry,
    HeadEntry,
    ModelEntry,
    NetworkEntry,
    SegmentEntry,
    StageEntry,
    WholeEntry,
)
from offramp.bundle.names import example_file, network_file, weight_files
from offramp.bundle.parts import check_not_joined, is_compiled, outputs_of, write_compiled
from offramp.bundle.rebuild import INPUT, LOGITS, answers_of, segment_of
from offramp.bundle.services import is_service, service_entry
from offramp.bundle.tensors import FAILURES
from offramp.models import ModelSpec, build, save_weights
from offramp.models.estimator import Estimator
from offramp.models.on_rows import OnRows
from offramp.stages import (
    Cascade,
    CutSpec,
    HeldStages,
    SegmentSpec,
    Stage,
    Transform,
    cut,
    own_head,
)


@final
@dataclass(frozen=True, kw_only=True)
class WrittenStages:
    """What a manifest says about the stages whose files were written."""

    stages: tuple[StageEntry, ...]
    networks: tuple[NetworkEntry, ...]


def write_stages(
    folder: Path, cascade: Cascade | HeldStages, needed: Mapping[str, bool]
) -> WrittenStages:
    """Write the networks and heads of some stages.

    Args:
        folder: Where to.
        cascade: The stages; each needs a spec, and its head one as well.
        needed: Stages to write, in order, each with whether it answers: where it does not, its
            segment is run, but its head is not.

    Raises:
        InputError: If a spec is missing or builds something else, or a transform is
            foreign.
    """
    stages = [cascade.stage(name) for name in needed]
    check_not_joined(stages)
    files = weight_files(list(needed))
    cuts: dict[CutSpec, int] = {}
    firsts: dict[str, str] = {}  # of each group
    entries: list[StageEntry] = []
    for stage in stages:
        answers = needed[stage.name]
        if is_service(stage):
            entries.append(service_entry(stage, _transform(stage)))
            continue
        if is_compiled(stage):
            first = firsts.setdefault(stage.group, stage.name)
            transform = _transform(stage)
            entries.append(write_compiled(folder, stage, transform, answers=answers, first=first))
            continue
        _check_source(stage, cascade)
        entries.append(_write_own(folder / files[stage.name], stage, cuts, answers=answers))
    networks = []
    for spec, number in cuts.items():
        of_cut = [s for s in cascade if isinstance(s.spec, SegmentSpec) and s.spec.cut is spec]
        networks.append(_write_network(folder, number, spec, of_cut))
        written = [_held(s, answers=needed[s.name]) for s in of_cut if s.name in needed]
        _write_example(folder / example_file(number), spec, written)
    return WrittenStages(stages=tuple(entries), networks=tuple(networks))


def _check_source(stage: Stage, cascade: Cascade | HeldStages) -> None:
    if stage.source is not None and is_compiled(cascade.stage(stage.source)):
        raise InputError(
            f"Stage {stage.name!r} runs in PyTorch and continues {stage.source!r}, which does not; "
            "a bundle cannot hold that. Give the stages that continue one a backend as well."
        )


def _write_own(
    path: Path, stage: Stage, cuts: dict[CutSpec, int], *, answers: bool
) -> WholeEntry | ExitEntry:
    """Write the weights that no other stage has: of a whole network, or of a head."""
    transform, spec = _transform(stage), stage.spec
    if isinstance(spec, SegmentSpec) and stage.form == "logits":
        network = cuts.setdefault(spec.cut, len(cuts))
        return ExitEntry(
            name=stage.name,
            transform=transform,
            segment=SegmentEntry(network=network, index=spec.index),
            head=_write_head(path, stage) if answers else None,
        )
    if stage.head is not None or stage.source is not None:
        raise InputError(
            f"Stage {stage.name!r} is an exit of a network that nobody could build again. Cut it "
            "with Cascade.from_network(..., spec=ModelSpec(name='resnet20', arguments={'classes': "
            "10})); any importable callable works as 'module:callable'. Trained heads can be "
            "handed over as they are."
        )
    model = _model(spec, f"Stage {stage.name!r}", _WHOLE, stage)
    write_module(stage.module, model.spec, path, whose=f"stage {stage.name!r}")
    return WholeEntry(
        name=stage.name,
        transform=transform,
        **outputs_of(stage),
        model=model,
        weights=path.name,
    )


def _write_head(path: Path, stage: Stage) -> HeadEntry | None:
    if stage.head is None:
        return None
    model = _model(stage.head_spec, f"The head of stage {stage.name!r}", _HEAD, stage)
    whose = f"the head of stage {stage.name!r}"
    write_module(own_head(stage.head), model.spec, path, whose=whose)
    return HeadEntry(model=model, weights=path.name)


_WHOLE = (
    "Give one, for example Cascade.from_models(..., specs={{{name!r}: ModelSpec(name='resnet20', "
    "arguments={{'classes': 10}})}})"
)
_HEAD = (
    "Give one to Cascade.from_network(..., head=...) in place of the module, such as ModelSpec("
    "name='conv_head', arguments=head_arguments(...)); where it is trained already, set "
    "cascade.stage({name!r}).head_spec"
)


def _model(spec: object, who: str, repair: str, stage: Stage) -> ModelEntry:
    if isinstance(spec, Mapping):
        spec = from_json(ModelSpec, spec, where=f"The spec of {who}")
    if not isinstance(spec, ModelSpec):
        if isinstance(stage.module, OnRows):
            raise InputError(
                f"{who} calls a function that nobody else can import ({stage.module.extra_repr()}):"
                " a lambda, or one made within another function, in a session or in the script "
                "that runs. Write it at the top of a module, and give it by name: "
                "from_function('package.module:name', ...)."
            )
        for part in stage.module.modules():
            if isinstance(part, Estimator) and part.why_not:
                raise InputError(f"{who} cannot be part of a bundle: {part.why_not}")
        raise InputError(
            f"{who} has no spec, so nobody could build it again. "
            f"{repair.format(name=stage.name)}; any importable callable works as "
            "'module:callable'."
        )
    return ModelEntry(name=spec.name, arguments=dict(spec.arguments))


def _transform(stage: Stage) -> nn.Module | None:
    if stage.transform is None:
        return None
    try:  # a copy, in the precision that a loader gives it
        return from_json(Transform, to_json(stage.transform))
    except (TypeError, FileFormatError) as error:
        raise InputError(
            f"The transform {type(stage.transform).__name__} of stage {stage.name!r} cannot "
            "be written to a bundle. Use one of offramp.stages.TRANSFORMS, such as Normalize, add "
            "your own there, or make it part of the network."
        ) from error


def _write_network(
    folder: Path, number: int, spec: CutSpec, stages: Sequence[Stage]
) -> NetworkEntry:
    """Write the weights of a cut network once, for all of its segments."""
    save_weights(_whole(spec, stages), folder / network_file(number))
    example = spec.example
    kind: Kind = "tuple" if isinstance(example, tuple) else "tensor"
    names: tuple[str, ...] = ()
    if isinstance(example, Mapping):
        kind, names = "mapping", tuple(example)
    return NetworkEntry(
        model=ModelEntry(name=spec.model.name, arguments=dict(spec.model.arguments)),
        weights=network_file(number),
        at=tuple(spec.at),
        keep=tuple(spec.keep),
        classes=spec.classes,
        example=ExampleEntry(kind=kind, names=names, file=example_file(number)),
    )


def _whole(spec: CutSpec, stages: Sequence[Stage]) -> nn.Module:
    """The uncut network with the weights that the segments of a cascade have.

    The cascade holds segments, which name weights otherwise than the network does. But segments
    share them with the network they were cut from: so a new one is built and cut alike, and takes
    the weights of its segments. What no segment uses stays as it was built.
    """
    try:
        net = build(ModelSpec(name=spec.model.name, arguments=spec.model.arguments))
        segments = cut(net, spec.at, spec.example, keep=spec.keep, classes=spec.classes)
        for stage in stages:
            segments[segment_of(stage).index].load_state_dict(stage.module.state_dict())
    except (OfframpError, *FAILURES) as error:
        raise InputError(
            f"The spec {spec.model.name!r} of Cascade.from_network does not build the network "
            f"that was cut: {error}"
        ) from error
    return net


def _write_example(path: Path, spec: CutSpec, stages: Sequence[Stage]) -> None:
    """Write the example, and what the exits answer to it on the CPU."""
    copied = [stage.cpu().eval() for stage in copy.deepcopy(list(stages))]
    try:
        answers = answers_of(copied, spec.example)
    except FAILURES as error:
        raise InputError(
            f"The stages {[stage.name for stage in stages]} do not run on an example of shape and "
            f"type as the one they were cut with: {error}"
        ) from error
    tensors = {f"{INPUT}{k}": tensor for k, tensor in enumerate(_tensors(spec.example))}
    with atomic_file(path) as temporary:
        save_file({**tensors, LOGITS: answers.clone()}, temporary)


def _tensors(example: Batch) -> list[Any]:
    if isinstance(example, Mapping):
        return list(example.values())
    return list(example) if isinstance(example, tuple) else [example]


def _held(stage: Stage, *, answers: bool) -> Stage:
    """A stage as the bundle holds it."""
    return stage if answers else stage.replaced(head=None, head_spec=None)
