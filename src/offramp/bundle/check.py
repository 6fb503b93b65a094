"""Reading a manifest, and the checks that it makes sense and that the files are those it lists.

Layer: bundle.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from offramp._core.checks import check_path
from offramp._core.errors import FileFormatError
from offramp._core.files import read_json, sha256
from offramp._core.schema import from_json
from offramp._core.seal import is_sealed
from offramp._core.topology import RAW_INPUT, Topology
from offramp.bundle.manifest import (
    BACKENDS_VERSION,
    CUT_VERSION,
    FORMAT,
    FORMAT_VERSION,
    SEALED_VERSION,
    CompiledEntry,
    ExitEntry,
    Manifest,
    NetworkEntry,
    PartEntry,
    SegmentEntry,
    WholeEntry,
)
from offramp.bundle.names import GEARS, MANIFEST, POLICY, WEIGHTS, is_safe_file
from offramp.bundle.services import ServiceEntry

MOST_BYTES = 8 * 2**20  # of a manifest: parsed, JSON takes up to 25 times as much


def read_manifest(folder: Path | str) -> Manifest:
    """Read and check `manifest.json`; the other files are not looked at.

    Raises:
        FileFormatError: If it is missing, no manifest, written by a newer version, or if fields
            are missing, unknown or of the wrong type: all problems are listed.
    """
    path = check_path("folder", folder) / MANIFEST
    value = read_json(path, most_bytes=MOST_BYTES)
    if value.get("format") != FORMAT:
        raise FileFormatError(
            f"{path} is not the manifest of a bundle: its format is {value.get('format')!r}."
        )
    version = value.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FileFormatError(
            f"{path} was written by a newer version (format {version}; this version reads up to "
            f"{FORMAT_VERSION}). Update offramp."
        )
    manifest = from_json(Manifest, value, where=path)
    _check_sealed(path, manifest, value)
    _check_consistent(path, manifest)
    return manifest


def _check_sealed(path: Path, manifest: Manifest, value: dict[str, Any]) -> None:
    wanted = manifest.version >= SEALED_VERSION or manifest.sha256 is not None
    if wanted and not is_sealed(value):
        raise FileFormatError(
            f"{path} has changed since the bundle was written: its digest is not the one in it. "
            "Copy or save the bundle again."
        )


def _check_consistent(path: Path, manifest: Manifest) -> None:
    topology, costs = manifest.topology, manifest.costs
    problems = [*_file_problems(manifest), *_stage_problems(manifest, topology)]
    problems += [*_network_problems(manifest), *_backend_problems(manifest, topology)]
    if not problems:  # these rely on what has been looked at
        problems += _exit_problems(manifest, topology)
    if costs is not None and len(costs) != len(topology):
        problems.append(f"there are {len(costs)} costs for {len(topology)} stages")
    if problems:
        raise FileFormatError(f"{path} contradicts itself: {'; '.join(problems)}.")


def _file_problems(manifest: Manifest) -> Iterator[str]:
    for name in manifest.files:
        if not is_safe_file(name) or name == MANIFEST:
            yield f"the file name {name!r} is not allowed"
    wanted, weights = [POLICY, *([] if manifest.gears is None else [GEARS])], list[str]()
    for stage in manifest.stages:
        if isinstance(stage, CompiledEntry):
            wanted += [name for m in stage.models() for name in (*m.files, m.answers)]
            weights += [m.answers for m in stage.models()]
            continue
        if isinstance(stage, ServiceEntry):
            continue  # it has no files
        entry = stage.head if isinstance(stage, ExitEntry) else stage
        wanted += [] if entry is None else [entry.weights]
        weights += [] if entry is None else [entry.weights]
    for network in manifest.networks:
        wanted += [network.weights, network.example.file]
        weights += [network.weights, network.example.file]
    for name in weights:
        if not name.endswith(WEIGHTS):
            yield f"the weights {name!r} are no file of safetensors; nothing else is read"
    for name in wanted:
        if name not in manifest.files:
            yield f"{name!r} is not among the files"


def _stage_problems(manifest: Manifest, topology: Topology) -> Iterator[str]:
    names = [stage.name for stage in manifest.stages]
    for name in names:
        if name not in topology.names:
            yield f"stage {name!r} is not in the topology"
    for name in sorted(set(names)):
        if names.count(name) > 1:
            yield f"stage {name!r} is there twice"
    if manifest.reference not in names:
        yield f"the reference {manifest.reference!r} is not among the stages"


def _backend_problems(manifest: Manifest, topology: Topology) -> Iterator[str]:
    compiled = any(isinstance(stage, CompiledEntry) for stage in manifest.stages)
    if manifest.version < BACKENDS_VERSION and (compiled or manifest.backends is not None):
        yield (
            f"format {manifest.version} holds neither stages in another runtime nor measurements "
            "of backends"
        )
    table = manifest.backends
    for name in () if table is None else table.seconds:
        if name not in topology.names:
            yield f"backends are measured for {name!r}, which is not in the topology"


def _network_problems(manifest: Manifest) -> Iterator[str]:
    if manifest.networks and manifest.version < CUT_VERSION:
        yield f"format {manifest.version} holds no networks that are cut"
    used = set()
    for stage in manifest.stages:
        if isinstance(stage, ExitEntry):
            used.add(stage.segment.network)
            yield from _segment_problems(stage, manifest.networks)
    for k, network in enumerate(manifest.networks):
        if k not in used:
            yield f"networks.{k} belongs to no stage"
        names = network.example.names
        if (network.example.kind == "mapping") != bool(names) or len(set(names)) < len(names):
            yield f"networks.{k}.example.names must name the inputs of a mapping, got {list(names)}"


def _segment_problems(stage: ExitEntry, networks: tuple[NetworkEntry, ...]) -> Iterator[str]:
    count = len(networks)
    if stage.segment.network >= count:
        yield f"stage {stage.name!r} is of network {stage.segment.network}, but there are {count}"
        return
    last = len(networks[stage.segment.network].at)
    if stage.segment.index > last:
        yield (
            f"stage {stage.name!r} is segment {stage.segment.index}, but {last} cuts make the "
            f"segments 0 to {last}"
        )
    if stage.segment.index and stage.transform is not None:
        yield f"stage {stage.name!r} continues another one and has a transform"


def _exit_problems(manifest: Manifest, topology: Topology) -> Iterator[str]:
    """Sources and groups must be those that the segments say."""
    held = {stage.name: stage for stage in manifest.stages}
    kinds: dict[str, SegmentEntry | PartEntry | None] = {}
    for stage in manifest.stages:
        k = topology.index(stage.name)
        segment = stage.segment if isinstance(stage, ExitEntry) else None
        runs = stage.runs if isinstance(stage, CompiledEntry) else segment
        if kinds.setdefault(topology.groups[k], runs) != runs:
            yield f"the stages of group {topology.groups[k]!r} are not of one segment"
        where = topology.sources[k]
        source = None if where == RAW_INPUT else held.get(topology.names[where])
        if isinstance(stage, CompiledEntry):
            if where != RAW_INPUT and (source is None or isinstance(source, WholeEntry)):
                yield f"stage {stage.name!r} continues a stage whose carry is not in the bundle"
            joined = isinstance(source, CompiledEntry) and bool(source.part)
            if (stage.runs is None) != stage.part.ran or (stage.part.ran and not joined):
                yield f"stage {stage.name!r} has no segment, and ran with none"
            continue
        if segment is None or segment.index == 0:
            if where != RAW_INPUT:
                yield f"stage {stage.name!r} reads the raw input, but the topology gives a source"
            continue
        before = replace(segment, index=segment.index - 1)
        if not isinstance(source, ExitEntry) or source.segment != before:
            yield (
                f"stage {stage.name!r} is segment {segment.index} of network {segment.network}, "
                f"so its source must be a stage of segment {before.index} in the bundle"
            )


def check_files(folder: Path, manifest: Manifest, *, verify: bool) -> None:
    """Compare the files that the manifest lists with what it says of them; others are not read.

    Args:
        folder: The bundle.
        manifest: Of `read_manifest`, so that every name stays within the folder.
        verify: Also compare checksums. Of a link that leads out of the folder, as in the cache of
            a model hub, the checksum is always compared: nothing else says what it leads to.

    Raises:
        FileFormatError: If a file is missing, no plain file, truncated or changed.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():  # also a link that leads nowhere, a pipe and a device
            raise FileFormatError(f"{path} is missing, or no plain file.")
        size = path.stat().st_size
        if size != entry.bytes:
            kind = "truncated" if size < entry.bytes else "changed"
            raise FileFormatError(f"{path} is {kind}: {size} bytes instead of {entry.bytes}.")
        if (verify or _leads_out(path, folder)) and sha256(path) != entry.sha256:
            raise FileFormatError(f"{path} has changed since the bundle was written.")


def _leads_out(path: Path, folder: Path) -> bool:
    return path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())
