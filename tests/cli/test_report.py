"""`offramp report` on a network with exits, in two units; and which images it shows."""

import json
import webbrowser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offramp._core.costs import Costs
from offramp._core.schema import from_json
from offramp._core.topology import Topology
from offramp.cli import main
from offramp.data import arrays
from offramp.evaluation import evaluate, replay
from offramp.policy import Candidate, Constant, Node, Policy
from offramp.project.images import example_images
from offramp.stages import Cascade
from offramp.trace import load_trace, make_trace, save_trace

SECONDS = {
    "unit": "seconds", "segment": [0.01, 0.01, 0.01, 0.01], "head": [0.001, 0.002, 0.001, 0.001],
    "decision": [0.0, 0.0, 0.0, 0.0], "note": "batch size 8",
}  # fmt: skip
SHORT = {key: [1.0, 2.0] for key in ("segment", "head", "decision")}


@pytest.fixture(scope="module")
def trace():
    topology = Topology(
        names=("e1/cheap", "e1/deep", "e2", "end"), sources=(-1, -1, 0, 2),
        groups=("e1", "e1", "e2", "end"), edges=((0, 2), (1, 2), (2, 3)),
    )  # fmt: skip
    found = make_trace(
        900, classes=4, accuracies=[0.75, 0.8, 0.85, 0.92], topology=topology, seed=0
    )
    costs = Costs(
        unit="flops", segment=(1.0,) * 4, head=(0.01, 0.3, 0.01, 0.01), decision=(0.0,) * 4
    )
    return replace(found, costs=costs).split_into(
        {"fit": 400, "calibrate": 250, "test": 250}, seed=0
    )


@pytest.fixture(scope="module")
def fitted(trace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exits")
    save_trace(trace, folder / "exits.trace")
    options = [
        "--policy",
        "learned,threshold",
        "--combines",
        "last",
        "--max-drop",
        "0.05",
        "--delta",
        "none",
    ]
    arguments = [str(folder / "exits.trace"), *options, "--out", str(folder / "run")]
    assert main(["fit", *arguments]) == 0
    return folder


def test_a_report_of_exits_bills_the_same_decisions_in_two_units(run, fitted, trace):
    (fitted / "seconds.json").write_text(json.dumps({"costs": [SECONDS]}))
    done = run("report", fitted / "run", "--costs", fitted / "seconds.json")
    assert done.code == 0, done.err
    shown = json.loads((fitted / "run" / "report.json").read_text())
    flops, seconds = shown["costs_by_unit"]
    assert (flops["unit"], seconds["unit"]) == ("flops", "seconds")
    chosen = from_json(
        Candidate, json.loads((fitted / "run" / "chosen.json").read_text())["point"]["candidate"]
    )
    part = trace.subset("test")
    timed = evaluate(part, chosen, costs=from_json(Costs, SECONDS))
    assert seconds["cost"] == timed.cost
    assert seconds["cost_ratio_ci"] == list(timed.cost_ratio_ci)
    assert flops["cost"] == shown["test"]["cost"]
    assert {s["policy"] for s in shown["savings"]} == {"learned", "thresholds", "random exits"}
    assert [s["max_drop"] for s in shown["savings"][:4]] == [0.0, 0.01, 0.02, 0.05]
    assert [u["stage"] for u in shown["uses"]] == list(trace.stages)
    assert [len(p["cost_ratios"]) for p in shown["exits"]] == [2] * 4
    page = (fitted / "run" / "report.html").read_text()
    assert "against its depth" in page
    assert "why not the others" in page


def test_a_page_is_named_after_its_folder_also_from_within(run, fitted, monkeypatch):
    monkeypatch.chdir(fitted / "run")
    assert run("report", ".").code == 0
    assert "<h1>Adaptive inference: run</h1>" in Path("report.html").read_text(encoding="utf-8")


def test_one_table_of_costs_needs_no_list(run, fitted):
    (fitted / "one.json").write_text(json.dumps(SECONDS))
    assert run("report", fitted / "run", "--costs", fitted / "one.json").code == 0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"costs": 7}, "does not hold tables of costs"),
        ({"unit": "s"}, "does not hold tables of costs"),
        ({**SECONDS, "head": [1.0]}, "one cost per stage"),
        ({"costs": [{**SECONDS, **SHORT}]},
         "one entry per stage"),
    ],
)  # fmt: skip
def test_foreign_costs_are_refused(run, fitted, value, said):
    (fitted / "bad.json").write_text(json.dumps(value))
    done = run("report", fitted / "run", "--costs", fitted / "bad.json")
    assert done.code != 0
    assert said in done.err


def test_the_stored_trace_keeps_costs_in_every_unit(trace, tmp_path):
    more = replace(trace, other_costs=(from_json(Costs, SECONDS),))
    save_trace(more, tmp_path / "t.trace")
    assert load_trace(tmp_path / "t.trace").other_costs == more.other_costs


def test_images_show_right_ones_and_wrong_ones_that_f_gets_right():
    part = make_trace(300, accuracies=[0.7, 0.95], classes=3, seed=0)
    images = torch.zeros(300, 1, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(300) % 256
    examples = arrays(images, part.labels)
    nets = {name: torch.nn.Flatten() for name in part.stages}
    alone = Candidate.single(part.topology, "stage0", reference="stage1")
    found = example_images(examples, part, alone, Cascade.from_models(nets), per_stage=6)
    assert len(found) == 6
    pairs = [(image.correct, image.reference_correct) for image in found]
    assert pairs.count((False, True)) == 2
    assert pairs.count((False, False)) == 1
    done, f_wrong = replay(part, alone.policy), part.wrong(1)
    for image in found:
        row = int(image.pixels[0, 0, 0])
        assert image.correct == (not done.wrong[row])
        assert image.reference_correct == (not f_wrong[row])


def test_on_a_long_way_earlier_stages_say_one_class():
    part = make_trace(60, stages=5, classes=3, seed=0)
    examples = arrays(torch.zeros(60, 1, 4, 4), part.labels)
    chain = part.topology.chain(list(range(5)))
    nodes = {p: Node(Constant(False)) for p in chain.paths()[:-1]}
    candidate = Candidate(policy=Policy(chain, nodes), method="threshold", reference="stage4")
    nets = {name: torch.nn.Flatten() for name in part.stages}
    (image, *_) = example_images(examples, part, candidate, Cascade.from_models(nets))
    assert [len(classes) for _, classes in image.visits] == [1, 1, 1, 1, 3]
    assert np.isclose(sum(p for _, p in image.visits[-1][1]), 1.0)


@pytest.mark.parametrize("there", [True, False, None], ids=["opened", "none", "broken"])
def test_a_page_is_opened_in_the_browser_that_there_is(fitted, run, monkeypatch, there):
    opened = []

    def browser(address):
        opened.append(address)
        if there is None:
            raise webbrowser.Error("it cannot be started")
        return there

    monkeypatch.setattr(webbrowser, "open", browser)
    outcome = run("report", fitted / "run", "--open", "--json")
    assert outcome.code == 0
    page = Path(json.loads(outcome.out)["report"])
    assert opened == [page.resolve().as_uri()]
    missing = f"no browser was found here; open {opened[0]} where there is one."
    assert (missing in outcome.err) == (not there)


def test_no_page_is_opened_unless_that_is_asked_for(fitted, run, monkeypatch):
    monkeypatch.setattr(webbrowser, "open", pytest.fail)
    assert run("report", fitted / "run").code == 0
