"""Stages that run in another runtime, as files of a bundle: written, and read back.

Their models are kept as they are: what was quantized cannot be built again from weights, and what
was exported or joined need not be. Int8 may answer otherwise on another processor, so each model
goes with what it answered to made-up inputs where it was made.

Layer: bundle.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import atomic_file
from offramp._core.topology import RAW_INPUT, Topology
from offramp.backends import Compiled, TensorSpec, backend_of, restored
from offramp.backends.form import flat
from offramp.backends.pieces import Logits, Reading
from offramp.bundle.manifest import (
    AheadPart,
    CompiledEntry,
    FirstPart,
    LogitsPart,
    ModelPart,
    Part,
    ReadingPart,
    SamePart,
)
from offramp.bundle.names import answers_file, model_files
from offramp.bundle.tensors import read_tensors
from offramp.stages import OfFirst, Stage
from offramp.stages.cutting.graph import FAILURES
from offramp.stages.fusing.modules import (
    Ahead,
    FusedSegments,
    Same,
    Unasked,
    is_passing,
    unasked_text,
)

#: Of answers, relative to the largest: other kernels round otherwise, in int8 to another step.
_TOLERANCES = {True: 1e-3, False: 0.05}
_OUTPUT = "out."  # followed by 0, 1, ...


def is_compiled(stage: Stage) -> bool:
    """Whether a stage runs in another runtime than PyTorch, in a piece of its own or of others."""
    return is_passing(stage) or any(isinstance(part, Compiled) for part in stage.modules())


def write_compiled(
    folder: Path, stage: Stage, transform: nn.Module | None, *, answers: bool, first: str
) -> CompiledEntry:
    """Write the models of a stage.

    Args:
        folder: Where to.
        stage: Of `with_backend`, in ONNX Runtime or OpenVINO.
        transform: Of the stage, where a bundle can hold it.
        answers: Whether its head is needed.
        first: Name of the first stage of its group in the bundle, which files are named after.

    Raises:
        InputError: If part of it runs in PyTorch.
    """
    head = stage.head if answers else None
    return CompiledEntry(
        name=stage.name,
        transform=transform,
        **outputs_of(stage),
        runs=_Writer(folder, first, head=False).part(stage.module),
        head=None if head is None else _Writer(folder, stage.name, head=True).part(head),
    )


def outputs_of(stage: Stage) -> dict[str, Any]:
    """What an entry says of a stage that gives no logits, which need no words."""
    return {} if stage.outputs == "logits" else {"outputs": stage.outputs, "classes": stage.classes}


def check_not_joined(stages: Collection[Stage]) -> None:
    """Raise `InputError` where stages run in one piece in PyTorch, which has no spec."""
    for stage in stages:
        if any(isinstance(part, FusedSegments) for part in stage.modules()):
            raise InputError(
                f"Stage {stage.name!r} runs in one piece with others in PyTorch, which nobody "
                "could build again. Give it to with_backend(..., 'onnxruntime') or 'openvino' "
                "first, or save the cascade that was joined."
            )


@final
class _Writer:
    """Describes the segment or the head of a stage, and writes its model."""

    def __init__(self, folder: Path, stage: str, *, head: bool) -> None:
        self._folder, self._stage, self._head = folder, stage, head

    def part(self, module: nn.Module) -> Part:
        """What it is, for a manifest."""
        match module:
            case Same():
                return SamePart()
            case Unasked():
                raise InputError(unasked_text(self._stage))
            case Ahead():
                return AheadPart(column=module.column)
            case Logits():
                return LogitsPart(position=module.position)
            case OfFirst():
                return FirstPart(model=self._model(module.head), also=module.also)
            case Reading():
                model = self._model(module.module)
                return ReadingPart(count=module.count, single=module.single, model=model)
        return self._model(module)

    def _model(self, module: nn.Module) -> ModelPart:
        kept = backend_of(module.backend).kept if isinstance(module, Compiled) else None
        if not isinstance(module, Compiled) or module.files is None or kept is None:
            what = "The head" if self._head else "The segment"
            raise InputError(
                f"{what} of stage {self._stage!r} runs in PyTorch, and the rest of the stage does "
                "not; a bundle cannot hold that. Save the cascade that it was made from."
            )
        names = model_files(self._stage, kept.endings, head=self._head)
        answers = self._folder / answers_file(names[0])
        if not answers.exists():  # stages of one group share their segment
            for file, content in zip(names, module.files(), strict=True):
                (self._folder / file).write_bytes(content)
            with atomic_file(answers) as temporary:
                save_file(_answers(module), temporary)
        return ModelPart(
            backend=module.backend,
            files=tuple(names),
            inputs=module.inputs,
            outputs=module.outputs,
            answers=answers.name,
        )


@final
class CompiledReader:
    """Makes the stages of another runtime again.

    Args:
        folder: The bundle.
        topology: Of the whole cascade.
        verify: Whether to compare with what the models answered once.
        threads: As for `load`.
    """

    def __init__(
        self, folder: Path, topology: Topology, *, verify: bool, threads: int | None
    ) -> None:
        self._folder, self._topology = folder, topology
        self._verify, self._threads = verify, threads
        self._held: dict[ModelPart, Compiled] = {}  # stages of a group share a segment

    def stage(self, entry: CompiledEntry) -> Stage:
        """The stage of an entry.

        Raises:
            FileFormatError: If a file is no such model, or answers otherwise.
            MissingExtraError: If a runtime is not installed.
            UnsupportedError: If this processor cannot run it.
        """
        position = self._topology.index(entry.name)
        source = self._topology.sources[position]
        return Stage(
            entry.name,
            self._part(entry.runs),
            head=None if entry.head is None else self._part(entry.head),
            transform=entry.transform,
            source=None if source == RAW_INPUT else self._topology.names[source],
            group=self._topology.groups[position],
            outputs=entry.outputs,
            classes=entry.classes,
        )

    def _part(self, part: Part) -> nn.Module:
        match part:
            case ModelPart():
                return self._model(part)
            case ReadingPart():
                return Reading(self._model(part.model), part.count, single=part.single)
            case FirstPart():
                return OfFirst(self._model(part.model), part.also)
            case LogitsPart():
                return Logits(part.position)
            case AheadPart():
                return Ahead(part.column)
            case SamePart():
                return Same()

    def _model(self, part: ModelPart) -> Compiled:
        if part not in self._held:
            made = restored(
                part.backend,
                [(self._folder / file).read_bytes() for file in part.files],
                inputs=part.inputs,
                outputs=part.outputs,
                name=str(self._folder / part.files[0]),
                threads=self._threads,
            )
            if self._verify:
                _check_answers(self._folder / part.answers, made)
            self._held[part] = made
        return self._held[part]


def check_together(folder: Path, stages: Sequence[Stage]) -> None:
    """Run the stages of another runtime one after the other, on made-up input.

    Args:
        folder: The bundle, for the message.
        stages: All of it, in order.

    Raises:
        FileFormatError: If one does not take what the one before it gives.
    """
    continued = {stage.source for stage in stages}
    carries: dict[str, Any] = {}
    for stage in stages:
        if not is_compiled(stage):
            continue
        try:
            with torch.inference_mode():
                plain = Stage(stage.name, stage.module, head=stage.head)  # without its transform
                given = carries.get(stage.source or "")
                carry = plain.segment(_made_input(stage) if given is None else given)
                if stage.head is not None or stage.name not in continued:
                    plain.answer(carry)
        except FAILURES as error:
            raise FileFormatError(
                f"{folder}: stage {stage.name!r} does not run on what it is given: {error}"
            ) from error
        carries[stage.name] = carry


def _made_input(stage: Stage) -> Any:  # noqa: ANN401  (a batch)
    module = stage.module
    if not isinstance(module, Compiled):
        raise TypeError(f"it begins with a {type(module).__name__}")
    return module.inputs.zeros(1)


def _check_answers(path: Path, made: Compiled) -> None:
    noted = read_tensors(path)
    for name, found in _answers(made).items():
        want = noted.get(name)
        if want is None or want.shape != found.shape or want.dtype != found.dtype:
            raise FileFormatError(
                f"{path} must hold {name!r} of shape {tuple(found.shape)}, what the model answers."
            )
        found, want = found.double(), want.double()
        both = found.isnan() & want.isnan()  # of a text all of which a mask of zeros leaves out
        found, want = found.masked_fill(both, 0.0), want.masked_fill(both, 0.0)
        apart = (found - want).abs().max().item()
        tolerance = _TOLERANCES[backend_of(made.backend).exact]
        if not apart <= tolerance * max(1.0, want.abs().max().item()):
            raise FileFormatError(
                f"{path}: the model answers otherwise than where it was made, by up to "
                f"{apart:.3g}. Another processor may, or another version of the runtime; make and "
                "save the cascade here, or load with verify=False and measure its accuracy."
            )


def _answers(made: Compiled) -> dict[str, Tensor]:
    """What a model says to two made-up inputs."""
    with torch.inference_mode():
        results = flat(made(made.inputs.pack(_made_up(made.inputs))))
    return {f"{_OUTPUT}{k}": result.contiguous().clone() for k, result in enumerate(results)}


def _made_up(form: TensorSpec) -> list[Tensor]:
    """Waves, for bytes all values in turn; other whole numbers may be indices, and are 0."""
    made = []
    for tensor in form.parts(2):
        count = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
        if tensor.is_floating_point():
            tensor = count.sin().to(tensor.dtype)
        elif tensor.dtype == torch.uint8:
            tensor = (count % 256).to(tensor.dtype)
        made.append(tensor)
    return made
