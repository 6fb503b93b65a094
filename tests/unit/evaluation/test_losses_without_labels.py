"""Losses in place of labels: the same object, and nothing that only labels have."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from offramp._core.errors import InputError
from offramp._core.schema import from_json, to_json
from offramp.evaluation import (
    Evaluation,
    Frontier,
    advise,
    confirm,
    evaluate,
    evaluate_all,
    fit,
    overlap,
    references,
    replay,
)
from offramp.evaluation.risk_tests import GradedTest, risk_p_values
from offramp.fitting.oracles import ORACLES, oracle
from offramp.policy import Candidate, Policy
from offramp.risk import Range, counted_p_value, tuned_bet
from offramp.trace import from_losses, from_predictions, make_trace


def without_labels(trace, *, graded=False):
    """The same answers as losses, with what a policy sees of them."""
    stages = range(len(trace.topology))
    losses = torch.stack([torch.from_numpy(trace.wrong(k)) for k in stages], dim=1)
    return from_losses(
        losses.float() if graded else losses,
        confidences=trace.confidence,
        names=trace.stages,
        costs=trace.costs,
    )


def services(n=1500, seed=0):
    """Labels with confidences of many classes: what a policy sees is the confidence alone."""
    made = make_trace(n, stages=3, classes=4, seed=seed, kind="labels")
    return replace(made, ranked=made.ranked[:, :, :1])


@pytest.fixture(scope="module")
def pair():
    labeled = services()
    return labeled, without_labels(labeled)


def outline(points):
    """Cost and loss on the front, which is what a frontier is."""
    return sorted({(round(p.fit.cost_ratio, 9), round(p.fit.accuracy_drop, 9)) for p in points})


@pytest.mark.parametrize("policy", ["threshold", "random"])
def test_losses_give_the_frontier_that_labels_give(pair, policy):
    """Without a combination a confidence decides, and whether it is calibrated changes no cut."""
    labeled, lost = pair
    options = {"combines": ["last"]} if policy == "threshold" else {}
    one = fit(labeled, policy, reference="stage2", progress=False, **options)
    other = fit(lost, policy, reference="stage2", progress=False)
    assert outline(other.singles) == outline(one.singles)
    if policy == "random":
        assert outline(other.points) == outline(one.points)
        return
    best = {cost: drop for cost, drop in outline(one.pareto)}
    mine = {cost: drop for cost, drop in outline(other.pareto)}
    for cost, drop in best.items():  # no point of labels is missed by more than one example
        assert min(d for c, d in mine.items() if c <= cost + 1e-9) <= drop + 1 / 1000


def test_a_policy_means_the_same_in_both(pair):
    labeled, lost = pair
    found = fit(lost, "threshold", reference="stage2", progress=False)
    certified = found.certify({"accuracy_drop": 0.05}, delta=0.1)
    assert certified.outcome == "certified"
    n = certified.calibrate.n
    flips = round(n * certified.calibrate.negative_flips)
    assert flips == pytest.approx(n * certified.calibrate.negative_flips)  # counts, tested exactly
    p = risk_p_values([certified.calibrate], risk="accuracy_drop", max_drop=0.05, delta=0.1)
    assert certified.guarantee.p_value >= p[0]
    assert labeled.accuracy(2) == lost.accuracy(2)


def test_oracles_and_references_are_the_same(pair):
    labeled, lost = pair
    assert references(labeled, "stage2") == references(lost, "stage2")
    for kind in ORACLES:
        of = {"topology": lost.topology, "reference": "stage2"}
        one, other = oracle(labeled, kind, **of), oracle(lost, kind, **of)
        assert np.array_equal(one.last, other.last)
    assert overlap(labeled) == overlap(lost)
    a, b = advise(labeled), advise(lost)
    assert (a.worth_it, a.most_saved) == (b.worth_it, b.most_saved)


@pytest.fixture(scope="module")
def graded():
    return make_trace(3000, stages=3, seed=1, kind="losses")


@pytest.fixture(scope="module")
def frontier(graded):
    return fit(graded, ["threshold", "learned"], cost_weights=[0.03, 0.1], progress=False)


def test_a_graded_evaluation_is_the_mean_of_its_losses(graded, frontier):
    candidates = [p.candidate for p in frontier.points[::40]]
    for candidate, other in zip(candidates, evaluate_all(graded, candidates), strict=True):
        done, found = replay(graded, candidate.policy), evaluate(graded, candidate, bootstrap=50)
        lost = graded.losses[np.arange(len(graded)), done.last].double().numpy()
        difference = lost - graded.loss(2)
        assert found.accuracy == pytest.approx(1 - lost.mean())
        assert found.accuracy_drop == pytest.approx(difference.mean())
        assert found.negative_flips == pytest.approx(difference.clip(min=0).mean())
        assert found.cost == pytest.approx(done.cost.mean())
        low, high = found.accuracy_drop_ci
        assert low <= found.accuracy_drop <= high
        assert other.difference_tally == found.difference_tally
        assert other.accuracy == pytest.approx(found.accuracy)
        values, counts = found.difference_tally.values, found.difference_tally.counts
        assert 0 <= np.average(values, weights=counts) - difference.mean() <= 1e-4
        assert found.of_losses
        assert not found.class_outcomes
        again = from_json(Evaluation, json.loads(json.dumps(to_json(found))))
        assert again.loss_tally == found.loss_tally


def test_a_choice_speaks_of_loss_and_not_of_accuracy(graded, frontier):
    texts = [
        frontier.cheapest(max_drop=0.02, delta=None).sentence,
        frontier.cheapest(max_drop=1e-6, delta=None).sentence,
        frontier.cheapest(max_drop=0.05).sentence,
        frontier.cheapest(max_drop=0.001).sentence,
        frontier.certify({"error": 0.3, "negative_flips": 0.2}).sentence,
        frontier.best(max_cost=0.3).sentence,
        frontier.best(max_cost=0.3, delta=0.1).sentence,
    ]
    for text in texts:
        assert "los" in text or "cost" in text
        assert "accura" not in text.replace("accuracy_drop", "")
        assert "point" not in text
    assert "a mean loss at most 0.05 above that of stage2" in texts[2]


def test_the_test_of_a_graded_loss_is_a_bet_on_its_differences(frontier):
    found = frontier.certify({"accuracy_drop": 0.05}, delta=0.1)
    assert found.outcome == "certified"
    test = GradedTest(limit=found.limits[0], delta=0.1)
    before, seen = (e.difference_tally for e in (found.fit, found.calibrate))
    within = Range(low=-1.0, high=1.0, limit=0.05)
    bet = tuned_bet(
        np.array(before.values), np.array(before.counts), found.n, within=within, delta=0.1
    )
    p = counted_p_value(np.array(seen.values), np.array(seen.counts), within=within, bet=bet)
    assert test.p_values([found.point]) == pytest.approx(p)
    again = from_json(Frontier, json.loads(json.dumps(to_json(frontier))))
    assert again.certify({"accuracy_drop": 0.05}, delta=0.1).guarantee == found.guarantee
    refused = frontier.cheapest(max_drop=0.001)
    assert refused.examples_needed is None or refused.examples_needed > found.n


def test_one_candidate_is_confirmed_on_other_examples(graded, frontier):
    parts = graded.split_into({"fit": 0.3, "calibrate": 0.3, "test": 0.4}, seed=0)
    made = fit(parts, "threshold", progress=False)
    chosen = made.cheapest(max_drop=0.03, delta=None).candidate
    found = confirm(
        parts.subset("test"), chosen, {"accuracy_drop": 0.1}, fit=parts.subset("fit"), delta=0.1
    )
    assert found.outcome == "certified"
    assert found.guarantee.n == 1200


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("agreement", {}, "policy='agreement' needs labels"),
        ("threshold", {"combines": ["mean"]}, "combine must be 'last' where losses"),
        ("learned", {"combines": ["log_linear"]}, "combine must be 'last' where losses"),
        ("random", {"combine": "mean"}, "cannot be combined"),
        ("threshold", {"top": 2}, "top must be 1"),
        ("threshold", {"confidences": ["margin"]}, "confidences must be one of"),
        ("class_exits", {"targets": [0]}, "needs labels"),
        ("stopping", {}, "needs labels"),
    ],
)
def test_what_needs_labels_is_refused_with_the_reason(graded, policy, options, message):
    with pytest.raises(InputError, match=message):
        fit(graded, policy, progress=False, **options)


@pytest.mark.parametrize("limits", [{"recall": 0.1}, {"disagreement": 0.1}])
def test_promises_that_need_labels_are_refused(frontier, limits):
    with pytest.raises(InputError, match="needs labels, and losses were recorded"):
        frontier.certify(limits)
    with pytest.raises(InputError, match="with class weights needs labels"):
        frontier.certify({"accuracy_drop": 0.1}, class_weights=[1.0])


def routed(n=3000, seed=0):
    """A prompt's length tells which of two models is enough, before either has run."""
    rng = np.random.default_rng(seed)
    hard = rng.uniform(size=n)
    losses = {"length": None, "small": (hard > 0.5).astype(int), "large": (hard > 0.95).astype(int)}
    features = {
        "length": hard + 0.05 * rng.normal(size=n),
        "small": np.zeros(n),
        "large": np.zeros(n),
    }
    costs = {"length": 0.01, "small": 1.0, "large": 10.0}
    return from_losses(losses, features=features, costs=costs, unit="usd")


def test_routing_before_any_model_has_run_is_the_same_object():
    trace = routed()
    frontier = fit(trace, ["learned", "threshold", "random"], progress=False)
    assert {p.candidate.label for p in frontier.singles} == {"small alone", "large alone"}
    found = frontier.cheapest(max_drop=0.02)
    assert found.outcome == "certified"
    assert found.fit.exit_share[0] == 0
    assert found.fit.cost_ratio < 0.62  # each to the model that is enough: about 0.55
    path = {(0, 1), (0, 2)}
    topology = found.candidate.policy.topology
    used = [p for p, share in zip(topology.paths(), found.fit.path_share, strict=True) if share > 0]
    assert path <= set(used)
    others = references(trace, "large", topology=trace.topology)
    static = [r.name for r in others if r.kind == "static"]
    assert static == ["small alone", "large alone"]


def test_nobody_may_leave_at_a_stage_that_answers_nothing():
    trace = routed(50)
    alone = Candidate(
        policy=Policy(trace.topology.chain([0]), {}), method="single", reference="large"
    )
    for look in (replay, lambda t, p: evaluate_all(t, [alone])):
        with pytest.raises(InputError, match="'length' answers nothing"):
            look(trace, alone.policy)


def test_advice_on_graded_losses_is_refused(graded):
    with pytest.raises(InputError, match="losses between them"):
        advise(graded)


def test_labels_alone_stay_what_they_were():
    trace = from_predictions({"a": [0, 1], "b": [0, 0]}, [0, 1], costs=[[1, 2]] * 2, unit="usd")
    assert trace.labeled
    assert trace.prices is None
