"""Calls that could not be made, kept on the disk until they can.

Each is one file, written whole or not at all, and gone once its answer has been handed over.

Layer: edge.  Needs nothing but Python.
"""

import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import final

_ENDING = ".call"
_OURS = re.compile(r"\d{20}-\d+-\d+\.call")  # other files of the folder are not sent or removed


@final
class Waiting:
    """A folder of calls.

    Args:
        folder: It is made.
        most: Calls that it holds at most; the oldest give way.
    """

    def __init__(self, folder: Path | str, most: int) -> None:
        self._folder, self._most = Path(folder), most
        self._folder.mkdir(parents=True, exist_ok=True)
        self._count = itertools.count()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._files())

    def put(self, body: bytes) -> None:
        """Keep a call."""
        name = f"{time.time_ns():020d}-{os.getpid()}-{next(self._count)}"
        temporary = self._folder / f".{name}"
        with temporary.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / (name + _ENDING))
        for old in self._files()[: -self._most]:
            old.unlink(missing_ok=True)
            self.dropped += 1

    def each(self) -> Iterator[tuple[Path, bytes]]:
        """The calls that wait, the oldest first; whoever is done with one removes it."""
        for file in self._files():
            yield file, file.read_bytes()

    def _files(self) -> list[Path]:
        return sorted(f for f in self._folder.iterdir() if _OURS.fullmatch(f.name) and f.is_file())
