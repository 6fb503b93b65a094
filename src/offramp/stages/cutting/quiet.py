"""Keeping what torch prints out of a user's terminal: hundreds of lines of graph before an error.

Layer: stages.  Source: none.
"""

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

_SHOWN = 300  # characters of an error of torch; some hold whole graphs


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what this thread writes to `sys.stderr` by Python; other threads' lines pass.

    >>> with quiet():
    ...     _ = sys.stderr.write("a graph of 700 lines")
    """
    stream = _Deaf(sys.stderr)
    sys.stderr = stream
    try:
        yield
    finally:
        stream.thread = None  # another thread may have put its own in front, and keep this one
        if sys.stderr is stream:
            sys.stderr = stream.behind


def shortened(text: str) -> str:
    r"""The first two lines of an error's text, as one line and not too long.

    >>> shortened(chr(10).join(["no size", "", "for  you", "at all"])), len(shortened("x" * 5000))
    ('no size for  you', 303)
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    head = " ".join(lines[:2])
    return head if len(head) <= _SHOWN else f"{head[:_SHOWN]}..."


@final
class _Deaf(io.TextIOBase):
    """A stream that drops what one thread writes."""

    def __init__(self, behind: Any) -> None:  # noqa: ANN401  (a stream, or None without a terminal)
        super().__init__()
        self.behind = behind
        self.thread: int | None = threading.get_ident()

    def write(self, text: str, /) -> int:
        if self.thread == threading.get_ident() or self.behind is None:
            return len(text)
        return int(self.behind.write(text))

    def flush(self) -> None:
        if self.behind is not None:
            self.behind.flush()
