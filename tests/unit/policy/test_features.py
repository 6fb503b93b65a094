"""Features: values against the plain formulas, ends, and batch independence."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.errors import InputError
from offramp.policy.features import (
    COMBINED,
    CONFIDENCES,
    Distribution,
    Feature,
    confidence_features,
)
from support.properties import examples

KINDS = ["max_prob", "margin", "log_margin", "entropy", "log_prob_1", "log_prob_2"]


def random_distribution(seed: int, m: int = 9, c: int = 4, scale: float = 2.0) -> Distribution:
    generator = torch.Generator().manual_seed(seed)
    return Distribution((torch.randn(m, c, generator=generator) * scale).log_softmax(dim=1))


@examples(30)
@given(seed=st.integers(0, 2**31), c=st.integers(2, 6))
def test_statistics_equal_the_plain_formulas(seed, c):
    found = random_distribution(seed, c=c)
    for row in range(9):
        p = sorted(found.log_probs[row].double().exp().tolist(), reverse=True)
        plain = {
            "max_prob": p[0],
            "margin": p[0] - p[1],
            "log_margin": min(15.0, math.log(p[0] / p[1])),
            "entropy": -sum(q * math.log(q) for q in p),
            "log_prob_1": math.log(p[0]),
            "log_prob_2": max(-15.0, math.log(p[1])),
        }
        for kind in KINDS:
            value = float(Feature(kind, 0).of(lambda _: found)[row])
            assert value == pytest.approx(plain[kind], abs=2e-5)


@examples(30)
@given(seed=st.integers(0, 2**31), m=st.integers(1, 40))
def test_a_feature_does_not_depend_on_the_rest_of_the_batch(seed, m):
    whole, other = random_distribution(seed, m, c=10), random_distribution(seed + 1, m, c=10)
    for kind in [*KINDS, "log_prob_3", "agrees_1", "predicts_2"]:

        def of(rows, kind=kind):
            held = [Distribution(d.log_probs[rows]) for d in (whole, other)]
            return Feature(kind, 0).of(lambda stage: held[stage])

        together = of(slice(None))
        assert together.dtype == torch.float32
        alone = torch.cat([of(slice(row, row + 1)) for row in range(m)])
        assert torch.equal(together, alone), kind


@pytest.mark.parametrize("c", [2, 33, 100, 1001])
def test_nor_where_there_are_many_classes(c):
    whole = random_distribution(c, 300, c=c)
    for rows in (slice(0, 1), slice(5, 8), slice(100, 299)):
        part = Distribution(whole.log_probs[rows].clone())
        for kind in KINDS:
            feature = Feature(kind, 0)
            assert torch.equal(
                feature.of(lambda _, d=whole: d)[rows], feature.of(lambda _, d=part: d)
            )


@pytest.mark.parametrize("kind", list(CONFIDENCES))
def test_confidences_with_their_sign_are_higher_for_the_surer(kind):
    scores = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    sure = CONFIDENCES[kind] * Feature(kind, 0).of(lambda _: Distribution(scores.log_softmax(1)))
    assert sure[0] < sure[1] < sure[2]


def test_certainty_and_ignorance_are_finite():
    certain = Distribution(torch.tensor([[200.0, 0.0, 0.0]]).log_softmax(1))
    nothing = Distribution(torch.zeros(1, 3).log_softmax(1))
    values = {k: float(Feature(k, 0).of(lambda _: certain)[0]) for k in KINDS}
    assert values["log_margin"] == 15.0
    assert values["entropy"] == 0.0
    assert all(math.isfinite(v) for v in values.values())
    assert float(nothing.log_margin[0]) == 0.0
    assert float(nothing.entropy[0]) == pytest.approx(math.log(3))
    assert int(nothing.label[0]) == 0  # ties go to the lowest index


def test_impossible_classes_do_not_spoil_the_entropy():
    held = Distribution(torch.tensor([[0.0, -math.inf]]))
    assert float(held.entropy[0]) == 0.0


def test_the_log_margin_tells_apart_what_the_maximum_no_longer_does():
    held = Distribution(torch.tensor([[18.0, 0.0, 0.0], [13.0, 0.0, 0.0]]).log_softmax(1))
    assert abs(float(held.max_prob[0] - held.max_prob[1])) < 1e-5
    assert float(held.log_margin[0] - held.log_margin[1]) >= 1.9


def test_agreement_and_prediction_are_zero_or_one():
    first = Distribution(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).log_softmax(1))
    second = Distribution(torch.tensor([[1.0, 0.0], [1.0, 0.0]]).log_softmax(1))
    held = [first, second]
    assert Feature("agrees_1", 0).of(lambda k: held[k]).tolist() == [1.0, 0.0]
    assert Feature("predicts_1", 0).of(lambda k: held[k]).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("kind", ["max_prop", "agrees_", "predicts_x", ""])
def test_an_unknown_statistic_is_refused(kind):
    with pytest.raises(InputError, match=f"kind must be one of .* got '{kind}'"):
        Feature(kind, 0)


def test_the_learned_policy_looks_at_visited_stages_only():
    found = confidence_features((0, 2, 5), 10, combined=True)
    assert {f.stage for f in found} == {0, 2, 5, COMBINED}
    assert Feature("agrees_2", 5) in found
    assert COMBINED not in {f.stage for f in confidence_features((0, 2), 10, combined=False)}
    assert COMBINED not in {f.stage for f in confidence_features((3,), 10, combined=True)}
    assert "log_prob_3" not in {f.kind for f in confidence_features((0,), 2, combined=False)}
    with pytest.raises(InputError, match=r"path must hold at least one stage, got \(\)"):
        confidence_features((), 10, combined=False)


def test_a_number_that_a_stage_does_not_give_is_named():
    given = Distribution.of_values(torch.tensor([[1.0, 2.0]]))
    assert Feature("value_1", 0).of(lambda _: given).tolist() == [2.0]
    with pytest.raises(InputError, match="reads number 2 of a stage, which gives 2"):
        Feature("value_2", 0).of(lambda _: given)
