"""Temporary files and folders, and locks: whose they are, and clearing away what a kill left.

Whatever is half written has a name of ours and is locked by who writes it. A kill takes the lock
away but leaves the file, so the next writer in that folder can tell what is left over from what is
in use. Where a file system knows no locks, nothing is cleared away and nobody is locked out.

Layer: _core.
"""

import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from offramp._core.errors import BusyError

_log = logging.getLogger(__name__)

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_PREFIX = ".offramp-"
_NAME = re.compile(r"\.offramp-([0-9a-f]{12}|(lock|old)-[0-9a-f]{16})")
_TRIES, _WAIT_S = 10, 0.02  # somebody who clears away holds a lock for a moment
_Lock = Literal["held", "busy", "unknown"]


def is_temporary(name: str) -> bool:
    """True for the name of something half written, of a lock, or of what a kill left of them.

    >>> is_temporary(".offramp-0123456789ab"), is_temporary("offramp.json")
    (True, False)
    """
    return _NAME.fullmatch(name) is not None


@contextmanager
def temporary_file(parent: Path) -> Iterator[Path]:
    """Give a new empty file; what still has its name afterwards is removed."""
    path, lock = _made(parent, folder=False)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        _close(lock)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Give a new folder; what still has its name afterwards is removed."""
    path, lock = _made(parent, folder=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _close(lock)


@contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Keep others away from a file or folder that is written bit by bit.

    Args:
        path: It need not exist; the lock is a file beside it. None locks nothing.

    Raises:
        BusyError: If another process, or another thread, has it.
    """
    if path is None:
        yield
        return
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.parent / f"{_PREFIX}lock-{_digest(path.name)}"
    lock = _taken(name)
    if lock is None:
        raise BusyError(
            f"{path} is being written by another process. Wait until that has ended and repeat "
            "the call, or give this one another path."
        )
    try:
        yield
    finally:
        name.unlink(missing_ok=True)
        os.close(lock)


def sweep(parent: Path) -> None:
    """Remove what killed processes left in a folder; what somebody works on stays."""
    try:
        with os.scandir(parent) as entries:
            found = [entry.name for entry in entries if is_temporary(entry.name)]
    except OSError:
        return
    for name in found:
        if not name.startswith(f"{_PREFIX}old-"):  # that is a folder to be brought back
            with alone(parent / name) as lock:
                if lock == "held":
                    _log.info("Removing what a killed process has left: %s", parent / name)
                    _remove(parent / name)


def exchange(one: Path, other: Path) -> None:
    """Let two folders in one parent change places: in one step where the system can do that.

    Elsewhere there is a moment without `other`, so call it within `alone(other)`: who finds nothing
    there then waits in `recover`, which also makes up for a kill in that moment.
    """
    if _exchanged(one, other):
        return
    aside = _aside(other)
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


def recover(path: Path) -> None:
    """Take back, or complete, an exchange at `path` that a kill has interrupted.

    While another process is at it, wait for it. Without such an exchange nothing happens.
    """
    path = Path(path)
    aside = _aside(path)
    if not aside.is_dir():
        return
    with alone(aside, wait=True) as lock:
        if lock != "held" or not aside.is_dir():
            return
        _log.info("Completing the replacement of %s, which a kill has interrupted.", path)
        with suppress(OSError):
            if os.path.lexists(path):
                _remove(aside)
            else:
                aside.rename(path)


def _aside(path: Path) -> Path:
    return path.parent / f"{_PREFIX}old-{_digest(path.name)}"


def _digest(name: str) -> str:
    return hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _made(parent: Path, *, folder: bool) -> tuple[Path, int | None]:
    """A new file or folder with rights as the user's usual ones, locked."""
    while True:
        path = parent / f"{_PREFIX}{secrets.token_hex(6)}"
        try:
            if folder:
                path.mkdir()
            else:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        if fcntl is None:
            return path, None
        try:
            lock = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # swept before it was locked
            continue
        _flock(lock, wait=True)
        if _is_at(lock, path):
            return path, lock
        os.close(lock)


def _taken(name: Path) -> int | None:
    """The lock of that name, or None where somebody has it."""
    for _ in range(_TRIES):
        lock = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        state = _flock(lock, wait=False)
        if state != "busy" and _is_at(lock, name):
            return lock
        os.close(lock)
        if state == "busy":
            time.sleep(_WAIT_S)
    return None


@contextmanager
def alone(path: Path, *, wait: bool = False) -> Iterator[_Lock]:
    """Lock something that exists, while the block runs.

    Args:
        path: A file or a folder, no link.
        wait: Until nobody else has it.

    Returns:
        "held"; "busy" where somebody else has it; or "unknown" where it is gone, or cannot be
        locked.
    """
    try:
        lock = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        yield "unknown"
        return
    try:
        state = _flock(lock, wait=wait)
        yield state if state != "held" or _is_at(lock, path) else "unknown"
    finally:
        os.close(lock)


def _flock(lock: int, *, wait: bool) -> _Lock:
    if fcntl is None:
        return "unknown"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return "busy"
    except OSError:
        return "unknown"
    return "held"


def _is_at(lock: int, path: Path) -> bool:
    """Whether what is locked still has that name."""
    try:
        return os.path.samestat(os.fstat(lock), path.lstat())
    except OSError:
        return False


def _close(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _exchanged(one: Path, other: Path) -> bool:
    """Linux can do it in one step; False where that is not known or the file system cannot."""
    # Here and not above: few processes write folders.
    import ctypes
    import errno

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
        return True
    problem = ctypes.get_errno()
    if problem in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(problem, os.strerror(problem), str(other))
