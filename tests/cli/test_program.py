import json
import logging
import os
import subprocess
import sys

import pytest

from offramp import __version__
from offramp._core import errors as core_errors
from offramp._core.errors import InputError, OfframpError
from offramp.cli import errors
from offramp.cli.app import app
from offramp.cli.options import Once
from offramp.cli.output import aligned, amount, points

COMMANDS = [
    *("demo", "doctor", "init", "cut", "train", "record", "class-exits", "advise"),
    *("fit", "evaluate", "report", "export", "predict", "bench", "serve", "top"),
    "simulate",
    *("profile", "tune"),
]
OF_THE_EDGE = ["edge split", "edge run"]


def test_help_and_import_leave_torch_alone():
    code = (
        "import sys, offramp.cli\n"
        "for arguments in (['--help'], *([c, '--help'] for c in "
        f"{COMMANDS!r}), *([*c.split(), '--help'] for c in {OF_THE_EDGE!r}), ['--version']):\n"
        "    assert offramp.cli.main(arguments) == 0, arguments\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "offramp.cli", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"offramp {__version__}")


def test_every_command_is_there_and_no_other():
    assert [command.name for command in app.registered_commands] == COMMANDS
    (edge,) = app.registered_groups
    assert [f"edge {c.name}" for c in edge.typer_instance.registered_commands] == OF_THE_EDGE


@pytest.mark.parametrize("command", [*COMMANDS, *OF_THE_EDGE])
def test_help_says_what_goes_in_what_comes_out_and_gives_an_example(run, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    found = run(*command.split(), "--help")
    assert found.code == 0
    said = " ".join(found.out.split())  # early versions of typer join the paragraphs
    for word in ("In:", "Out:", f"Example: offramp {command}", "--json"):
        assert word in said
    assert max(len(line) for line in found.out.splitlines()) <= 80


def test_a_shell_can_complete(tmp_path):
    """Typer's own: `offramp --install-completion` puts this into the shell's settings."""
    asked = {"_OFFRAMP_COMPLETE": "complete_bash", "COMP_WORDS": "offramp doc", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "offramp"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **asked},
    )
    assert done.stdout.split() == ["doctor"], done.stderr


def test_verbose_shows_what_the_package_logs_once(run, monkeypatch, tmp_path):
    def say(*_: object) -> None:
        logging.getLogger("offramp.x").info("chose this")
        raise InputError("and stopped")

    monkeypatch.setattr("offramp.project.folder.read_json", say)
    quiet, told = (run(*before, "evaluate", tmp_path, tmp_path) for before in ([], ["--verbose"]))
    assert quiet.err == "Error: and stopped\n"
    assert told.err.count("INFO chose this") == 1
    handlers = logging.getLogger("offramp").handlers
    assert [type(handler) for handler in handlers] == [logging.NullHandler]


def test_no_arguments_show_the_help(run):
    assert "Commands" in run().out + run().err


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["fit", "--max-drop", "much"], ["predict"], ["bench", "x", "--rounds", "0"]],
)
def test_wrong_usage_ends_with_2(run, arguments):
    found = run(*arguments)
    assert found.code == 2
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (
            ["fit", "x", "--policy", "threshold", "--max-drop", "0.1", "--policy=learned"],
            "--policy",
        ),
        (["predict", "x", "--fold", "y", "--no-fold"], "--fold"),
        (["edge", "run", "x", "y", "--array", "a", "--array", "a"], "--array"),
    ],
)
def test_an_option_given_twice_is_refused_and_not_replaced(run, arguments, option):
    found = run(*arguments)
    assert found.code == 2
    assert f"{option} must be given once, got it 2 times" in found.err


def test_what_may_be_repeated_and_flags_are_taken_twice(run, tmp_path):
    twice = ["--json", "--allow-network", "a"] * 2
    found = run("predict", tmp_path / "no", "y", *twice)
    assert found.code == 2
    assert "must be given once" not in found.err
    assert str(tmp_path / "no") in found.err


def test_every_command_refuses_an_option_given_twice():
    (edge,) = app.registered_groups
    commands = [*app.registered_commands, *edge.typer_instance.registered_commands]
    assert {command.cls for command in commands} == {Once}


def test_every_error_on_purpose_means_wrong_input_and_the_rest_is_unexpected():
    leaves = [
        kind
        for kind in vars(core_errors).values()
        if isinstance(kind, type) and issubclass(kind, OfframpError)
    ]
    assert len(leaves) > 5
    leaves.remove(core_errors.StorageError)  # a full disk is nobody's wrong input
    codes = {errors.exit_code(kind.__new__(kind)) for kind in leaves}
    assert codes == {errors.WRONG_INPUT}
    assert errors.exit_code(core_errors.StorageError("full")) == errors.UNEXPECTED
    assert errors.exit_code(OSError(28, "No space left on device")) == errors.UNEXPECTED
    assert errors.exit_code(KeyboardInterrupt()) == errors.INTERRUPTED


def test_a_missing_trace_is_named_without_a_traceback(run, tmp_path):
    found = run("evaluate", tmp_path / "no.trace", tmp_path / "no.json")
    assert found.code == 2
    assert str(tmp_path / "no.json") in found.err
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["record", "--config", "my run.toml"], "offramp init 'my run.toml'"),
        (["fit", "--max-drop", "0.1", "a.trace"], "offramp record"),
        (["fit", "--max-drop", "0.1", "--out", "here"], "offramp record"),
        (["report", "nowhere"], "offramp fit"),
        (["evaluate", "a.trace", "nowhere"], "offramp fit"),
        (["predict", "bundle", "x.png"], "offramp fit --bundle"),
    ],
)
def test_what_is_missing_is_told_with_the_command_that_makes_it(
    run, tmp_path, monkeypatch, arguments, command
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").touch()
    (tmp_path / "here").mkdir()
    found = run(*arguments)
    assert found.code == 2
    assert f"`{command}" in found.err


def test_debug_shows_where_an_error_happened(run, tmp_path):
    found = run("--debug", "evaluate", tmp_path / "no.trace", tmp_path / "no.json")
    assert found.code == 2
    assert "Traceback" in found.err
    assert "candidate_from_file" in found.err


def _failing_with(error, monkeypatch, run, tmp_path):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("offramp.project.folder.read_json", fail)
    return run("evaluate", tmp_path, tmp_path)


def test_an_interrupt_ends_with_130(run, tmp_path, monkeypatch):
    found = _failing_with(KeyboardInterrupt(), monkeypatch, run, tmp_path)
    assert found.code == 130
    assert found.err == "Error: Interrupted.\n"


def test_an_unexpected_error_ends_with_1_and_names_its_type(run, tmp_path, monkeypatch):
    found = _failing_with(ZeroDivisionError("oh"), monkeypatch, run, tmp_path)
    assert found.code == 1
    assert "ZeroDivisionError: oh" in found.err
    assert "--debug" in found.err
    assert "Traceback" not in found.err


def test_json_is_one_object_and_the_only_thing_on_standard_output(run, trace_path, tmp_path):
    found = run("fit", trace_path, "--policy", "threshold", "--combines", "last")
    assert found.code == 2  # no limit was given
    assert found.out == ""
    found = run(
        *("fit", trace_path, "--policy", "threshold", "--combines", "last"),
        *("--max-drop", 0.03, "--delta", "none"),
        *("--out", tmp_path / "run", "--json"),
    )
    assert found.code == 0
    assert len(found.out.splitlines()) == 1
    assert json.loads(found.out)["outcome"] == "measured, not promised"


def test_tables_are_aligned_and_numbers_have_units():
    assert aligned(["a", "b"], [["long name", "1"], ["x", "200"]]) == [
        "a            b",
        "long name    1",
        "x          200",
    ]
    assert amount(2.5e9, "flops") == "2.5 GFLOP"
    assert amount(0.0, "seconds") == "0 s"
    assert amount(0.001, "usd") == "$0.001"
    assert (points(-0.0125), points(1e-9), points(0.02)) == ("-1.25", "0.00", "+2.00")
