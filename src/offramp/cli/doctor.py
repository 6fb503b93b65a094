"""`offramp doctor`: what is installed, and whether it works here.

Layer: cli.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from offramp.cli import options
from offramp.cli.errors import UNEXPECTED
from offramp.cli.output import Output

if TYPE_CHECKING:
    from offramp.project.doctor import Found


def command(json: options.Json = False) -> None:
    """Look at this installation, and try a tiny cascade from training to a bundle.

    In: nothing.

    Out: versions, the machine, what runs networks here, which extras are installed, and a self
    test of a few seconds. Exit code 1 if a part of it fails.

    Example: offramp doctor
    """
    from offramp.project.doctor import examined

    output = Output(as_json=json)
    found = examined(tell=lambda part: typer.echo(f"... {part}", err=True))
    _show(output, found)
    output.result({"ok": found.ok, **asdict(found)})
    if not found.ok:
        raise typer.Exit(UNEXPECTED)


def _show(output: Output, found: "Found") -> None:
    output.paragraph(", ".join(f"{name} {one}" for name, one in found.versions.items()))
    output.paragraph(", ".join(f"{name}: {one}" for name, one in found.machine.items()))
    output.line(f"GPU: {', '.join(found.gpu) or 'none that torch can use'}")
    there = [name for name, can in found.backends.items() if can]
    output.line(f"Backends: {', '.join(there)}")
    output.line()
    rows = [
        [name, "yes" if all(of.values()) else "no", _packages(of)]
        for name, of in found.extras.items()
    ]
    width = max(len(row[0]) for row in rows)
    for name, whole, packages in rows:
        output.line(f"{name.ljust(width)}  {whole.ljust(3)}  {packages}")
    missing = next((name for name, of in found.extras.items() if not all(of.values())), None)
    if missing is not None:
        output.line(f"What is missing comes with its extra: pip install 'offramp[{missing}]'")
    output.line()
    for check in found.checks:
        verdict = "works" if check.ok else "FAILS"
        output.line(f"{verdict}  {check.name.ljust(12)} {check.seconds:5.1f} s  {check.said}")
    output.line("Everything works." if found.ok else "Something does not work here.")


def _packages(of: dict[str, str | None]) -> str:
    """Packages with their versions, or that they are missing."""
    return ", ".join(f"{name} {one or 'missing'}" for name, one in of.items())
