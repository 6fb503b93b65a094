"""Examples without labels, one candidate alone, and everything that no promise is made of."""

import json
from dataclasses import replace

import pytest
import torch

from offramp._core.errors import InputError, SplitOverlapError
from offramp._core.schema import from_json, to_json
from offramp.evaluation import (
    Calibration,
    Frontier,
    Limit,
    confirm,
    evaluate,
    fit,
    sweep,
)
from offramp.evaluation.limits import read_limits
from offramp.evaluation.weights import risk_tests
from offramp.risk import Range, fewest_counted, fewest_examples

DELTA = 0.1
WEIGHTS = (1.6, 0.4, 1.0, 1.0)
SIMPLE = {"combines": ["last"], "confidences": ["margin"], "progress": False}
NAMES = ("ant", "bee", "cat", "dog")
KEPT = (
    "disagreement",
    "path_share",
    "path_cost_ratio",
    "class_outcomes",
    "class_paths",
    "class_disagreements",
)


def candidates(frontier):
    f = next(p for p in frontier.singles if p.candidate.label == f"{frontier.reference} alone")
    whole = [*frontier.points, *frontier.singles]
    return [p for p in whole if p.calibrate and p.fit.cost_ratio < f.fit.cost_ratio]


# Dataset without labels, and other examples.


def test_disagreement_and_cost_take_no_labels(named_trace, promising, unlabeled):
    part, fitted = named_trace.subset("calibrate"), named_trace.subset("fit")
    for limits in ({"disagreement": 0.06}, {"cost": 0.4}, {"disagreement": 0.1, "cost": 0.8}):
        found = unlabeled.certify(limits, delta=DELTA)
        expected = promising.certify(limits, delta=DELTA)
        assert found.guarantee is not None
        assert (found.candidate, found.guarantee.p_value) == (
            expected.candidate,
            expected.guarantee.p_value,
        )
        assert found.calibrate is None
        assert found.judged == found.fit
        assert "accuracy" not in found.numbers
        json.dumps(to_json(found), allow_nan=False)
    assert "differs from stage2 alone in at most 6 % of its answers" in unlabeled.cheapest(
        max_drop=0.06, risk="disagreement", delta=DELTA
    ).sentence  # fmt: skip
    ones = replace(part, labels=torch.ones_like(part.labels))
    other = promising.calibrated_on(ones, fit=fitted, labeled=False)
    assert other.calibration == unlabeled.calibration
    again = from_json(Frontier, json.loads(json.dumps(to_json(unlabeled))))
    found, stored = (f.certify({"disagreement": 0.06}, delta=DELTA) for f in (unlabeled, again))
    assert to_json(stored) == to_json(found)


@pytest.mark.parametrize("risk", ["accuracy_drop", "negative_flips", "error", "recall"])
def test_what_takes_labels_is_not_certified_without_them(unlabeled, risk):
    found = unlabeled.certify({risk: 0.2}, delta=DELTA)
    assert found.outcome == "not certified"
    assert f"have no labels, which {risk} takes" in found.sentence
    assert "disagreement, cost and over_budget can be promised" in found.sentence
    assert "differing in" in found.sentence  # the best candidate, of which no loss is known
    assert "alternative_accuracy_drop" not in found.numbers
    assert found.candidate.label == "stage2 alone"


def test_what_is_measured_without_a_certificate_reads_no_made_up_labels(unlabeled):
    assert all(p.judged == p.fit for p in (*unlabeled.points, *unlabeled.singles))
    assert unlabeled.cheapest(max_drop=0.02, delta=None).judged.split == "fit"


def test_the_same_examples_give_the_same_frontier_and_others_another(named_trace, promising):
    fitted = named_trace.subset("fit")
    assert promising.calibrated_on(named_trace.subset("calibrate"), fit=fitted) == promising
    without = sweep(
        [p.candidate for p in promising.points[:30]], fitted, reference="stage2", progress=False
    )
    later = without.calibrated_on(named_trace.subset("calibrate"), fit=fitted)
    at_once = sweep(
        [p.candidate for p in promising.points[:30]], fitted, named_trace.subset("calibrate"),
        reference="stage2", progress=False,
    )  # fmt: skip
    assert to_json(later) == to_json(at_once)
    fresh = promising.calibrated_on(named_trace.subset("test"), fit=fitted)
    assert fresh.calibration.n == 1000
    assert fresh.points[0].calibrate != promising.points[0].calibrate


def test_examples_that_were_fitted_on_are_refused_with_one_of_them(named_trace, promising):
    fitted = named_trace.subset("fit")
    some = fitted.take(torch.arange(3))
    with pytest.raises(SplitOverlapError, match=rf"3 examples are in both.*{some.ids.min()}"):
        promising.calibrated_on(some, fit=fitted)
    candidates = [p.candidate for p in promising.points[:2]]
    with pytest.raises(SplitOverlapError, match=r"2500 examples are in both"):
        sweep(candidates, fitted, fitted, reference="stage2", progress=False)
    with pytest.raises(SplitOverlapError, match=r"3 examples are in both"):
        confirm(some, candidates[0], {"cost": 0.5}, fit=fitted, delta=DELTA)


# One candidate, chosen before.


def test_one_setting_is_confirmed_on_examples_of_its_own(named_trace, promising):
    chosen = promising.cheapest(max_drop=0.02, delta=None).candidate
    test, fitted = named_trace.subset("test"), named_trace.subset("fit")
    found = confirm(test, chosen, {"accuracy_drop": 0.05, "cost": 0.9}, fit=fitted, delta=DELTA)
    assert found.guarantee is not None
    assert (found.guarantee.tested, found.n, found.guarantee.split) == (1, 1000, "test")
    assert found.calibrate == evaluate(test, chosen, bootstrap=0)
    assert found.candidate == chosen
    assert "1000 of test" in found.guarantee.assumptions[0]
    refused = confirm(test, chosen, {"accuracy_drop": 1e-3}, fit=fitted, delta=DELTA)
    assert "2302 examples in test" in refused.sentence
    assert refused.candidate.label == "stage2 alone"
    blank = replace(test, labels=torch.zeros_like(test.labels))
    bare = confirm(blank, chosen, {"disagreement": 0.2}, fit=fitted, delta=DELTA, labeled=False)
    assert bare.guarantee is not None
    assert bare.point.unlabeled.disagreement == found.calibrate.disagreement


# What is refused for every risk.

EVERY = [{"accuracy_drop": 0.05}, {"negative_flips": 0.05}, {"error": 0.2}, {"disagreement": 0.1},
         {"recall": 0.1}, {"cost": 0.6}, {"accuracy_drop": 0.05, "cost": 0.6}]  # fmt: skip


@pytest.mark.parametrize("limits", EVERY)
@pytest.mark.parametrize(
    ("flag", "words"), [("seen_in_training", "trained on these examples"), ("lossy", "float16")]
)
def test_no_risk_is_certified_on_what_was_seen_or_lossy(promising, limits, flag, words):
    held = replace(promising, calibration=replace(promising.calibration, **{flag: True}))
    found = held.certify(limits, delta=DELTA)
    assert found.outcome == "not certified"
    assert words in found.sentence
    assert found.examples_needed is None
    assert promising.certify(limits, delta=DELTA).guarantee is not None


@pytest.mark.parametrize("limits", EVERY)
def test_without_a_calibrate_part_no_risk_is_certified(named_trace, limits):
    only = fit(named_trace.subset("fit"), "random", progress=False)
    found = only.certify(limits, delta=DELTA)
    assert found.outcome == "not certified"
    assert "no calibrate part" in found.sentence
    assert found.limits == read_limits(limits)


@pytest.mark.parametrize(
    ("limits", "weights", "least"),
    [
        ({"error": 0.2}, None, fewest_examples(max_risk=0.2, delta=1e-3)),
        ({"disagreement": 0.1}, None, fewest_examples(max_risk=0.1, delta=1e-3)),
        ({"negative_flips": 0.05, "error": 0.1}, None, fewest_examples(max_risk=0.05, delta=1e-3)),
        (
            {"negative_flips": 0.1},
            WEIGHTS,
            fewest_counted(within=Range(low=0.0, high=1.6, limit=0.1), delta=1e-3),
        ),
    ],
)  # fmt: skip
def test_fewer_examples_than_could_ever_certify_are_refused(
    named_trace, promising, limits, weights, least
):
    n = 30
    part = named_trace.subset("calibrate").take(torch.arange(n))
    few = promising.calibrated_on(part, fit=named_trace.subset("fit"))
    found = few.certify(limits, delta=1e-3, class_weights=weights)
    assert found.outcome == "not certified"
    assert f" {least} examples in calibrate to promise" in found.sentence
    assert f"there are {n}" in found.sentence
    assert found.examples_needed is None or found.examples_needed >= least


def test_too_few_examples_for_a_cost_are_refused_with_the_number(named_trace, promising):
    point = next(p for p in candidates(promising) if len(set(p.fit.path_cost_ratio)) > 2)
    part = named_trace.subset("test").take(torch.arange(4))
    found = confirm(part, point.candidate, {"cost": 0.1}, fit=named_trace.subset("fit"), delta=1e-3)
    low, high = min(point.fit.path_cost_ratio), max(point.fit.path_cost_ratio)
    least = fewest_counted(within=Range(low=low, high=high, limit=0.1), delta=1e-3, best=low)
    assert f"even if all of them cost least it takes {least} examples in test" in found.sentence
    assert (
        "to promise a cost of 10 % of the reference's with delta = 0.001, and there are 4"
        in found.sentence
    )


def test_the_number_that_would_have_sufficed_is_that_of_the_hardest_limit(named_trace, promising):
    few = promising.calibrated_on(
        named_trace.subset("calibrate").take(torch.arange(300)), fit=named_trace.subset("fit")
    )
    both = few.certify({"accuracy_drop": 0.02, "recall": 0.05}, delta=0.01)
    one = few.certify({"recall": 0.05}, delta=0.01)
    assert both.examples_needed >= one.examples_needed > 300


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"error": 5}, r"the limit of 'error' must be in \(0, 1\), got 5. .*: 5 % is 0.05"),
        ({"cost": 50}, r"the limit of 'cost' must be in \(0, 1\), got 50. .*: 50 % is 0.5"),
        ({"recall": {"cat": 0.0}}, r"limit of 'recall' of class 'cat' must be in .* got 0.0"),
        ({"accuracy": 0.1}, r"risk must be one of .*'cost', 'over_budget'\], got 'accuracy'"),
        (
            {"error": {"cat": 0.1}},
            r"limits of 'recall' and .* may be several, got {'cat': 0.1} for 'error'",
        ),
        ({}, r"limits must name at least one risk, got {}"),
    ],
)
def test_limits_outside_are_refused_by_their_value(promising, limits, message):
    with pytest.raises(InputError, match=message):
        promising.certify(limits, delta=DELTA)


def test_cost_has_the_same_domain_where_it_is_the_only_limit(promising):
    with pytest.raises(InputError, match=r"'cost' must be in \(0, 1\), got 1.5"):
        promising.best(max_cost=1.5, delta=DELTA)
    with pytest.raises(InputError, match=r"delta must be in \(0, 1\), got 5. .*: 5 % is 0.05"):
        promising.best(max_cost=0.5, delta=5)


def test_what_an_older_version_stored_certifies_what_it_can(promising):
    stored = json.loads(json.dumps(to_json(promising)))
    del stored["calibration"]["class_names"]
    for point in [*stored["points"], *stored["singles"]]:
        for part in ("fit", "calibrate", "judged_on_both"):
            for name in KEPT:
                if point[part] is not None:
                    del point[part][name]
    old = from_json(Frontier, stored)
    assert old.cheapest(max_drop=0.04, delta=DELTA).guarantee is not None
    for limits in ({"disagreement": 0.1}, {"cost": 0.5}, {"recall": 0.1}):
        with pytest.raises(InputError, match=r"older version.*Fit again"):
            old.certify(limits, delta=DELTA)
    for limits in ({"accuracy_drop": 0.1}, {"disagreement": 0.1}, {"cost": 0.5}):
        with pytest.raises(InputError, match=r"older version.*Fit again"):
            old.certify(limits, delta=DELTA, class_weights=WEIGHTS)


@pytest.mark.parametrize("risk", ["disagreement", "cost"])
def test_without_labels_weights_of_classes_mean_nothing(unlabeled, risk):
    with pytest.raises(InputError, match=r"class_weights cannot .* calibrate have no labels"):
        unlabeled.certify({risk: 0.3}, delta=DELTA, class_weights=WEIGHTS)


def test_limits_say_what_they_promise():
    assert Limit(risk="error", at_most=0.08).words("F") == "has an accuracy of at least 92 %"
    assert Limit(risk="negative_flips", at_most=0.01).text == "negative_flips <= 0.01"
    assert from_json(
        Calibration, {"n": 1, "fingerprint": "", "seen_in_training": False, "lossy": False}
    ).labeled


def test_several_promises_stand_in_one_sentence_with_their_figures(promising):
    found = promising.certify({"accuracy_drop": 0.04, "cost": 0.9}, delta=0.05)
    assert found.sentence.startswith(
        f"With a confidence of 95 %, {found.candidate.label} loses at "
    )
    assert "4 points of accuracy against stage2 alone and spends at most 90 % of" in found.sentence
    assert (found.risk, found.max_drop, found.max_cost) == ("accuracy_drop, cost", 0.04, 0.9)
    assert found.guarantee.bound == 0.04
    assert found.numbers["limits"] == "accuracy_drop <= 0.04; cost <= 0.9"
    json.dumps(to_json(found), allow_nan=False)


def test_no_examples_prove_nothing_whatever_the_weights(promising):
    (test,) = risk_tests(
        read_limits({"cost": 0.4}), promising.calibration, delta=DELTA, class_weights=WEIGHTS
    )
    point = next(p for p in candidates(promising) if max(p.fit.path_cost_ratio) > 0.4)
    none = tuple((0,) * len(row) for row in point.calibrate.class_paths)
    empty = replace(point, calibrate=replace(point.calibrate, class_paths=none))
    assert test.p_values([empty])[0] == 1.0
