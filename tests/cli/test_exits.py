"""A shell session with one network: cut --list, cut, train, record, fit, evaluate and the rest."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from offramp.bundle import load
from offramp.models import small_cnn
from offramp.project.build import cascade_of, dataset_of
from offramp.project.config.config import load_config
from offramp.project.heads import HEADS
from offramp.stages import cut_points, measure_flops
from offramp.trace import load_trace

STAGES = (
    *("features.0/linear", "features.0/deep", "features.2/linear", "features.2/deep"),
    "last",
)


def changed(folder, name, *pairs, after=""):
    """The configuration with something else in it."""
    text = (folder / "exits.toml").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text + after)
    return path


def test_points_of_a_model_are_listed_without_any_file(run):
    found = run("cut", "--list", "--model", "small_cnn", "--input", "1,8,8", "--json")
    assert found.code == 0, found.err
    assert "random weights" in found.err
    said = json.loads(found.out)
    assert [p["name"] for p in said["points"]] == [*(f"features.{k}" for k in range(3)), "features"]
    assert (said["input"], said["batch_size"]) == ([1, 8, 8], 1)
    assert said["points"][-1]["aliases"][0] == "features.3"
    assert said["points"][-1]["shape"] == [32, 4, 4]
    for point in said["points"]:
        assert said["flops"] * point["flops_share"] == pytest.approx(point["flops"])
    seconds = [p["seconds"] for p in said["points"]]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= said["seconds"]


def test_points_of_a_configuration_are_a_table(run, one_network):
    config = one_network / "exits.toml"
    found = run("cut", "--list", "--config", config, "--batch-size", 8)
    assert found.code == 0, found.err
    assert "4 of them at ends of blocks (--all shows the others)" in found.out
    assert "inputs of shape 1x8x8 at batch size 8 on cpu" in " ".join(found.out.split())
    assert max(len(line) for line in found.out.splitlines()) < 80
    net = small_cnn(width=8, depth=4).eval()
    points = cut_points(net, torch.zeros(1, 1, 8, 8))
    rows = {line.split()[0]: line.split() for line in found.out.splitlines() if line}
    wanted = next(p for p in points if p.name == "features.1")
    assert rows["features.1"][1:3] == ["16x4x4", "1"]
    assert rows["features.1"][5] == f"{100 * wanted.share:.1f}"
    every = run("cut", "--list", "--config", config, "--all", "--json")
    assert len(json.loads(every.out)["points"]) == len(points)


def test_the_cut_shows_each_exit_and_writes_nothing(run, one_network, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(one_network, copied, ignore=shutil.ignore_patterns("run", "bundle"))
    before = sorted(p.name for p in copied.rglob("*"))
    found = run("cut", "--config", copied / "exits.toml")
    assert found.code == 0, found.err
    assert "4 exits before last" in found.out
    assert max(len(line) for line in found.out.splitlines()) < 80
    assert sorted(p.name for p in copied.rglob("*")) == before
    said = json.loads(run("cut", "--config", copied / "exits.toml", "--json").out)
    config = load_config(copied / "exits.toml")
    example = dataset_of(config).batch(0, 1).inputs
    cascade = cascade_of(config, copied, example=example, trained=False)
    costs = measure_flops(cascade, example)
    assert said["max_difference"] == 0.0
    assert said["flops"] == costs.alone(cascade.topology, 4)
    for k, (row, name) in enumerate(zip(said["exits"], STAGES[:4], strict=True)):
        assert row["name"] == name
        share = row["flops_share"] + row["head_flops_share"]
        assert share * said["flops"] == pytest.approx(costs.alone(cascade.topology, k))
    assert said["exits"][1]["arguments"]["filters"] == 8
    assert said["exits"][0]["seconds_share"] == said["exits"][1]["seconds_share"]


def test_record_without_trained_heads_says_what_to_do(run, one_network, tmp_path):
    config = changed(one_network, "fresh.toml", ('dir = "run"', f'dir = "{tmp_path / "x"}"'))
    found = run("record", "--config", config)
    assert found.code == 2
    assert f"Run `offramp train -c {config}` first" in found.err
    assert not (tmp_path / "x").exists()


def test_the_whole_session_ends_in_a_choice(run, exits_deployed):
    trace = load_trace(exits_deployed / "run" / "record.trace", verify=True)
    assert trace.stages == STAGES
    assert trace.topology.groups[:2] == ("features.0", "features.0")
    assert [int((trace.split == k).sum()) for k in range(4)] == [0, 400, 300, 300]
    assert [table.unit for table in (trace.costs, *trace.other_costs)] == ["flops", "seconds"]
    accuracies = [trace.accuracy(k) for k in range(5)]
    assert accuracies[1] > accuracies[0] > 0.3
    assert accuracies[4] > 0.9
    found = run("evaluate", exits_deployed / "run" / "record.trace", exits_deployed / "run")
    assert found.code == 0, found.err
    numbers = run(
        "evaluate", exits_deployed / "run" / "record.trace", exits_deployed / "run", "--json"
    )
    said = json.loads(numbers.out)
    assert said["cost_ratio"] < 0.95
    assert (said["n"], said["split"]) == (300, "test")


def test_report_predict_and_bench_take_exits_as_they_take_networks(run, exits_deployed, tmp_path):
    page = run("report", exits_deployed / "run", "--config", exits_deployed / "exits.toml")
    assert page.code == 0, page.err
    text = (exits_deployed / "run" / "report.html").read_text()
    assert "batch size 16" in text
    loaded = load(exits_deployed / "bundle")
    trace = load_trace(exits_deployed / "run" / "record.trace")
    examples = dataset_of(load_config(exits_deployed / "exits.toml"))
    inputs = examples.subset("test").inputs
    answer = loaded.reference(inputs)
    rows = trace.subset("test").output(4).top(1)[:, 0]
    assert torch.equal(answer.labels, rows)
    np.savez(tmp_path / "test.npz", images=inputs.numpy())
    bundle = exits_deployed / "bundle"
    predicted = run("predict", bundle, tmp_path / "test.npz", "--out", tmp_path / "p.csv")
    assert predicted.code == 0, predicted.err
    assert "300 answers" in predicted.out
    timed = run(
        "bench", bundle, tmp_path / "test.npz", "--rounds", 1, "--batch-sizes", 64, "--no-fold"
    )
    assert timed.code == 0, timed.err


def test_the_network_stays_as_it_is_and_only_heads_are_written(exits_deployed):
    net = load_file(exits_deployed / "net.safetensors")
    heads = load_file(exits_deployed / "run" / HEADS)
    assert sum(v.numel() for v in heads.values()) < sum(v.numel() for v in net.values())
    config = load_config(exits_deployed / "exits.toml")
    cascade = cascade_of(config, exits_deployed)
    own = small_cnn(width=8, depth=4).eval()
    own.load_state_dict(net)
    x = dataset_of(config).subset("test").inputs
    assert torch.equal(cascade(x)[:, -1], own(x / 16))


def test_training_again_changes_nothing_and_restart_begins_anew(run, exits_deployed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exits_deployed, folder)
    config = folder / "exits.toml"
    before = (folder / "run" / HEADS).read_bytes()
    again = run("train", "--config", config, "--json")
    assert again.code == 0, again.err
    said = json.loads(again.out)
    assert (said["trained_on"], said["judged_on"]) == (450, 50)
    assert [stage["name"] for stage in said["stages"]] == list(STAGES[:4])
    assert (folder / "run" / HEADS).read_bytes() == before
    (folder / "run" / "heads.checkpoint.safetensors").write_bytes(b"broken")
    assert run("train", "--config", config).code == 2
    assert run("train", "--config", config, "--restart").code == 0
    assert (folder / "run" / HEADS).read_bytes() == before  # the same seed


def test_an_interrupted_training_goes_on(run, one_network, exits_deployed, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(one_network, folder, ignore=shutil.ignore_patterns("run", "bundle"))
    from offramp.train import heads as module

    whole, epochs = module._train_epoch, []

    def interrupted(learners, part, plan, epoch):
        epochs.append(epoch)
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return whole(learners, part, plan, epoch)

    monkeypatch.setattr(module, "_train_epoch", interrupted)
    found = run("train", "--config", folder / "exits.toml")
    assert found.code == 130
    assert not (folder / "run" / HEADS).exists()
    assert run("train", "--config", folder / "exits.toml").code == 0
    assert epochs == [0, 1, 1, 2, 3]
    same = (exits_deployed / "run" / HEADS).read_bytes()
    assert (folder / "run" / HEADS).read_bytes() == same


SLOW = pytest.mark.slow  # another variant of what `make test` runs: make test-slow


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("filters = 8", "filters = 4", r"the head at features.0/deep is conv_head(channels=8, "),
        pytest.param(
            *("features.[02]", "features.[12]", "its exits are features.0/linear, features.0/deep"),
            marks=SLOW,
        ),
        pytest.param(
            *("scale = 0.0625", "scale = 0.05", "its network has other weights or another"),
            marks=SLOW,
        ),
    ],
)
def test_heads_of_another_configuration_are_refused(run, exits_deployed, old, new, said):
    config = changed(exits_deployed, "other.toml", (old, new))
    for verb, *more in (("record", "--out", exits_deployed / "other.trace"), ("train",)):
        found = run(verb, "--config", config, *more)
        assert found.code == 2
        assert said in found.err
        assert f"`offramp train -c {config} --restart`" in found.err


def test_damaged_heads_are_named(run, exits_deployed, tmp_path):
    config = changed(exits_deployed, "damaged.toml", ('dir = "run"', f'dir = "{tmp_path / "x"}"'))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / HEADS).write_bytes(b"nonsense")
    (tmp_path / "x" / "run.json").write_text((exits_deployed / "run" / "run.json").read_text())
    found = run("record", "--config", config)
    assert found.code == 2
    assert f"{tmp_path / 'x' / HEADS} cannot be read as heads" in found.err


def test_features_may_be_cached_and_heads_chosen_by_name(run, one_network, tmp_path):
    config = changed(
        one_network,
        "cached.toml",
        ('dir = "run"', f'dir = "{tmp_path / "x"}"'),
        ('match = "features.[02]"', 'at = ["features.1", "features.2.2"]'),
        ('heads = { linear = "gap_linear", deep = { kind = "conv_head", filters = 8 } }', ""),
        ("epochs = 4", "epochs = 1\ncache = true"),
    )
    found = run("train", "--config", config, "--json")
    assert found.code == 0, found.err
    names = [stage["name"] for stage in json.loads(found.out)["stages"]]
    assert names == ["features.1", "features.2.2"]
    assert (tmp_path / "x" / "features" / "train" / "cache.json").exists()


def test_heads_that_do_not_fit_name_the_exit(run, one_network):
    config = changed(one_network, "tokens.toml", ('"gap_linear"', '"vector_linear"'))
    found = run("cut", "--config", config)
    assert found.code == 2
    assert "no head for the exit 'features.0': Head 'vector_linear' reads a vector" in found.err
    config = changed(one_network, "nowhere.toml", ('match = "features.[02]"', 'at = "featurs.0"'))
    found = run("cut", "--config", config)
    assert found.code == 2
    assert "Did you mean 'features.0'" in found.err


def test_examples_for_the_heads_are_needed_and_others_as_well(run, one_network):
    config = changed(one_network, "few.toml", ("train = 500, ", ""))
    found = run("train", "--config", config)
    assert found.code == 2
    assert "the split 'train' (train.part), which these data do not have" in found.err
    only = "fit = 400, calibrate = 300, test = 300"
    config = changed(one_network, "only.toml", (f", {only}", ""))
    found = run("record", "--config", config)
    assert found.code == 2
    assert "All examples are in the split 'train'" in found.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--list"], "Name a configuration with --config, or a model with --model"),
        (["--model", "resnet8"], "--model goes with --list"),
        (["--list", "--model", "resnet8"], "--input 3,32,32"),
        (["--list", "--model", "resnet8", "--input", "3,x"], "got '3,x'"),
        (["--list", "--model", "resnet9", "--input", "3,32,32"], "resnet"),
        (["--list", "--model", "resnet8", "--input", "1,32,32"], "does not run on the example"),
        (["--list", "--model", "resnet8", "--weights", "no.npz"], "there is none at no.npz"),
    ],
)
def test_what_cut_cannot_do_is_said(run, arguments, said):
    found = run("cut", *arguments)
    assert found.code == 2
    assert said in found.err
    assert "Traceback" not in found.err
