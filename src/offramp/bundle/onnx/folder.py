"""A folder of ONNX files, one for each part of a cascade, with a small runner.

For whoever wants each network in a file of its own: to place stages on several machines, to
quantize one of them, or because together they are too large for one file. The runner (`run.py`)
needs numpy and onnxruntime only. Policies are files as well, so it holds no formula.

Layer: bundle.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import offramp._core
from offramp._core.files import write_json
from offramp._core.topology import RAW_INPUT, Topology
from offramp.bundle.names import MANIFEST, WEIGHTS, weight_files
from offramp.bundle.onnx.parts import ENDING, Parts
from offramp.runtime.plans import RAW

RUNNER = "run.py"
FORMAT, VERSION = "offramp-onnx", 1


def write_parts(folder: Path, parts: Parts, class_names: Sequence[str], **told: object) -> None:
    """Write what the runner needs, and the runner.

    Args:
        folder: It exists.
        parts: Of the cascade.
        class_names: For people.
        told: What else the manifest says.
    """
    files = _models(parts)
    for name, model in files.items():
        (folder / name).write_bytes(model.SerializeToString())
    write_json(folder / MANIFEST, _manifest(parts, list(files), class_names) | told)
    source = Path(offramp._core.__file__).with_name("onnx_runner.py")
    shutil.copyfile(source, folder / RUNNER)


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
        "domains": parts.domains,
        "classes": parts.classes,
        "class_names": list(class_names),
        "stage_names": list(parts.policy.topology.names),
        "paths": [list(path) for path in parts.paths],
        "stages": [_stage(parts, k) for k in parts.plans],
    }


def _stage(parts: Parts, stage: int) -> dict[str, Any]:
    topology, plan = parts.policy.topology, parts.plans[stage]
    name = topology.names[stage]
    stem = _stems(topology.names)[name]
    return {
        "index": stage,
        "name": name,
        "group": topology.groups[stage],
        "segments": segments_told(topology, plan.segments),
        "head": f"{stem}.head{ENDING}" if stage in parts.heads else None,
        "decision": f"{stem}.decision{ENDING}",
        "reads": list(parts.decisions[stage].reads),
        "keep": sorted(plan.keep),
    }


def segments_told(topology: Topology, segments: Sequence[int]) -> list[dict[str, str]]:
    """File, group and source of some segments, as the runner reads them."""
    stems = _stems(topology.groups)
    return [
        {
            "file": f"{stems[topology.groups[j]]}.segment{ENDING}",
            "group": topology.groups[j],
            "source": RAW if (k := topology.sources[j]) == RAW_INPUT else topology.groups[k],
        }
        for j in segments
    ]
