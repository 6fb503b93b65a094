"""`offramp train joint`: networks and stopping networks from a configuration, in one command."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from offramp._core.files import remove_folder
from offramp._core.schema import from_json, to_json
from offramp.bundle import load
from offramp.cli import main
from offramp.evaluation import assignment, evaluate
from offramp.policy import Candidate
from offramp.project.build import dataset_of
from offramp.project.config.config import load_config
from offramp.project.joint import CHECKPOINTS, WORK, trace_name
from offramp.trace import load_trace

CONFIG = """
[data]
kind = "digits"
splits = { train = 500, fit = 400, calibrate = 300, test = 300 }
seed = 7

[[stage]]
name = "small"
model = "small_cnn"
arguments = { width = 3, depth = 2 }
transform = { kind = "normalize", scale = 0.0625 }

[[stage]]
name = "large"
model = "small_cnn"
arguments = { width = 8, depth = 3 }
transform = { kind = "normalize", scale = 0.0625 }

[joint]
cost_weights = [0.1, 0.03]
epochs = 4
epochs_next = 2
batch_size = 16
learning_rate = 0.03

[fit]
max_cost = 0.9
combines = ["last"]

[output]
dir = "run"
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a configuration, a run and a bundle."""
    folder = tmp_path_factory.mktemp("joint")
    torch.set_num_threads(1)
    (folder / "joint.toml").write_text(CONFIG)
    arguments = ["train", "joint", "-c", folder / "joint.toml", "--bundle", folder / "bundle"]
    if main([str(word) for word in arguments]):
        raise RuntimeError("train joint failed")
    return folder


def changed(folder, path, *pairs):
    """The configuration with something else in it, in another folder."""
    text = (folder / "joint.toml").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def test_one_command_gives_a_frontier_over_cost_weights_and_a_choice(trained):
    said = json.loads((trained / "run" / "joint.json").read_text())
    assert said["cost_weights"] == [0.03, 0.1]
    assert said["epochs"] == [4, 2]
    assert (said["split"], said["examples"], said["given"]) == ("test", 300, False)
    assert [one["name"] for one in said["static"]] == ["small", "large"]
    assert said["static"][0]["cost"] < said["static"][1]["cost"]
    assert len(said["curves"]["joint"]) >= 1
    assert sum(said["assignment"]["share"]) == pytest.approx(1.0)
    assert said["outcome"] == "measured, not promised"
    assert said["trace"] == trace_name(said["chosen"]["cost_weight"])


def test_the_choice_is_what_its_own_trace_gives_against_the_networks_alone(trained):
    said = json.loads((trained / "run" / "joint.json").read_text())
    candidate = from_json(Candidate, said["choice"]["point"]["candidate"])
    part = load_trace(trained / "run" / said["trace"]).subset("test")
    alone = load_trace(trained / "run" / "static.trace").subset("test")
    found = evaluate(part, candidate, bootstrap=0, baseline=alone)
    assert said["chosen"]["cost"] == found.cost
    assert said["chosen"]["error"] == 1 - found.accuracy
    assert found.reference_accuracy == alone.accuracy(alone.topology.index(candidate.reference))
    assert said["assignment"] == to_json(assignment(part, candidate))
    assert not torch.equal(part.logits, alone.logits)
    assert np.array_equal(part.ids, alone.ids)


def test_traces_hold_nothing_that_was_trained_on(trained):
    config = load_config(trained / "joint.toml")
    seen = set(dataset_of(config).subset("train").ids.tolist())
    for name in ("static.trace", trace_name(0.03), trace_name(0.1)):
        trace = load_trace(trained / "run" / name)
        assert len(trace) == 1000
        assert not seen & set(trace.ids.tolist())


def test_the_bundle_answers_as_the_replay_does(trained):
    said = json.loads((trained / "run" / "joint.json").read_text())
    part = load_trace(trained / "run" / said["trace"]).subset("test")
    config = load_config(trained / "joint.toml")
    inputs = dataset_of(config).subset("test").inputs
    answer = load(trained / "bundle")(inputs)
    wrong = float((answer.labels != part.labels).double().mean())
    assert wrong == pytest.approx(said["chosen"]["error"])


@pytest.mark.slow  # fits all again; the sweep's own test is quick (unit/train): make test-slow
def test_a_second_call_trains_nothing_and_says_the_same(run, trained):
    before = load_file(trained / "run" / "joint" / "cost_weight_0.1.safetensors")
    first = json.loads((trained / "run" / "joint.json").read_text())
    found = run("train", "-c", trained / "joint.toml", "--json")
    assert found.code == 0, found.err
    again = json.loads(found.out)
    assert again["static"] == first["static"]
    assert again["curves"] == first["curves"]
    after = load_file(trained / "run" / "joint" / "cost_weight_0.1.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_restart_may_remove_whatever_training_left(trained, tmp_path):
    left = shutil.copytree(trained / "run" / WORK, tmp_path / WORK)
    names = ("alone", "cost_weight_0.03", "cost_weight_0.1")
    assert {path.stem for path in left.iterdir()} == {*names}
    remove_folder(left, CHECKPOINTS)
    assert not left.exists()


def test_another_training_in_the_same_folder_is_refused_with_the_way_out(run, trained, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(trained, copied, ignore=shutil.ignore_patterns("bundle"))
    config = changed(trained, copied / "joint.toml", ("batch_size = 16", "batch_size = 20"))
    found = run("train", "joint", "-c", config)
    assert found.code == 2
    assert "batch_size" in found.err
    assert "--restart` begins anew" in found.err


def test_the_report_draws_the_table_and_the_figures(run, trained):
    found = run("report", trained / "run", "--config", trained / "joint.toml")
    assert found.code == 0, found.err
    assert "joint.html" in found.out
    said = json.loads((trained / "run" / "joint.json").read_text())
    page = (trained / "run" / "joint.html").read_text()
    assert f"{100 * said['chosen']['error']:.2f}" in page
    assert "stops with" in page
    assert "figure4-wide" in page
    assert "<script" not in page
    assert 'src="http' not in page


def test_evaluate_takes_the_chosen_setting_on_its_trace(run, trained):
    said = json.loads((trained / "run" / "joint.json").read_text())
    trace, candidate = trained / "run" / said["trace"], trained / "run" / "joint.json"
    found = run("evaluate", trace, candidate, "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["cost"] == pytest.approx(said["chosen"]["cost"])


@pytest.mark.slow  # unit/train/test_joint.py trains frozen classifiers: make test-slow
def test_networks_that_stay_as_they_are_are_not_trained_at_all(run, project, tmp_path):
    text = (project / "run.toml").read_text().replace('weights = "', f'weights = "{project}/')
    more = "[joint]\ncost_weights = 0.03\nepochs = 3\nfrozen = true\npart = 'test'\n"
    (tmp_path / "frozen.toml").write_text(text + more)
    found = run("train", "--restart", "-c", tmp_path / "frozen.toml", "--json")
    assert found.code in (0, 3), found.err
    said = json.loads(found.out)
    assert said["given"] is True
    for one in said["static"]:
        assert one["together"] == [one["error"]]
    static, joint = (
        load_trace(tmp_path / "run" / name) for name in ("static.trace", trace_name(0.03))
    )
    assert torch.equal(static.logits, joint.logits)
    assert not (tmp_path / "run" / "joint" / "alone.safetensors").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cost_weights = [0.1, 0.03]", "cost_weights = [0.1, -0.5]", r"joint.cost_weights[1]"),
        ("cost_weights = [0.1, 0.03]", "cost_weights = [0.1, 0.1]", "0.1 stands there twice"),
        ("epochs = 4", "epochs = 4\nwarm_up = 5", "at most epochs = 4, got 5"),
        ("epochs = 4", "epochs = 4\nfrozen = true", "give each stage weights, also small, large"),
        ("epochs = 4", "epochs = 4\nrollouts = 'visited'", "estimator = 'reinforce'"),
        ("epochs = 4", "epochs = 4\nwarmup = 1", "Did you mean 'warm_up'"),
        ("train = 500, ", "", "the split 'train' (joint.part)"),
    ],
)
def test_wrong_values_are_named(run, trained, tmp_path, old, new, message):
    config = changed(trained, tmp_path / "bad.toml", (old, new))
    found = run("train", "joint", "-c", config)
    assert found.code == 2
    assert message in found.err
    assert not (tmp_path / "run").exists()


def test_a_cascade_of_one_network_is_refused(run, trained, tmp_path):
    text = (trained / "joint.toml").read_text()
    start = text.index("[[stage]]", text.index("[[stage]]") + 1)
    (tmp_path / "one.toml").write_text(text[:start] + text[text.index("[joint]") :])
    found = run("train", "joint", "-c", tmp_path / "one.toml")
    assert found.code == 2
    assert "at least two [[stage]]" in found.err


def test_networks_of_different_classes_are_refused(run, trained, tmp_path):
    config = changed(trained, tmp_path / "x.toml", ("width = 8,", "width = 8, classes = 11,"))
    found = run("train", "joint", "-c", config)
    assert found.code == 2
    assert "11" in found.err


def test_what_can_be_trained_is_named(run, trained, one_network):
    found = run("train", "both", "-c", "x.toml")
    assert "one of ['heads', 'classifiers', 'joint'], got 'both'" in found.err
    found = run("train", "joint", "-c", one_network / "exits.toml")
    assert found.code == 2
    assert "`offramp train heads`" in found.err
    found = run("train", "heads", "-c", one_network / "exits.toml", "--bundle", "b")
    assert "fit --bundle" in found.err
