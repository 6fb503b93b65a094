"""The store that survives a kill: a folder beside the trace to be.

`<path>.partial` holds raw rows in files that only grow, and `progress.json`, which says how many
bytes of each count (`offramp._core.growing`). When the trace is complete it says so too, and of
which checksum it is: a kill between the trace and the clearing away is then made up for by the next
call.

Layer: recording.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from offramp._core.errors import InputError
from offramp._core.files import atomic_folder, remove_folder, sha256
from offramp._core.growing import GrowingFiles, read_note
from offramp._core.ownership import TRACE, check_folder, check_place
from offramp._core.temporaries import locked
from offramp._core.types import Ids, IntArray, OutputForm
from offramp.recording.nonfinite import Treatment
from offramp.recording.rows import Rows
from offramp.recording.said import ARRAYS_OF, PRICES, Said, mean_costs, notes_of
from offramp.recording.store import Facts
from offramp.trace import Trace, load_trace
from offramp.trace.arrays import ArraySource, in_parts, write_arrays
from offramp.trace.files import (
    ARRAYS,
    MANIFEST,
    StoredDtype,
    id_source,
    write_manifest,
)

_log = logging.getLogger(__name__)

_NOTE = "progress.json"
_OURS = re.compile(
    r"progress\.json|(logits|ranked|confidence|prices|labels|ids)\.bin|answers-\d+\.jsonl"
)
_REPAIR = "Pass resume=False to start again."


@final
@dataclass(frozen=True, kw_only=True)
class _Facts:
    rows: int = 0
    classes: int = 0
    ranks: int = 0  # labels of each stage, where it gives no logits
    text_ids: bool = False
    trace: str = ""  # checksum of its manifest, once that is written


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
        _, found, facts = read_note(parts / _NOTE, _Facts, _REPAIR)
        written = sha256(path / MANIFEST)
    except (OSError, ValueError):
        return None
    if found.identity != dict(fingerprint) or facts.trace != written:
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
        form: What they answer with.
        priced: Whether prices are kept.
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
        form: OutputForm,
        priced: bool = False,
        dtype: StoredDtype,
        fingerprint: Mapping[str, str],
        resume: bool,
        overwrite: bool,
    ) -> None:
        self._path = path
        self._stages, self._dtype, self._overwrite = stages, dtype, overwrite
        self._names = (*ARRAYS_OF[form], *((PRICES,) if priced else ()))
        self._files = GrowingFiles(
            parts_of(path),
            [f"{name}.bin" for name in (*self._names, "labels", "ids")],
            note=_NOTE,
            identity=fingerprint,
            facts=_Facts(),
            repair=_REPAIR,
            resume=resume,
        )

    def __enter__(self) -> "PartialStore":
        self._files.__enter__()
        if self.rows:
            _log.info("Going on with the recording in %s.", self._files.folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.__exit__(kind, error, trace)

    @property
    def rows(self) -> int:
        """Number of rows held."""
        return self._files.facts.rows

    def known(self, start: int, stop: int) -> tuple[IntArray, Ids]:
        """Labels and ids of rows that an interrupted run has recorded."""
        labels, ids = self._known
        return labels[start:stop], ids[start:stop]

    @cached_property
    def _known(self) -> tuple[IntArray, Ids]:
        """Labels and ids as they were when somebody first asked: of an interrupted run, all."""
        return self._read("labels.bin", np.int64), self.ids()

    def append(self, rows: Rows, said: Said) -> None:
        """Add `m` rows with what the stages said about them.

        Raises:
            InputError: If the number of classes or of ranked labels or the kind of ids changes
                between batches, or a logit does not fit float16.
        """
        text, held = rows.ids.dtype.kind == "U", self._files.facts
        ranks = said.arrays["ranked"].shape[2] if "ranked" in said.arrays else 0
        if not held.rows:
            held = replace(held, classes=said.classes, ranks=ranks, text_ids=text)
        if (held.classes, held.ranks, held.text_ids) != (said.classes, ranks, text):
            ranked = f", {held.ranks} labels of each stage" if held.ranks else ""
            raise InputError(
                f"Every batch must have {held.classes} classes{ranked} and "
                f"{'text' if held.text_ids else 'integer'} ids, as the first; got "
                f"{said.classes} classes{f', {ranks} labels' if ranked else ''} and ids of "
                f"{rows.ids.dtype}."
            )
        arrays = said.stored(self._dtype).arrays
        blocks = {
            **{f"{name}.bin": arrays[name].tobytes() for name in self._names},
            "labels.bin": rows.labels.astype(np.int64).tobytes(),
            "ids.bin": _text_block(rows.ids) if text else rows.ids.astype(np.int64).tobytes(),
        }
        self._files.append(blocks, replace(held, rows=held.rows + len(rows)))

    def ids(self) -> Ids:
        """Ids of all rows, `(n,)`."""
        if not self._files.facts.text_ids:
            return self._read("ids.bin", np.int64)
        size = self._files.size("ids.bin")
        with (self._files.folder / "ids.bin").open(encoding="ascii") as file:
            lines = file.read(size).splitlines()
        return np.array([json.loads(line) for line in lines], dtype=str)

    def finish(self, facts: Facts, split: Tensor | None) -> Trace:
        """Write the trace in one go, remove the folder of parts, and map the trace."""
        self._files.checkpoint()
        ids, labels = self.ids(), self._read("labels.bin", np.int64)
        names = facts.topology.names
        treatment = Treatment(facts.nonfinite, self._parts(), ids, names)
        keep, n = treatment.keep, int(treatment.keep.sum())
        costs = facts.costs
        if PRICES in self._names:
            paid = np.concatenate([part.arrays[PRICES] for part in self._parts()])
            costs = mean_costs(costs, paid[keep])
        arrays = [self._source(name, n, treatment, labels) for name in self._names]
        arrays += [
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
                classes=self._files.facts.classes,
                costs=costs,
                other_costs=facts.other_costs,
                class_names=facts.class_names,
                seen_in_training=facts.seen_in_training,
                lossy=facts.lossy,
                notes=(*treatment.notes, *notes_of(self._parts(), names)),
            )
            self._files.note(replace(self._files.facts, trace=sha256(folder / MANIFEST)))
        self._files.close()
        remove_folder(self._files.folder, _OURS)
        return load_trace(self._path, verify=False)  # it was written this moment

    def _read(self, name: str, dtype: Any) -> NDArray[Any]:  # noqa: ANN401
        if not self._files.size(name):
            return np.empty(0, dtype=dtype)
        return np.fromfile(self._files.folder / name, dtype=dtype, count=self.rows)

    def _source(self, name: str, n: int, treatment: Treatment, labels: IntArray) -> ArraySource:
        """One array of the trace; only it is read in full."""
        parts = (part.arrays[name] for part in treatment.said(self._parts(), labels))
        return ArraySource(
            name=name, dtype=self._type(name), shape=(n, *self._shape(name)), parts=parts
        )

    def _type(self, name: str) -> str:
        return {"ranked": "int64", PRICES: "float64"}.get(name, self._dtype)

    def _shape(self, name: str) -> tuple[int, ...]:
        facts = self._files.facts
        own = {"logits": (facts.classes,), "ranked": (facts.ranks,), "confidence": (), PRICES: ()}
        return (self._stages, *own[name])

    def _parts(self) -> Iterator[Said]:
        """What was said, a few MiB at a time; all files are cut alike."""
        held = {}
        for name in self._names:
            self._files.size(f"{name}.bin")  # so that all of it can be read
            path, shape = self._files.folder / f"{name}.bin", (self.rows, *self._shape(name))
            held[name] = np.memmap(path, dtype=self._type(name), mode="r", shape=shape)
        step = min(len(next(in_parts(values))) for values in held.values())
        for start in range(0, self.rows, step):
            part = {name: values[start : start + step] for name, values in held.items()}
            yield Said(self._files.facts.classes, part)


def _text_block(ids: Ids) -> bytes:
    """One JSON text per line, in ASCII, so that no name can break a line."""
    return "".join(json.dumps(str(name)) + "\n" for name in ids).encode("ascii")
