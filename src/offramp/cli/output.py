"""What a command prints: results on standard output, everything else on standard error.

Layer: cli.
"""

import json
import sys
from collections.abc import Sequence
from textwrap import wrap
from typing import Any, final

import typer

from offramp._core.naming import printable

_GAP = "  "
_WIDTH = 79


def note(text: str) -> None:
    """Print something worth knowing to standard error."""
    _print(f"Note: {text}", err=True)


def error(text: str) -> None:
    """Print what went wrong to standard error."""
    _print(f"Error: {text}", err=True)


def _print(text: str, *, err: bool = False) -> None:
    """Every line goes this way: names in it cannot steer the terminal, nor stop the program."""
    typer.echo(_legible(text, err=err), err=err)


def _legible(text: str, *, err: bool) -> str:
    """The text as the terminal can show it."""
    encoding = (sys.stderr if err else sys.stdout).encoding or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


@final
class Output:
    """Where a command's result goes.

    Args:
        as_json: True prints one JSON object instead of text for people.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str = "") -> None:
        """A line for people."""
        if not self.as_json:
            _print(text)

    def paragraph(self, text: str) -> None:
        """A longer text for people, in lines that fit a terminal."""
        for line in wrapped(text):
            self.line(line)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Aligned columns for people."""
        for line in aligned(header, rows):
            self.line(line)

    def result(self, value: dict[str, Any]) -> None:
        """The result as one JSON object on one line, where that was asked for."""
        if self.as_json:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False)
            if text != _legible(text, err=False):  # JSON has signs of its own for all of these
                text = json.dumps(value, allow_nan=False, ensure_ascii=True)
            typer.echo(text)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right.

    >>> aligned(["stage", "share"], [["small", "90 %"], ["large", "8 %"]])
    ['stage  share', 'small   90 %', 'large    8 %']
    """
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    return [
        _GAP.join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def wrapped(text: str) -> list[str]:
    """Lines of at most 79 characters; paths and names stay whole.

    >>> [len(line) for line in wrapped("word " * 20)]
    [79, 19]
    """
    return wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def percent(share: float) -> str:
    """A share in per cent.

    >>> percent(0.9743)
    '97.4 %'
    """
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of accuracies in points, with its sign: above 0 is accuracy lost.

    >>> points(0.0115), points(0.0)
    ('+1.15', '0.00')
    """
    rounded = round(100 * difference, 2)
    return f"{rounded:+.2f}" if rounded else "0.00"


def amount(value: float, unit: str) -> str:
    """A cost with its unit, three digits.

    >>> amount(7709696.0, "flops"), amount(0.00123, "seconds")
    ('7.71 MFLOP', '1.23 ms')
    """
    from offramp._core.units import unit_of  # here, so that --help needs no torch

    return unit_of(unit).text(value)
