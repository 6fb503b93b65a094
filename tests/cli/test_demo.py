import itertools
import json
from dataclasses import replace

import pytest
import torch

from offramp._core.errors import InputError
from offramp._core.schema import to_json
from offramp.bundle import load
from offramp.cli import demo
from offramp.evaluation import evaluate
from offramp.models import small_cnn
from offramp.project import demo as demo_run
from offramp.stages import Cascade, measure_flops
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
    test = load_trace(out / "digits.trace").subset("test")
    again = evaluate(test, load(out / "bundle").candidate, seed=0)
    assert to_json(again) == to_json(found.chosen)
    shown = json.loads((out / "report.json").read_text())
    assert shown["test"]["accuracy"] == found.chosen.accuracy
    assert shown["timing"] == [dict(row) for row in found.timing]
    assert [c["unit"] for c in shown["costs"]] == ["flops", "seconds", "seconds"]
    assert found.singles.keys() == {"small", "large"}
    assert found.singles["large"].accuracy == test.accuracy(1)


def test_runtime_and_fresh_process_agree_with_replay(short):
    found, _, _ = short
    assert found.replayed + found.undecided == found.chosen.n == 347
    assert found.undecided <= 3
    assert found.predicted == 347


def test_the_summary_fits_a_terminal_and_says_allowed_promised_and_reached(short):
    found, _, _ = short
    lines = demo.summary(found)
    assert len(lines) <= 17
    assert max(len(line) for line in lines[:-1]) < 80
    text = "\n".join(lines)
    assert f"{100 * found.chosen.accuracy:.1f} %" in text
    assert [word for word in ("allowed:", "promised:", "reached:") if word in text] == [
        "allowed:",
        "promised:",
        "reached:",
    ]
    assert str(found.report) in lines[-1]


def test_the_promise_is_a_certificate_or_nothing(short):
    found, out, _ = short
    trace = load_trace(out / "digits.trace")
    frontier, again = demo_run.promised(trace, seed=3, progress=False)
    assert again.outcome == found.choice.outcome
    assert again.delta == demo_run.DELTA
    assert to_json(again.candidate) == to_json(found.choice.candidate)
    assert again.n == len(trace.subset("calibrate")) == 550
    assert frontier.reference == "large"
    stored = json.loads((out / "chosen.json").read_text())
    assert stored["outcome"] in ("certified", "not certified")


def test_the_summary_says_so_if_nothing_can_be_promised(short):
    found, _, _ = short
    alone = next(p for p in evaluated_singles(found) if p.candidate.label == "large alone")
    why = "because of this " * 12
    refused = replace(
        found.choice, point=alone, guarantee=None, refused=why, sentence=f"Not certified: {why}."
    )
    lines = demo.summary(replace(found, choice=refused))
    assert "promised: nothing. Not certified: because of this" in "\n".join(lines)
    assert max(len(line) for line in lines[:-1]) < 80


def evaluated_singles(found):
    """The networks alone, as points of the demo's frontier."""
    trace = load_trace(found.report.parent / "digits.trace")
    return demo_run.promised(trace, seed=3, progress=False)[0].singles


def test_each_network_costs_four_to_ten_times_the_one_before():
    costs = [flops_of(n) for n in demo_run.NETWORKS]
    steps = [after / before for before, after in itertools.pairwise(costs)]
    assert all(4 <= step <= 10 for step in steps), steps


def flops_of(network):
    net = small_cnn(width=network.width, depth=network.depth).eval()
    cascade = Cascade.from_models({"only": net})
    return measure_flops(cascade, torch.zeros(1, 1, 8, 8)).segment[0]


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
    assert len(found.out.splitlines()) <= 17
    assert (tmp_path / "demo" / "report.html").is_file()
    again = run("demo", "--out", tmp_path / "demo", "--json")
    assert again.code == 0
    result = json.loads(again.out)
    assert result["outcome"] == "certified"
    assert result["test"]["cost_ratio"] < 0.5
    assert result["test"]["accuracy"] > result["singles"]["small"]["accuracy"]
