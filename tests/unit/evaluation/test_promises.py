"""Certificates of every risk: tested on which losses, in which order, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from offramp.evaluation import fit, replay
from offramp.evaluation.limits import read_limits
from offramp.evaluation.order import walk_order
from offramp.evaluation.weights import risk_tests
from offramp.risk import Range, binomial_p_values, fewest_examples, paired_p_values, tuned_bet
from offramp.risk.counted import counted_p_value_reference
from offramp.trace import make_trace

DELTA = 0.1
WEIGHTS = (1.6, 0.4, 1.0, 1.0)
SIMPLE = {"combines": ["last"], "confidences": ["margin"], "progress": False}
NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def pairs():
    """Two stages, so that paths have two costs."""
    return fit(make_trace(3000, stages=2, seed=1), "threshold", **SIMPLE)


# The same p-values from the losses of examples, one candidate at a time.


def replayed(part, candidate, held={}):  # noqa: B006  (kept on purpose)
    key = id(part), id(candidate)
    if key not in held:
        held[key] = part, candidate, replay(part, candidate.policy, top=candidate.top)
    return held[key][2]


def losses(part, candidate, risk):
    """Of each example."""
    done = replayed(part, candidate)
    stage = part.topology.index(candidate.reference)
    f_wrong = part.wrong(stage, top=candidate.top).astype(int)
    differs = done.labels[:, 0] != part.output(stage).top(1)[:, 0].numpy()
    wrong = done.wrong.astype(int)
    f_cost = part.costs.alone(part.topology, stage)
    return {
        "accuracy_drop": wrong - f_wrong,
        "negative_flips": np.maximum(wrong - f_wrong, 0),
        "error": wrong,
        "disagreement": differs.astype(int),
        "cost": done.cost / f_cost,
    }[risk]


def p_of_counts(values, limit):
    lost, won = np.array([(values == 1).sum()]), np.array([(values == -1).sum()])
    return paired_p_values(lost, won, len(values), max_difference=limit, slack=DELTA / 100)[0]


def p_of_bet(before, values, within):
    kinds, counts = np.unique(before, return_counts=True)
    bet = tuned_bet(kinds, counts, len(values), within=within, delta=DELTA)
    return counted_p_value_reference(values.tolist(), within=within, bet=bet)


def slow_p(parts, point, risk, limit, weights=None):
    fitted, part = parts
    candidate = point.candidate
    if risk == "recall":
        values = losses(part, candidate, "accuracy_drop")
        return max(p_of_counts(values[part.labels.numpy() == y], limit) for y in range(4))
    values = losses(part, candidate, risk)
    if risk == "cost" and weights is not None:
        heavy, ratios = np.array(weights), point.fit.path_cost_ratio
        low = min(ratios)
        high = low + (max(ratios) - low) * max(weights)
        if limit >= max(ratios) or limit <= low:
            return float(limit <= low)
        of_fit = losses(fitted, candidate, risk)
        before = low + heavy[fitted.labels.numpy()] * (of_fit - low)
        moved = low + heavy[part.labels.numpy()] * (values - low)
        return p_of_bet(before, moved.clip(low, high), Range(low=low, high=high, limit=limit))
    if risk == "cost":
        low, high = min(point.fit.path_cost_ratio), max(point.fit.path_cost_ratio)
        if limit >= high or limit <= low:
            return float(limit <= low)
        within = Range(low=low, high=high, limit=limit)
        if len(set(point.fit.path_cost_ratio)) == 2:
            expensive = np.array([(values > (low + high) / 2).sum()])
            return binomial_p_values(expensive, len(values), max_risk=within.rescaled_limit)[0]
        return p_of_bet(losses(fitted, candidate, risk), values, within)
    if weights is not None:
        heavy = np.array(weights)
        low = -max(weights) if risk == "accuracy_drop" else 0.0
        within = Range(low=low, high=max(weights), limit=limit)
        before = losses(fitted, candidate, risk) * heavy[fitted.labels.numpy()]
        return p_of_bet(before, values * heavy[part.labels.numpy()], within)
    if risk == "accuracy_drop":
        return p_of_counts(values, limit)
    return binomial_p_values(np.array([values.sum()]), len(values), max_risk=limit)[0]


def candidates(frontier):
    f = next(p for p in frontier.singles if p.candidate.label == f"{frontier.reference} alone")
    whole = [*frontier.points, *frontier.singles]
    return [p for p in whole if p.calibrate and p.fit.cost_ratio < f.fit.cost_ratio]


CASES = [
    ({"error": 0.12}, None),
    ({"disagreement": 0.06}, None),
    ({"recall": 0.08}, None),
    ({"cost": 0.4}, None),
    ({"accuracy_drop": 0.04, "disagreement": 0.08, "error": 0.14}, None),
    ({"accuracy_drop": 0.04, "cost": 0.8}, None),
    ({"accuracy_drop": 0.04}, WEIGHTS),
    ({"negative_flips": 0.06}, WEIGHTS),
    ({"error": 0.14}, WEIGHTS),
    ({"disagreement": 0.08}, WEIGHTS),
    ({"cost": 0.5}, WEIGHTS),
    ({"accuracy_drop": 0.06, "cost": 0.8, "disagreement": 0.12}, WEIGHTS),
]


@pytest.mark.parametrize(("limits", "weights"), CASES)
def test_each_risk_is_tested_on_the_losses_of_the_examples(named_parts, promising, limits, weights):
    found = promising.certify(limits, delta=DELTA, class_weights=weights)
    assert found.guarantee is not None
    tests = risk_tests(
        read_limits(limits), promising.calibration, delta=DELTA, class_weights=weights
    )
    for point in candidates(promising)[::12]:
        for test, (risk, limit) in zip(tests, limits.items(), strict=True):
            slow = slow_p(named_parts, point, risk, limit, weights)
            assert test.p_values([point])[0] == pytest.approx(slow, rel=1e-6)
    slow = max(slow_p(named_parts, found.point, *limit, weights) for limit in limits.items())
    assert slow <= found.guarantee.p_value * (1 + 1e-6) <= DELTA * (1 + 1e-6)
    assert {limit.risk: limit.at_most for limit in found.limits} == limits


@pytest.mark.parametrize(("limits", "weights"), CASES)
def test_no_cheaper_setting_was_reached_and_the_order_is_that_of_fit(promising, limits, weights):
    """Found again from the p-values alone: a walk along an order that calibrate did not make."""
    found = promising.certify(limits, delta=DELTA, class_weights=weights)
    seen = []
    blind = replace(
        promising,
        points=tuple(replace(p, calibrate=p.fit) for p in promising.points if p.calibrate),
        singles=tuple(replace(p, calibrate=p.fit) for p in promising.singles),
    )
    tests = risk_tests(
        read_limits(limits), promising.calibration, delta=DELTA, class_weights=weights
    )

    def order(of):
        f = next(p for p in of.singles if p.candidate.label == f"{of.reference} alone")
        return walk_order([*of.points, *of.singles], f, tests, "accuracy_drop")

    walk = order(promising)
    assert [p.candidate for p in walk] == [p.candidate for p in order(blind)]
    for point in walk:
        p = max(float(test.p_values([point])[0]) for test in tests)
        if p > DELTA:
            break
        seen.append(point)
    free = set(limits) == {"cost"}
    best = min(p.fit.accuracy_drop if free else p.fit.cost_ratio for p in seen)
    assert (found.fit.accuracy_drop if free else found.fit.cost_ratio) == best
    assert found.guarantee.tested == min(len(seen) + 1, len(walk))


def test_without_a_limit_of_cost_the_walk_goes_from_the_dearest_to_the_cheapest(promising):
    several = promising.certify({"accuracy_drop": 0.04, "negative_flips": 0.5}, delta=DELTA)
    alone = promising.cheapest(max_drop=0.04, delta=DELTA)
    assert several.candidate == alone.candidate
    assert several.guarantee.p_value == alone.guarantee.p_value


def test_where_the_cost_is_limited_as_well_the_walk_begins_where_both_have_room(promising):
    """From the most expensive on it would end at once, for that costs too much."""
    most_expensive = max(p.fit.cost_ratio for p in candidates(promising))
    assert most_expensive > 0.7
    found = promising.certify({"accuracy_drop": 0.05, "cost": 0.7}, delta=DELTA)
    assert found.guarantee is not None
    assert found.fit.cost_ratio < 0.7


def test_more_limits_never_make_it_cheaper_and_cost_alone_buys_accuracy(promising):
    loose = promising.certify({"accuracy_drop": 0.05}, delta=DELTA)
    tight = promising.certify({"accuracy_drop": 0.05, "recall": 0.08}, delta=DELTA)
    assert tight.fit.cost_ratio >= loose.fit.cost_ratio
    little, much = (promising.certify({"cost": b}, delta=DELTA) for b in (0.3, 0.6))
    assert much.fit.accuracy_drop < little.fit.accuracy_drop
    assert little.calibrate.cost_ratio < 0.3
    assert promising.best(max_cost=0.3, delta=DELTA) == little
    fewest = promising.best(max_cost=0.3, delta=DELTA, risk="negative_flips")
    assert fewest.fit.negative_flips <= little.fit.negative_flips


def test_two_costs_are_tested_exactly(pairs):
    frontier = pairs
    point = next(p for p in frontier.points if p.calibrate and 0.4 < p.fit.cost_ratio < 0.6)
    (test,) = risk_tests(read_limits({"cost": 0.6}), frontier.calibration, delta=DELTA)
    on = round(point.calibrate.n * point.calibrate.path_share[1])
    low, high = point.fit.path_cost_ratio
    share = (0.6 - low) / (high - low)
    (exact,) = binomial_p_values(np.array([on]), point.calibrate.n, max_risk=share)
    assert test.p_values([point])[0] == exact
    assert test.fewest([point]) == fewest_examples(max_risk=share, delta=DELTA)


def test_a_cost_that_no_path_exceeds_is_certain(pairs):
    frontier = pairs
    (test,) = risk_tests(read_limits({"cost": 0.5}), frontier.calibration, delta=DELTA)
    small = frontier.singles[0]
    assert test.p_values([small])[0] == 0.0
    assert test.fewest([small]) == 1
    (none,) = risk_tests(read_limits({"cost": 0.1}), frontier.calibration, delta=DELTA)
    assert none.p_values([small])[0] == 1.0
    assert none.fewest([small]) == 1
    refused = frontier.certify({"cost": 0.1}, delta=DELTA)
    assert "its cost in calibrate is 25 % of the reference's" in refused.sentence


def test_top_labels_count_for_the_risks_but_not_for_disagreement(named_trace):
    frontier = fit(named_trace, "threshold", top=2, reference="stage2", **SIMPLE)
    found = frontier.certify({"accuracy_drop": 0.02, "error": 0.08}, delta=DELTA)
    assert found.guarantee is not None
    assert "points of top-2 accuracy against" in found.sentence
    assert "a top-2 accuracy of at least 92 %" in found.sentence
    part = named_trace.subset("calibrate")
    assert found.calibrate.accuracy_drop == pytest.approx(
        losses(part, found.candidate, "accuracy_drop").mean()
    )
    assert found.calibrate.disagreement == losses(part, found.candidate, "disagreement").mean()
