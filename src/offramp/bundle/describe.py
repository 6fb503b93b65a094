"""What stands in a manifest about the stages of a cascade, and the files that go with it.

Layer: bundle.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from offramp._core.errors import FileFormatError, InputError, OfframpError
from offramp._core.files import whole_file
from offramp._core.types import Batch
from offramp.bundle.compare import write_module
from offramp.bundle.names import example_file, network_file, weight_files
from offramp.bundle.parts import check_not_joined, is_compiled, write_compiled
from offramp.bundle.rebuild import INPUT, LOGITS, answers_of, segment_of
from offramp.bundle.tensors import FAILURES
from offramp.models import ModelSpec, build, save_weights
from offramp.stages import (
    Cascade,
    CutSpec,
    SegmentSpec,
    Stage,
    cut,
    own_head,
    preprocess_from_dict,
)

Entry = dict[str, Any]


def write_stages(folder: Path, cascade: Cascade, needed: Mapping[str, bool]) -> dict[str, Any]:
    """Write the networks and heads of some stages.

    Args:
        folder: Where to.
        cascade: The stages; each needs a spec, and its head one as well.
        needed: Stages to write, in order, each with whether it answers: where it does not, its
            segment is run, but its head is not.

    Returns:
        "stages" of the manifest, and "networks" where there are any.

    Raises:
        InputError: If a spec is missing or builds something else, or there is foreign
            preprocessing.
    """
    stages = [cascade.stage(name) for name in needed]
    check_not_joined(stages)
    entries = [_described(stage, answers=needed[stage.name]) for stage in stages]
    files = weight_files(list(needed))
    cuts: dict[CutSpec, int] = {}
    firsts: dict[str, str] = {}  # of each group
    for stage, entry in zip(stages, entries, strict=True):
        if is_compiled(stage):
            first = firsts.setdefault(stage.group, stage.name)
            entry |= write_compiled(folder, stage, answers=needed[stage.name], first=first)
            continue
        _check_source(stage, cascade)
        if isinstance(stage.spec, SegmentSpec):
            number = cuts.setdefault(stage.spec.cut, len(cuts))
            entry["segment"] = {"network": number, "index": stage.spec.index}
        _write_own(folder / files[stage.name], stage, entry)
    networks = []
    for spec, number in cuts.items():
        of_cut = [s for s in cascade if isinstance(s.spec, SegmentSpec) and s.spec.cut is spec]
        networks.append(_write_network(folder, number, spec, of_cut))
        written = [_held(s, answers=needed[s.name]) for s in of_cut if s.name in needed]
        _write_example(folder / example_file(number), spec, written)
    return {"stages": entries, **({"networks": networks} if networks else {})}


def _check_source(stage: Stage, cascade: Cascade) -> None:
    if stage.source is not None and is_compiled(cascade.stage(stage.source)):
        raise InputError(
            f"Stage {stage.name!r} runs in PyTorch and continues {stage.source!r}, which does not; "
            "a bundle cannot hold that. Give the stages that continue one a backend as well."
        )


def _write_own(path: Path, stage: Stage, entry: Entry) -> None:
    """Write the weights that no other stage has: of a whole network, or of a head."""
    if "model" in entry:
        entry["weights"] = path.name
        write_module(stage.module, entry["model"], path, whose=f"stage {stage.name!r}")
    elif stage.head is not None and entry["head"] is not None:
        entry["head"]["weights"] = path.name
        whose = f"the head of stage {stage.name!r}"
        write_module(own_head(stage.head), entry["head"]["model"], path, whose=whose)


def _described(stage: Stage, *, answers: bool) -> Entry:
    """How to build a stage again, as JSON values; files are named later."""
    entry: Entry = {"name": stage.name, "preprocessing": _preprocessing(stage)}
    if stage.outputs != "logits":  # so that older versions read what they can run
        entry |= {"outputs": stage.outputs, "classes": stage.classes}
    if is_compiled(stage):
        return entry
    if stage.head is None and stage.source is None and not isinstance(stage.spec, SegmentSpec):
        return {**entry, "model": _model(stage.spec, f"Stage {stage.name!r}", _WHOLE, stage)}
    if not isinstance(stage.spec, SegmentSpec):
        raise InputError(
            f"Stage {stage.name!r} is an exit of a network that nobody could build again. Cut it "
            "with Cascade.of_exits(..., spec=ModelSpec(name='resnet20', arguments={'classes': "
            "10})); any importable callable works as 'module:callable'. Trained heads can be "
            "handed over as they are."
        )
    if stage.head is None or not answers:
        return {**entry, "head": None}
    who = f"The head of stage {stage.name!r}"
    return {**entry, "head": {"model": _model(stage.head_spec, who, _HEAD, stage)}}


_WHOLE = (
    "Give one, for example Cascade.of_models(..., specs={{{name!r}: ModelSpec(name='resnet20', "
    "arguments={{'classes': 10}})}})"
)
_HEAD = (
    "Give one to Cascade.of_exits(..., heads=...) in place of the module, such as ModelSpec("
    "name='conv_head', arguments=head_arguments(...)); where it is trained already, set "
    "cascade.stage({name!r}).head_spec"
)


def _model(spec: object, who: str, repair: str, stage: Stage) -> Entry:
    if isinstance(spec, Mapping):
        spec = ModelSpec.from_dict(spec)
    if not isinstance(spec, ModelSpec):
        raise InputError(
            f"{who} has no spec, so nobody could build it again. "
            f"{repair.format(name=stage.name)}; any importable callable works as "
            "'module:callable'."
        )
    return {"name": spec.name, "arguments": dict(spec.arguments)}


def _preprocessing(stage: Stage) -> Entry | None:
    if stage.preprocess is None:
        return None
    try:
        described: Entry = stage.preprocess.to_dict()  # type: ignore[operator]
        preprocess_from_dict(described)
    except (AttributeError, FileFormatError) as error:
        raise InputError(
            f"The preprocessing {type(stage.preprocess).__name__} of stage {stage.name!r} cannot "
            "be written to a bundle. Use offramp.stages.Normalize, or make it part of the network."
        ) from error
    return described


def _write_network(folder: Path, number: int, spec: CutSpec, stages: Sequence[Stage]) -> Entry:
    """Write the weights of a cut network once, for all of its segments."""
    save_weights(_whole(spec, stages), folder / network_file(number))
    example = spec.example
    mapping = isinstance(example, Mapping)
    kind = "mapping" if mapping else "tuple" if isinstance(example, tuple) else "tensor"
    return {
        "model": {"name": spec.model.name, "arguments": dict(spec.model.arguments)},
        "weights": network_file(number),
        "at": list(spec.at),
        **({"keep": list(spec.keep)} if spec.keep else {}),
        **({"classes": spec.classes} if spec.classes else {}),
        "example": {
            "kind": kind,
            "names": list(example) if mapping else [],
            "file": example_file(number),
        },
    }


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
            f"The spec {spec.model.name!r} given to Cascade.of_exits does not build the network "
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
    with whole_file(path) as temporary:
        save_file({**tensors, LOGITS: answers.clone()}, temporary)


def _tensors(example: Batch) -> list[Any]:
    if isinstance(example, Mapping):
        return list(example.values())
    return list(example) if isinstance(example, tuple) else [example]


def _held(stage: Stage, *, answers: bool) -> Stage:
    """A stage as the bundle holds it."""
    head = stage.head if answers else None
    return Stage(stage.name, stage.module, head=head, source=stage.source, spec=stage.spec)
