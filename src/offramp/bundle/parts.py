"""Stages that run in another runtime, as files of a bundle: written, and read back.

Their models are kept as they are: what was quantized cannot be built again from weights, and what
was exported or joined need not be. Int8 may answer otherwise on another processor, so each model
goes with what it answered to made-up inputs where it was made.

Layer: bundle.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from offramp._core.batch import flat
from offramp._core.errors import FAILURES, FileFormatError, InputError
from offramp._core.files import atomic_file
from offramp._core.topology import RAW_INPUT, Topology
from offramp.backends import Compiled, TensorSpec, backend_of, restored
from offramp.bundle.manifest import CompiledEntry, PartEntry
from offramp.bundle.names import answers_file, model_files
from offramp.bundle.tensors import read_tensors
from offramp.stages import OfFirst, Stage
from offramp.stages.fusing.piece import Piece
from offramp.stages.segments import run_segments
from offramp.stages.stage import unasked_text

#: Of answers, relative to the largest: other kernels round otherwise, in int8 to another step.
_TOLERANCES = {True: 1e-3, False: 0.05}
_OUTPUT = "out."  # followed by 0, 1, ...


def is_compiled(stage: Stage) -> bool:
    """Whether a stage runs in another runtime than PyTorch, in a piece of its own or of others."""
    return stage.part.ran or any(isinstance(part, Compiled) for part in stage.modules())


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
    part, head = stage.part, stage.head if answers else None
    if answers and part and part.column is None and head is None:
        raise InputError(unasked_text(stage.name))
    return CompiledEntry(
        name=stage.name,
        transform=transform,
        **outputs_of(stage),
        runs=None if part.ran else _written(folder, first, stage.module, head=False),
        head=None if head is None else _written(folder, stage.name, head, head=True),
        part=part,
    )


def outputs_of(stage: Stage) -> dict[str, Any]:
    """What an entry says of a stage that gives no logits, which need no words."""
    return {} if stage.outputs == "logits" else {"outputs": stage.outputs, "classes": stage.classes}


def check_not_joined(stages: Collection[Stage]) -> None:
    """Raise `InputError` where stages run in one piece in PyTorch, which has no spec."""
    for stage in stages:
        if any(isinstance(part, Piece) for part in stage.modules()):
            raise InputError(
                f"Stage {stage.name!r} runs in one piece with others in PyTorch, which nobody "
                "could build again. Give it to with_backend(..., 'onnxruntime') or 'openvino' "
                "first, or save the cascade that was joined."
            )


def _written(folder: Path, stage: str, module: nn.Module, *, head: bool) -> PartEntry:
    """Write the model of a segment, or of a head, where no stage of its group has done so."""
    made = module.head if isinstance(module, OfFirst) else module
    kept = backend_of(made.backend).kept if isinstance(made, Compiled) else None
    if not isinstance(made, Compiled) or made.files is None or kept is None:
        raise InputError(
            f"The {'head' if head else 'segment'} of stage {stage!r} runs in PyTorch, and the rest "
            "of the stage does not; a bundle cannot hold that. Save the cascade that it was made "
            "from."
        )
    names = model_files(stage, kept.endings, head=head)
    answers = folder / answers_file(names[0])
    if not answers.exists():  # stages of one group share their segment
        for file, content in zip(names, made.files(), strict=True):
            (folder / file).write_bytes(content)
        with atomic_file(answers) as temporary:
            save_file(_answers(made), temporary)
    return PartEntry(
        backend=made.backend,
        files=tuple(names),
        inputs=made.inputs,
        outputs=made.outputs,
        answers=answers.name,
        also=module.also if isinstance(module, OfFirst) else None,
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
        self._held: dict[PartEntry, Compiled] = {}  # stages of a group share a segment

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
            nn.Identity() if entry.runs is None else self._model(entry.runs),
            head=None if entry.head is None else self._head(entry.head),
            transform=entry.transform,
            source=None if source == RAW_INPUT else self._topology.names[source],
            group=self._topology.groups[position],
            outputs=entry.outputs,
            classes=entry.classes,
            part=entry.part,
        )

    def _head(self, part: PartEntry) -> nn.Module:
        made = self._model(part)
        return made if part.also is None else OfFirst(made, part.also)

    def _model(self, part: PartEntry) -> Compiled:
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
    compiled = {stage.name: stage for stage in stages if is_compiled(stage)}
    plain = [  # without transforms, and each as the first where the one before it is in PyTorch
        stage.replaced(transform=None, source=stage.source if stage.source in compiled else None)
        for stage in compiled.values()
    ]
    continued = {stage.source for stage in plain}

    def run(stage: Stage, given: Any) -> Any:  # noqa: ANN401  (a batch or a carry)
        with torch.inference_mode(), _running(folder, stage):
            return stage.segment(_made_input(stage) if stage.source is None else given)

    for stage, carry in run_segments(plain, (), run=run):
        if stage.head is not None or stage.part.column is not None or stage.name not in continued:
            with torch.inference_mode(), _running(folder, stage):
                stage.answer(carry)


@contextmanager
def _running(folder: Path, stage: Stage) -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        raise FileFormatError(
            f"{folder}: stage {stage.name!r} does not run on what it is given: {error}"
        ) from error


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
