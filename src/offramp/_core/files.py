"""Files and folders written whole or not at all, and their checksums.

What is half written lies beside its place, never in a folder whose contents are checked. It takes
that place in one step, and what a killed process left is cleared away by the next one that writes.

Layer: _core.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from zipfile import BadZipFile

from offramp._core.errors import FileFormatError, InputError, StorageError, why_unreadable
from offramp._core.ownership import FolderKind, check_file, check_folder, is_empty, strangers
from offramp._core.temporaries import (
    alone,
    exchange,
    is_temporary,
    recover,
    sweep,
    temporary_file,
    temporary_folder,
)

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile

Found = TypeVar("Found")
_TRIES = 10
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def atomic_file(path: Path, *, beside: Path | None = None) -> Iterator[Path]:
    """Give a temporary path; on success it replaces `path` in one step.

    If the block raises (a full disk, an interrupt), what stood at `path` before stays as it was.
    For files of ours, in a place that has been checked; `new_file` is for those that users name.

    Args:
        path: What to write.
        beside: A folder beside which the temporary file shall lie, since its contents are checked.

    Raises:
        StorageError: If the disk is full.
    """
    path = Path(path)
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        parent = _room(path.parent, beside)
        sweep(parent)
        with temporary_file(parent) as temporary:
            yield temporary
            _flush_to_disk(temporary)
            temporary.replace(path)


@contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """As `atomic_file`, for a file that the user names.

    Args:
        path: What to write.
        overwrite: Whether a plain file that is there may be replaced.

    Raises:
        InputError: As `check_file`, before the block and once more after it.
        StorageError: If the disk is full.
    """
    check_file(path, overwrite=overwrite)
    with atomic_file(path) as temporary:
        yield temporary
        check_file(path, overwrite=overwrite)


@contextmanager
def atomic_folder(
    path: Path, kind: FolderKind | None, *, overwrite: bool = False
) -> Iterator[Path]:
    """Give a temporary folder beside `path`; on success it takes the place of `path`.

    Args:
        path: Where the folder shall lie.
        kind: What it will be; None for what never replaces anything.
        overwrite: Whether a folder of that kind, and nothing else, may be replaced.

    Raises:
        InputError: As `check_folder`, before the block and once more after it.
        StorageError: If the disk is full.
    """
    path = Path(path)
    recover(path)
    check_folder(path, kind, overwrite=overwrite)
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        with temporary_folder(path.parent) as temporary:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush_to_disk(file)
            check_folder(path, kind, overwrite=overwrite)
            _put(temporary, path, kind)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Within, a full disk becomes a `StorageError` that names `path`, the outermost one."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        cause = error.__cause__ or error if isinstance(error, StorageError) else error
        raise StorageError(
            f"{path} cannot be written: no space is left on its disk. Make room or choose another "
            f"place, and repeat the call. ({cause})"
        ) from cause


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or the user's share of it, is full."""
    if isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _FULL):
        return True
    # Libraries written in other languages wrap it into errors of their own.
    return any(os.strerror(number) in str(error) for number in _FULL)


def steadily(folder: Path, read: Callable[[], Found]) -> Found:
    """Read a folder; if it is replaced meanwhile, read it again.

    Args:
        folder: What is read.
        read: Called once, or again where its files belonged to two states of the folder.
    """
    for _ in range(_TRIES):
        recover(folder)
        before = _state(folder)
        try:
            found = read()
        except (FileFormatError, OSError):
            recover(folder)
            if _state(folder) == before:
                raise
        else:
            if _state(folder)[:2] == before[:2]:
                return found
    return read()


def remove_folder(folder: Path, names: re.Pattern[str]) -> None:
    """Remove a folder of ours in one step; what a kill leaves of it, the next writer clears away.

    Args:
        folder: It need not exist.
        names: What files in it, and in folders in it, are called.

    Raises:
        InputError: If there are others; nothing is removed then.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        ours = path.is_dir() or names.fullmatch(path.name) or is_temporary(path.name)
        if path.is_symlink() or not ours:
            raise InputError(
                f"{folder} would be removed, but offramp did not write {path.name!r} in it. Move "
                "that away first; nothing was changed."
            )
    sweep(folder.parent)
    with temporary_folder(folder.parent) as place:
        folder.rename(place / folder.name)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all.

    Odd bytes of file names, which UTF-8 cannot hold, are written as JSON escapes them.
    """
    _write(path, text)


def write_json(path: Path, value: object, *, beside: Path | None = None) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all; NaN is refused."""
    _write(path, as_json(value), beside=beside)


def _write(path: Path, text: str, *, beside: Path | None = None) -> None:
    with atomic_file(path, beside=beside) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_new_json(path: Path, value: object, *, overwrite: bool) -> None:
    """As `write_json`, for a file that the user names; the errors are those of `new_file`."""
    text = as_json(value)
    with new_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def as_json(value: object) -> str:
    """A value as indented JSON; NaN is refused."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


@contextmanager
def open_npz(path: Path) -> "Iterator[NpzFile]":
    """An npz file, open in the block; raises `FileFormatError` where it cannot be read there."""
    import numpy as np  # here: little else of files needs it

    try:
        # Opened here because numpy leaves a file that it cannot read open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as held:
            yield held
    except (OSError, BadZipFile, ValueError, EOFError, AttributeError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        said = why_unreadable(error)
        raise FileFormatError(f"{path} cannot be read as an npz file: {said}") from error


def read_plain(path: Path, *, most_bytes: int | None = None) -> bytes:
    """The content of a file of others; of a link, of what it leads to.

    Opening a pipe waits for ever, and a device never ends; so what is opened is looked at first.

    Args:
        path: The file.
        most_bytes: How large it may be; None for any size.

    Raises:
        FileNotFoundError: If it is not there.
        FileFormatError: If it is no plain file (a folder, a pipe, a device), or larger.
        OSError: If it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | _NOT_WAITING)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise FileFormatError(f"{path} must be a plain file; it is a folder, a pipe or such.")
        limit = found.st_size if most_bytes is None else most_bytes
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(min(limit, found.st_size) + 1)  # it takes as much at once
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise FileFormatError(f"{path} must have at most {limit} bytes, got {found.st_size}.")
    return content


def read_json(path: Path, *, most_bytes: int | None = None) -> dict[str, Any]:
    """Read a JSON object from `path`.

    Args:
        path: The file.
        most_bytes: How large it may be; None for any size.

    Raises:
        FileFormatError: If the file is missing, no plain file, too large, is not JSON or not an
            object, or holds a number that is not finite; it names the file.
    """
    try:
        text = read_plain(Path(path), most_bytes=most_bytes).decode("utf-8")
        value = json.loads(text, parse_constant=_refused)
    except FileFormatError:
        raise
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} is missing.") from error
    except (ValueError, OSError, RecursionError) as error:
        raise FileFormatError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} must hold a JSON object, got {type(value).__name__}.")
    return value


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401  (what JSON can hold)
    """JSON that others wrote; NaN and infinity are let through.

    Raises:
        ValueError: If it is none, or is nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refused(constant: str) -> float:
    raise ValueError(f"numbers must be finite, got {constant}")


def sha256(path: Path) -> str:
    """Checksum of a file, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(temporary: Path, path: Path, kind: FolderKind | None) -> None:
    """Move a folder to its place; what stood there is where the folder was, to be removed."""
    if not path.is_dir():
        temporary.rename(path)
        return
    with alone(path, wait=True):
        exchange(temporary, path)
        if _foreign(temporary, kind):  # somebody has put a file there in the last moment
            exchange(temporary, path)
            check_folder(path, kind, overwrite=True)


def _foreign(folder: Path, kind: FolderKind | None) -> bool:
    return not is_empty(folder) and bool(strangers(folder, kind))


def _room(folder: Path, beside: Path | None) -> Path:
    """Where a temporary file can lie: it must be moved from there within one file system."""
    if beside is None:
        return folder
    parent = beside.resolve().parent
    near = parent.stat().st_dev == folder.stat().st_dev and os.access(parent, os.W_OK | os.X_OK)
    return parent if near else folder


def _state(folder: Path) -> tuple[int, int, int]:
    """What changes when a folder is replaced, and, last, when a file in it is."""
    try:
        facts = folder.stat()
    except OSError:
        return 0, 0, 0
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
