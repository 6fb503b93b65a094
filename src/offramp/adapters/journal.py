"""Answers that were paid for, by the digest of what was asked: remembered, or kept in a file.

The file holds one JSON text per line and only grows. A line is on its way to the disk before its
answer is counted, so a kill loses none of them; a line that a kill has cut short is cut off.

Layer: adapters.
"""

import json
import math
import os
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from offramp._core.checks import check_not_negative
from offramp._core.errors import FileFormatError
from offramp._core.files import parse_json, storing


@final
@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a service has answered to one example.

    Args:
        label: Its class; from `c` on where it is none of them, negative where it refused.
        confidence: Probability that the label is right, in [0, 1]; NaN where nobody answered.
        price: What it cost; 0 where prices are not known.
        text: What the service said.
    """

    label: int
    confidence: float
    price: float = 0.0
    text: str = ""


@final
class Memory:
    """The last answers, so many of them; None for all."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._held: OrderedDict[str, Answer] = OrderedDict()

    def get(self, digest: str) -> Answer | None:
        """The answer to what has this digest, if there is one."""
        found = self._held.get(digest)
        if found is not None:
            self._held.move_to_end(digest)
        return found

    def count(self, paid: float) -> None:
        """What was paid for an answer that could not be read is of no use here."""

    def keep(self, digest: str, answer: Answer) -> None:
        """Remember an answer."""
        if self._most != 0:
            self._held[digest] = answer
        if self._most is not None and len(self._held) > self._most:
            self._held.popitem(last=False)


@final
class Journal:
    """All answers, in a file; a context manager. Whoever opens it sees to it that nobody else does.

    Args:
        path: The file; it is gone on with where it is there.
        of: What was asked, so that answers of another service are not taken for its own.

    Raises:
        FileFormatError: If the file is damaged, or holds answers of another service.
    """

    def __init__(self, path: Path, of: str) -> None:
        self._path = path
        self._held: dict[str, Answer] = {}
        begun = path.exists() and path.stat().st_size > 0
        with storing(path):
            if begun:
                self._read(of)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        if not self._size:
            self._write({"of": of})

    _size = 0
    _lost = 0.0  # paid for what could not be read

    def __len__(self) -> int:
        return len(self._held)

    @property
    def paid(self) -> float:
        """What its answers cost together, with those that could not be read."""
        return math.fsum([self._lost, *(answer.price for answer in self._held.values())])

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def get(self, digest: str) -> Answer | None:
        """The answer to what has this digest, if there is one."""
        return self._held.get(digest)

    def keep(self, digest: str, answer: Answer) -> None:
        """Write an answer down; afterwards the death of this process does not lose it.

        Raises:
            StorageError: If the disk is full.
        """
        self._write({"asked": digest, **asdict(answer)})
        self._held[digest] = answer

    def count(self, paid: float) -> None:
        """Write down what was paid for an answer that could not be read.

        Raises:
            StorageError: If the disk is full.
        """
        self._write({"unread": paid})
        self._lost += paid

    def _write(self, line: dict[str, object]) -> None:
        with storing(self._path):
            block = json.dumps(line).encode("ascii") + b"\n"
            if os.write(self._file, block) < len(block):
                raise OSError(28, "No space left on device")

    def _read(self, of: str) -> None:
        raw = self._path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]  # what follows was cut short by a kill
        if len(whole) < len(raw):
            os.truncate(self._path, len(whole))
        self._size = len(whole)
        try:
            lines = [parse_json(line) for line in whole.splitlines()]
            if lines and lines[0] != {"of": of}:
                raise FileFormatError(
                    f"{self._path} holds answers of another service or prompt. Begin again with "
                    "resume=False, or move it away: those answers were paid for."
                )
            for line in lines[1:]:
                if "unread" in line:
                    self._lost += check_not_negative("unread", line["unread"])
                    continue
                asked = line.pop("asked")
                self._held[asked] = _checked(Answer(**line))
        except FileFormatError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{self._path} is damaged: {error}.") from error


def _checked(answer: Answer) -> Answer:
    """An answer that was read from a file."""
    whole = isinstance(answer.label, int) and abs(answer.label) < 2**63
    if not (whole and 0 <= answer.confidence <= 1 and 0 <= answer.price < math.inf):
        raise ValueError(f"{answer} is none")
    return answer
