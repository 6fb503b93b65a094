"""Promises about classes: recalls of each, and known weights of their shares."""

import numpy as np
import pytest
import torch

from offramp._core.errors import InputError, UnknownNameError
from offramp._core.schema import to_json
from offramp.evaluation import replay
from offramp.evaluation.limits import read_limits
from offramp.evaluation.risk_tests import measured
from offramp.evaluation.weights import risk_tests

DELTA = 0.1
WEIGHTS = (1.6, 0.4, 1.0, 1.0)
SIMPLE = {"combines": ["last"], "confidences": ["margin"], "progress": False}
NAMES = ("ant", "bee", "cat", "dog")


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


def candidates(frontier):
    f = next(p for p in frontier.singles if p.candidate.label == f"{frontier.reference} alone")
    whole = [*frontier.points, *frontier.singles]
    return [p for p in whole if p.calibrate and p.fit.cost_ratio < f.fit.cost_ratio]


# Classes.


def test_a_class_may_be_named_or_counted_and_alone_is_easier_than_all(promising):
    every = promising.certify({"recall": 0.06}, delta=DELTA)
    named = promising.certify({"recall": {"cat": 0.06}}, delta=DELTA)
    counted = promising.certify({"recall": {2: 0.06}}, delta=DELTA)
    assert named.candidate == counted.candidate
    assert named.guarantee.p_value == counted.guarantee.p_value
    assert named.fit.cost_ratio <= every.fit.cost_ratio
    assert "at most 6 points of recall of class 'cat' against" in named.sentence
    assert "of recall of any class" in every.sentence
    two = promising.certify({"recall": {"cat": 0.06, "dog": 0.3}}, delta=DELTA)
    assert [limit.text for limit in two.limits] == [
        "recall of class 'cat' <= 0.06", "recall of class 'dog' <= 0.3"
    ]  # fmt: skip


def test_a_class_with_too_few_examples_is_named_with_their_number(named_trace, promising):
    part = named_trace.subset("calibrate")
    bees = (part.labels == 1).nonzero()[:, 0]
    keep = torch.ones(len(part), dtype=torch.bool)
    keep[bees[20:]] = False
    few = promising.calibrated_on(part.take(keep), fit=named_trace.subset("fit"))
    found = few.certify({"recall": 0.06}, delta=DELTA)
    assert found.outcome == "not certified"
    assert (
        "= 38 examples of each class in calibrate to promise 6 points of recall" in found.sentence
    )
    assert "there are 20 of class 'bee'" in found.sentence
    keep[bees] = False
    none = promising.calibrated_on(part.take(keep), fit=named_trace.subset("fit"))
    assert "there are 0 of class 'bee'" in none.certify({"recall": 0.06}, delta=DELTA).sentence
    assert none.certify({"recall": {"ant": 0.09}}, delta=DELTA).guarantee is not None


def test_classes_that_do_not_exist_are_refused(promising):
    with pytest.raises(UnknownNameError, match=r"no class 'bea'.*Did you mean 'bee'"):
        promising.certify({"recall": {"bea": 0.1}}, delta=DELTA)
    with pytest.raises(InputError, match=r"index in \[0, 4\), got 4"):
        promising.certify({"recall": {4: 0.1}}, delta=DELTA)


# Weights of classes.


def test_equal_weights_measure_the_same(promising):
    for risk in ("accuracy_drop", "negative_flips", "error"):
        limit = read_limits({risk: 0.1})
        (plain,) = risk_tests(limit, promising.calibration, delta=DELTA)
        (even,) = risk_tests(limit, promising.calibration, delta=DELTA, class_weights=[1.0] * 4)
        for point in candidates(promising)[::9]:
            assert measured(even, point.fit) == pytest.approx(measured(plain, point.fit))


def test_weights_stand_for_other_shares_of_the_classes(named_trace, promising):
    """The weighted risk is that of a population in which classes are so frequent."""
    part = named_trace.subset("calibrate")
    point = candidates(promising)[-1]
    values = losses(part, point.candidate, "accuracy_drop")
    labels = part.labels.numpy()
    shares = np.bincount(labels) / len(part)
    target = sum(
        w * share * values[labels == y].mean()
        for y, (w, share) in enumerate(zip(WEIGHTS, shares, strict=True))
    )
    (test,) = risk_tests(
        read_limits({"accuracy_drop": 0.1}),
        promising.calibration,
        delta=DELTA,
        class_weights=WEIGHTS,
    )
    assert measured(test, point.calibrate) == pytest.approx(target)


def test_weights_by_name_are_those_in_order_and_are_kept(promising):
    named = dict(zip(NAMES[::-1], WEIGHTS[::-1], strict=True))
    found = promising.certify({"accuracy_drop": 0.04}, delta=DELTA, class_weights=named)
    assert found == promising.certify({"accuracy_drop": 0.04}, delta=DELTA, class_weights=WEIGHTS)
    assert found.guarantee.class_weights == WEIGHTS
    assert "their classes weighted as given" in found.sentence
    assert "shares of the classes change by exactly the weights" in found.guarantee.assumptions[0]
    assert to_json(found)["guarantee"]["class_weights"] == list(WEIGHTS)
    assert found.numbers["class_weights"] == "1.6 0.4 1.0 1.0"


def test_a_recall_does_not_depend_on_how_frequent_classes_are(promising):
    plain = promising.certify({"recall": 0.08}, delta=DELTA)
    weighted = promising.certify({"recall": 0.08}, delta=DELTA, class_weights=WEIGHTS)
    assert weighted.candidate == plain.candidate
    assert weighted.guarantee.p_value == plain.guarantee.p_value


@pytest.mark.parametrize(
    ("limits", "weights", "message"),
    [
        ({"accuracy_drop": 0.1}, [1.0, 1.0], r"one weight for each of 4 classes, got 2"),
        ({"accuracy_drop": 0.1}, {"ant": 1.0}, r"must name all 4 classes, got none for 'bee'"),
        ({"accuracy_drop": 0.1}, [1.0, -1.0, 2.0, 2.0], r"finite and at least 0, .*got -1.0"),
        ({"accuracy_drop": 0.1}, [float("nan")] * 4, r"finite and at least 0, .*got nan"),
        ({"accuracy_drop": 0.1}, [0.0] * 4, r"not all 0, got 0.0"),
        ({"accuracy_drop": 0.1}, [0.4, 0.1, 0.25, 0.25], r"share in future .* got 0.2[45]"),
    ],
)
def test_weights_that_cannot_be_are_refused_by_their_value(promising, limits, weights, message):
    with pytest.raises(InputError, match=message):
        promising.certify(limits, delta=DELTA, class_weights=weights)
