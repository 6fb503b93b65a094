"""The store that survives a kill: a folder beside the trace to be.

`<path>.partial` holds raw rows in files that only grow, and `progress.json`, which says how many
bytes of each count. It is written after they have reached the disk, so whatever happens, the rows
it speaks of are there; what stands behind them is cut off when the recording goes on.

Layer: record.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import whole_folder, write_json
from offramp._core.types import Ids, IntArray
from offramp.record.nonfinite import Treatment
from offramp.record.rows import Rows
from offramp.record.store import Facts
from offramp.trace import Trace, load_trace
from offramp.trace.arrays import ArraySource, in_parts, write_arrays
from offramp.trace.files import ARRAYS, StoredDtype, id_source, narrowed, write_manifest

CHECKPOINT_S = 1.0  # seconds of work that a kill may cost
_PROGRESS = "progress.json"
_VERSION = 1
_FILES = ("logits", "labels", "ids")


@final
class _Progress(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    version: Literal[1]
    fingerprint: dict[str, str]
    rows: int
    classes: int
    text_ids: bool
    bytes: dict[str, int]


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
        InputError: If an interrupted recording is there that was begun with another fingerprint.
        FileFormatError: If its files are damaged.
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
        self._folder = path.with_name(path.name + ".partial")
        self._stages, self._dtype, self._overwrite = stages, dtype, overwrite
        self._fingerprint = dict(fingerprint)
        self._rows, self._classes, self._text_ids = 0, 0, False
        self._good = dict.fromkeys(_FILES, 0)  # bytes that belong to whole rows
        self._files: dict[str, IO[bytes]] = {}
        self._saved_at = -np.inf
        if not resume:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        if (self._folder / _PROGRESS).exists():
            self._adopt()
        self._old_labels, self._old_ids = self._read_labels(), self.ids()

    def __enter__(self) -> "PartialStore":
        for name in _FILES:
            file = (self._folder / f"{name}.bin").open("ab")
            file.truncate(self._good[name])
            self._files[name] = file
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # On an error, such as a full disk, keep as much as can be kept and let the error through.
        with suppress(OSError):
            if kind is not None and self._rows:
                self._checkpoint()
        self._close()

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
            self._files[name].write(block)
        for name, block in blocks.items():
            self._good[name] += len(block)
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
        with whole_folder(self._path, overwrite=self._overwrite) as folder:
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
        self._close()
        shutil.rmtree(self._folder)
        return load_trace(self._path)

    def _adopt(self) -> None:
        """Go on where an interrupted recording stopped."""
        path = self._folder / _PROGRESS
        try:
            found = _Progress.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            raise FileFormatError(
                f"{path} cannot be read: {error}. Pass resume=False to start again."
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
            if not file.is_file() or not 0 <= size <= file.stat().st_size:
                raise FileFormatError(
                    f"{file} is missing or truncated. Pass resume=False to start again."
                )
            self._good[name] = size
        self._rows, self._classes, self._text_ids = found.rows, found.classes, found.text_ids

    def _checkpoint(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        progress = {
            "version": _VERSION,
            "fingerprint": self._fingerprint,
            "rows": self._rows,
            "classes": self._classes,
            "text_ids": self._text_ids,
            "bytes": self._good,
        }
        write_json(self._folder / _PROGRESS, progress)
        self._saved_at = time.monotonic()

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


def _text_block(ids: Ids) -> bytes:
    """One JSON text per line, in ASCII, so that no name can break a line."""
    return "".join(json.dumps(str(name)) + "\n" for name in ids).encode("ascii")
