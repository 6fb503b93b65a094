"""Rights, long names, read-only places, damaged files of a run, signals, and how it is started."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from offramp import Cascade
from offramp import __main__ as program
from offramp._core import ownership
from offramp._core.errors import FileFormatError, InputError, MissingExtraError
from offramp._core.files import write_json
from offramp._core.ownership import BUNDLE, check_file, check_folder
from offramp._core.schema import from_json, to_json
from offramp.bundle import export_onnx, save, tune
from offramp.cli import errors, main
from offramp.evaluation import Choice, Frontier, fit
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.project.folder import RunFolder
from offramp.runtime import Adaptive
from offramp.trace import load_trace, make_trace, save_trace

SPEC = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2})


def bundled(path):
    cascade = Cascade.from_models({"a": build(SPEC)}, specs={"a": SPEC})
    candidate = Candidate.single(cascade.topology, "a", reference="a")
    save(Adaptive(cascade, candidate), path, input_shape=(1, 8, 8))
    return cascade, candidate


def test_rights_are_the_usual_ones_and_nobody_else_s_are_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the whole process has one umask"))
    script = "import os, pathlib\nfrom offramp._core.files import write_json\n"
    for umask in (0o077, 0o022, 0o007):
        script += f"os.umask({umask}); write_json(pathlib.Path('a{umask}.json'), {{}})\n"
        script += f"pathlib.Path('b{umask}').touch()\n"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    for umask in (0o077, 0o022, 0o007):
        ours, usual = tmp_path / f"a{umask}.json", tmp_path / f"b{umask}"
        assert ours.stat().st_mode == usual.stat().st_mode
    write_json(tmp_path / "c.json", {})
    save_trace(make_trace(3), tmp_path / "t.trace")
    (tmp_path / "d").touch()
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "c.json").stat().st_mode == (tmp_path / "d").stat().st_mode
    assert (tmp_path / "t.trace").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["n" * 250, "n" * 255, "ü" * 127])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, name):
    save_trace(make_trace(3), tmp_path / name)
    save_trace(make_trace(5), tmp_path / name, overwrite=True)
    assert len(load_trace(tmp_path / name)) == 5
    with pytest.raises(InputError, match=r"at most 255 bytes, got 25[6-9]"):
        check_folder(tmp_path / ("ü" * 128), BUNDLE)


@pytest.fixture
def read_only(monkeypatch):
    """Makes folders read-only, for root as well."""
    closed = set()
    access = os.access
    monkeypatch.setattr(
        ownership.os, "access", lambda path, mode: Path(path) not in closed and access(path, mode)
    )
    return closed


def test_a_read_only_place_is_found_before_the_work(tmp_path, read_only, capsys, monkeypatch):
    bundled(tmp_path / "b")
    place = tmp_path / "place"
    place.mkdir()
    read_only.add(place)
    for check in (check_file, lambda path: check_folder(path, BUNDLE)):
        with pytest.raises(InputError, match="place is read-only"):
            check(place / "deep" / "x")
    with pytest.raises(InputError, match="place is read-only"):
        RunFolder.claim(place / "run")
    monkeypatch.setattr("offramp.bundle.load", lambda *_, **__: pytest.fail("loaded"))
    b, npz = str(tmp_path / "b"), str(tmp_path / "x.npz")
    for command in (
        ["predict", b, npz, "--out", str(place / "p.csv")],
        ["export", b, "--out", str(place / "onnx")],
        ["export", b, "--single-file", str(place / "a.onnx")],
        ["bench", b, "--out", str(place / "a.json")],
        ["profile", b, "--out", str(place / "a.svg")],
    ):
        assert main(command) == 2
        assert "place is read-only" in capsys.readouterr().err


def test_tune_does_not_measure_what_it_cannot_keep(tmp_path, read_only):
    bundled(tmp_path / "b")
    read_only.add(tmp_path / "b")
    with pytest.raises(InputError, match="b is read-only"):
        tune(tmp_path / "b", torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ({"seed": "x"}, "seed must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"files": [1]}, "files must be a list of names"),
        ({"files": "frontier.json"}, "files must be a list of names"),
        ({"version": "x"}, "version must be a whole number"),
        ({"trace": 3}, "trace must be a path"),
        ({"command": []}, "command must be a text"),
        ({"version": 99}, "newer version"),
    ],
    ids=str,
)
def test_a_damaged_run_is_refused_by_name(tmp_path, fact, said, capsys):
    RunFolder.claim(tmp_path / "run").write("chosen.json", {})
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fact}))
    with pytest.raises(FileFormatError, match=said):
        RunFolder.open(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


def damaged(value, path=()):
    """The value with each of its parts in turn made something else."""
    for key in value if isinstance(value, dict) else range(len(value)):
        inner = value[key]
        for wrong in ([], {}, "x", None, -3, 1e30, [[1]]):
            copy = json.loads(json.dumps(value))
            copy[key] = wrong
            yield (*path, key), copy
        if isinstance(inner, dict | list) and inner:
            for where, changed in damaged(inner, (*path, key)):
                copy = json.loads(json.dumps(value))
                copy[key] = changed
                yield where, copy


def refusal(read):
    """What a reader says of a damaged file; None where it reads it."""
    try:
        read()
    except FileFormatError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def frontier():
    return fit(make_trace(60, stages=2, seed=0), "threshold", combines=["last"], progress=False)


def test_damaged_frontiers_and_choices_end_in_an_error_of_ours(frontier, tmp_path):
    whole = to_json(frontier)
    small = {**whole, **{k: v[:1] for k, v in whole.items() if isinstance(v, list)}}
    frontier_file = tmp_path / "frontier.json"
    for where, value in itertools.islice(damaged(small), 0, None, 29):
        said = refusal(lambda value=value: from_json(Frontier, value, where=frontier_file))
        assert said is None or "frontier.json" in said, where
    path = tmp_path / "chosen.json"
    choice = to_json(frontier.cheapest(max_drop=0.5))
    for where, value in itertools.islice(damaged(choice), 0, None, 7):
        said = refusal(lambda value=value: from_json(Choice, value, where=path))
        assert said is None or "chosen.json" in said, where


def test_told_to_end_it_clears_away_and_ends_with_143(monkeypatch, capsys, tmp_path):
    def told(self, name, value):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            threading.Event().wait(0.01)

    monkeypatch.setattr(RunFolder, "write", told)
    save_trace(make_trace(300, accuracies=[0.8, 0.9]), tmp_path / "t.trace")
    command = ["fit", str(tmp_path / "t.trace"), "--policy", "random", "--max-drop", "0.5"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 143
    assert "Terminated." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "arrays.safetensors",
        "run",
        "run.json",
        "t.trace",
        "trace.json",
    ]


def test_a_handler_of_others_is_left_alone(monkeypatch):
    mine = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        main(["--version"])
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, mine)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, errors.Terminated])
def test_an_interrupt_outside_of_a_command_is_no_traceback(monkeypatch, capsys, stop):
    def interrupted(*_, **__):
        raise stop

    monkeypatch.setattr(sys.modules["offramp.cli.app"], "app", interrupted)
    assert main(["demo"]) == errors.exit_code(stop())
    assert capsys.readouterr().err in ("Error: Interrupted.\n", "Error: Terminated.\n")


def test_an_interrupt_while_it_is_imported_is_no_traceback(monkeypatch, capsys):
    class Interrupted:
        def find_spec(self, name, *_):
            if name == "offramp.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "offramp.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert program.main() == 130
    assert capsys.readouterr().err == "Error: Interrupted.\n"


@pytest.mark.parametrize("module", ["offramp", "offramp.cli"])
def test_it_starts_as_a_module(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("offramp ")


def test_export_without_its_extra_names_it(tmp_path, monkeypatch, capsys):
    cascade, candidate = bundled(tmp_path / "b")
    monkeypatch.setitem(sys.modules, "onnx", None)
    example = torch.zeros(1, 1, 8, 8)
    model = Adaptive(cascade, candidate)
    for name, folder in (("o", True), ("o.onnx", False)):
        with pytest.raises(MissingExtraError, match=r"offramp\[onnx\]"):
            export_onnx(model, tmp_path / name, example=example, folder=folder)
    assert main(["export", str(tmp_path / "b"), "--out", str(tmp_path / "o")]) == 2
    assert "offramp[onnx]" in capsys.readouterr().err


def test_the_shell_hears_of_options_and_not_of_arguments(tmp_path, capsys):
    bundled(tmp_path / "b")
    (tmp_path / "p.csv").touch()
    command = ["predict", str(tmp_path / "b"), "x.npz", "--out", str(tmp_path / "p.csv")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "exists already" in said
    assert "pass --overwrite" in said
