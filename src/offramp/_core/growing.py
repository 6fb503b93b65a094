"""Files that only grow, for long work that survives a kill.

A folder holds the files and a note, which says whose they are, how many bytes of each count, and
their checksums. The note is written before the first byte, and then after bytes have reached the
disk. So whatever happens, the bytes that the note speaks of are there; what stands behind them is
cut off when the work goes on.

Layer: _core.
"""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, Literal, TypeVar, final

from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import read_json, storing, write_json
from offramp._core.ownership import check_place, is_empty
from offramp._core.schema import from_json, to_json
from offramp._core.seal import SEAL, Digest, is_sealed, sealed
from offramp._core.temporaries import locked

CHECKPOINT_S = 1.0  # seconds of work that a kill may cost
_BLOCK = 2**20  # bytes
_VERSION = 3
Facts = TypeVar("Facts")


@final
@dataclass(frozen=True, kw_only=True)
class _Note:
    version: Literal[3]
    identity: dict[str, str]
    facts: dict[str, Any]
    bytes: dict[str, int]
    digests: dict[str, str]  # of so many bytes of each file
    sha256: str


@final
class GrowingFiles(Generic[Facts]):
    """The files of one folder; as a context manager they can be appended to.

    While they are open the folder is locked. On an error, such as a full disk, what can be kept is
    kept.

    Args:
        folder: Where they lie; made when they are opened.
        names: Of the files.
        note: Name of the note.
        identity: What must be the same for the work to go on.
        facts: What is known before the first byte; a frozen dataclass. It is noted with the bytes.
        repair: What to do where they cannot be gone on with: a sentence, for messages.
        resume: False lets no byte count that is there already.

    Raises:
        InputError: If the folder was begun with another identity.
        FileFormatError: If the files are damaged.
        BusyError: When opened, if another process has opened them.

    >>> import tempfile
    >>> from dataclasses import make_dataclass
    >>> facts = make_dataclass("Facts", [("rows", int)], frozen=True, kw_only=True)(rows=3)
    >>> with tempfile.TemporaryDirectory() as path:
    ...     files = GrowingFiles(
    ...         Path(path) / "work", ["a.bin"], note="note.json", identity={"of": "x"},
    ...         facts=facts, repair="Delete it.",
    ...     )
    ...     with files:
    ...         files.append({"a.bin": b"123"}, facts)
    ...     files.size("a.bin")
    3
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        note: str,
        identity: Mapping[str, str],
        facts: Facts,
        repair: str,
        resume: bool = True,
    ) -> None:
        self.folder, self.facts = folder, facts
        self._note, self._identity, self._repair = folder / note, dict(identity), repair
        self._resume = resume
        self._good = dict.fromkeys(names, 0)  # bytes that count
        self._digests: dict[str, Digest] = {name: hashlib.sha256() for name in names}  # of them
        self._open: dict[str, IO[bytes]] = {}
        self._held = ExitStack()
        self._saved_at = float("-inf")
        self._seal: object = None  # of the note that was gone on from
        if resume and self._note.exists():
            self._adopt()

    def __enter__(self) -> "GrowingFiles[Facts]":
        check_place(self.folder)
        with ExitStack() as stack:
            stack.enter_context(locked(self.folder))
            if self._resume and self._note.exists():
                # Another process may have gone on meanwhile; else every byte has been read once.
                if read_json(self._note).get(SEAL) != self._seal:
                    self._adopt()
            else:
                self._begin()
            for name, size in self._good.items():
                path = self.folder / name
                with storing(path):
                    self._open[name] = path.open("ab")
                    stack.callback(self.close)
                    self._open[name].truncate(size)
            self._held = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # On an error, such as a full disk, keep what can be kept and let the error through.
            with suppress(*() if kind is None else (OSError,)):
                if self._open:
                    self.checkpoint()
        finally:
            self.close()
            self._held.close()

    def close(self) -> None:
        """Close the files; the folder stays locked until the context ends."""
        for file in self._open.values():
            with suppress(OSError):  # what could not be written does not count anyway
                file.close()
        self._open = {}

    def append(self, blocks: Mapping[str, bytes], facts: Facts) -> None:
        """Let files grow, all or none of them, and say what is known now."""
        for name, block in blocks.items():
            with storing(self.folder / name):
                self._open[name].write(block)
        for name, block in blocks.items():  # of whole rows only, if a disk is full
            self._good[name] += len(block)
            self._digests[name].update(block)
        self.facts = facts
        if time.monotonic() - self._saved_at >= CHECKPOINT_S:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Wait until every byte is on the disk, and note it."""
        with storing(self.folder):
            for file in self._open.values():
                file.flush()
                os.fsync(file.fileno())
        self.note(self.facts)
        self._saved_at = time.monotonic()

    def note(self, facts: Facts) -> None:
        """Note facts with the bytes that count."""
        self.facts = facts
        found = {
            "version": _VERSION,
            "identity": self._identity,
            "facts": to_json(facts),
            "bytes": self._good,
            "digests": {name: digest.hexdigest() for name, digest in self._digests.items()},
        }
        write_json(self._note, sealed(found))

    def size(self, name: str) -> int:
        """How many bytes of a file count; they can be read."""
        if name in self._open:
            self._open[name].flush()
        return self._good[name]

    def _begin(self) -> None:
        if not self._note.exists() and self.folder.exists() and not is_empty(self.folder):
            raise InputError(
                f"{self.folder} is where work is kept that a kill may end, and it holds other "
                "files. Move them away or give another path; nothing was changed."
            )
        self.note(self.facts)  # of an older work no byte counts any more

    def _adopt(self) -> None:
        """Go on where the work stopped."""
        value, found, facts = read_note(self._note, type(self.facts), self._repair)
        keys = sorted({*found.identity, *self._identity})
        other = [k for k in keys if found.identity.get(k) != self._identity.get(k)]
        if other:
            raise InputError(
                f"{self.folder} was begun with other {', '.join(other)}; repeat the call that "
                f"began it, or give another path. {self._repair}"
            )
        for name in self._good:
            path, size = self.folder / name, found.bytes.get(name, -1)
            there = path.stat().st_size if path.is_file() else 0
            if not 0 <= size <= there:
                raise FileFormatError(f"{path} is missing or truncated. {self._repair}")
            self._good[name], self._digests[name] = size, _digest(path, size)
        digests = {name: digest.hexdigest() for name, digest in self._digests.items()}
        if not is_sealed(value) or digests != found.digests:
            raise FileFormatError(
                f"{self.folder} was damaged: what it holds has not the checksums that were noted. "
                f"{self._repair}"
            )
        self.facts, self._seal = facts, found.sha256


def read_note(path: Path, kind: type[Facts], repair: str) -> tuple[Mapping[str, Any], _Note, Facts]:
    """What a note says: as JSON values, as a record, and its facts.

    Raises:
        FileFormatError: If it cannot be read.
    """
    try:
        value = read_json(path)
        found = from_json(_Note, value, where=path)
        return value, found, from_json(kind, found.facts, where=path)
    except FileFormatError as error:
        raise FileFormatError(f"{path} cannot be read: {error} {repair}") from error


def _digest(path: Path, size: int) -> Digest:
    """Of the first bytes of a file; where none counts there need be no file."""
    digest = hashlib.sha256()
    if not size:
        return digest
    with path.open("rb") as file:
        while block := file.read(min(size, _BLOCK)):
            digest.update(block)
            size -= len(block)
    return digest
