"""Trace files: a folder with `trace.json` and `arrays.safetensors`.

`trace.json` says what the arrays are, how large their file is and what its checksum is. Format 1
holds these arrays: `logits` (n, s, c), or `ranked` (n, s, r) with or without `confidence` (n, s),
or `losses` (n, s) as int8 or float32 with `features` (n, s, d); `labels` (n,); `prices` (n, s) as
float64 where examples have their own; `ids` (n,) as int64, or (n, w) bytes of UTF-8 padded with
zeros; `split` (n,) as int8 if there is one. Nothing is ever unpickled. Format 2 adds the digest of
`trace.json` itself, "sha256": a cost or an edge that flipped would change every result. Format 1 is
still read; a version that does not know an array refuses the file by its name.

Layer: trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp._core.checks import check_choice, check_kind, check_path
from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import atomic_folder, read_json, sha256, steadily, write_json
from offramp._core.ids import as_ids
from offramp._core.ownership import TRACE
from offramp._core.schema import from_json, omitted, to_json
from offramp._core.seal import is_sealed, sealed
from offramp._core.topology import Topology
from offramp._core.types import Ids
from offramp.trace.arrays import ArraySource, Written, in_parts, open_arrays, write_arrays
from offramp.trace.trace import Trace

FORMAT = "offramp-trace"
FORMAT_VERSION = 2
SEALED_VERSION = 2  # the first whose description has a digest
MANIFEST = "trace.json"
ARRAYS = "arrays.safetensors"
_MOST_BYTES = 16 * 2**20  # of the description

StoredDtype = Literal["float32", "float16"]


@final
@dataclass(frozen=True, kw_only=True)
class _ArrayFile:
    bytes: int
    sha256: str


@final
@dataclass(frozen=True, kw_only=True)
class _Description:
    """Formats 1 and 2 of `trace.json`."""

    format: str
    version: int
    software: str
    n: int
    classes: int
    class_names: tuple[str, ...]
    seen_in_training: bool
    lossy: bool
    topology: Topology
    costs: Costs
    other_costs: tuple[Costs, ...]
    arrays: _ArrayFile
    notes: tuple[str, ...] = omitted(())  # so that version 0.1 reads all traces without
    feature_counts: tuple[int | None, ...] = omitted(())  # of traces with features
    sha256: str | None = omitted(None)


def save_trace(
    trace: Trace, path: Path | str, *, dtype: StoredDtype | None = None, overwrite: bool = False
) -> None:
    """Write a trace to the folder `path`, whole or not at all.

    Args:
        trace: What to write.
        path: The folder to make; by convention it ends in `.trace`.
        dtype: How to store logits and confidences. "float16" halves the file and marks the trace
            as lossy for good; by default they are stored as they are held.
        overwrite: Whether a trace that is there already may be replaced. Anything else that is
            there is refused, whatever is said here.

    Raises:
        InputError: If `path` exists and may not be overwritten, or a logit does not fit float16.
        StorageError: If the disk is full.

    >>> import tempfile
    >>> from offramp.trace import load_trace, make_trace
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_trace(make_trace(5), folder + "/digits.trace")
    ...     len(load_trace(folder + "/digits.trace"))
    5
    """
    check_kind("trace", trace, Trace)
    held = trace.logits if trace.logits is not None else trace.confidence
    if dtype is None:
        dtype = "float16" if held is not None and held.dtype == torch.float16 else "float32"
    check_choice("dtype", dtype, ("float32", "float16"))
    arrays = _sources(trace, dtype)
    with atomic_folder(Path(path), TRACE, overwrite=overwrite) as folder:
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
            notes=trace.notes,
            feature_counts=trace.feature_counts,
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
    notes: Sequence[str] = (),
    feature_counts: Sequence[int | None] = (),
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
        notes: What people should know of how it was recorded.
        feature_counts: How many features each stage gives, where stages give some.
    """
    description = _Description(
        format=FORMAT,
        version=FORMAT_VERSION,
        software=f"offramp {version('offramp')}",
        n=n,
        classes=classes,
        class_names=tuple(class_names),
        seen_in_training=seen_in_training,
        lossy=lossy,
        topology=topology,
        costs=costs,
        other_costs=tuple(other_costs),
        arrays=_ArrayFile(bytes=written.nbytes, sha256=written.sha256),
        notes=tuple(notes),
        feature_counts=tuple(feature_counts),
    )
    write_json(folder / MANIFEST, sealed(to_json(description)))


def load_trace(path: Path | str, *, verify: bool = True) -> Trace:
    """Read what `save_trace` wrote; the outputs are mapped, not copied into memory.

    Args:
        path: The folder.
        verify: Also compare the checksum of the whole array file, which reads it once: a second
            for each GB. Without it the size, the header and every value's domain are checked,
            which finds a truncated file, but not a label that flipped.

    Raises:
        FileFormatError: If a file is missing, truncated, changed, foreign or written by a newer
            version; it names the file.
    """
    folder = check_path("path", path)
    return steadily(folder, lambda: _load(folder, verify=verify))


def _load(folder: Path, *, verify: bool) -> Trace:
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
    if trace.losses is not None and trace.features is not None:
        stored = "float32" if trace.graded else "int8"
        found.append(_source("losses", trace.losses, stored))
        found.append(_source("features", trace.features, "float32"))
    if trace.prices is not None:
        found.append(_source("prices", trace.prices, "float64"))
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
        largest = float(np.fmax.reduce(np.abs(values), axis=None))  # NaN stands for nothing
        limit = float(np.finfo(np.float16).max)
        if largest > limit:
            raise InputError(
                f"{name} must be within ±{limit:.0f} to be stored as float16, got {largest!r}; "
                "store float32."
            )
    return values.astype(dtype, copy=False)


def _read_manifest(path: Path) -> _Description:
    if not path.exists():
        raise FileFormatError(
            f"{path} is missing: {path.parent} is not a trace. `offramp record` writes one."
        )
    value = read_json(path, most_bytes=_MOST_BYTES)
    if value.get("format") != FORMAT:
        raise FileFormatError(f"{path} must have format {FORMAT!r}, got {value.get('format')!r}.")
    found = value.get("version")
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise FileFormatError(
            f"{path} was written by a newer version: its format is {found}, this version reads up "
            f"to {FORMAT_VERSION}. Update offramp."
        )
    manifest = from_json(_Description, value, where=path)
    wanted = manifest.version >= SEALED_VERSION or manifest.sha256 is not None
    if wanted and not is_sealed(value):
        raise FileFormatError(
            f"{path} was changed or damaged: its digest is not the one in it. Copy or record the "
            "trace again."
        )
    return manifest


def _check_file(path: Path, expected: _ArrayFile, *, verify: bool) -> None:
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


def _check_arrays(arrays: dict[str, Tensor], manifest: _Description) -> None:
    """Check names, dtypes and shapes; what the values may be `Trace` checks itself."""
    n, s = manifest.n, len(manifest.topology.names)
    floats = (torch.float32, torch.float16)
    known: dict[str, tuple[tuple[torch.dtype, ...], tuple[int | None, ...]]] = {
        "labels": ((torch.int64,), (n,)),
        "logits": (floats, (n, s, manifest.classes)),
        "ranked": ((torch.int64,), (n, s, None)),
        "confidence": (floats, (n, s)),
        "losses": ((torch.float32, torch.int8), (n, s)),
        "features": ((torch.float32,), (n, s, None)),
        "prices": ((torch.float64,), (n, s)),
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


def _trace(arrays: dict[str, Tensor], manifest: _Description) -> Trace:
    held = arrays.get("logits", arrays.get("confidence"))
    unknown = (None,) * len(manifest.topology) if "features" in arrays else ()  # files of before
    return Trace(
        topology=manifest.topology,
        classes=manifest.classes,
        class_names=manifest.class_names,
        costs=manifest.costs,
        other_costs=manifest.other_costs,
        seen_in_training=manifest.seen_in_training,
        notes=manifest.notes,
        lossy=manifest.lossy or (held is not None and held.dtype == torch.float16),
        labels=arrays["labels"],
        logits=arrays.get("logits"),
        ranked=arrays.get("ranked"),
        confidence=arrays.get("confidence"),
        losses=arrays.get("losses"),
        features=arrays.get("features"),
        feature_counts=manifest.feature_counts or unknown,
        prices=arrays.get("prices"),
        split=arrays.get("split"),
        ids=_ids(arrays["ids"]),
    )


def _ids(stored: Tensor) -> Ids:
    if stored.dim() == 1:
        return stored.numpy()
    raw = np.ascontiguousarray(stored.numpy())
    return np.char.decode(raw.view(f"S{raw.shape[1]}")[:, 0], "utf-8", "surrogateescape")
