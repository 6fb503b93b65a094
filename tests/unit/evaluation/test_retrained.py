"""A frontier over retrained cascades is measured against the networks as they were alone."""

from dataclasses import replace

import pytest
import torch

from offramp._core.errors import InputError
from offramp.evaluation import assignment, evaluate, frontier_of_traces, replay
from offramp.fitting.registry import POLICIES
from offramp.policy import Candidate, Policy
from offramp.policy.policy import Node
from offramp.policy.rules import ClassThreshold
from offramp.trace import make_trace

SHARES = {"fit": 300, "calibrate": 200, "test": 100}
F = "stage1"


@pytest.fixture(scope="module")
def alone():
    return make_trace(600, accuracies=[0.7, 0.93], seed=5).split_into(SHARES, seed=1)


@pytest.fixture(scope="module")
def worse(alone):
    """The same examples, every tenth answer of the reference spoilt: as if trained on less."""
    logits = alone.logits.clone()
    logits[::10, 1] = logits[::10, 1].roll(1, dims=1)
    return replace(alone, logits=logits)


def obvious(trace, candidate, baseline):
    """Cost ratio, difference and excess, one example at a time."""
    done = replay(trace, candidate.policy)
    wrong, f_wrong = done.wrong, baseline.wrong(1)
    costs = [trace.costs.path(trace.topology, done.paths[p], ()) for p in done.path]
    lost = [float(a) - float(b) for a, b in zip(wrong, f_wrong, strict=True)]
    whole = trace.costs.alone(trace.topology, 1)
    return (
        sum(costs) / len(costs) / whole,
        sum(lost) / len(lost),
        sum(max(0.0, v) for v in lost) / len(lost),
    )


def test_a_setting_is_compared_with_f_of_the_baseline(alone, worse):
    candidate = POLICIES["threshold"](worse.subset("fit"), reference=F)[3]
    found = evaluate(worse, candidate, bootstrap=0, baseline=alone)
    ratio, difference, negative_flips = obvious(worse, candidate, alone)
    assert found.cost_ratio == pytest.approx(ratio)
    assert found.accuracy_drop == pytest.approx(difference)
    assert found.negative_flips == pytest.approx(negative_flips)
    assert found.reference_accuracy == pytest.approx(alone.accuracy(1))
    own = evaluate(worse, candidate, bootstrap=0)
    assert (
        own.accuracy_drop < found.accuracy_drop
    )  # against its own the reference the loss would look smaller


def test_the_baseline_must_hold_the_same_examples(alone, worse):
    single = Candidate.single(alone.topology, F, reference=F)
    with pytest.raises(InputError, match=r"600 examples .* got 300 others"):
        evaluate(worse, single, baseline=alone.subset("fit"))
    turned = alone.take(torch.arange(600).flip(0))
    with pytest.raises(InputError, match="in the same order"):
        evaluate(worse, single, baseline=turned)


def test_points_and_singles_share_one_f_and_one_front(alone, worse):
    cascades = [(t, POLICIES["threshold"](t.subset("fit"), reference=F)) for t in (alone, worse)]
    found = frontier_of_traces(cascades, alone, reference=F)
    assert len(found.points) == sum(len(candidates) for _, candidates in cascades)
    assert {p.fit.reference_accuracy for p in found.points} == {alone.subset("fit").accuracy(1)}
    assert [p.candidate.label for p in found.singles] == ["stage0 alone", "stage1 alone"]
    assert found.singles[1].judged.accuracy_drop == 0.0
    for point in found.points:
        better = [
            p
            for p in (*found.points, *found.singles)
            if p.fit.cost_ratio <= point.fit.cost_ratio
            and p.fit.accuracy_drop < point.fit.accuracy_drop
        ]
        assert not (point.on_front and better)
        assert point.judged.n == 500


def test_spoilt_networks_are_not_chosen_over_good_ones(alone, worse):
    f_alone = Candidate.single(worse.topology, F, reference=F)
    found = frontier_of_traces([(worse, [f_alone])], alone, reference=F)
    assert found.points[0].judged.accuracy_drop > 0.03
    assert not found.points[0].on_front


def test_nothing_to_compare_is_refused(alone):
    with pytest.raises(InputError, match="at least one candidate, got none"):
        frontier_of_traces([(alone, [])], alone, reference=F)


def test_groups_of_an_assignment_add_up_to_the_accuracy(alone):
    part = alone.subset("test")
    for candidate in POLICIES["threshold"](alone.subset("fit"), reference=F)[::5]:
        found = assignment(part, candidate)
        s = range(len(found.stages))
        assert sum(found.share) == pytest.approx(1.0)
        own = sum(found.share[k] * (found.accuracy[k][k] or 0.0) for k in s)
        done = replay(part, candidate.policy)
        if candidate.policy.combine == "last":
            assert own == pytest.approx(1 - done.wrong.mean())
        for i in s:
            row = sum(found.share[j] * (found.accuracy[i][j] or 0.0) for j in s)
            assert row == pytest.approx(part.accuracy(part.topology.index(found.stages[i])))
            empty = [found.accuracy[i][j] is None for j in s]
            assert empty == [found.share[j] == 0 for j in s]


def test_an_assignment_counts_by_hand():
    logits = torch.full((4, 2, 2), -4.0)
    logits[[0, 1, 2, 3], 0, [0, 0, 1, 1]] = torch.tensor([4.0, 4.0, -3.0, -3.0])
    logits[[0, 1, 2, 3], 1, [0, 1, 1, 1]] = 4.0
    trace = replace(
        make_trace(4, stages=2, classes=2, seed=0),
        logits=logits,
        labels=torch.tensor([0, 1, 1, 0]),
        classes=2,
        class_names=(),
    )
    leave = Node(ClassThreshold(stage=0, target=0, log_odds=0.0))
    policy = Policy(trace.topology.chain([0, 1]), {(0,): leave})
    found = assignment(trace, Candidate(policy=policy, method="by hand", reference="stage1"))
    assert found.stages == ("stage0", "stage1")
    assert found.share == (0.5, 0.5)
    # 0 and 1 leave first: stage0 is right on 0 alone, stage1 on both; of 2 and 3 each gets one
    assert found.accuracy == ((0.5, 0.5), (1.0, 0.5))
