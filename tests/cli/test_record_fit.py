import json
import shlex
import sys

import numpy as np

from offramp.bundle import load
from offramp.data import digits
from offramp.trace import from_logits, load_trace, make_trace, save_trace

MEASURED = ("--delta", "none")


def test_record_then_fit_then_evaluate_then_report_follow_each_other(run, deployed, tmp_path):
    trace = load_trace(deployed / "run" / "record.trace", verify=True)
    assert trace.stages == ("small", "large")
    assert [int((trace.split == k).sum()) for k in range(4)] == [0, 400, 300, 300]
    assert trace.class_names == digits().class_names
    found = run("evaluate", deployed / "run" / "record.trace", deployed / "run", "--json")
    assert found.code == 0
    numbers = json.loads(found.out)
    chosen = json.loads((deployed / "run" / "chosen.json").read_text())
    assert (numbers["n"], numbers["split"]) == (300, "test")
    assert numbers["cost_ratio"] < 1
    assert chosen["limits"] == [{"risk": "accuracy_drop", "at_most": 0.02, "label": None}]
    assert chosen["delta"] is None
    page = run("report", deployed / "run", "--config", deployed / "run.toml", "--json")
    assert page.code == 0, page.err
    shown = json.loads((deployed / "run" / "report.json").read_text())
    assert shown["test"]["accuracy"] == numbers["accuracy"]
    assert shown["test"]["accuracy_drop_ci"] == numbers["accuracy_drop_ci"]
    assert shown["images"]
    assert {i["exit_stage"] for i in shown["images"]} <= {"small", "large"}
    assert "<html" in (deployed / "run" / "report.html").read_text()


def test_the_bundle_of_fit_answers_as_the_trace_says(deployed):
    loaded = load(deployed / "bundle")
    trace = load_trace(deployed / "run" / "record.trace")
    assert loaded.cascade.input_shape == (1, 8, 8)
    answer = loaded.reference(digits().inputs[trace.ids])
    stage = trace.topology.index(loaded.candidate.reference)
    assert np.array_equal(answer.labels.numpy(), trace.output(stage).top(1)[:, 0].numpy())


def test_record_shows_each_network_and_refuses_to_overwrite(run, project, tmp_path):
    out = tmp_path / "again.trace"
    found = run("record", "--config", project / "run.toml", "--out", out)
    assert found.code == 0
    assert "1000 examples of 10 classes" in found.out
    trace = load_trace(out)
    assert f"{100 * trace.accuracy(1):.1f} %" in found.out
    again = run("record", "--config", project / "run.toml", "--out", out)
    assert again.code == 2
    assert "exists already" in again.err
    assert run("record", "-c", project / "run.toml", "--out", out, "--overwrite").code == 0


def test_record_takes_given_costs_and_measures_seconds(run, project, tmp_path):
    config = (project / "run.toml").read_text()
    for cost in (
        '[cost]\nunit = "usd"\ngiven = { small = 0.5, large = 2.0 }\n',
        '[cost]\nunit = "seconds"\nbatch_size = 4\n',
    ):
        path = project / "costs.toml"
        path.write_text(config + cost)
        out = tmp_path / f"{len(cost)}.trace"
        found = run("record", "--config", path, "--out", out, "--float16", "--json")
        assert found.code == 0, found.err
        said = json.loads(found.out)
        costs = load_trace(out).costs
        assert said["unit"] == costs.unit
        assert [stage["cost"] for stage in said["stages"]] == list(costs.segment)
        assert load_trace(out).lossy
    assert load_trace(tmp_path / f"{len(cost)}.trace").costs.note.count("batch size 4")


def test_modules_beside_the_configuration_can_be_named(run, project, tmp_path):
    (tmp_path / "my_nets_of_test.py").write_text(
        "from offramp.models import small_cnn\n"
        "def make(width):\n    return small_cnn(width=width, depth=2)\n"
    )
    (tmp_path / "run.toml").write_text(
        '[data]\nkind = "digits"\nsplits = { test = 20 }\n'
        '[[stage]]\nname = "mine"\nmodel = "my_nets_of_test:make"\narguments = { width = 2 }\n'
        'transform = { kind = "normalize", scale = 0.0625 }\n'
    )
    found = run("record", "--config", tmp_path / "run.toml", "--out", tmp_path / "x.trace")
    assert found.code == 0, found.err
    assert load_trace(tmp_path / "x.trace").stages == ("mine",)
    assert str(tmp_path) not in sys.path


def test_what_goes_wrong_in_a_configuration_ends_with_2(run, tmp_path):
    (tmp_path / "run.toml").write_text('[data]\nkind = "digit"\n[[stage]]\nname="a"\nmodel="b"\n')
    found = run("record", "--config", tmp_path / "run.toml")
    assert found.code == 2
    assert "Did you mean 'digits'?" in found.err
    (tmp_path / "run.toml").write_text('[data]\nkind = "digits"\npth = 1\nseeed = 2\n')
    found = run("record", "--config", tmp_path / "run.toml")
    assert found.code == 2
    for text in ("3 problems", "data.pth", "data.seeed", "Did you mean 'seed'?", "stage: "):
        assert text in found.err


def fit(run, trace, out, *more):
    return run("fit", trace, "--policy", "threshold", "--combines", "last", "--out", out, *more)


def test_fit_writes_what_the_next_commands_read(run, trace_path, tmp_path):
    out = tmp_path / "run"
    found = fit(run, trace_path, out, "--max-drop", 0.03, *MEASURED)
    assert found.code == 0, found.err
    assert "Use threshold, stage0 -> stage1" in found.out
    assert max(len(line) for line in found.out.splitlines()[:-1]) < 80
    marker = json.loads((out / "run.json").read_text())
    assert marker["files"] == ["chosen.json", "frontier.json"]
    assert (out / marker["trace"]).resolve() == trace_path.resolve()
    assert run("evaluate", trace_path, out / "chosen.json", "--split", "calibrate").code == 0
    assert run("report", out).code == 0


def test_the_command_in_the_marker_gives_the_same_files_again(run, trace_path, tmp_path):
    out = tmp_path / "run"
    assert fit(run, trace_path, out, "--max-cost", 0.6).code == 0
    first = (out / "chosen.json").read_text()
    words = shlex.split(json.loads((out / "run.json").read_text())["command"])
    assert run(*words[1:]).code == 0
    assert (out / "chosen.json").read_text() == first
    assert json.loads(first)["limits"][0]["at_most"] == 0.6


def test_options_go_before_the_configuration(run, trace_path, project, tmp_path):
    found = run(
        *("fit", trace_path, "--config", project / "run.toml", "--max-cost", 0.5),
        *("--out", tmp_path / "run", "--json"),
    )
    assert found.code == 0, found.err
    assert json.loads(found.out)["limits"][0]["risk"] == "cost"


def test_no_answer_is_exit_code_3_with_the_network_to_use(run, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    sure = np.eye(3)[labels] * 5
    trace = from_logits(
        {"perfect": sure, "expensive": sure + rng.normal(0, 2, sure.shape)},
        labels,
        costs={"perfect": 1.0, "expensive": 10.0},
        unit="usd",
    )
    save_trace(trace, tmp_path / "x.trace")
    found = fit(
        run, tmp_path / "x.trace", tmp_path / "run", "--max-drop", 0.01, *MEASURED, "--json"
    )
    assert found.code == 3
    result = json.loads(found.out)
    assert result["outcome"] == "do not cascade"
    assert "Do not use a cascade here" in result["sentence"]
    assert "has no splits" in found.err
    assert run("report", tmp_path / "run").code == 0
    assert "do not cascade" in (tmp_path / "run" / "report.json").read_text()


def test_fit_needs_exactly_one_limit(run, trace_path, tmp_path):
    found = fit(run, trace_path, tmp_path / "run", "--max-drop", 0.1, "--max-cost", 0.5, *MEASURED)
    assert found.code == 2
    assert "either --max-drop" in found.err
    assert not (tmp_path / "run").exists()
    found = fit(run, trace_path, tmp_path / "run", "--max-drop", 5)
    assert found.code == 2
    assert "got 5.0" in found.err


def test_fit_names_what_it_does_not_know(run, trace_path, tmp_path):
    found = run("fit", trace_path, "--policy", "leanred", "--max-drop", 0.1, "--out", tmp_path)
    assert found.code == 2
    assert "Did you mean 'learned'?" in found.err
    found = run("fit", tmp_path / "no.trace", "--max-drop", 0.1, "--out", tmp_path / "run")
    assert found.code == 2
    assert "no.trace" in found.err
    assert run("fit", "--max-drop", 0.1).code == 2
    assert run("fit", trace_path, "--max-drop", 0.1, "--bundle", tmp_path / "b").code == 2


def test_fit_leaves_a_foreign_folder_alone(run, trace_path, tmp_path):
    (tmp_path / "thesis.txt").touch()
    found = fit(run, trace_path, tmp_path, "--max-drop", 0.1)
    assert found.code == 2
    assert "no run of offramp" in found.err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_evaluate_prints_what_the_library_computes(run, trace_path, tmp_path):
    from offramp.evaluation import evaluate
    from offramp.project.folder import candidate_from_file

    out = tmp_path / "run"
    assert fit(run, trace_path, out, "--max-drop", 0.03, *MEASURED).code == 0
    numbers = tmp_path / "numbers.json"
    found = run("evaluate", trace_path, out, "--seed", 4, "--bootstrap", 200, "--out", numbers)
    assert found.code == 0
    candidate = candidate_from_file(out)
    wanted = evaluate(load_trace(trace_path).subset("test"), candidate, bootstrap=200, seed=4)
    assert json.loads(numbers.read_text())["accuracy_drop"] == wanted.accuracy_drop
    assert f"{100 * wanted.accuracy:.1f} %" in found.out
    assert max(len(line) for line in found.out.splitlines()) < 80
    everything = run("evaluate", trace_path, out, "--split", "all", "--bootstrap", 0, "--json")
    assert json.loads(everything.out)["n"] == 900
    wrong = run("evaluate", trace_path, out, "--split", "tset")
    assert wrong.code == 2
    assert "--split must be one of train, fit, calibrate, test, got 'tset'" in wrong.err


def test_evaluate_refuses_a_setting_of_other_stages(run, trace_path, tmp_path):
    assert fit(run, trace_path, tmp_path / "run", "--max-drop", 0.03, *MEASURED).code == 0
    save_trace(make_trace(50, stages=3), tmp_path / "other.trace")
    found = run("evaluate", tmp_path / "other.trace", tmp_path / "run", "--split", "all")
    assert found.code == 2
    assert "same cascade" in found.err
    (tmp_path / "chosen.json").write_text('{"candidate": {"policy": 1}}')
    found = run("evaluate", trace_path, tmp_path / "chosen.json")
    assert found.code == 2
    assert "as a candidate" in found.err


def test_rankings_without_scores_are_fitted_by_agreement_and_reported(run, tmp_path):
    trace = make_trace(300, stages=3, kind="labels", seed=1)
    save_trace(trace.split_into({"fit": 150, "test": 150}, seed=0), tmp_path / "x.trace")
    found = run(
        *("fit", tmp_path / "x.trace", "--policy", "agreement", "--max-drop", 0.1),
        *("--out", tmp_path / "run"),
    )
    assert found.code in (0, 3), found.err
    assert run("report", tmp_path / "run").code == 0
