"""`--delta`: limits as promises, from fit over the report to evaluate."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from offramp.project.config.config import load_config
from offramp.trace import load_trace, make_trace, save_trace


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    trace = make_trace(4000, accuracies=[0.8, 0.93], seed=3)
    path = tmp_path_factory.mktemp("traces") / "made.trace"
    save_trace(trace.split_into({"fit": 1200, "calibrate": 1400, "test": 1400}, seed=0), path)
    return path


def fitted(run, path, out, *more):
    simple = ("--policy", "threshold", "--combines", "last")
    return run("fit", path, *simple, "--out", out, *more)


def test_fit_promises_and_the_report_repeats_it(run, path, tmp_path):
    out = tmp_path / "run"
    found = fitted(run, path, out, "--max-drop", 0.05, "--max-cost", 0.9, "--delta", 0.1)
    assert found.code == 0, found.err
    chosen = json.loads((out / "chosen.json").read_text())
    assert chosen["outcome"] == "certified"
    asked = [(limit["risk"], limit["at_most"]) for limit in chosen["limits"]]
    assert asked == [("accuracy_drop", 0.05), ("cost", 0.9)]
    assert chosen["delta"] == chosen["guarantee"]["delta"] == 0.1
    assert chosen["guarantee"]["n"] == 1400
    assert chosen["guarantee"]["p_value"] <= 0.1
    assert "With a confidence of 90 %" in " ".join(found.out.split())
    assert "--delta 0.1" in json.loads((out / "run.json").read_text())["command"]
    page = run("report", out)
    assert page.code == 0, page.err
    text = (out / "report.html").read_text()
    assert "The certified point" in text
    assert "loses at most 5 points of accuracy against stage1 alone and spends at most 90 %" in text
    shown = json.loads((out / "report.json").read_text())["chosen"]
    assert shown["sentence"] == chosen["sentence"]


def test_where_nothing_is_certified_the_exit_code_is_3_and_f_runs_alone(run, path, tmp_path):
    out = tmp_path / "run"
    found = fitted(run, path, out, "--max-drop", 0.001, "--delta", 0.05, "--json")
    assert found.code == 3
    chosen = json.loads(found.out)
    assert chosen["outcome"] == "not certified"
    assert "2995 examples in calibrate" in chosen["sentence"]
    assert chosen["point"]["candidate"]["method"] == "single"
    assert chosen["alternative"]["candidate"]["method"] == "threshold"
    assert run("report", out).code == 0
    assert "Not certified: even without" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max-drop", 0.05, "--delta", 5], "--delta must be in (0, 1), got 5.0"),
        (["--max-drop", 5, "--delta", 0.05], "first: 5 % is 0.05"),
        (["--max-drop", 0, "--delta", 0.05], "--max-drop must be in (0, 1), got 0.0"),
        (["--max-drop", 0], "With --delta none it is measured only"),
        (["--max-drop", 0.05, "--delta", "some"], "a number in (0, 1), or none, got 'some'"),
        (["--max-cost", 1.5, "--delta", 0.05], "--max-cost must be in (0, 1), got 1.5"),
        (["--delta", 0.05], "or with --delta both, got None and None"),
        (["--max-drop", 0.1, "--max-cost", 0.5, "--delta", "none"],
         "or with --delta both, got 0.1 and 0.5"),
        (["--max-drop", 0.1, "--delta", 0.1, "--margin", 2], "--margin must not be given"),
        (["--max-drop", 0.1, "--margin", 2], "With --delta none the risk is measured only"),
        (["--max-drop", 0.1, "--risk", "error", "--delta", "none"], "risk must be one of"),
        (["--max-drop", 0.1, "--unlabeled", "--delta", "none"], "--unlabeled needs --delta"),
        (["--max-cost", 0.5, "--unlabeled"], "--unlabeled needs --delta"),
        (["--max-drop", 0.1, "--unlabeled"], "no labels for --risk accuracy_drop"),
        (["--max-drop", 0.1, "--delta", 0.1, "--unlabeled"], "no labels for --risk accuracy_drop"),
    ],
)  # fmt: skip
def test_limits_outside_are_refused_before_anything_is_fitted(run, path, tmp_path, more, message):
    found = fitted(run, path, tmp_path / "run", *more)
    assert found.code == 2
    assert message in found.err
    assert not (tmp_path / "run").exists()


def test_evaluate_tests_one_setting_on_examples_of_its_own(run, path, tmp_path):
    out = tmp_path / "run"
    assert fitted(run, path, out, "--max-drop", 0.03, "--delta", "none").code == 0
    found = run("evaluate", path, out, "--max-drop", 0.08, "--delta", 0.05, "--json")
    assert found.code == 0
    promise = json.loads(found.out)["promise"]
    assert (promise["outcome"], promise["guarantee"]["split"]) == ("certified", "test")
    assert promise["guarantee"]["tested"] == 1
    wide = run("evaluate", path, out, "--max-drop", 0.08, "--max-cost", 0.99, "--delta", 0.05)
    assert "on new examples like the 1400 that it was tested on" in " ".join(wide.out.split())
    tight = run("evaluate", path, out, "--max-drop", 0.001, "--delta", 0.05)
    assert tight.code == 3
    assert "Not certified" in tight.out
    recall = run("evaluate", path, out, "--max-drop", 0.2, "--risk", "recall", "--delta", 0.05)
    assert "of recall of any class" in " ".join(recall.out.split())
    for more, message in (
        (("--delta", 0.05), "got delta 0.05 and the limits {}"),
        (("--max-drop", 0.05), "got delta None and the limits {'accuracy_drop': 0.05}"),
        (("--max-drop", 0.05, "--delta", 0.1, "--split", "fit"), "must be test with --delta"),
        (("--max-drop", 5, "--delta", 0.1), "first: 5 % is 0.05"),
    ):
        refused = run("evaluate", path, out, *more)
        assert refused.code == 2
        assert message in refused.err


def without_labels(path, split, to):
    """The same trace with the labels of one part made up."""
    trace = load_trace(path)
    made_up = np.isin(trace.ids, trace.subset(split).ids)
    labels = torch.where(torch.from_numpy(made_up), 0, trace.labels)
    save_trace(replace(trace, labels=labels), to)
    return to


def test_fit_promises_disagreement_and_cost_without_the_labels_of_calibrate(run, path, tmp_path):
    made_up = without_labels(path, "calibrate", tmp_path / "made_up.trace")
    asked = ("--max-drop", 0.15, "--risk", "disagreement", "--max-cost", 0.9, "--delta", 0.1)
    answers = []
    for name, source in (("right", path), ("none", made_up)):
        found = fitted(run, source, tmp_path / name, *asked, "--unlabeled")
        assert found.code == 0, found.err
        answers.append(json.loads((tmp_path / name / "chosen.json").read_text()))
    assert answers[0]["outcome"] == answers[1]["outcome"] == "certified"
    assert answers[0]["point"]["candidate"] == answers[1]["point"]["candidate"]
    assert answers[0]["point"]["calibrate"] is None
    assert "differs from stage1 alone in at most 15 %" in answers[1]["sentence"]
    assert "--unlabeled" in json.loads((tmp_path / "none" / "run.json").read_text())["command"]
    page = run("report", tmp_path / "none")
    assert page.code == 0, page.err
    alone = fitted(
        run, made_up, tmp_path / "cost", "--max-cost", 0.6, "--delta", 0.1, "--unlabeled"
    )
    assert alone.code == 0, alone.err


def test_evaluate_tests_disagreement_without_labels_and_shows_no_accuracy(run, path, tmp_path):
    out = tmp_path / "run"
    assert fitted(run, path, out, "--max-drop", 0.03, "--delta", "none").code == 0
    made_up = without_labels(path, "test", tmp_path / "made_up.trace")
    asked = ("--max-drop", 0.3, "--risk", "disagreement", "--delta", 0.05, "--unlabeled")
    right, none = (run("evaluate", p, out, *asked, "--json") for p in (path, made_up))
    assert right.code == none.code == 0, none.err
    found = json.loads(none.out)
    assert found["promise"]["outcome"] == "certified"
    assert "accuracy" not in found
    assert found["cost_ratio_ci"] == json.loads(right.out)["cost_ratio_ci"]
    shown = run("evaluate", made_up, out, *asked).out
    assert "first label is not the reference's" in shown
    assert "new errors" not in shown
    refused = run("evaluate", made_up, out, "--max-drop", 0.1, "--delta", 0.1, "--unlabeled")
    assert refused.code == 2
    assert "--unlabeled leaves no labels for --risk accuracy_drop" in refused.err


def test_a_loss_is_promised_unless_measuring_is_asked_for(run, path, tmp_path):
    promised = fitted(run, path, tmp_path / "promised", "--max-drop", 0.05, "--json")
    assert promised.code == 0, promised.err
    assert json.loads(promised.out)["guarantee"]["delta"] == 0.1
    measured = fitted(run, path, tmp_path / "measured", "--max-drop", 0.05, "--delta", "none")
    assert "Measured, not promised." in " ".join(measured.out.split())
    marker = json.loads((tmp_path / "measured" / "run.json").read_text())
    assert "--delta none" in marker["command"]
    chosen = json.loads((tmp_path / "measured" / "chosen.json").read_text())
    assert (chosen["outcome"], chosen["delta"]) == ("measured, not promised", None)
    assert "Measured, not promised." in chosen["sentence"]
    page = run("report", tmp_path / "measured", "--json")
    assert "Measured, not promised." in (tmp_path / "measured" / "report.html").read_text()
    shown = json.loads((tmp_path / "measured" / "report.json").read_text())
    assert shown["chosen"]["outcome"] == "measured, not promised"
    assert json.loads(page.out)["outcome"] == "measured, not promised"


STAGES = '[data]\nkind = "digits"\n' + "".join(
    f'[[stage]]\nname = "{name}"\nmodel = "small_cnn"\n' for name in "ab"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("delta = 5", "fit.delta: .*got 5"),
        ("delta = 0.05\nmargin = 1.0\nmax_drop = 0.1", "fit.margin: guards a measured risk"),
        ("delta = 0.05\nmax_drop = 0.0", r"fit.max_drop: must be in \(0, 1\).*got 0"),
        ("delta = 0.05\nmax_cost = 1.5", r"fit.max_cost: must be in \(0, 1\).*got 1.5"),
        ('risk = "recall"\nmax_cost = 0.1', "fit.risk: 'recall' can only be certified"),
        ("max_drop = 0.1\nmax_cost = 0.5\ndelta = 'none'", "fit.max_cost: give either.*delta both"),
        ("unlabeled = true\nmax_cost = 0.1", "fit.unlabeled: without labels nothing can be"),
        ("max_drop = 0.0", 'fit.max_drop: must be in .*; delta = "none" measures only'),
        ("max_drop = 0.1\nmargin = 1.0", 'fit.margin: guards .*; delta = "none" measures only'),
        ("delta = 'some'", "fit.delta: .*got 'some'"),
        ("unlabeled = true\ndelta = 0.1\nmax_drop = 0.1", "leaves no labels for risk = 'accu"),
        ("delta = 0.05\n[joint]\ncost_weights = [0.1]", "fit.delta: needs a limit to certify"),
    ],
)
def test_contradictions_of_a_configuration_are_named(tmp_path, text, message):
    file = tmp_path / "run.toml"
    file.write_text(f"{STAGES}[fit]\n{text}\n")
    with pytest.raises(Exception, match=message):
        load_config(file)


def test_a_configuration_may_ask_for_a_promise(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        f'{STAGES}[fit]\nmax_drop = 0.1\nmax_cost = 0.5\ndelta = 0.05\nrisk = "error"\n'
    )
    asked = load_config(file).fit
    assert (asked.delta, asked.max_drop, asked.max_cost, asked.risk) == (0.05, 0.1, 0.5, "error")
