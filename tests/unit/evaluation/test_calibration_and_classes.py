"""How sure stages are and how often right; what a candidate does to each class."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from offramp._core.errors import InputError
from offramp.evaluation import by_class, evaluate, reliability, replay
from offramp.evaluation.reliability import _grouped, reliability_reference
from offramp.policy import Candidate, Feature, Linear, Node, Policy
from offramp.policy.of_labels import distribution_of
from offramp.trace import make_trace


@pytest.fixture(scope="module")
def trace():
    return make_trace(700, stages=3, classes=4, seed=5)


@pytest.fixture(scope="module")
def candidate(trace):
    topology = trace.topology.chain((0, 1, 2))
    nodes = {
        (0,): Node(Linear.threshold(Feature("max_prob", 0), 0.8)),
        (0, 1): Node(Linear.threshold(Feature("max_prob", 1), 0.7)),
    }
    policy = Policy(topology, nodes, temperatures=[1.4, 0.8, 1.0])
    return Candidate(policy=policy, method="threshold", reference="stage2")


@pytest.mark.parametrize("groups", [1, 3, 10])
@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_one_example_after_another(seed, groups):
    rng = np.random.default_rng(seed)
    sure = rng.integers(1, 40, size=137) / 40  # with ties
    right = rng.random(137) < sure
    found = _grouped("s", sure, right, groups)
    want = reliability_reference("s", sure, right, groups)
    assert found.counts == want.counts
    assert found.confidence == pytest.approx(want.confidence)
    assert found.accuracy == pytest.approx(want.accuracy)
    assert found.error == pytest.approx(want.error)


def test_many_examples_are_looked_at_in_runs(trace, candidate, monkeypatch):
    want = reliability(trace, candidate)
    monkeypatch.setattr(sys.modules[_grouped.__module__], "_CHUNK", 97)
    assert reliability(trace, candidate) == want


def test_a_group_knows_what_its_examples_know(trace, candidate):
    records = reliability(trace, candidate)
    assert [one.stage for one in records] == ["stage0", "stage1", "stage2"]
    for k, one in enumerate(records):
        told = distribution_of(trace.output(k), candidate.policy.temperatures[k])
        mean = float(told.max_prob.double().mean())
        assert sum(one.counts) == one.n == len(trace)
        assert np.average(one.confidence, weights=one.counts) == pytest.approx(mean)
        assert np.average(one.accuracy, weights=one.counts) == pytest.approx(trace.accuracy(k))
        assert list(one.confidence) == sorted(one.confidence)
        assert max(one.counts) - min(one.counts) <= 2


def test_equal_confidences_stand_in_one_group_in_any_order():
    sure = np.array([0.5] * 90 + [1.0] * 10)
    right = np.arange(100) % 2 == 0
    found = _grouped("s", sure, right, 10)
    assert found.counts == (90, 10)
    order = np.random.default_rng(0).permutation(100)
    assert _grouped("s", sure[order], right[order], 10) == found


def test_a_stage_that_is_right_as_often_as_it_believes_has_no_error():
    sure = np.repeat([0.25, 0.5, 1.0], 40)
    right = np.concatenate([np.arange(40) < 10, np.arange(40) < 20, np.ones(40, bool)])
    assert _grouped("s", sure, right, 3).error == pytest.approx(0)
    assert _grouped("s", sure, ~right, 3).error > 0.4


def test_what_gives_no_probabilities_has_no_calibration(candidate):
    for kind in ("labels", "losses"):
        other = make_trace(60, stages=3, classes=4, seed=1, kind=kind)
        other = replace(other, confidence=None) if kind == "labels" else other
        assert reliability(other, candidate) == ()
    scored = make_trace(60, stages=3, classes=4, seed=1, kind="labels")
    assert len(reliability(scored, candidate)) == 3
    with pytest.raises(InputError, match=r"groups must be .* got 0"):
        reliability(scored, candidate, groups=0)


def test_a_class_is_counted_by_its_examples(trace, candidate):
    found = evaluate(trace, candidate, bootstrap=0)
    rows = by_class(found, ("a", "b", "c", "d"))
    done = replay(trace, candidate.policy)
    answers = torch.from_numpy(done.labels[:, 0])
    reference = trace.output(2).top(1)[:, 0]
    assert [row.name for row in rows] == ["a", "b", "c", "d"]
    for y, row in enumerate(rows):
        of = trace.labels == y
        assert row.n == int(of.sum())
        right, theirs = answers[of] == y, reference[of] == y
        assert row.recall == pytest.approx(float(right.double().mean()))
        assert row.reference_recall == pytest.approx(float(theirs.double().mean()))
        assert row.lost == pytest.approx(float((theirs & ~right).double().mean()))
        assert row.drop == pytest.approx(row.reference_recall - row.recall)
        assert row.early == pytest.approx(float((done.last[of.numpy()] < 2).mean()))
        cost = done.cost[of.numpy()].mean() / found.reference_cost
        assert row.cost_ratio == pytest.approx(cost)
    assert sum(row.n * row.recall for row in rows) == pytest.approx(found.n * found.accuracy)
    assert sum(row.n * row.cost_ratio for row in rows) == pytest.approx(found.n * found.cost_ratio)


def test_a_class_without_examples_has_no_row(trace, candidate):
    part = trace.take(torch.nonzero(trace.labels != 1)[:, 0])
    assert [row.name for row in by_class(evaluate(part, candidate, bootstrap=0))] == ["0", "2", "3"]


def test_names_of_classes_are_as_many_as_classes(trace, candidate):
    found = evaluate(trace, candidate, bootstrap=0)
    with pytest.raises(InputError, match="class_names must have 4 entries, got 1"):
        by_class(found, ("a",))


def test_losses_have_no_classes():
    other = make_trace(60, stages=2, seed=1, kind="losses")
    alone = Candidate.single(other.topology, "stage0", reference="stage1")
    assert by_class(evaluate(other, alone, bootstrap=0)) == ()
