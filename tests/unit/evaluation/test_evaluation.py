"""Costs, risks, shares and intervals of one candidate."""

import inspect
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError, InputError, UnknownNameError
from offramp._core.schema import from_json, to_json
from offramp._core.topology import Topology
from offramp.evaluation import Evaluation, Frontier, FrontierPoint
from offramp.evaluation.evaluate import evaluate, paired_intervals, split_cost
from offramp.evaluation.replay import replay
from offramp.policy import Candidate, Constant, Feature, Linear, Node, Policy
from offramp.trace import make_trace
from support.properties import examples

_GENERATOR = "rng" if "rng" in inspect.signature(bootstrap).parameters else "random_state"


def intervals(columns, *, rounds: int, seed: int):
    """Intervals of the means of columns with one value per example."""
    kinds, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    return paired_intervals(kinds, counts, rounds=rounds, seed=seed)


def threshold_candidate(trace, value: float = 0.6, combine: str = "last") -> Candidate:
    chain = trace.topology.chain(list(range(len(trace.topology))))
    nodes = {
        p: Node(Linear.threshold(Feature("margin", p[-1]), value))
        for p in chain.paths()
        if chain.children(p[-1])
    }
    return Candidate(
        policy=Policy(chain, nodes, combine=combine),
        method="threshold",
        reference=trace.stages[-1],
    )


@examples(20)
@given(seed=st.integers(0, 2**31), combine=st.sampled_from(["last", "mean"]))
def test_every_figure_follows_from_the_replay_of_single_examples(seed, combine):
    trace = make_trace(60, stages=3, seed=seed)
    candidate = threshold_candidate(trace, combine=combine)
    found = evaluate(trace, candidate, bootstrap=0)
    done, f_wrong = replay(trace, candidate.policy), trace.wrong(2)
    losses = [(int(a), int(b)) for a, b in zip(done.wrong, f_wrong, strict=True)]
    assert found.accuracy == pytest.approx(1 - sum(a for a, _ in losses) / 60)
    assert found.reference_accuracy == pytest.approx(trace.accuracy(2))
    assert found.accuracy_drop == pytest.approx(sum(a - b for a, b in losses) / 60)
    assert found.negative_flips == pytest.approx(sum(max(0, a - b) for a, b in losses) / 60)
    assert found.cost == pytest.approx(done.cost.mean())
    assert found.cost_ratio == pytest.approx(done.cost.mean() / 16.0)
    assert found.exit_share == pytest.approx([(done.last == k).mean() for k in range(3)])
    assert found.visit_share == pytest.approx([done.visited[:, k].mean() for k in range(3)])
    assert found.accuracy_drop <= found.negative_flips


@examples(20)
@given(seed=st.integers(0, 2**31))
def test_shares_of_cost_are_complete(seed):
    rng = np.random.default_rng(seed)
    trace = make_trace(40, stages=3, seed=seed)
    costs = Costs(
        unit="s", **{f: tuple(rng.random(3).tolist()) for f in ("segment", "head", "decision")}
    )
    found = evaluate(trace.with_costs(costs), threshold_candidate(trace), bootstrap=0)
    assert sum(found.exit_share) == pytest.approx(1)
    assert sum(found.stage_cost_share) + found.decision_share == pytest.approx(1)
    assert found.unit == "s"


def test_work_of_networks_that_were_left_behind_is_overhead():
    trace = make_trace(10, stages=2)
    candidate = Candidate(
        policy=Policy(trace.topology, {(0,): Node(Constant(False))}),
        method="random",
        reference="stage1",
    )
    found = evaluate(trace, candidate, bootstrap=0)
    assert found.overhead_share == pytest.approx((0.2, 0.0))
    assert found.useful_share == pytest.approx((0.0, 0.8))


def test_work_that_a_later_exit_continues_is_useful_but_the_earlier_head_is_not():
    topology = Topology.of(["exit0", "exit1"], sources=[-1, 0])
    costs = Costs(unit="flops", segment=(3, 5), head=(0.25, 0.5), decision=(0, 0))
    useful, overhead = split_cost(costs, topology, (0, 1))
    assert useful.tolist() == [3, 5.5]
    assert overhead.tolist() == [0.25, 0]


def test_two_heads_at_one_cut_share_the_segment():
    topology = Topology.of(["a", "b", "f"], groups=["cut", "cut", "end"], sources=[-1, -1, -1])
    part = topology.part([(0, 1)])
    costs = Costs(unit="flops", segment=(3, 3, 9), head=(0.5, 0.25, 0), decision=(0, 0, 0))
    useful, overhead = split_cost(costs, part, (0, 1))
    assert useful.tolist() == [3, 0.25, 0]
    assert overhead.tolist() == [0.5, 0, 0]


def test_f_alone_has_ratio_one_and_loses_nothing():
    trace = make_trace(100, stages=2)
    found = evaluate(trace, Candidate.single(trace.topology, "stage1", reference="stage1"))
    assert (found.cost_ratio, found.accuracy_drop, found.negative_flips) == (1, 0, 0)
    assert found.cost_ratio_ci == (1, 1)
    assert found.accuracy_drop_ci == (0, 0)


def test_the_split_is_named_where_there_is_one():
    trace = make_trace(100, stages=2).split_into({"fit": 0.5, "test": 0.5}, seed=0)
    candidate = threshold_candidate(trace)
    assert evaluate(trace.subset("test"), candidate, bootstrap=0).split == "test"
    assert evaluate(trace, candidate, bootstrap=0).split == "all"
    assert evaluate(make_trace(100, stages=2), candidate, bootstrap=0).split == "all"


def test_intervals_agree_with_scipy():
    rng = np.random.default_rng(0)
    lost = rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.85, 0.1], size=400)
    cost = rng.choice([0.3, 1.3], size=400)
    found = intervals([cost, lost], rounds=20000, seed=1)
    for column, interval in zip([cost, lost], found, strict=True):
        drawn = {_GENERATOR: rng, "n_resamples": 20000, "method": "percentile", "batch": 500}
        known = bootstrap((column,), np.mean, **drawn).confidence_interval
        assert interval == pytest.approx((known.low, known.high), abs=0.006)


@pytest.mark.statistical
def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    rng, covered = np.random.default_rng(3), 0
    for seed in range(2000):
        ((low, high),) = intervals(
            [rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=300)], rounds=500, seed=seed
        )
        covered += low <= 0.1 <= high
    assert 0.93 < covered / 2000 < 0.965


def test_columns_share_the_resamples():
    rng = np.random.default_rng(0)
    column = rng.choice([0.0, 1.0], size=50)
    first, second = intervals([column, 2 * column], rounds=300, seed=0)
    assert second == pytest.approx((2 * first[0], 2 * first[1]))


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.0])
def test_an_interval_of_equal_values_is_that_value(value):
    assert intervals([np.full(37, value)], rounds=50, seed=0) == [(value, value)]


def test_intervals_are_left_out_on_request_and_seeded():
    trace = make_trace(100, stages=2)
    candidate = threshold_candidate(trace)
    assert evaluate(trace, candidate, bootstrap=0).accuracy_drop_ci is None
    first, same = (evaluate(trace, candidate, seed=1, bootstrap=200) for _ in range(2))
    assert first == same
    low, high = first.cost_ratio_ci
    assert low < first.cost_ratio < high


def test_a_reference_that_is_free_has_no_ratio():
    trace = make_trace(10, stages=2).with_costs(Costs.simple("usd", [1.0, 0.0]))
    with pytest.raises(InputError, match=r"'stage1' costs 0.0 usd"):
        evaluate(trace, Candidate.single(trace.topology, "stage0", reference="stage1"))


def test_an_unknown_reference_is_named_with_the_nearest():
    trace = make_trace(10, stages=2)
    with pytest.raises(UnknownNameError, match=r"no stage 'stage9'. Did you mean 'stage"):
        evaluate(trace, Candidate.single(trace.topology, "stage0", reference="stage9"))


def test_an_evaluation_becomes_json_without_nan():
    trace = make_trace(10, stages=2)
    value = to_json(evaluate(trace, threshold_candidate(trace)))
    assert value["stage_cost_share"] == pytest.approx(
        [a + b for a, b in zip(value["useful_share"], value["overhead_share"], strict=True)]
    )
    assert math.isfinite(value["cost_ratio"])
    assert value["candidate"]["method"] == "threshold"


@pytest.mark.parametrize("bootstrap", [0, 50])
def test_an_evaluation_comes_back_from_json_as_it_was(bootstrap):
    trace = make_trace(60, stages=2)
    found = evaluate(trace, threshold_candidate(trace), bootstrap=bootstrap)
    again = from_json(Evaluation, json.loads(json.dumps(to_json(found))))
    assert to_json(again) == to_json(found)
    assert again.cost_ratio_ci == found.cost_ratio_ci
    assert replace(again, candidate=found.candidate) == found


@pytest.mark.parametrize("reader", [Evaluation, FrontierPoint, Frontier])
@pytest.mark.parametrize("value", [{}, {"candidate": 3}, {"reference": "a", "points": 7}])
def test_what_is_no_result_is_refused(reader, value):
    with pytest.raises(FileFormatError, match=r"problems? as an? "):
        from_json(reader, value)
