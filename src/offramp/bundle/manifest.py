"""The manifest: what a bundle holds, and the checks that nothing else is in it.

Format 1: `manifest.json` (this), `policy.json` (a setting), one safetensors file for each network,
and any further JSON files. Every file is listed with its size and checksum.

Layer: bundle.
"""

from pathlib import Path
from typing import Any, Literal, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import read_json, sha256
from offramp._core.topology import Topology
from offramp.bundle.names import MANIFEST, POLICY, is_safe_file

FORMAT: Literal["offramp-bundle"] = "offramp-bundle"
FORMAT_VERSION = 1

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)


class FileEntry(BaseModel):
    """Size and checksum of a file."""

    model_config = _STRICT
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ModelEntry(BaseModel):
    """How a network is built: a registered name or "module:callable", and its arguments."""

    model_config = _STRICT
    name: str
    arguments: dict[str, Any]


class StageEntry(BaseModel):
    """A stage that the bundle holds."""

    model_config = _STRICT
    name: str
    model: ModelEntry
    preprocessing: dict[str, Any] | None
    weights: str


class TopologyEntry(BaseModel):
    """The whole cascade's topology; stages that the bundle does not hold are named as well."""

    model_config = _STRICT
    names: tuple[str, ...]
    sources: tuple[int, ...]
    groups: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    root: int


class CostsEntry(BaseModel):
    """Cost of each stage."""

    model_config = _STRICT
    unit: str
    segment: tuple[float, ...]
    head: tuple[float, ...]
    decision: tuple[float, ...]
    note: str


class ChoiceEntry(BaseModel):
    """Why this policy: the choice in one sentence, and its numbers."""

    model_config = _STRICT
    label: str
    sentence: str | None
    numbers: dict[str, float | int | str | None]


@final
class Manifest(BaseModel):
    """Format 1 of `manifest.json`."""

    model_config = _STRICT
    format: Literal["offramp-bundle"]
    version: int = Field(ge=1)
    software: dict[str, str]
    created: str
    reference: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...] | None
    topology: TopologyEntry
    costs: CostsEntry | None
    choice: ChoiceEntry
    stages: tuple[StageEntry, ...]
    files: dict[str, FileEntry]

    def cascade_topology(self) -> Topology:
        """The topology as an object."""
        return Topology.from_dict(self.topology.model_dump())

    def stage_costs(self) -> Costs | None:
        """The costs as an object, or None where the bundle has none."""
        return None if self.costs is None else Costs.from_dict(self.costs.model_dump())


def read_manifest(folder: Path | str) -> Manifest:
    """Read and check `manifest.json`; the other files are not looked at.

    Raises:
        FileFormatError: If it is missing, no manifest, written by a newer version, or if fields
            are missing, unknown or of the wrong type: all problems are listed.
    """
    path = Path(folder) / MANIFEST
    if path.is_symlink():
        raise FileFormatError(f"{path} must be a plain file, but it is a link.")
    value = read_json(path)
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
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors()
        )
        raise FileFormatError(f"{path} has {error.error_count()} problems: {problems}.") from error
    _check_consistent(path, manifest)
    return manifest


def _check_consistent(path: Path, manifest: Manifest) -> None:
    try:
        topology, costs = manifest.cascade_topology(), manifest.stage_costs()
    except InputError as error:
        raise FileFormatError(f"{path} describes no legal cascade: {error}") from error
    names = [stage.name for stage in manifest.stages]
    problems = [
        f"the file name {name!r} is not allowed" for name in manifest.files if not _allowed(name)
    ]
    problems += [
        f"stage {name!r} is not in the topology" for name in names if name not in topology.names
    ]
    problems += [f"stage {name!r} is there twice" for name in set(names) if names.count(name) > 1]
    problems += [
        f"{wanted!r} is not among the files"
        for wanted in (POLICY, *(stage.weights for stage in manifest.stages))
        if wanted not in manifest.files
    ]
    if manifest.reference not in names:
        problems.append(f"the reference {manifest.reference!r} is not among the stages")
    if costs is not None and len(costs) != len(topology):
        problems.append(f"there are {len(costs)} costs for {len(topology)} stages")
    if problems:
        raise FileFormatError(f"{path} contradicts itself: {'; '.join(problems)}.")


def _allowed(name: str) -> bool:
    return is_safe_file(name) and name != MANIFEST


def check_files(folder: Path, manifest: Manifest, *, verify: bool) -> None:
    """Compare the folder with what the manifest lists.

    Args:
        folder: The bundle.
        manifest: Of `read_manifest`, so that every name stays within the folder.
        verify: Also compare checksums; sizes, links and strange files are always looked at.

    Raises:
        FileFormatError: If a file is missing, truncated, changed, a link, or not listed.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        if path.is_symlink():
            raise FileFormatError(f"{path} must be a plain file, but it is a link.")
        if not path.is_file():
            raise FileFormatError(f"{path} is missing.")
        size = path.stat().st_size
        if size != entry.bytes:
            kind = "truncated" if size < entry.bytes else "changed"
            raise FileFormatError(f"{path} is {kind}: {size} bytes instead of {entry.bytes}.")
        if verify and sha256(path) != entry.sha256:
            raise FileFormatError(f"{path} has changed since the bundle was written.")
    strange = sorted({path.name for path in folder.iterdir()} - {*manifest.files, MANIFEST})
    if strange:
        raise FileFormatError(
            f"{folder / strange[0]} does not belong to the bundle; {len(strange)} such files. "
            "Remove what was put there."
        )
