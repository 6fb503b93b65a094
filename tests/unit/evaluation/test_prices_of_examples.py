"""Prices of examples in replay, fit, evaluation, choice and certificates."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from offramp._core.errors import InputError
from offramp._core.schema import from_json, to_json
from offramp.evaluation import Evaluation, Frontier, evaluate, evaluate_all, fit, replay
from offramp.evaluation.cost_tests import HEADROOM, CostTest
from offramp.evaluation.evaluate import intervals_of_each
from offramp.evaluation.tally import Tally, costs_rounded_up, losses_rounded_up
from offramp.fitting.baselines import fit_random
from offramp.fitting.learned import fit_learned
from offramp.fitting.oracles import ORACLES, oracle, oracle_reference
from offramp.fitting.thresholds import fit_threshold
from offramp.policy import Candidate
from offramp.testing.slow import replay_slow
from offramp.trace import make_trace


def priced(n=300, stages=3, seed=0, spread=0.7, **options):
    trace = make_trace(n, stages=stages, seed=seed, **options)
    each = np.random.default_rng(seed).lognormal(0, spread, size=(n, stages))
    costs = replace(trace.costs, decision=(0.05,) * stages, head=(0.1,) * stages)
    return replace(
        trace, costs=costs, prices=torch.from_numpy(each * np.array(trace.costs.segment))
    )


@pytest.fixture(scope="module")
def trace():
    return priced()


def test_replay_bills_each_example_by_its_own_prices(trace):
    for candidate in fit_random(trace, reference="stage2", rates=[0.4]):
        fast, slow = replay(trace, candidate.policy), replay_slow(trace, candidate.policy)
        assert fast.cost == pytest.approx(slow.cost)
        assert np.array_equal(fast.path, slow.path)


def test_an_evaluation_is_what_examples_paid(trace):
    candidates = fit_random(trace, reference="stage2", rates=[0.0, 0.4])
    together = evaluate_all(trace, candidates)
    for candidate, other in zip(candidates, together, strict=True):
        done, found = replay(trace, candidate.policy), evaluate(trace, candidate, bootstrap=0)
        own = float(trace.prices[:, 2].mean()) + 0.1
        assert found.cost == pytest.approx(done.cost.mean())
        assert found.reference_cost == pytest.approx(own)
        assert found.cost_ratio == pytest.approx(done.cost.mean() / own)
        parts = sum(found.useful_share) + sum(found.overhead_share) + found.decision_share
        assert parts == pytest.approx(1.0)
        ways = np.array(found.path_share) @ np.array(found.path_cost_ratio)
        assert ways == pytest.approx(found.cost_ratio)
        assert other.cost_tally == found.cost_tally
        assert other.cost == pytest.approx(found.cost)
        again = from_json(Evaluation, json.loads(json.dumps(to_json(found))))
        assert again.cost_tally == found.cost_tally


def test_intervals_are_those_of_resampled_examples():
    rng = np.random.default_rng(0)
    each = np.stack([rng.lognormal(size=40), 2 + rng.uniform(size=40), *np.zeros((2, 40))], axis=1)
    (low, high), *_ = intervals_of_each(each, rounds=3000, seed=0)
    drawn = each[rng.integers(40, size=(3000, 40))]
    ratios = drawn[:, :, 0].mean(axis=1) / drawn[:, :, 1].mean(axis=1)
    assert (low, high) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), rel=0.03)


@pytest.mark.parametrize("kind", ORACLES)
def test_oracles_take_the_cheapest_way_of_each_example(kind, trace):
    few = trace.take(torch.arange(80))
    options = {"topology": trace.topology, "reference": "stage2"}
    fast, slow = oracle(few, kind, **options), oracle_reference(few, kind, **options)
    assert np.array_equal(fast.last, slow.last)
    assert fast.cost == pytest.approx(slow.cost)
    assert np.array_equal(fast.loss, slow.loss)


def test_thresholds_are_the_best_of_all_pairs_of_cuts():
    """On a chain of three with few examples every pair of thresholds can be tried."""
    trace = priced(n=12, seed=4)
    chain = trace.topology.chain([0, 1, 2])
    options = {"combines": ["last"], "confidences": ["margin"], "topologies": [chain]}
    candidates = fit_threshold(trace, reference="stage2", **options)
    found = [(e.cost, 1 - e.accuracy) for e in evaluate_all(trace, candidates)]
    sure = [trace.logits[:, k].softmax(dim=1).topk(2).values for k in (0, 1)]
    margins = [(m[:, 0] - m[:, 1]).numpy() for m in sure]
    loss = [trace.loss(k) for k in range(3)]
    bill, best = trace.bill, {}
    for first, second in product(*([*m.tolist(), 2.0] for m in margins)):
        one, two = margins[0] >= first - 1e-9, margins[1] >= second - 1e-9
        decided = [k for k, t in ((0, first), (1, second)) if t < 2]
        costs = [bill.path(chain, p, decided) for p in ((0,), (0, 1), (0, 1, 2))]
        cost = np.where(one, costs[0], np.where(two, costs[1], costs[2])).mean()
        error = np.where(one, loss[0], np.where(two, loss[1], loss[2])).mean()
        best[error] = min(cost, best.get(error, np.inf))
    for error, cost in best.items():
        if cost <= min(c for e, c in best.items() if e <= error):  # on the front of all pairs
            reached = [c for c, e in found if e <= error + 1e-9]
            assert min(reached) <= cost * 1.1


def test_a_learned_policy_sees_who_is_dear():
    """Where the dear examples are told by their confidence, prices change the policy."""
    trace = make_trace(3000, stages=2, seed=1)
    margin = trace.logits[:, 0].softmax(dim=1).amax(dim=1)
    dear = torch.where(margin < margin.median(), 8.0, 0.5)[:, None].double()
    costs = torch.tensor(trace.costs.segment).double() * torch.cat([torch.ones_like(dear), dear], 1)
    told = replace(trace, prices=costs)
    mean = replace(trace, costs=told.mean_costs)
    options = {"reference": "stage1", "combines": ["last"], "cost_weights": [0.1]}
    both = (fit_learned(part, **options) for part in (told, mean))
    for known, blind in zip(*both, strict=True):
        one, other = (evaluate(told, c, bootstrap=0) for c in (known, blind))
        assert one.negative_flips + 0.1 * one.cost_ratio < (
            other.negative_flips + 0.1 * other.cost_ratio - 0.003
        )


@pytest.fixture(scope="module")
def frontier():
    return fit(priced(3000, spread=0.4), "threshold", combines=["last"], progress=False)


def test_a_choice_and_its_certificate_are_of_what_was_paid(frontier):
    chosen = frontier.cheapest(max_drop=0.03, delta=None)
    assert chosen.cascade
    both = chosen.judged
    assert both.cost_ratio == pytest.approx(both.cost / both.reference_cost)
    found = frontier.certify({"accuracy_drop": 0.04, "cost": 0.9}, delta=0.1)
    assert found.outcome == "certified"
    highest = HEADROOM * max(found.point.fit.cost_tally.values)
    assert f"costs more than {highest:.4g} flops" in found.guarantee.assumptions[-1]
    again = from_json(Frontier, json.loads(json.dumps(to_json(frontier))))
    same = again.certify({"accuracy_drop": 0.04, "cost": 0.9}, delta=0.1)
    assert (same.guarantee, same.sentence) == (found.guarantee, found.sentence)


def test_an_example_beyond_the_highest_cost_fails_the_test(frontier):
    found = frontier.certify({"cost": 0.9}, delta=0.1)
    (limit,) = found.limits
    test, point = CostTest(limit=limit, delta=0.1), found.point
    assert test.p_values([point])[0] <= 0.1
    beyond = point.calibrate.cost_tally + Tally((3 * max(point.fit.cost_tally.values),), (1,))
    worse = replace(point, calibrate=replace(point.calibrate, cost_tally=beyond))
    assert test.p_values([worse])[0] == 1.0


def test_weights_of_classes_with_a_cost_are_refused(frontier):
    with pytest.raises(InputError, match="prices of their own"):
        frontier.certify({"cost": 0.9}, delta=0.1, class_weights=[1.0] * 4)


def test_another_table_of_costs_bills_by_that(trace):
    alone = Candidate.single(trace.topology, "stage0", reference="stage2")
    by_means = evaluate(trace, alone, bootstrap=0, costs=replace(trace.costs, unit="seconds"))
    assert by_means.cost == pytest.approx(1.1)
    assert by_means.cost_tally is None


def test_rounding_up_never_lowers_and_hardly_raises():
    rng = np.random.default_rng(0)
    costs = np.exp(rng.uniform(-20, 20, size=1000))
    up = costs_rounded_up(costs)
    assert (up >= costs * (1 - 1e-9)).all()
    assert (up <= costs * 1.0101).all()
    losses = rng.uniform(-1, 1, size=1000)
    assert ((up := losses_rounded_up(losses)) >= losses - 1e-12).all()
    assert (up <= losses + 1.0001e-4).all()
