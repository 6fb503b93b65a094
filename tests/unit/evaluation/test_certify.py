"""Certificates: what is tested in which order on which examples, what is refused, what is said."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from offramp._core.errors import FileFormatError, InputError
from offramp._core.schema import from_json, to_json
from offramp.evaluation import (
    Calibration,
    Choice,
    Frontier,
    evaluate,
    fit,
    frontier_of,
    frontier_of_traces,
    replay,
)
from offramp.evaluation.certify import certify
from offramp.evaluation.frontier import DELTA
from offramp.evaluation.limits import read_limits
from offramp.evaluation.order import walk_order
from offramp.evaluation.risk_tests import outcome_counts, risk_p_values, slack
from offramp.evaluation.weights import risk_tests
from offramp.fitting.pareto import pareto_front_reference
from offramp.project.config.sections import FitSection
from offramp.risk import binomial_p_values, fewest_examples, paired_p_values
from offramp.trace import make_trace


@pytest.fixture(scope="module")
def trace():
    return make_trace(4500, stages=3, seed=5).split_into({"fit": 3000, "calibrate": 1500}, seed=0)


@pytest.fixture(scope="module")
def frontier(trace):
    return fit(trace, "threshold", combines=["last"], confidences=["margin"], progress=False)


def f_alone(frontier):
    return next(p for p in frontier.singles if p.candidate.label == f"{frontier.reference} alone")


def in_order(frontier, risk="accuracy_drop", limit=0.02):
    tests = risk_tests(read_limits({risk: limit}), frontier.calibration, delta=0.1)
    everything = [*frontier.points, *frontier.singles]
    return walk_order(everything, f_alone(frontier), tests, "accuracy_drop")


def room_on_fit(point, risk, limit):
    """Standard errors within the limit, one more example off by 1 and one for each rule counted."""
    e = point.fit
    rules = point.candidate.label.count("->")  # of a chain of thresholds
    mean = e.risk(risk)
    square = (
        e.negative_flips if risk == "negative_flips" else 2 * e.negative_flips - e.accuracy_drop
    )
    variance = (1 + rules + e.n * (square - mean**2)) / (e.n + 1)
    return (limit - mean - rules / e.n) / (variance / e.n) ** 0.5


def test_counts_of_losses_and_corrections_are_those_of_the_examples(trace, frontier):
    part = trace.subset("calibrate")
    f_wrong = part.wrong(part.topology.index(frontier.reference)).astype(int)
    evaluated = in_order(frontier)
    lost, won = outcome_counts([p.calibrate for p in evaluated])
    for point, a, c in zip(evaluated, lost, won, strict=True):
        difference = replay(part, point.candidate.policy).wrong.astype(int) - f_wrong
        assert (a, c) == ((difference == 1).sum(), (difference == -1).sum())


def test_risks_that_are_no_counts_are_refused(frontier):
    broken = replace(frontier.singles[0].calibrate, negative_flips=0.12345)
    with pytest.raises(InputError, match=r"must be counts over n, got 0.12345 for n = 1500"):
        outcome_counts([broken])


@pytest.mark.parametrize("risk", ["accuracy_drop", "negative_flips"])
@pytest.mark.parametrize("limit", [0.02, 0.04, 0.08])
def test_the_certificate_is_the_last_that_passes_on_calibrate_alone(frontier, risk, limit):
    found = frontier.cheapest(max_drop=limit, delta=0.1, risk=risk)
    assert found.guarantee is not None
    expected, largest = None, 0.0
    for point in in_order(frontier, risk, limit):
        e = point.calibrate
        lost = np.array([round(e.n * e.negative_flips)])
        won = np.array([round(e.n * (e.negative_flips - e.accuracy_drop))])
        if risk == "negative_flips":
            (p,) = binomial_p_values(lost, e.n, max_risk=limit)
        else:
            (p,) = paired_p_values(lost, won, e.n, max_difference=limit, slack=0.1 / 100)
        if p > 0.1:
            break
        expected, largest = point, max(largest, p)
    assert found.candidate == expected.candidate
    assert found.calibrate == found.judged == expected.calibrate
    assert found.guarantee.p_value == pytest.approx(largest)
    assert found.guarantee.p_value <= found.delta == 0.1
    assert found.guarantee.bound == limit
    assert found.n == 1500


@pytest.mark.parametrize("risk", ["accuracy_drop", "negative_flips"])
def test_the_order_is_that_of_fit_and_does_not_read_calibrate(frontier, risk):
    order = in_order(frontier, risk)
    costs, rooms = zip(
        *((p.fit.cost_ratio, room_on_fit(p, risk, 0.02)) for p in order), strict=True
    )
    assert list(costs) == sorted(costs, reverse=True)
    assert all(a >= b + 0.3 for a, b in itertools.pairwise(rooms))
    assert max(costs) < 1
    spoilt = [
        replace(
            p, calibrate=p.calibrate and replace(p.calibrate, accuracy_drop=0.5, negative_flips=0.5)
        )
        for p in [*frontier.points, *frontier.singles]
    ]
    tests = risk_tests(read_limits({risk: 0.02}), frontier.calibration, delta=0.1)
    again = walk_order(spoilt, f_alone(frontier), tests, "accuracy_drop")
    assert [p.candidate for p in again] == [p.candidate for p in order]


@pytest.mark.parametrize("risk", ["accuracy_drop", "negative_flips"])
def test_what_is_left_out_is_beaten_or_hardly_safer_than_a_cheaper_one(frontier, risk):
    order = in_order(frontier, risk)
    known = [p for p in [*frontier.points, *frontier.singles] if p.tested and p.fit.cost_ratio < 1]
    costs = np.array([p.fit.cost_ratio for p in known])
    rooms = np.array([room_on_fit(p, risk, 0.02) for p in known])
    on = pareto_front_reference(costs, -rooms)
    assert 2 <= len(order) < on.sum()
    taken = {id(p.candidate) for p in order}
    for i in np.flatnonzero(on):
        if id(known[i].candidate) not in taken:
            cheaper = [room_on_fit(p, risk, 0.02) for p in order if p.fit.cost_ratio <= costs[i]]
            assert max(cheaper) > rooms[i] - 0.3
    assert min(p.fit.cost_ratio for p in order) == costs.min()


def test_the_room_within_a_limit_counts_standard_errors_on_both_sides_of_it(frontier):
    for limit in (0.001, 0.05):
        (test,) = risk_tests(read_limits({"accuracy_drop": limit}), frontier.calibration, delta=0.1)
        for point in frontier.points[::7]:
            assert slack(test, point.fit) == pytest.approx(
                room_on_fit(point, "accuracy_drop", limit)
            )


def test_a_larger_limit_or_delta_never_costs_more(frontier):
    for deltas, limits in [((0.05,), (0.02, 0.03, 0.05, 0.1)), ((0.02, 0.1, 0.4), (0.03,))]:
        costs = [
            frontier.cheapest(max_drop=b, delta=d).fit.cost_ratio for d in deltas for b in limits
        ]
        assert costs == sorted(costs, reverse=True)


def test_a_single_network_may_be_certified():
    trace = make_trace(3000, accuracies=[0.9, 0.9], seed=0)
    trace.logits[:, 1] = trace.logits[:, 0]
    found = fit(trace, "threshold", reference="stage1", progress=False).cheapest(
        max_drop=0.01, delta=0.1
    )
    assert found.guarantee is not None
    assert found.candidate.label == "stage0 alone"


def test_a_tenth_is_promised_unless_it_is_said_otherwise(frontier):
    limits = {"accuracy_drop": 0.02}
    promised = [frontier.cheapest(max_drop=0.02), frontier.certify(limits)]
    assert {found.guarantee.delta for found in promised} == {DELTA} == {0.1}
    assert FitSection(max_drop=0.02).level == DELTA
    stored = [to_json(found) for found in promised]
    assert stored[0] == stored[1] == to_json(frontier.certify(limits, delta=0.1))


def test_what_is_measured_only_says_so_everywhere(frontier):
    for found in (frontier.cheapest(max_drop=0.02, delta=None), frontier.best(max_cost=0.5)):
        assert found.guarantee is None
        assert found.delta is None
        assert found.outcome == to_json(found)["outcome"] == "measured, not promised"
        assert found.sentence.endswith(". Measured, not promised.")
        assert found.numbers["delta"] is None
    refused = frontier.best(max_cost=0.001)
    assert refused.outcome == "do not cascade"
    assert refused.sentence.endswith(". Measured, not promised.")


@pytest.mark.parametrize("choose", ["cheapest", "measured", "best", "refused", "impossible"])
def test_a_choice_of_any_outcome_comes_back_from_json(frontier, choose):
    found = {
        "cheapest": lambda: frontier.certify({"accuracy_drop": 0.03, "cost": 0.9}),
        "measured": lambda: frontier.cheapest(max_drop=0.0, delta=None),
        "best": lambda: frontier.best(max_cost=0.5, risk="negative_flips"),
        "refused": lambda: frontier.best(max_cost=0.001),
        "impossible": lambda: frontier.cheapest(max_drop=0.001),
    }[choose]()
    stored = json.dumps(to_json(found), allow_nan=False)
    again = from_json(Choice, json.loads(stored))
    assert to_json(again) == json.loads(stored)
    assert (again.outcome, again.numbers, again.risk) == (found.outcome, found.numbers, found.risk)
    assert (again.cascade, again.refused) == (found.cascade, found.refused)


def test_a_choice_cannot_be_promised_and_refused(frontier):
    found = frontier.cheapest(max_drop=0.02)
    with pytest.raises(InputError, match=r"cannot be refused, got delta = 0.1 and refused = 'no'"):
        replace(found, refused="no")
    with pytest.raises(InputError, match=r"must have a delta .*got delta = None"):
        replace(found, delta=None)


def test_the_sentence_says_what_is_promised_and_how_surely(frontier):
    found = frontier.cheapest(max_drop=0.02, delta=0.05)
    assert found.sentence.startswith(
        f"With a confidence of 95 %, {found.candidate.label} loses at "
    )
    assert "at most 2 points of accuracy against stage2 alone" in found.sentence
    assert "like the 1500 that it was tested on" in found.sentence
    negative_flips = frontier.cheapest(max_drop=0.05, delta=0.05, risk="negative_flips")
    assert "makes at most 5 points of errors that stage2 alone avoids" in negative_flips.sentence
    one = frontier.cheapest(max_drop=0.01, delta=0.4)
    assert "at most 1 point of accuracy" in one.sentence
    assert any("exchangeable" in line for line in found.guarantee.assumptions)
    assert any("1500 of calibrate" in line for line in found.guarantee.assumptions)


def test_a_stored_frontier_is_certified_alike(frontier):
    stored = json.loads(json.dumps(to_json(frontier)))
    again = from_json(Frontier, stored)
    assert again.calibration == frontier.calibration
    found = again.cheapest(max_drop=0.02, delta=0.1)
    assert to_json(found) == to_json(frontier.cheapest(max_drop=0.02, delta=0.1))
    json.dumps(to_json(found))
    del stored["calibration"]["n"]
    with pytest.raises(
        FileFormatError, match=r"as a frontier: calibration\.n: this field is missing"
    ):
        from_json(Frontier, stored)


def test_a_frontier_stored_before_there_were_certificates_is_read_and_certifies_nothing(frontier):
    stored = to_json(frontier)
    del stored["calibration"]
    found = from_json(Frontier, stored).cheapest(max_drop=0.02, delta=0.1)
    assert found.outcome == "not certified"
    assert "no calibrate part, or was stored without saying which" in found.sentence


# What is refused, and that the reference then runs alone.


def refused(frontier, **limits) -> Choice:
    found = frontier.cheapest(**{"max_drop": 0.02, "delta": 0.1, **limits})
    assert found.outcome == "not certified"
    assert found.candidate.label == f"{frontier.reference} alone"
    assert found.refused in found.sentence
    assert found.sentence.endswith(f"Run {frontier.reference} alone.")
    json.dumps(to_json(found))
    return found


def test_without_a_calibrate_part_nothing_is_certified(trace):
    only = fit(
        trace.subset("fit"), "threshold", combines=["last"], confidences=["margin"], progress=False
    )
    assert only.calibration is None
    found = refused(only)
    assert found.n == 0
    assert found.examples_needed >= fewest_examples(max_risk=0.02, delta=0.1)
    assert "there are 0" in found.sentence
    assert "measure only, with delta=None (--delta none)" in found.refused
    assert found.alternative.fit.split == "fit"
    assert "(fit): measured, not promised. Run" in found.sentence


def test_nothing_is_certified_on_what_the_networks_were_trained_on(trace):
    with pytest.warns(UserWarning, match="trained on these examples"):
        seen = fit(
            replace(trace, seen_in_training=True),
            "threshold",
            combines=["last"],
            confidences=["margin"],
            progress=False,
        )
    found = refused(seen)
    assert "seen_in_training" in found.sentence
    assert found.alternative is None  # what it shows there is too good
    assert found.examples_needed is None


def test_nothing_is_certified_on_a_lossy_trace(trace):
    found = refused(fit(replace(trace, lossy=True), "random", progress=False))
    assert "float16" in found.sentence
    assert found.examples_needed is None


@pytest.mark.parametrize("n", [50, 113])
def test_fewer_examples_than_could_ever_certify_are_refused_with_the_number(n):
    trace = make_trace(2000 + n, stages=2, seed=0).split_into({"fit": 2000, "calibrate": n}, seed=0)
    few = fit(trace, "threshold", combines=["last"], confidences=["margin"], progress=False)
    found = refused(few)
    assert (
        "log(delta)/log(1 - max_drop) = 114 examples in calibrate to promise 2 " in found.sentence
    )
    assert f"there are {n}" in found.sentence
    assert found.examples_needed is None or found.examples_needed >= 114


def test_where_the_safest_fails_the_number_that_would_have_sufficed_is_estimated(frontier):
    order = in_order(frontier)
    n = 300
    lost = 5 / n
    few = replace(order[0].calibrate, n=n, negative_flips=lost, accuracy_drop=lost)
    point = replace(order[0], calibrate=few)
    calibration = replace(frontier.calibration, n=n)
    found = certify([point], frontier.singles[-1], calibration, {"negative_flips": 0.02}, delta=0.1)
    assert found.alternative is point
    shown = "making 1.67 points of new errors on 300 examples (calibrate): measured, not promised."
    assert shown in found.sentence
    assert found.numbers["alternative"] == point.candidate.label
    assert found.numbers["alternative_accuracy_drop"] == lost
    assert found.outcome == "not certified"
    assert f"About {found.examples_needed} examples" in found.sentence
    assert "there are 300" in found.sentence
    errors = np.array([round(found.examples_needed * lost)])
    (p,) = binomial_p_values(errors, found.examples_needed, max_risk=0.02)
    assert p <= 0.1
    assert found.examples_needed > 2 * n
    assert found.numbers["examples_needed"] == found.examples_needed


def test_where_more_is_lost_than_allowed_no_number_is_named(frontier):
    order = in_order(frontier)
    bad = replace(order[0].calibrate, negative_flips=0.2, accuracy_drop=0.2)
    found = certify(
        [replace(order[0], calibrate=bad)],
        frontier.singles[-1],
        frontier.calibration,
        {"accuracy_drop": 0.02},
        delta=0.1,
    )
    assert found.outcome == "not certified"
    assert found.examples_needed is None
    assert "its accuracy_drop in calibrate is 20 points" in found.sentence


def test_without_a_cheaper_setting_there_is_nothing_to_certify(frontier):
    f = frontier.singles[-1]
    alone = replace(frontier, points=(), singles=tuple(replace(p, fit=f.fit) for p in [f] * 3))
    found = alone.cheapest(max_drop=0.02, delta=0.1)
    assert found.outcome == "not certified"
    assert "no candidate is cheaper than the reference" in found.sentence


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"delta": 5}, r"delta must be in \(0, 1\), got 5. .* divided by 100 first: 5 % is 0.05"),
        ({"delta": 0.0}, r"delta must be in \(0, 1\), got 0.0\.$"),
        ({"delta": 1.0}, r"delta must be in \(0, 1\), got 1.0"),
        ({"max_drop": 2}, r"limit of 'accuracy_drop' must be in \(0, 1\), got 2. .*: 2 % is 0.02"),
        ({"max_drop": 0.0}, r"the limit of 'accuracy_drop' must be in \(0, 1\), got 0.0"),
        ({"risk": "loss"}, r"risk must be one of .*got 'loss'"),
        ({"margin": 2.0}, r"margin must not be given together with delta, got 2.0"),
    ],
)
def test_limits_outside_are_refused_by_their_value(frontier, limits, message):
    with pytest.raises(InputError, match=message):
        frontier.cheapest(**{"max_drop": 0.02, "delta": 0.1, **limits})


def test_a_candidate_that_was_not_evaluated_on_calibrate_is_refused(frontier):
    bare = [replace(p, calibrate=None) for p in in_order(frontier)]
    with pytest.raises(InputError, match="must have been evaluated on calibrate, got 't"):
        certify(
            bare, frontier.singles[-1], frontier.calibration, {"negative_flips": 0.02}, delta=0.1
        )


# What is known of the calibration examples.


def test_the_fingerprint_changes_with_every_part_of_the_examples(trace):
    part = trace.subset("calibrate")
    known = Calibration.of(part)
    assert known == Calibration.of(trace.subset("calibrate"))
    assert (known.n, known.lossy, known.seen_in_training) == (1500, False, False)
    logits = part.logits.clone()
    logits[0, 0, 0] += 1e-3
    others = [
        replace(part, logits=logits),
        replace(part, labels=(part.labels + 1) % part.classes),
        replace(part, ids=part.ids + 1),
        part.take(torch.arange(len(part) - 1)),
    ]
    prints = {Calibration.of(p).fingerprint for p in [part, *others]}
    assert len(prints) == 5
    assert Calibration.of(part, part).fingerprint not in prints


def test_frontiers_made_of_others_know_their_calibration(trace, frontier):
    only = frontier_of(frontier, ["threshold"], trace.subset("calibrate"))
    assert only.calibration == frontier.calibration
    candidate = frontier.points[0].candidate
    joint = frontier_of_traces([(trace, [candidate])], trace, reference=frontier.reference)
    assert joint.calibration.n == 1500
    lossy = replace(trace, lossy=True)
    mixed = frontier_of_traces([(lossy, [candidate])], trace, reference=frontier.reference)
    assert mixed.calibration.lossy
    fitted = trace.subset("fit")
    none = frontier_of_traces([(fitted, [candidate])], fitted, reference=frontier.reference)
    assert none.calibration is None


def test_p_values_of_no_settings_are_none():
    assert len(risk_p_values([], risk="negative_flips", max_drop=0.1, delta=0.1)) == 0


def test_the_promise_is_checked_on_examples_that_nobody_saw():
    """One draw of the statistical test, on real replays."""
    trace = make_trace(9000, stages=2, seed=3).split_into(
        {"fit": 2000, "calibrate": 2000, "test": 5000}, seed=0
    )
    found = fit(trace, "threshold", progress=False).cheapest(max_drop=0.03, delta=0.01)
    assert found.guarantee is not None
    assert evaluate(trace.subset("test"), found.candidate).accuracy_drop <= 0.03
