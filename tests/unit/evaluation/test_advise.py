"""Advice bounds what policies save, says how many examples promises take, and why yes or no."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.optimize import linprog

from offramp._core.costs import Costs
from offramp._core.errors import InputError, UnknownNameError
from offramp._core.schema import to_json
from offramp.evaluation import advise, fit, saving_bound
from offramp.trace import from_predictions, make_trace


def few(n, *, seed, stages=3):
    """A tiny trace of random labels, with costs that are no multiples of each other."""
    rng = np.random.default_rng(seed)
    return from_predictions(
        {f"s{k}": rng.integers(2, size=n) for k in range(stages)},
        rng.integers(2, size=n),
        confidences={f"s{k}": np.full(n, 0.9) for k in range(stages)},
        costs={f"s{k}": cost for k, cost in zip(range(stages), (1.0, 1.7, 5.0), strict=False)},
        unit="usd",
        classes=2,
        edges="full",
    )


def losses_of(trace, f, risk):
    wrong = np.stack([trace.wrong(k) for k in range(len(trace.topology))], axis=1).astype(float)
    lost = wrong - wrong[:, [f]]
    return lost if risk == "accuracy_drop" else lost.clip(min=0)


def cost_of(trace, start, k):
    return trace.costs.segment[start] + (trace.costs.segment[k] if k != start else 0.0)


def best_by_linear_programme(trace, f, max_drop, risk):
    """Shares of leaving at each stage that cost least within the loss, for each first stage."""
    n, s = len(trace), len(trace.topology)
    losses, least = losses_of(trace, f, risk), trace.costs.segment[f]
    for start in range(s):
        ends = range(start, s)
        cost = np.array([cost_of(trace, start, k) for _, k in product(range(n), ends)]) / n
        loss = np.array([losses[i, k] for i, k in product(range(n), ends)]) / n
        one = np.repeat(np.eye(n), len(ends), axis=1)
        found = linprog(cost, A_ub=loss[None], b_ub=[max_drop], A_eq=one, b_eq=np.ones(n))
        if found.success:
            least = min(least, found.fun)
    return 1 - least / trace.costs.segment[f]


@pytest.mark.parametrize("risk", ["accuracy_drop", "negative_flips"])
@pytest.mark.parametrize("max_drop", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(6))
def test_the_bound_is_the_best_of_all_policies_that_know_the_labels(seed, max_drop, risk):
    trace = few(9, seed=seed)
    found = saving_bound(trace, "s2", max_drop=max_drop, delta=0.1, risk=risk)
    best = best_by_linear_programme(trace, 2, max_drop, risk)
    assert found.measured == pytest.approx(max(0.0, best), abs=1e-9)
    assert found.limit >= found.measured


def test_no_fitted_policy_saves_more_than_the_bound():
    trace = make_trace(900, accuracies=[0.75, 0.9], seed=4)
    part = trace.split_into({"fit": 0.5, "calibrate": 0.5}, seed=0).subset("fit")
    frontier = fit(part, "threshold", combines=["last"], progress=False)
    f = frontier.reference
    for risk in ("accuracy_drop", "negative_flips"):
        for limit in (0.0, 0.01, 0.05):
            bound = saving_bound(part, f, max_drop=limit, delta=0.1, risk=risk)
            within = [p.fit for p in frontier.points if p.fit.risk(risk) <= limit]
            assert max(1 - e.cost_ratio for e in within) <= bound.measured + 1e-9


def test_the_limit_comes_down_to_what_is_measured_as_examples_grow():
    gaps = []
    for n in (200, 2000, 20_000):
        found = saving_bound(
            make_trace(n, accuracies=[0.7, 0.9], seed=1),
            "stage1",
            max_drop=0.01,
            delta=0.1,
            risk="accuracy_drop",
        )
        gaps.append(found.limit - found.measured)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.03


def test_where_the_cheap_network_is_useful_the_answer_is_yes_with_what_a_promise_takes():
    advice = advise(make_trace(600, accuracies=[0.8, 0.92], seed=0), max_drop=0.02, delta=0.1)
    assert advice.worth_it
    assert advice.sentence.startswith("Yes: ")
    assert 0.3 < advice.neutral_saved < advice.most_saved
    assert f"label about {advice.as_usual.examples_needed - 600} more" in advice.sentence
    enough = advise(make_trace(3000, accuracies=[0.8, 0.92], seed=0), max_drop=0.02)
    assert "there are enough" in enough.sentence


@pytest.mark.parametrize("kind", ["logits", "labels"])
def test_where_a_cheap_network_is_as_good_the_answer_is_that_network(kind):
    trace = make_trace(800, accuracies=[0.9, 0.9], seed=0, kind=kind)
    advice = advise(trace, max_drop=0.05, reference="stage1")
    assert not advice.worth_it
    assert advice.single == "stage0"
    assert "Run stage0 alone" in advice.sentence


def test_where_nothing_can_be_saved_the_answer_is_f():
    trace = make_trace(400, accuracies=[0.7, 0.9], seed=0)
    expensive = replace(trace, costs=Costs.simple("flops", [3.95, 4.0]))
    advice = advise(expensive)
    assert not advice.worth_it
    assert "not even a policy that knew the labels" in advice.sentence
    assert "Run stage1 alone" in advice.sentence
    poor = advise(make_trace(400, accuracies=[0.3, 0.9], seed=0), min_saving=0.18)
    assert not poor.worth_it
    assert "18 % is what it has to be" in poor.sentence
    assert poor.most_saved > 0.18


@pytest.mark.parametrize("risk", ["accuracy_drop", "negative_flips"])
def test_promises_are_those_that_the_tests_of_certificates_would_make(risk):
    trace = make_trace(1000, accuracies=[0.8, 0.92], seed=2)
    advice = advise(trace, max_drop=0.02, delta=0.1, risk=risk)
    assert advice.at_best.examples_needed <= advice.as_usual.examples_needed
    assert advice.at_best.smallest_max_drop <= advice.as_usual.smallest_max_drop
    smallest = advice.as_usual.smallest_max_drop
    again = advise(trace, max_drop=smallest, delta=0.1, risk=risk)
    assert again.as_usual.examples_needed == pytest.approx(1000, rel=0.2)  # counts are whole
    assert advise(trace, max_drop=smallest / 2, risk=risk).as_usual.examples_needed > 1500
    if risk == "negative_flips":
        assert advice.at_best.examples_needed == 114  # log(0.1) / log(0.98)


def test_with_splits_calibrate_is_counted_but_not_looked_at():
    trace = make_trace(900, accuracies=[0.8, 0.92], seed=3)
    divided = trace.split_into({"fit": 500, "calibrate": 300, "test": 100}, seed=0)
    advice = advise(divided)
    assert (advice.n, advice.calibrate) == (500, 300)
    labels = divided.labels.clone()
    elsewhere = divided.split != 1
    labels[elsewhere] = (labels[elsewhere] + 1) % divided.classes
    changed = replace(divided, labels=labels)
    assert advise(changed) == advice
    without = advise(divided.subset("fit"))
    assert without.calibrate == 0
    assert without.as_usual.smallest_max_drop is None


def test_costs_may_be_counted_in_another_unit():
    trace = make_trace(500, accuracies=[0.8, 0.92], seed=3)
    both = replace(trace, other_costs=(Costs.simple("seconds", [0.9, 1.0]),))
    assert advise(both).unit == "flops"
    slow = advise(both, unit="seconds")
    assert (slow.unit, slow.worth_it) == ("seconds", False)
    with pytest.raises(InputError, match=r"got 'second'. Did you mean 'seconds'"):
        advise(both, unit="second")


def test_advice_is_json():
    advice = advise(make_trace(300, seed=0))
    value = to_json(advice)
    assert value["as_usual"]["differs"] == advice.as_usual.differs
    assert value["worth_it"] is advice.worth_it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": 2}, r"max_drop must be in \(0, 1\), got 2. A percentage"),
        ({"max_drop": 0.0}, r"max_drop must be in \(0, 1\), got 0.0"),
        ({"delta": 5}, r"delta must be in \(0, 1\), got 5"),
        ({"risk": "errors"}, "got 'errors'"),
        ({"min_saving": 10}, r"min_saving must be in \[0, 1\], got 10"),
    ],
)
def test_arguments_outside_their_domain_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        advise(make_trace(100, seed=0), **options)


def test_an_unknown_reference_and_examples_seen_in_training_are_refused():
    trace = make_trace(100, seed=0)
    with pytest.raises(UnknownNameError, match="'stage9'"):
        advise(trace, reference="stage9")
    with pytest.raises(InputError, match="seen_in_training=True"):
        advise(replace(trace, seen_in_training=True))
