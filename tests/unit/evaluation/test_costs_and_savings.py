"""Costs in other units, savings within a loss, accuracy against depth."""

import json
from dataclasses import replace

import numpy as np
import pytest

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.schema import to_json
from offramp.evaluation import (
    costs_by_unit,
    evaluate,
    exit_points,
    fit,
    frontier_of,
    replay,
    savings,
    sweep,
)
from offramp.fitting.baselines import fit_random
from offramp.fitting.learned import fit_learned
from offramp.fitting.tables import Tables
from offramp.policy import Candidate
from offramp.trace import Trace
from offramp.trace.testing import make_trace

SECONDS = Costs(
    unit="seconds", segment=(0.01, 0.02, 0.05), head=(0.001, 0.0, 0.0), decision=(0.002,) * 3,
    note="batch size 8",
)  # fmt: skip


@pytest.fixture(scope="module")
def trace() -> Trace:
    plain = make_trace(1500, stages=3, seed=4)
    timed = replace(plain, other_costs=(SECONDS, Costs.simple("usd", [1.0, 1.0, 0.0])))
    return timed.split_into({"fit": 500, "calibrate": 500, "test": 500}, seed=0)


@pytest.fixture(scope="module")
def frontier(trace):
    options = {
        "combines": ["log_linear"],
        "cost_weights": [0.02, 0.1, 0.4],
        "confidences": ["margin"],
    }
    return fit(trace, ["learned", "threshold", "random"], progress=False, **options)


def test_a_bill_in_another_unit_is_the_sum_of_what_each_example_used(trace, frontier):
    part, candidate = trace.subset("test"), frontier.pareto[len(frontier.pareto) // 2].candidate
    flops, seconds = costs_by_unit(part, candidate)
    done = replay(part, candidate.policy)
    own = SECONDS.alone(part.topology, 2)
    paid = [
        SECONDS.path(candidate.policy.topology, path, candidate.policy.decided(path))
        for path in done.paths
    ]
    each = np.array(paid)[done.path]
    assert (seconds.unit, seconds.note) == ("seconds", "batch size 8")
    assert seconds.cost == pytest.approx(each.mean())
    assert seconds.cost_ratio == pytest.approx(each.mean() / own)
    low, high = seconds.cost_ratio_ci
    assert low < seconds.cost_ratio < high
    assert seconds.speedup == pytest.approx(1 / seconds.cost_ratio)
    assert flops.cost_ratio == evaluate(part, candidate).cost_ratio
    assert json.loads(json.dumps(to_json(seconds)))["cost_ratio_ci"] == list(seconds.cost_ratio_ci)


def test_other_costs_change_no_decision(trace, frontier):
    part, candidate = trace.subset("test"), frontier.pareto[0].candidate
    plain, timed = (evaluate(part, candidate, costs=costs) for costs in (None, SECONDS))
    assert timed.unit == "seconds"
    assert timed.exit_share == plain.exit_share
    assert timed.accuracy_drop_ci == plain.accuracy_drop_ci


def test_costs_of_other_stages_are_refused(trace, frontier):
    with pytest.raises(InputError, match=r"one entry per stage \(3\), got 2"):
        evaluate(trace, frontier.pareto[0].candidate, costs=Costs.simple("usd", [1.0, 2.0]))


def test_savings_are_those_of_the_points_chosen_on_other_examples(trace, frontier):
    part = trace.subset("test")
    found = savings(part, {"all": frontier}, losses=[0.0, 0.05], bootstrap=100)
    assert [s.max_drop for s in found] == [0.0, 0.05]
    for saving in found:
        choice = frontier.cheapest(max_drop=saving.max_drop, delta=None)
        again = evaluate(part, choice.candidate, bootstrap=100)
        assert to_json(saving.found) == to_json(again)
        assert saving.saved == 1 - again.cost_ratio
        assert saving.saved_ci == (1 - again.cost_ratio_ci[1], 1 - again.cost_ratio_ci[0])
    assert found[0].saved <= found[1].saved
    json.dumps([to_json(saving) for saving in found], allow_nan=False)


def test_where_nothing_is_worth_it_one_network_stands_there(trace):
    part = trace.subset("fit")
    candidates = fit_random(part, reference="stage2", rates=[0.5])
    only = sweep(candidates, part, trace.subset("calibrate"), reference="stage2", progress=False)
    (saving,) = savings(trace.subset("test"), {"random": only}, losses=[0.0], bootstrap=0)
    assert not saving.cascade
    assert saving.saved == 0
    assert saving.saved_ci is None


def test_the_frontier_of_one_policy_is_judged_as_if_it_had_been_fitted_alone(trace, frontier):
    calibrate = trace.subset("calibrate")
    options = {"combines": ["log_linear"], "confidences": ["margin"]}
    alone = fit(trace, "threshold", progress=False, **options)
    among = frontier_of(frontier, ["threshold"], calibrate)
    for loss in (0.0, 0.02, 0.05):
        first, second = (to_json(f.cheapest(max_drop=loss, delta=None)) for f in (alone, among))
        assert first == second
    assert [p.on_front for p in among.points] == [p.on_front for p in alone.points]
    assert frontier_of(frontier, ["agreement"], calibrate) is None


def test_without_that_a_beaten_policy_is_judged_on_fit_alone(frontier):
    """The fault that `frontier_of` is there for can be seen without it."""
    among = frontier_of(frontier, ["random"], None)
    assert any(p.calibrate is None for p in among.front("accuracy_drop"))


@pytest.mark.parametrize("combine", ["last", "mean", "log_linear"])
def test_depth_and_accuracy_of_each_exit_are_those_of_its_outputs(trace, combine):
    part = trace.subset("fit")
    (candidate,) = fit_learned(
        part, reference="stage2", cost_weights=[0.05], combines=[combine],
        topologies=[part.topology.chain([0, 1, 2])],
    )  # fmt: skip
    points = exit_points(part, candidate)
    assert [p.accuracy for p in points] == [part.accuracy(k) for k in range(3)]
    assert points[0].cost_ratios == pytest.approx((1 / 16, 0.011 / 0.05))
    chain = candidate.policy.topology.active
    tables = Tables(
        part, temperatures=candidate.policy.temperatures.tolist(), combine=combine, reference=2,
        weights=candidate.policy.combination.weights or None,
    )  # fmt: skip
    for i, k in enumerate(chain):
        if combine == "last" or i == 0:
            assert points[k].combined is None
            continue
        path = chain[: i + 1]
        tables.ensure([path])
        assert points[k].combined == pytest.approx(1 - tables.losses(path)[:, 0].mean())
    json.dumps([to_json(p) for p in points])


def test_of_one_network_alone_nothing_is_combined(trace):
    alone = Candidate.single(trace.topology, "stage0", reference="stage2")
    assert {p.combined for p in exit_points(trace, alone)} == {None}
