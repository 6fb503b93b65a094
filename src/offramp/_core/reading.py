"""Reading files of others: plain files only, and no more of them than was said.

Opening a pipe waits for ever, and a device never ends; so what is opened is looked at first.

Layer: _core.
"""

import os
import stat
from pathlib import Path

from offramp._core.errors import FileFormatError

_NOT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_plain(path: Path, *, most_bytes: int | None = None) -> bytes:
    """The content of a file; of a link, of what it leads to.

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
