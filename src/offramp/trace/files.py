"""Trace files: a folder with `trace.json` and `arrays.safetensors`.

`trace.json` says what the arrays are, how large their file is and what its checksum is. Format 1
holds these arrays: `logits` (n, s, c), or `ranked` (n, s, r) with or without `confidence` (n, s);
`labels` (n,); `ids` (n,) as int64, or (n, w) bytes of UTF-8 padded with zeros; `split` (n,) as
int8 if there is one. Nothing is ever unpickled.

Layer: trace.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from offramp._core.checks import check_choice
from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import sha256, whole_folder, write_json
from offramp._core.ids import as_ids
from offramp._core.topology import Topology
from offramp._core.types import Ids
from offramp.trace.arrays import ArraySource, Written, in_parts, open_arrays, write_arrays
from offramp.trace.trace import Trace

FORMAT = "offramp-trace"
FORMAT_VERSION = 1
MANIFEST = "trace.json"
ARRAYS = "arrays.safetensors"

StoredDtype = Literal["float32", "float16"]


@final
class _Format(BaseModel):
    """What every version of the format has in common."""

    model_config = ConfigDict(strict=True, extra="ignore")
    format: str
    version: int


@final
class _TopologyFields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    names: tuple[str, ...]
    sources: tuple[int, ...]
    groups: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    root: int


@final
class _CostFields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    unit: str
    segment: tuple[float, ...]
    head: tuple[float, ...]
    decision: tuple[float, ...]
    note: str


@final
class _FileFields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    bytes: int
    sha256: str


@final
class _Manifest(BaseModel):
    """Format 1 of `trace.json`."""

    model_config = ConfigDict(strict=True, extra="forbid")
    format: str
    version: int
    software: str
    n: int
    classes: int
    class_names: tuple[str, ...]
    seen_in_training: bool
    lossy: bool
    topology: _TopologyFields
    costs: _CostFields
    other_costs: tuple[_CostFields, ...]
    arrays: _FileFields


def save_trace(
    trace: Trace, path: Path | str, *, dtype: StoredDtype | None = None, overwrite: bool = False
) -> None:
    """Write a trace to the folder `path`, whole or not at all.

    Args:
        trace: What to write.
        path: The folder to make; by convention it ends in `.trace`.
        dtype: How to store logits and confidences. "float16" halves the file and marks the trace
            as lossy for good; by default they are stored as they are held.
        overwrite: Whether a trace that is there already may be replaced.

    Raises:
        InputError: If `path` exists and may not be overwritten, or a logit does not fit float16.

    >>> import tempfile
    >>> from offramp.trace import load_trace, make_trace
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_trace(make_trace(5), folder + "/digits.trace")
    ...     len(load_trace(folder + "/digits.trace"))
    5
    """
    held = trace.logits if trace.logits is not None else trace.confidence
    if dtype is None:
        dtype = "float16" if held is not None and held.dtype == torch.float16 else "float32"
    check_choice("dtype", dtype, ("float32", "float16"))
    arrays = _sources(trace, dtype)
    with whole_folder(Path(path), overwrite=overwrite) as folder:
        written = write_arrays(folder / ARRAYS, arrays)
        write_manifest(
            folder,
            written,
            n=len(trace),
            topology=trace.topology,
            classes=trace.classes,
            costs=trace.costs,
            class_names=trace.class_names,
            other_costs=trace.other_costs,
            seen_in_training=trace.seen_in_training,
            lossy=trace.lossy or (dtype == "float16" and held is not None),
        )


def write_manifest(
    folder: Path,
    written: Written,
    *,
    n: int,
    topology: Topology,
    classes: int,
    costs: Costs,
    class_names: Sequence[str] = (),
    other_costs: Sequence[Costs] = (),
    seen_in_training: bool = False,
    lossy: bool = False,
) -> None:
    """Write `trace.json` beside a complete array file; the arguments are those of `Trace`.

    Args:
        folder: Where the array file lies.
        written: Size and checksum of the array file.
        n: Number of examples in it.
        topology: As in `Trace`, like the rest.
        classes: Number of classes.
        costs: Costs of the stages.
        class_names: Names of the classes.
        other_costs: Costs in other units.
        seen_in_training: Whether the networks were trained on these examples.
        lossy: Whether the file holds less precision than was computed.
    """
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "software": f"offramp {version('offramp')}",
        "n": n,
        "classes": classes,
        "class_names": list(class_names),
        "seen_in_training": seen_in_training,
        "lossy": lossy,
        "topology": topology.to_dict(),
        "costs": costs.to_dict(),
        "other_costs": [table.to_dict() for table in other_costs],
        "arrays": {"bytes": written.nbytes, "sha256": written.sha256},
    }
    write_json(folder / MANIFEST, manifest)


def load_trace(path: Path | str, *, verify: bool = False) -> Trace:
    """Read what `save_trace` wrote; the outputs are mapped, not copied into memory.

    Args:
        path: The folder.
        verify: Also compare the checksum of the whole array file. Without it the size, the header
            and every value's domain are checked, which finds a truncated file.

    Raises:
        FileFormatError: If a file is missing, truncated, changed, foreign or written by a newer
            version; it names the file.
    """
    folder = Path(path)
    manifest = _read_manifest(folder / MANIFEST)
    arrays_path = folder / ARRAYS
    _check_file(arrays_path, manifest.arrays, verify=verify)
    arrays = open_arrays(arrays_path)
    try:
        _check_arrays(arrays, manifest)
        return _trace(arrays, manifest)
    except (InputError, TypeError, OverflowError) as error:
        raise FileFormatError(f"{folder} does not hold a sound trace: {error}") from error


def id_source(ids: Ids) -> ArraySource:
    """How ids are stored: int64, or UTF-8 bytes padded with zeros.

    Raises:
        InputError: If they are neither integers nor text.
    """
    ids = as_ids(ids)
    if ids.dtype.kind == "i":
        return ArraySource(name="ids", dtype="int64", shape=ids.shape, parts=in_parts(ids))
    encoded = np.char.encode(ids, "utf-8", "surrogateescape")  # as file names come
    raw = np.frombuffer(encoded.tobytes(), dtype=np.uint8).reshape(len(ids), -1)
    return ArraySource(name="ids", dtype="uint8", shape=raw.shape, parts=in_parts(raw))


def _sources(trace: Trace, dtype: StoredDtype) -> list[ArraySource]:
    found = [_source("labels", trace.labels, "int64"), id_source(trace.ids)]
    if trace.logits is not None:
        found.append(_source("logits", trace.logits, dtype))
    if trace.ranked is not None:
        found.append(_source("ranked", trace.ranked, "int64"))
    if trace.confidence is not None:
        found.append(_source("confidence", trace.confidence, dtype))
    if trace.split is not None:
        found.append(_source("split", trace.split, "int8"))
    return found


def _source(name: str, values: Tensor, dtype: str) -> ArraySource:
    parts = (narrowed(name, part, dtype) for part in in_parts(values.numpy()))
    return ArraySource(name=name, dtype=dtype, shape=tuple(values.shape), parts=parts)


def narrowed(name: str, values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The values in another dtype.

    Raises:
        InputError: If one does not fit float16.
    """
    if dtype == "float16" and values.size:
        largest = float(np.abs(values).max())
        limit = float(np.finfo(np.float16).max)
        if largest > limit:
            raise InputError(
                f"{name} must be within ±{limit:.0f} to be stored as float16, got {largest!r}; "
                "store float32."
            )
    return values.astype(dtype, copy=False)


def _read_manifest(path: Path) -> _Manifest:
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} is missing: {path.parent} is not a trace.") from error
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    try:
        found = _Format.model_validate_json(text)
        if found.format != FORMAT:
            raise FileFormatError(f"{path} must have format {FORMAT!r}, got {found.format!r}.")
        if found.version > FORMAT_VERSION:
            raise FileFormatError(
                f"{path} was written by a newer version: its format is {found.version}, this "
                f"version reads up to {FORMAT_VERSION}. Update offramp."
            )
        return _Manifest.model_validate_json(text)
    except ValidationError as error:
        raise FileFormatError(f"{path} is not a description of a trace: {error}") from error


def _check_file(path: Path, expected: _FileFields, *, verify: bool) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise FileFormatError(f"{path} is missing or cannot be read: {error}") from error
    if size != expected.bytes:
        raise FileFormatError(
            f"{path} is truncated or changed: it should have {expected.bytes} bytes and has "
            f"{size}. Copy or record it again."
        )
    if verify and sha256(path) != expected.sha256:
        raise FileFormatError(
            f"{path} was changed or damaged: its checksum is not the one in {MANIFEST}. Copy or "
            "record it again."
        )


def _check_arrays(arrays: dict[str, Tensor], manifest: _Manifest) -> None:
    """Check names, dtypes and shapes; what the values may be `Trace` checks itself."""
    n, s = manifest.n, len(manifest.topology.names)
    floats = (torch.float32, torch.float16)
    known: dict[str, tuple[tuple[torch.dtype, ...], tuple[int | None, ...]]] = {
        "labels": ((torch.int64,), (n,)),
        "logits": (floats, (n, s, manifest.classes)),
        "ranked": ((torch.int64,), (n, s, None)),
        "confidence": (floats, (n, s)),
        "split": ((torch.int8,), (n,)),
        "ids": ((torch.int64,), (n,)),
    }
    if "ids" in arrays and arrays["ids"].dim() == 2:
        known["ids"] = ((torch.uint8,), (n, None))
    missing = {"labels", "ids"} - set(arrays)
    if missing or set(arrays) - set(known):
        raise InputError(f"the arrays must be among {sorted(known)}, got {sorted(arrays)}.")
    for name, array in arrays.items():
        dtypes, shape = known[name]
        fits = array.dim() == len(shape) and all(
            want in (None, have) for have, want in zip(array.shape, shape, strict=True)
        )
        if array.dtype not in dtypes or not fits or 0 in array.shape:
            raise InputError(
                f"{name} must have shape {shape} and one of the types {dtypes}, got "
                f"{tuple(array.shape)} and {array.dtype}."
            )


def _trace(arrays: dict[str, Tensor], manifest: _Manifest) -> Trace:
    held = arrays.get("logits", arrays.get("confidence"))
    return Trace(
        topology=Topology.from_dict(manifest.topology.model_dump()),
        classes=manifest.classes,
        class_names=manifest.class_names,
        costs=Costs.from_dict(manifest.costs.model_dump()),
        other_costs=tuple(Costs.from_dict(t.model_dump()) for t in manifest.other_costs),
        seen_in_training=manifest.seen_in_training,
        lossy=manifest.lossy or (held is not None and held.dtype == torch.float16),
        labels=arrays["labels"],
        logits=arrays.get("logits"),
        ranked=arrays.get("ranked"),
        confidence=arrays.get("confidence"),
        split=arrays.get("split"),
        ids=_ids(arrays["ids"]),
    )


def _ids(stored: Tensor) -> Ids:
    if stored.dim() == 1:
        return stored.numpy()
    raw = np.ascontiguousarray(stored.numpy())
    return np.char.decode(raw.view(f"S{raw.shape[1]}")[:, 0], "utf-8", "surrogateescape")
