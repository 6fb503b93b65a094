"""A certificate travels in the bundle; where there is none the reference runs alone."""

import pytest
import torch

from offramp.bundle import load, read_manifest, save
from offramp.evaluation import fit
from offramp.models import ModelSpec, build
from offramp.runtime import Adaptive
from offramp.stages import Cascade
from offramp.trace.testing import make_trace

SPEC = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2, "classes": 3})


@pytest.fixture(scope="module")
def frontier():
    trace = make_trace(3000, accuracies=[0.85, 0.9], classes=3, seed=2)
    return fit(trace, "threshold", combines=["last"], confidences=["margin"], progress=False)


@pytest.fixture(scope="module")
def cascade(frontier):
    names = frontier.singles[0].fit.stages
    return Cascade.from_models(
        {name: build(SPEC) for name in names}, specs=dict.fromkeys(names, SPEC)
    )


def test_a_certificate_leaves_its_promise_in_the_manifest(frontier, cascade, tmp_path):
    found = frontier.cheapest(max_drop=0.04, delta=0.1)
    assert found.guarantee is not None
    save(Adaptive(cascade, found), tmp_path / "b")
    chosen = read_manifest(tmp_path / "b").choice
    assert chosen.sentence == found.sentence
    assert chosen.label == found.candidate.label
    assert chosen.numbers["max_drop"] == 0.04
    assert chosen.numbers["risk"] == "accuracy_drop"
    assert chosen.numbers["delta"] == 0.1
    assert chosen.numbers["p_value"] == found.guarantee.p_value
    assert chosen.numbers["n"] == 1500  # half of the examples
    assert chosen.numbers["fingerprint"] == frontier.calibration.fingerprint
    assert "exchangeable" in chosen.numbers["assumptions"]
    assert chosen.guarantee == load(tmp_path / "b").choice.guarantee == found.guarantee
    images = torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loaded = load(tmp_path / "b")(images)
    assert torch.equal(loaded.stage, Adaptive(cascade, found)(images).stage)


def test_without_a_certificate_f_runs_alone(frontier, cascade, tmp_path):
    found = frontier.cheapest(max_drop=1e-4, delta=0.1)
    assert found.outcome == "not certified"
    f = cascade.topology.index(frontier.reference)
    images = torch.zeros(2, 1, 8, 8)
    assert Adaptive(cascade, found)(images).stage.tolist() == [f, f]
    save(Adaptive(cascade, found), tmp_path / "b")
    manifest = read_manifest(tmp_path / "b")
    assert manifest.choice.sentence == found.sentence
    assert manifest.choice.numbers["examples_needed"] == found.examples_needed
    assert load(tmp_path / "b").choice.guarantee is None
    assert load(tmp_path / "b")(images).stage.tolist() == [f, f]


def test_promises_of_several_risks_and_their_weights_stand_in_the_manifest(
    frontier, cascade, tmp_path
):
    found = frontier.certify({"accuracy_drop": 0.06, "recall": 0.2}, delta=0.1)
    assert found.guarantee is not None
    save(Adaptive(cascade, found), tmp_path / "b")
    held = read_manifest(tmp_path / "b").choice
    assert held.sentence == found.sentence
    assert held.numbers["limits"] == "accuracy_drop <= 0.06; recall <= 0.2"
    assert (held.numbers["risk"], held.numbers["max_cost"]) == ("accuracy_drop, recall", None)
    budget = frontier.best(max_cost=0.8, delta=0.1)
    save(Adaptive(cascade, budget), tmp_path / "c")
    held = read_manifest(tmp_path / "c").choice
    assert (held.numbers["max_drop"], held.numbers["max_cost"]) == (None, 0.8)
    even = frontier.certify({"accuracy_drop": 0.06}, delta=0.1, class_weights=[1.0, 1.0, 1.0])
    save(Adaptive(cascade, even), tmp_path / "d")
    assert read_manifest(tmp_path / "d").choice.numbers["class_weights"] == "1.0 1.0 1.0"
    assert load(tmp_path / "d").choice.guarantee == even.guarantee
