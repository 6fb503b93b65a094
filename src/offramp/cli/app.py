"""The program `offramp`: its subcommands, and what becomes of errors, warnings and interrupts.

Layer: cli.
"""

import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from offramp import __version__
from offramp.cli import bench, demo, errors, evaluate, fit, output, predict, record, report


class _Program(TyperGroup):
    """Runs a subcommand; errors become messages with an exit code, warnings become notes."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # noqa: ANN401
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = lambda text, *_: output.note(str(text))
            try:
                return super().invoke(ctx)
            except (Exception, KeyboardInterrupt) as error:
                # Also the exceptions of the parser itself: they are for typer to show.
                if type(error).__module__.split(".")[0] in ("typer", "click"):
                    raise
                if ctx.params.get("debug"):
                    traceback.print_exception(error)
                output.error(errors.message(error))
                raise typer.Exit(errors.exit_code(error)) from error


app = typer.Typer(
    cls=_Program,
    name="offramp",
    help=(
        "Adaptive inference: trained classifiers that spend on each input only what it needs.\n\n"
        "Start with [bold]offramp demo[/bold]. With networks of your own: [bold]record[/bold] "
        "what they say about labelled data, [bold]fit[/bold] policies and choose one, "
        "[bold]evaluate[/bold] it, write a [bold]report[/bold]; then [bold]predict[/bold] and "
        "[bold]bench[/bold] with the bundle."
    ),
    epilog=(
        "Exit codes: 0 done, 1 unexpected, 2 wrong usage or input, 3 no cascade is worth it, "
        "130 interrupted."
    ),
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"offramp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error happened.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


app.command("demo")(demo.command)
app.command("record")(record.command)
app.command("fit")(fit.command)
app.command("evaluate")(evaluate.command)
app.command("report")(report.command)
app.command("predict")(predict.command)
app.command("bench")(bench.command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Args:
        arguments: What stands after the program's name; by default those of this process.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="offramp")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
