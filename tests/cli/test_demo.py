import json
from dataclasses import replace

import pytest

from offramp._core.errors import InputError
from offramp.bundle import load_bundle
from offramp.cli import demo, demo_run
from offramp.evaluate import DoNotCascade, evaluate
from offramp.trace import load_trace


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The demo with smaller networks and less training."""
    networks = (
        replace(demo_run.NETWORKS[0], epochs=5),
        replace(demo_run.NETWORKS[2], width=12, depth=4, epochs=6, learning_rate=0.01),
    )
    out = tmp_path_factory.mktemp("demo") / "run"
    told = []
    found = demo_run.run_demo(
        out, seed=3, networks=networks, rounds=2, progress=False, tell=told.append
    )
    return found, out, told


def test_the_demo_leaves_a_whole_run_behind(short):
    _, out, told = short
    assert len(told) == 6
    assert {path.name for path in out.iterdir()} == {
        *("run.json", "digits.trace", "frontier.json", "chosen.json", "evaluation.json"),
        *("timing.json", "bundle", "test.npz", "predictions.csv", "report.html", "report.json"),
    }
    assert {path.name for path in out.parent.iterdir()} == {"run"}


def test_its_numbers_are_those_of_its_files(short):
    found, out, _ = short
    test = load_trace(out / "digits.trace").part("test")
    again = evaluate(test, load_bundle(out / "bundle").setting, seed=0)
    assert again.to_dict() == found.chosen.to_dict()
    shown = json.loads((out / "report.json").read_text())
    assert shown["test"]["accuracy"] == found.chosen.accuracy
    assert shown["timing"] == [dict(row) for row in found.timing]
    assert [c["unit"] for c in shown["costs"]] == ["flops", "seconds", "seconds"]
    assert found.singles.keys() == {"small", "large"}
    assert found.singles["large"].accuracy == test.accuracy(1)


def test_runtime_and_fresh_process_agree_with_replay(short):
    found, _, _ = short
    assert found.replayed + found.undecided == found.chosen.n == 297
    assert found.undecided <= 3
    assert found.predicted == 297


def test_the_summary_fits_a_terminal(short):
    found, _, _ = short
    lines = demo.summary(found)
    assert len(lines) <= 15
    assert max(len(line) for line in lines[:-1]) < 80
    assert f"{100 * found.chosen.accuracy:.1f} %" in "\n".join(lines)
    assert str(found.report) in lines[-1]


def test_the_summary_says_so_if_a_cascade_is_not_worth_it(short):
    found, _, _ = short
    single = found.choice.best_single
    refused = DoNotCascade(
        reason="Do not use a cascade here: " + "because of this " * 12,
        best_single=single,
        risk="difference",
        max_loss=0.02,
        max_cost=None,
    )
    lines = demo.summary(replace(found, choice=refused))
    assert "Do not use a cascade here" in "\n".join(lines)
    assert len(lines) <= 15


def test_a_demo_is_replaced_and_anything_else_refused(short, tmp_path):
    _, out, _ = short
    assert demo_run.check_replaceable(out, "offramp demo")
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="not only a run of offramp"):
        demo_run.run_demo(tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_the_whole_demo_succeeds_from_the_shell(run, tmp_path):
    found = run("demo", "--out", tmp_path / "demo")
    assert found.code == 0, found.err
    assert len(found.out.splitlines()) <= 15
    assert (tmp_path / "demo" / "report.html").is_file()
    again = run("demo", "--out", tmp_path / "demo", "--json")
    assert again.code == 0
    result = json.loads(again.out)
    assert result["outcome"] == "cascade"
    assert result["test"]["cost_ratio"] < 0.5
    assert result["test"]["accuracy"] > result["singles"]["small"]["accuracy"]
