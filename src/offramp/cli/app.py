"""The program `offramp`: its subcommands, and what becomes of errors, warnings and interrupts.

Layer: cli.
"""

import logging
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from offramp import __version__
from offramp._core.logs import logging_to_stderr
from offramp.cli import errors, options, output
from offramp.cli.advise import command as advise
from offramp.cli.bench import command as bench
from offramp.cli.class_exits import command as class_exits
from offramp.cli.cut import command as cut
from offramp.cli.demo import command as demo
from offramp.cli.doctor import command as doctor
from offramp.cli.edge import program as edge
from offramp.cli.evaluate import command as evaluate
from offramp.cli.export import command as export
from offramp.cli.fit import command as fit
from offramp.cli.init import command as init
from offramp.cli.predict import command as predict
from offramp.cli.profile import command as profile
from offramp.cli.record import command as record
from offramp.cli.report import command as report
from offramp.cli.serve import command as serve
from offramp.cli.simulate import command as simulate
from offramp.cli.top import command as top
from offramp.cli.train import command as train
from offramp.cli.tune import command as tune


class _Program(TyperGroup):
    """Runs a subcommand; errors become messages with an exit code, warnings become notes."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  (the parser's types are private)
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = lambda text, *_: output.note(str(text))
            try:
                return super().invoke(ctx)
            except (Exception, KeyboardInterrupt) as error:
                # The parser's own exceptions are for typer to show, a closed pipe to ignore.
                own = type(error).__module__.split(".")[0] in ("typer", "click")
                if own or isinstance(error, BrokenPipeError):
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
        "Start with **offramp demo**; **doctor** says whether everything works here. With networks "
        "of your own: **init** writes a configuration; **record** "
        "what they say about labeled data, **advise** whether a cascade is worth it, "
        "**fit** policies and choose one, "
        "**evaluate** it, write a **report**; then **predict** and "
        "**bench** with the bundle, **serve** it over HTTP, **simulate** a cluster of it, split it "
        "between a device and a cloud (**edge**), **tune** it to the machine, or **export** it to "
        "ONNX. "
        "With one network: first **cut** it and **train** its exits; **class-exits** make some "
        "classes faster."
    ),
    epilog=(
        "Exit codes: 0 done, 1 unexpected, 2 wrong usage or input, 3 no cascade is worth it, "
        "130 interrupted, 143 terminated."
    ),
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"offramp {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error happened.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what is decided on the way, with the time.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options that stand before the command."""
    if verbose:
        context.with_resource(logging_to_stderr(level=logging.DEBUG))


_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "doctor": doctor,
    "init": init,
    "cut": cut,
    "train": train,
    "record": record,
    "class-exits": class_exits,
    "advise": advise,
    "fit": fit,
    "evaluate": evaluate,
    "report": report,
    "export": export,
    "predict": predict,
    "bench": bench,
    "serve": serve,
    "top": top,
    "simulate": simulate,
    "profile": profile,
    "tune": tune,
}
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=options.Once)(_command)
app.add_typer(edge)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Args:
        arguments: What stands after the program's name; by default those of this process.
    """
    try:
        with _told_to_end():
            app(args=None if arguments is None else list(arguments), prog_name="offramp")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt as error:  # before or after the command itself
        output.error(errors.message(error))
        return errors.exit_code(error)
    return 0


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Within, SIGTERM ends the program as an interrupt does: half-written files are removed."""
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # told again, it ends at once
    raise errors.Terminated
