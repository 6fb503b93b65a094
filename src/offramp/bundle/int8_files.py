"""Stages in int8, as ONNX files of a bundle: written, and read back.

What was quantised cannot be built again from weights and a spec, so the model itself is kept. It
is run by ONNX Runtime, on whose processor answers may differ: without VNNI instructions sums of
products overflow. So each file goes with what it answered to made-up inputs where it was made.

Layer: bundle.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import whole_file
from offramp._core.topology import RAW_INPUT, Topology
from offramp.bundle.manifest import OnnxEntry, QuantisedEntry
from offramp.bundle.names import answers_file, onnx_files
from offramp.bundle.tensors import read_tensors
from offramp.runtime.backends import Compiled, Form, restored
from offramp.runtime.backends.form import flat
from offramp.stages import OfFirst, Stage, own_head, preprocess_from_dict

Entry = dict[str, Any]

_TOLERANCE = 0.05  # relative to the largest answer; another kernel may round one value otherwise
_OUTPUT = "out."  # followed by 0, 1, ...


def is_compiled(stage: Stage) -> bool:
    """Whether a stage runs in another runtime than PyTorch, or its head does."""
    return any(isinstance(part, Compiled) for part in stage.modules())


def write_quantised(folder: Path, stage: Stage, *, answers: bool, first: str) -> Entry:
    """Write the models of a quantised stage.

    Args:
        folder: Where to.
        stage: Of `with_backend(..., "onnxruntime-int8")`.
        answers: Whether its head is needed.
        first: Name of the first stage of its group in the bundle, which the file is named after.

    Raises:
        InputError: If it runs in another backend, whose models a bundle does not hold.
    """
    head = stage.head if answers else None
    inner = None if head is None else own_head(head)
    return {
        "name": stage.name,
        "onnx": _write_model(folder / onnx_files(first)[0], stage.module, stage.name),
        "head": None
        if inner is None
        else _write_model(folder / onnx_files(stage.name)[1], inner, stage.name),
        "reads_first": isinstance(head, OfFirst),
    }


def _write_model(path: Path, module: nn.Module, stage: str) -> Entry:
    if not isinstance(module, Compiled) or module.onnx is None:
        where = repr(module.backend) if isinstance(module, Compiled) else "one piece with its head"
        raise InputError(
            f"Stage {stage!r} runs in {where}, which a bundle cannot hold. Save the cascade that "
            "it was made from, and choose a backend when the bundle is loaded; of quantised stages "
            "a bundle holds those of 'onnxruntime-int8', without fuse."
        )
    answers = path.with_name(answers_file(path.name))
    if not path.exists():  # stages of one group share their segment
        path.write_bytes(module.onnx)
        with whole_file(answers) as temporary:
            save_file(_answers(module), temporary)
    return {
        "file": path.name,
        "inputs": module.inputs.to_dict(),
        "outputs": module.outputs.to_dict(),
        "answers": answers.name,
    }


def read_quantised(
    folder: Path,
    entry: QuantisedEntry,
    topology: Topology,
    held: dict[str, Compiled],
    *,
    verify: bool,
) -> Stage:
    """Make the stage again.

    Args:
        folder: The bundle.
        entry: What the manifest says.
        topology: Of the whole cascade.
        held: Models by file; is added to, for stages of a group share one.
        verify: Whether to compare with what the models answered once.

    Raises:
        FileFormatError: If a file is no such model, or answers otherwise.
        MissingExtraError: If ONNX Runtime is not installed.
    """
    position = topology.index(entry.name)
    source = topology.sources[position]
    head = None
    if entry.head is not None:
        head = _read_model(folder, entry.head, held, verify=verify)
    return Stage(
        entry.name,
        _read_model(folder, entry.onnx, held, verify=verify),
        head=OfFirst(head) if head is not None and entry.reads_first else head,
        preprocess=preprocess_from_dict(entry.preprocessing),
        source=None if source == RAW_INPUT else topology.names[source],
        group=topology.groups[position],
    )


def _read_model(
    folder: Path, entry: OnnxEntry, held: dict[str, Compiled], *, verify: bool
) -> Compiled:
    if entry.file in held:
        return held[entry.file]
    path = folder / entry.file
    made = restored(
        path.read_bytes(),
        inputs=Form.from_dict(entry.inputs.model_dump()),
        outputs=Form.from_dict(entry.outputs.model_dump()),
        name=str(path),
    )
    if verify:
        _check_answers(folder / entry.answers, made)
    held[entry.file] = made
    return made


def _check_answers(path: Path, made: Compiled) -> None:
    noted = read_tensors(path)
    for name, found in _answers(made).items():
        want = noted.get(name)
        if want is None or want.shape != found.shape or want.dtype != found.dtype:
            raise FileFormatError(
                f"{path} must hold {name!r} of shape {tuple(found.shape)}, what the model answers."
            )
        apart = (found.double() - want.double()).abs().max().item()
        if not apart <= _TOLERANCE * max(1.0, want.abs().max().item()):
            raise FileFormatError(
                f"{path}: the int8 model answers otherwise than where it was made, by up to "
                f"{apart:.3g}. Processors without VNNI instructions do; quantise and save the "
                "cascade on such a machine, or load with verify=False and measure its accuracy."
            )


def _answers(made: Compiled) -> dict[str, Tensor]:
    """What a model says to two made-up inputs."""
    with torch.inference_mode():
        results = flat(made(made.inputs.pack(_made_up(made.inputs))))
    return {f"{_OUTPUT}{k}": result.contiguous().clone() for k, result in enumerate(results)}


def _made_up(form: Form) -> list[Tensor]:
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
