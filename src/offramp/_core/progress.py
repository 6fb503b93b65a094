"""Progress bars for long work, on standard error.

Layer: _core.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(
    description: str, total: int | None, *, enabled: bool = True, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; call what it gives with the number of items done.

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
    )
    with Progress(*columns, console=console, disable=not (enabled and console.is_terminal)) as bar:
        task = bar.add_task(description, total=total, completed=done)
        yield lambda count: bar.update(task, advance=count)
