"""The store that survives a kill: a folder beside the trace to be.

`<path>.partial` holds raw rows in files that only grow, and `progress.json`, which says how many
bytes of each count, and their checksums. It is written first of all, and then after rows have
reached the disk, so whatever happens, the rows it speaks of are there; what stands behind them is
cut off when the recording goes on. When the trace is complete it says so too, and of which checksum
it is: a kill between the trace and the clearing away is then made up for by the next call.

Layer: recording.
"""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import atomic_folder, read_json, remove_folder, sha256, storing, write_json
from offramp._core.ownership import TRACE, check_folder, check_place, is_empty
from offramp._core.schema import from_json
from offramp._core.seal import Digest, is_sealed, sealed
from offramp._core.temporaries import locked
from offramp._core.types import Ids, IntArray
from offramp.recording.nonfinite import Treatment
from offramp.recording.rows import Rows
from offramp.recording.store import Facts
from offramp.trace import Trace, load_trace
from offramp.trace.arrays import ArraySource, in_parts, write_arrays
from offramp.trace.files import (
    ARRAYS,
    MANIFEST,
    StoredDtype,
    id_source,
    narrowed,
    write_manifest,
)

_log = logging.getLogger(__name__)

CHECKPOINT_S = 1.0  # seconds of work that a kill may cost
_PROGRESS = "progress.json"
_VERSION = 2
_FILES = ("logits", "labels", "ids")
_OURS = re.compile(r"progress\.json|(logits|labels|ids)\.bin")
_BLOCK = 2**20  # bytes


@final
@dataclass(frozen=True, kw_only=True)
class _Progress:
    version: Literal[2]
    fingerprint: dict[str, str]
    rows: int
    classes: int
    text_ids: bool
    bytes: dict[str, int]
    trace: str = ""  # checksum of its manifest, once that is written
    digests: dict[str, str]  # of so many bytes of each file
    sha256: str


def parts_of(path: Path) -> Path:
    """The folder in which the rows of a trace lie while it is recorded."""
    return path.with_name(path.name + ".partial")


def check_recordable(path: Path, *, overwrite: bool) -> None:
    """Check before any work that a trace can be recorded to `path`.

    Raises:
        InputError: As `check_folder`. That a trace of ours is there is no obstacle yet while there
            are parts of one beside it: perhaps they are its own, see `finished`.
    """
    parts = parts_of(path)
    check_folder(path, TRACE, overwrite=overwrite or parts.is_dir())
    check_place(parts)


def finished(path: Path, fingerprint: Mapping[str, str]) -> Trace | None:
    """The trace at `path`, if it was complete when a kill prevented that its parts were removed.

    They are removed then.

    Args:
        path: Where the trace lies, if it does.
        fingerprint: What the recording was begun with.
    """
    parts = parts_of(path)
    try:
        found = from_json(_Progress, read_json(parts / _PROGRESS))
        written = sha256(path / MANIFEST)
    except (OSError, ValueError):
        return None
    if found.fingerprint != dict(fingerprint) or found.trace != written:
        return None
    with locked(parts):
        remove_folder(parts, _OURS)
    return load_trace(path)


@final
class PartialStore:
    """Appends rows to files; a context manager that keeps what it has when it is interrupted.

    Args:
        path: Where the trace will lie.
        stages: Number of stages.
        dtype: How logits are stored.
        fingerprint: What must be the same for a recording to go on.
        resume: False throws away what an interrupted run has left.
        overwrite: Whether a trace at `path` may be replaced in the end.

    Raises:
        InputError: If an interrupted recording is there that was begun with another fingerprint,
            or if the folder of parts holds anything else.
        FileFormatError: If its files are damaged.
        BusyError: If another process records to `path`.
    """

    def __init__(
        self,
        path: Path,
        *,
        stages: int,
        dtype: StoredDtype,
        fingerprint: Mapping[str, str],
        resume: bool,
        overwrite: bool,
    ) -> None:
        self._path = path
        self._folder = parts_of(path)
        self._stages, self._dtype, self._overwrite = stages, dtype, overwrite
        self._fingerprint = dict(fingerprint)
        self._rows, self._classes, self._text_ids = 0, 0, False
        self._good = dict.fromkeys(_FILES, 0)  # bytes that belong to whole rows
        self._digests: dict[str, Digest] = {name: hashlib.sha256() for name in _FILES}  # of them
        self._files: dict[str, IO[bytes]] = {}
        self._saved_at = -np.inf
        check_place(self._folder)
        with ExitStack() as stack:
            stack.enter_context(locked(self._folder))
            self._begin(resume=resume)
            self._lock = stack.pop_all()

    def _begin(self, *, resume: bool) -> None:
        """Go on where an interrupted recording stopped, or start."""
        there = (self._folder / _PROGRESS).exists()
        if there and resume:
            self._adopt()
            _log.info("Going on with the recording in %s.", self._folder)
        elif there:
            self._note()  # no row counts any more
        elif self._folder.exists() and not is_empty(self._folder):
            raise InputError(
                f"{self._folder} is where rows are kept while they are recorded, and it holds "
                "other files. Move them away or give the trace another path; nothing was changed."
            )
        else:
            self._note()
        self._old_labels, self._old_ids = self._read_labels(), self.ids()

    def __enter__(self) -> "PartialStore":
        try:
            for name in _FILES:
                self._files[name] = (self._folder / f"{name}.bin").open("ab")
                self._files[name].truncate(self._good[name])
        except OSError:
            self._close()
            self._lock.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # On an error, such as a full disk, keep as much as can be kept and let the error through.
        try:
            with suppress(OSError):
                if kind is not None and self._rows and self._files:
                    self._checkpoint()
        finally:
            self._close()
            self._lock.close()

    @property
    def rows(self) -> int:
        """Number of rows held."""
        return self._rows

    def known(self, start: int, stop: int) -> tuple[IntArray, Ids]:
        """Labels and ids of rows that an interrupted run has recorded."""
        return self._old_labels[start:stop], self._old_ids[start:stop]

    def append(self, rows: Rows, logits: NDArray[Any]) -> None:
        """Add `m` rows with their logits `(m, s, c)`, NaN where they are not finite.

        Raises:
            InputError: If the number of classes or the kind of ids changes between batches, or a
                logit does not fit float16.
        """
        text = rows.ids.dtype.kind == "U"
        if not self._rows:
            self._classes, self._text_ids = logits.shape[2], text
        if self._classes != logits.shape[2] or self._text_ids != text:
            raise InputError(
                f"Every batch must have {self._classes} classes and "
                f"{'text' if self._text_ids else 'integer'} ids, as the first; got "
                f"{logits.shape[2]} classes and ids of {rows.ids.dtype}."
            )
        blocks = {
            "logits": narrowed("logits", logits, self._dtype).tobytes(),
            "labels": rows.labels.astype(np.int64).tobytes(),
            "ids": _text_block(rows.ids) if text else rows.ids.astype(np.int64).tobytes(),
        }
        for name, block in blocks.items():
            with storing(self._folder / f"{name}.bin"):
                self._files[name].write(block)
        for name, block in blocks.items():
            self._good[name] += len(block)
            self._digests[name].update(block)
        self._rows += len(rows)
        if time.monotonic() - self._saved_at >= CHECKPOINT_S:
            self._checkpoint()

    def ids(self) -> Ids:
        """Ids of all rows, `(n,)`."""
        self._flush()
        if not self._text_ids:
            return self._read("ids", np.int64)
        with (self._folder / "ids.bin").open(encoding="ascii") as file:
            lines = file.read(self._good["ids"]).splitlines()
        return np.array([json.loads(line) for line in lines], dtype=str)

    def finish(self, facts: Facts, split: Tensor | None) -> Trace:
        """Write the trace in one go, remove the folder of parts, and map the trace."""
        self._checkpoint()
        ids, labels = self.ids(), self._read_labels()
        names = facts.topology.names
        treatment = Treatment(facts.nonfinite, self._logit_parts(), ids, names)
        keep = treatment.keep
        n, s, c = int(keep.sum()), self._stages, self._classes
        logits = treatment.logits(self._logit_parts(), labels)
        arrays = [
            ArraySource(name="logits", dtype=self._dtype, shape=(n, s, c), parts=logits),
            ArraySource(name="labels", dtype="int64", shape=(n,), parts=[labels[keep]]),
            id_source(ids[keep]),
        ]
        if split is not None:
            own = split.numpy()[keep]
            arrays.append(ArraySource(name="split", dtype="int8", shape=(n,), parts=[own]))
        with atomic_folder(self._path, TRACE, overwrite=self._overwrite) as folder:
            written = write_arrays(folder / ARRAYS, arrays)
            write_manifest(
                folder,
                written,
                n=n,
                topology=facts.topology,
                classes=c,
                costs=facts.costs,
                other_costs=facts.other_costs,
                class_names=facts.class_names,
                seen_in_training=facts.seen_in_training,
                lossy=facts.lossy,
                notes=treatment.notes,
            )
            self._note(trace=sha256(folder / MANIFEST))
        self._close()
        remove_folder(self._folder, _OURS)
        return load_trace(self._path, verify=False)  # it was written this moment

    def _adopt(self) -> None:
        """Go on where an interrupted recording stopped."""
        path = self._folder / _PROGRESS
        try:
            value = read_json(path)
            found = from_json(_Progress, value, where=path)
        except FileFormatError as error:
            raise FileFormatError(
                f"{path} cannot be read: {error} Pass resume=False to start again."
            ) from error
        keys = sorted(set(found.fingerprint) | set(self._fingerprint))
        other = [k for k in keys if found.fingerprint.get(k) != self._fingerprint.get(k)]
        if other:
            raise InputError(
                f"{self._folder} was begun with other {', '.join(other)}; repeat the call that "
                "began it, or pass resume=False to start again."
            )
        for name in _FILES:
            file, size = self._folder / f"{name}.bin", found.bytes.get(name, -1)
            there = file.stat().st_size if file.is_file() else 0
            if not 0 <= size <= there:
                raise FileFormatError(
                    f"{file} is missing or truncated. Pass resume=False to start again."
                )
            self._good[name], self._digests[name] = size, _digest(file, size)
        digests = {name: digest.hexdigest() for name, digest in self._digests.items()}
        if not is_sealed(value) or digests != found.digests:
            raise FileFormatError(
                f"{self._folder} was damaged: what it holds has not the checksums that were noted. "
                "Pass resume=False to start again."
            )
        self._rows, self._classes, self._text_ids = found.rows, found.classes, found.text_ids

    def _checkpoint(self) -> None:
        with storing(self._folder):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        self._note()
        self._saved_at = time.monotonic()

    def _note(self, *, trace: str = "") -> None:
        progress = {
            "version": _VERSION,
            "fingerprint": self._fingerprint,
            "rows": self._rows,
            "classes": self._classes,
            "text_ids": self._text_ids,
            "bytes": self._good,
            "trace": trace,
            "digests": {name: digest.hexdigest() for name, digest in self._digests.items()},
        }
        write_json(self._folder / _PROGRESS, sealed(progress))

    def _flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def _close(self) -> None:
        for file in self._files.values():
            with suppress(OSError):  # what could not be written does not count anyway
                file.close()
        self._files = {}

    def _read(self, name: str, dtype: Any) -> NDArray[Any]:  # noqa: ANN401
        if not self._rows:
            return np.empty(0, dtype=dtype)
        return np.fromfile(self._folder / f"{name}.bin", dtype=dtype, count=self._rows)

    def _read_labels(self) -> IntArray:
        self._flush()
        return self._read("labels", np.int64)

    def _logit_parts(self) -> Iterator[NDArray[Any]]:
        shape = (self._rows, self._stages, self._classes)
        path = self._folder / "logits.bin"
        return in_parts(np.memmap(path, dtype=self._dtype, mode="r", shape=shape))


def _digest(path: Path, size: int) -> Digest:
    """Of the first bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(min(size, _BLOCK)):
            digest.update(block)
            size -= len(block)
    return digest


def _text_block(ids: Ids) -> bytes:
    """One JSON text per line, in ASCII, so that no name can break a line."""
    return "".join(json.dumps(str(name)) + "\n" for name in ids).encode("ascii")
