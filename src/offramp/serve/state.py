"""What a watch must not forget: one small SQLite file, which survives a kill and a restart.

Every change is one transaction, written before it counts. After the death of the process nothing is
lost; where the machine loses power, the last seconds may be. Several processes may have the same
file: within `together` nobody else writes, and `version` says whether somebody has.

Not thread-safe: calls come one after the other, as under a lock.

Layer: serve.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar, final

from offramp._core.errors import FileFormatError, InputError, StorageError
from offramp._core.ownership import check_place
from offramp._core.schema import from_json, to_json

T = TypeVar("T")

FILE: Final = "watch.sqlite"
MOST_PENDING: Final = 100_000  # answers that wait for labels; the oldest are forgotten

_APPLICATION = 0x6F666677  # in the header of the file: that it is ours
_VERSION = 1
_HEADER = b"SQLite format 3\x00"
_TABLES = """
CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, id TEXT NOT NULL,
    value TEXT NOT NULL, UNIQUE (key, id)
);
"""


@final
@dataclass(frozen=True, kw_only=True)
class Pending:
    """An audited answer whose label may still come.

    Args:
        gear: What answered.
        answer: Its best labels, the first first; -1 for none.
        reference: Those of the reference.
    """

    gear: str
    answer: tuple[int, ...]
    reference: tuple[int, ...]


@final
class State:
    """Records by key, and answers that wait for labels.

    Args:
        folder: Where the file lies, or is made; None keeps everything in memory.

    Raises:
        InputError: If the folder is none, or the file is there and not ours: it is not changed.
        FileFormatError: If it is ours and damaged, or of a newer version.

    >>> state = State(None)
    >>> state.keep("a", Pending(gear="fast", answer=(), reference=()))
    >>> state.remember("m", 7, Pending(gear="fast", answer=(1,), reference=(2,)))
    >>> state.kept("a", Pending).gear, state.recall("m", 7).reference, state.recall("m", 7)
    ('fast', (2,), None)
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else _checked(folder)
        where = ":memory:" if self.path is None else str(self.path)
        self._db = sqlite3.connect(where, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise FileFormatError(
                f"{self.path} is damaged: {error}. Move it away; what it held is lost, and "
                "watching begins anew."
            ) from error
        except FileFormatError:
            self._db.close()
            raise
        self._pending, self._version, self._counted = 0, 0, -1

    def _prepare(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise FileFormatError(
                f"{self.path} was written by a newer version (format {version}; this version reads "
                f"up to {_VERSION}). Update offramp."
            )
        if version < _VERSION:  # these go into the file itself, before there is a log beside it
            self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_TABLES)

    @property
    def version(self) -> int:
        """A number that changes whenever another process has written."""
        with suppress(sqlite3.ProgrammingError):  # closed: what it held may still be asked for
            (self._version,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(self._version)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Changes within are made all at once, or none of them.

        Raises:
            StorageError: If they cannot be written.
        """
        pending = self._pending
        try:
            self._db.execute("BEGIN IMMEDIATE")
            pending = len(self)
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            self._pending = pending
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise StorageError(
                    f"What is watched cannot be written to {self.path}: {error}."
                ) from error
            raise

    def kept(self, key: str, *kinds: type[T]) -> T | None:
        """What was kept last under a key, if it is of one of these kinds."""
        found = self._db.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        for kind in kinds if found is not None else ():
            with suppress(FileFormatError):
                return from_json(kind, json.loads(found[0]))
        return None

    def keep(self, key: str, value: object) -> None:
        """Keep a record in place of what was kept before."""
        held = (key, json.dumps(to_json(value)))
        self._db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", held)

    def remember(self, key: str, name: int | str, pending: Pending) -> None:
        """Wait for the label of an answer; the oldest is forgotten where there are too many."""
        value = json.dumps([pending.gear, pending.answer, pending.reference])
        at = (key, json.dumps(name))
        gone = self._db.execute("DELETE FROM pending WHERE key = ? AND id = ?", at).rowcount
        self._db.execute("INSERT INTO pending (key, id, value) VALUES (?, ?, ?)", (*at, value))
        self._pending += 1 - gone
        if len(self) > MOST_PENDING:
            oldest = "SELECT number FROM pending ORDER BY number LIMIT 1"
            self._db.execute(f"DELETE FROM pending WHERE number = ({oldest})")
            self._pending -= 1

    def recall(self, key: str, name: int | str) -> Pending | None:
        """The answer of that id, which is not waited for any more; None for one never audited."""
        at = (key, json.dumps(name))
        found = self._db.execute("SELECT value FROM pending WHERE key = ? AND id = ?", at)
        row = found.fetchone()
        if row is None:
            return None
        self._db.execute("DELETE FROM pending WHERE key = ? AND id = ?", at)
        self._pending -= 1
        gear, answer, reference = json.loads(row[0])
        return Pending(gear=gear, answer=tuple(answer), reference=tuple(reference))

    def __len__(self) -> int:
        """How many answers wait for labels."""
        if self.version != self._counted:  # somebody else has written, or nobody has counted yet
            self._counted = self.version
            (self._pending,) = self._db.execute("SELECT count(*) FROM pending").fetchone()
        return int(self._pending)

    def close(self) -> None:
        """Nothing is written any more."""
        self._db.close()


def _checked(folder: Path) -> Path:
    """The path of the file, if it is ours or can be made."""
    path = Path(folder) / FILE
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"{folder} must be a folder to keep what is watched in, but it is a file.")
    check_place(path)
    Path(folder).mkdir(exist_ok=True)
    if not path.exists():
        return path
    if not path.is_file():
        raise InputError(f"{path} must be a file, but it is a folder. Nothing was changed.")
    with path.open("rb") as file:
        head = file.read(72)
    ours = head[:16] == _HEADER and int.from_bytes(head[68:72], "big") == _APPLICATION
    if head and not ours:
        raise InputError(
            f"{path} was not written by offramp. Choose another folder. Nothing was changed."
        )
    return path
