"""A model as ONNX: one file, or a folder of them with a small runner.

Layer: bundle.  Source: methods.md 6; peers.md 6.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from offramp._core.checks import check_kind
from offramp._core.errors import InputError
from offramp._core.files import atomic_folder, new_file, write_json
from offramp._core.ownership import ONNX_FOLDER, check_file, check_folder
from offramp._core.schema import to_json
from offramp._core.types import AnyBatch
from offramp.bundle.accelerate import known_input
from offramp.bundle.names import POLICY
from offramp.bundle.onnx.folder import write_parts
from offramp.bundle.onnx.parts import ENDING, Parts, export_parts
from offramp.bundle.onnx.single_file import single_model
from offramp.policy import Policy
from offramp.runtime import Adaptive


@final
@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Args:
        path: The file, or the folder.
        files: Size in bytes of each file, by name.
        inputs: Name and shape of each input, the batch size as "batch".
        stages: Names of the stages that it holds.
    """

    path: Path
    files: Mapping[str, int]
    inputs: Mapping[str, tuple[str | int, ...]]
    stages: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(self.files.values())


def export_onnx(
    model: Adaptive,
    path: Path | str,
    *,
    example: AnyBatch | None = None,
    folder: bool = False,
    transform: bool = True,
    overwrite: bool = False,
) -> Exported:
    """Write a model, networks and policy, as one ONNX file, or as a folder of them.

    The inputs are those of the networks: "input"; "input.0", "input.1"... for a tuple; or the
    names of a mapping; the batch size is free. The outputs are, for each example of the batch, in
    order: "log_probs" `(n, c)`, the log of the combined probabilities, NaN where no stage gave
    finite numbers; "label" `(n,)`, -1 where there is none; "stage" `(n,)`, the index of the stage
    at which it left. Answers are those of the model, to rounding.

    A folder holds for each stage "NAME.segment.onnx", its network or segment of one;
    "NAME.head.onnx" if it has a head; and "NAME.decision.onnx", what decides after it. Beside them
    `manifest.json`, `policy.json`, and `run.py`: `python run.py inputs.npz answers.npz`, or from
    Python `Cascade(folder)(inputs)`, which needs numpy and onnxruntime only.

    Args:
        model: Its networks are in PyTorch, or in ONNX Runtime, int8 included.
        path: The file to make, which ends in .onnx; or the folder.
        example: Some raw input; one example is enough. Its types and shapes become the file's. By
            default what the model tells of its inputs, as those do that were loaded or cut; in
            float32 where only their shape is known.
        folder: Whether to write a folder.
        transform: Whether the networks' transforms go along; else the input is what the
            networks read.
        overwrite: Whether a file, or such a folder, at `path` may be replaced. A folder of
            something else is refused, whatever is said here.

    Raises:
        UnsupportedError: If the policy draws at random; if a network cannot be exported, or takes
            more than 2 GB; or if everything together is larger than that, the most that one file
            may hold.
        InputError: If `path` ends otherwise or exists, the example does not fit, or there is none.
        MissingExtraError: Without the extra "onnx".
        StorageError: If the disk is full.

    >>> import tempfile, torch
    >>> from offramp import Candidate, Cascade
    >>> cascade = Cascade.from_models({"a": torch.nn.Linear(4, 3).eval()})
    >>> model = Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="a"))
    >>> with tempfile.TemporaryDirectory() as place:
    ...     one = export_onnx(model, place + "/a.onnx", example=torch.zeros(1, 4))
    ...     apart = export_onnx(model, place + "/a", example=torch.zeros(1, 4), folder=True)
    >>> one.inputs, one.stages, sorted(apart.files)[:2]
    ({'input': ('batch', 4)}, ('a',), ['a.decision.onnx', 'a.segment.onnx'])
    """
    check_kind("model", model, Adaptive, read="offramp.load(path)")
    path = Path(path)
    check_path(path, folder=folder, overwrite=overwrite)  # before the work, not after it
    parts = export_parts(
        model.cascade, model.policy, example_of(model, example), transform=transform
    )
    if folder:
        with atomic_folder(path, ONNX_FOLDER, overwrite=overwrite) as place:
            write_parts(place, parts, model.class_names)
            write_json(place / POLICY, stored_policy(model))
        return _exported(path, parts, {file.name: file.stat().st_size for file in path.iterdir()})
    whole = single_model(parts, model.class_names)
    with new_file(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(whole.SerializeToString())
    return _exported(path, parts, {path.name: path.stat().st_size})


def check_path(path: Path, *, folder: bool, overwrite: bool, keep: tuple[Path, ...] = ()) -> None:
    """Raise `InputError` unless a file, or a folder, may be written there.

    Args:
        path: Where to.
        folder: Whether it is to be a folder.
        overwrite: Whether what is there of that kind may be replaced.
        keep: What must not be replaced.
    """
    if not folder:
        if path.suffix != ENDING:
            raise InputError(f"path must end in {ENDING}, got {path.name!r}.")
        check_file(path, overwrite=overwrite)
        return
    if path.suffix == ENDING:
        raise InputError(f"path must be a folder, got {path.name!r}; {ENDING} is for single files.")
    check_folder(path, ONNX_FOLDER, overwrite=overwrite, keep=keep)


def example_of(model: Adaptive, example: AnyBatch | None) -> AnyBatch:
    """The example that is given, or one of what the model tells of its inputs."""
    if example is not None:
        return example
    shape = getattr(model.cascade, "input_shape", None)
    known = known_input(list(model.program.stages.values()), shape)
    if known is None or not (known[1] or shape is not None):
        raise InputError("The model does not tell what its inputs look like: pass example=...")
    return known[0]


def _exported(path: Path, parts: Parts, files: Mapping[str, int]) -> Exported:
    names = parts.policy.topology.names
    return Exported(
        path=path,
        files=files,
        inputs={value.name: ("batch", *value.row) for value in parts.inputs},
        stages=tuple(names[k] for k in parts.plans),
    )


def stored_policy(model: Adaptive) -> object:
    """What decides, as `policy.json` holds it."""
    alone = isinstance(model.choice, Policy)
    return {"policy": to_json(model.policy)} if alone else to_json(model.candidate)
