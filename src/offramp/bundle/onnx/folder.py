"""A folder of ONNX files, one for each part of a cascade, with a small runner.

For whoever wants each network in a file of its own: to place stages on several machines, to
quantize one of them, or because together they are too large for one file. The runner (`run.py`)
needs numpy and onnxruntime only. Policies are files as well, so it holds no formula.

Layer: bundle.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from offramp._core.errors import InputError
from offramp._core.files import atomic_folder, write_json
from offramp._core.ownership import ONNX_FOLDER, check_folder
from offramp._core.schema import to_json
from offramp._core.topology import RAW_INPUT
from offramp._core.types import AnyBatch
from offramp.bundle.names import MANIFEST, POLICY, WEIGHTS, weight_files
from offramp.bundle.onnx.parts import ENDING, RAW, Parts, export_parts
from offramp.policy import Policy
from offramp.runtime import Choice, StageSource, policy_of
from offramp.runtime.adaptive import candidate_of

RUNNER = "run.py"
FORMAT, VERSION = "offramp-onnx", 1


@final
@dataclass(frozen=True, kw_only=True)
class Folder:
    """What was written.

    Args:
        path: The folder.
        bytes: Size of each file.
    """

    path: Path
    bytes: Mapping[str, int]


def export_folder(
    path: Path | str,
    cascade: StageSource,
    choice: Choice,
    *,
    example: AnyBatch,
    class_names: Sequence[str] = (),
    transform: bool = True,
    overwrite: bool = False,
) -> Folder:
    """Write a cascade with its policy as a folder of ONNX files with a runner.

    For each stage "NAME.segment.onnx", its network or segment of one; "NAME.head.onnx" if it has
    a head; and "NAME.decision.onnx", what decides after it. Beside them `manifest.json`,
    `policy.json`, and `run.py`: `python run.py inputs.npz answers.npz`, or from Python
    `Cascade(folder)(inputs)`. Its answers are those of `export_single_file`.

    Args:
        path: The folder to make.
        cascade: As for `export_single_file`.
        choice: A candidate, an operating point, or a policy, made for them.
        example: Some raw input; one example is enough.
        class_names: For people; by default those of the cascade.
        transform: As for `export_single_file`.
        overwrite: Whether such a folder at `path` may be replaced. Anything else that is there is
            refused, whatever is said here.

    Raises:
        UnsupportedError: If the policy draws at random; if a network cannot be exported, or takes
            more than 2 GB.
        InputError: If `path` exists or ends in .onnx, or the example does not fit.
        MissingExtraError: Without the extra "onnx".
        StorageError: If the disk is full.

    >>> import tempfile, torch
    >>> from offramp import Cascade, Candidate
    >>> cascade = Cascade.from_models({"a": torch.nn.Linear(4, 3).eval()})
    >>> candidate = Candidate.single(cascade.topology, "a", reference="a")
    >>> with tempfile.TemporaryDirectory() as place:
    ...     made = export_folder(place + "/a", cascade, candidate, example=torch.zeros(1, 4))
    >>> sorted(made.bytes)
    ['a.decision.onnx', 'a.segment.onnx', 'manifest.json', 'policy.json', 'run.py']
    """
    path = Path(path)
    if path.suffix == ENDING:
        raise InputError(f"path must be a folder, got {path.name!r}; {ENDING} is for single files.")
    check_folder(path, ONNX_FOLDER, overwrite=overwrite)  # before the work, not after it
    parts = export_parts(cascade, policy_of(choice), example, transform=transform)
    with atomic_folder(path, ONNX_FOLDER, overwrite=overwrite) as folder:
        write_parts(folder, parts, class_names or cascade.class_names)
        write_json(folder / POLICY, _policy(choice))
    return Folder(path=path, bytes={file.name: file.stat().st_size for file in path.iterdir()})


def write_parts(folder: Path, parts: Parts, class_names: Sequence[str]) -> None:
    """Write what the runner needs, and the runner.

    Args:
        folder: It exists.
        parts: Of the cascade.
        class_names: For people.
    """
    files = _models(parts)
    for name, model in files.items():
        (folder / name).write_bytes(model.SerializeToString())
    write_json(folder / MANIFEST, _manifest(parts, list(files), class_names))
    shutil.copyfile(Path(__file__).with_name(RUNNER), folder / RUNNER)


def _models(parts: Parts) -> dict[str, Any]:
    """Each part by its file."""
    topology = parts.policy.topology
    segment, stage = _stems(topology.groups), _stems(topology.names)
    files = {f"{segment[g]}.segment{ENDING}": model for g, model in parts.segments.items()}
    for k, head in parts.heads.items():
        files[f"{stage[topology.names[k]]}.head{ENDING}"] = head
    for k, decided in parts.decisions.items():
        files[f"{stage[topology.names[k]]}.decision{ENDING}"] = decided.model
    return files


def _stems(names: Sequence[str]) -> dict[str, str]:
    """What the files of each group or stage begin with."""
    files = weight_files(tuple(dict.fromkeys(names)))
    return {name: file.removesuffix(WEIGHTS) for name, file in files.items()}


def _manifest(parts: Parts, files: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "files": list(files),
        "inputs": [value.name for value in parts.inputs],
        "classes": parts.classes,
        "class_names": list(class_names),
        "stage_names": list(parts.policy.topology.names),
        "paths": [list(path) for path in parts.paths],
        "stages": [_stage(parts, k) for k in parts.plans],
    }


def _stage(parts: Parts, stage: int) -> dict[str, Any]:
    topology, plan = parts.policy.topology, parts.plans[stage]
    segment, name = _stems(topology.groups), topology.names[stage]
    stem = _stems(topology.names)[name]
    return {
        "index": stage,
        "name": name,
        "group": topology.groups[stage],
        "segments": [
            {
                "file": f"{segment[topology.groups[j]]}.segment{ENDING}",
                "group": topology.groups[j],
                "source": RAW if (k := topology.sources[j]) == RAW_INPUT else topology.groups[k],
            }
            for j in plan.segments
        ],
        "head": f"{stem}.head{ENDING}" if stage in parts.heads else None,
        "decision": f"{stem}.decision{ENDING}",
        "reads": list(parts.decisions[stage].reads),
        "keep": sorted(plan.keep),
    }


def _policy(choice: Choice) -> dict[str, Any]:
    if isinstance(choice, Policy):
        return {"policy": to_json(choice)}
    found: dict[str, Any] = to_json(candidate_of(choice))
    return found
