"""Progress bars for long work, on standard error.

Layer: _core.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Advance(Protocol):
    """Called with the number of items done, and what there is to say about them."""

    def __call__(self, count: int, note: str = "") -> None: ...


@contextmanager
def progress_bar(
    description: str, total: int | None, *, enabled: bool = True, done: int = 0
) -> Iterator[Advance]:
    """Show a bar while the block runs; call what it gives with the number of items done.

    A note given with it stands at the end of the line until there is another one.

    Args:
        description: What is going on, in a few words.
        total: Items in all, or None where nobody knows.
        enabled: False shows nothing.
        done: Items that an earlier, interrupted run had finished.
    """
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not (enabled and console.is_terminal)) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")

        def advance(count: int, note: str = "") -> None:
            bar.update(task, advance=count)
            if note:
                bar.update(task, note=note)

        yield advance
