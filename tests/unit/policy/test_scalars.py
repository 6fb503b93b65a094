"""Plain numbers about one example: never further from the tensors than they say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp.policy import Feature, Linear
from offramp.policy.features import FEATURES, Distribution
from offramp.policy.scalars import MOST_CLASSES, Scalars
from support.properties import examples


def rows(seed: int, classes: int, spread: float, shift: float, n: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(n, classes, generator=generator) + shift


SCORES = {
    "seed": st.integers(0, 2**31),
    "classes": st.integers(2, MOST_CLASSES),
    "spread": st.sampled_from([1e-6, 0.01, 1.0, 4.0, 30.0, 300.0]),
    "shift": st.sampled_from([0.0, -20.0, 1e4]),
    "temperature": st.sampled_from([0.05, 0.7, 1.0, 3.3, 20.0]),
}


@given(**SCORES)
@examples(60)
def test_a_number_is_never_further_from_the_tensor_than_it_says(
    seed, classes, spread, shift, temperature
):
    logits, scale = rows(seed, classes, spread, shift), torch.tensor(temperature)
    whole = Distribution.of_scores(logits, scale)
    for kind in FEATURES:
        if kind == "log_prob_3" and classes < 3:
            continue
        values = FEATURES[kind](whole).tolist()
        for row, value in zip(logits, values, strict=True):
            alone = Distribution.of_scores(row[None], scale)
            number, error = alone.scalars.number(kind), alone.scalars.error
            assert number == Feature(kind, 0).scalar(alone.scalars, lambda _: None)
            assert abs(number - value) <= error


@given(**SCORES)
@examples(60)
def test_a_label_is_the_tensors_or_is_not_said(seed, classes, spread, shift, temperature):
    logits = rows(seed, classes, spread, shift).round(decimals=3)  # some are equal
    whole = Distribution.of_scores(logits, torch.tensor(temperature))
    for row, label in zip(logits.tolist(), whole.label.tolist(), strict=True):
        assert Scalars(row, temperature).label in (label, None)


def test_the_bound_is_of_some_use():
    """Where scores are what networks give, only a narrow band is left to the tensors."""
    logits = rows(0, 10, 4.0, 0.0, n=500)
    errors = [Scalars(row, 1.0).error for row in logits.tolist()]
    assert max(errors) < 2e-4


@given(seed=st.integers(0, 2**31), kind=st.sampled_from(sorted(FEATURES)))
@examples(60)
def test_a_bound_of_zero_would_be_caught(seed, kind):
    """With numbers taken at their word, an example on a threshold may be told the other way."""
    logits = rows(seed, 6, 2.0, 0.0, n=40)
    values = FEATURES[kind](Distribution.of_scores(logits, torch.tensor(1.3)))
    wrong = 0
    for row, value in zip(logits, values.tolist(), strict=True):
        alone = Distribution.of_scores(row[None], torch.tensor(1.3))
        at = _At(alone)
        rule = Linear.threshold(Feature(kind, 0), value)
        assert rule.takes(at) == bool(rule.score(at) >= 0)
        wrong += (alone.scalars.number(kind) >= value) != bool(rule.score(at) >= 0)
    assert wrong > 0


class _At:
    ids = torch.zeros(1, dtype=torch.int64)

    def __init__(self, found: Distribution) -> None:
        self.found = found

    def distribution(self, stage: int) -> Distribution:
        return self.found

    def ranked(self, stage: int, count: int) -> torch.Tensor:
        raise AssertionError("no rule here compares labels")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_left_to_the_tensors(bad):
    found = Distribution.of_scores(torch.tensor([[0.0, bad, 1.0]]), torch.tensor(1.0))
    assert found.scalars is None
    assert found.scalars is None


def test_many_classes_and_several_examples_are_left_to_the_tensors():
    one = torch.tensor(1.0)
    assert Distribution.of_scores(torch.zeros(1, MOST_CLASSES + 1), one).scalars is None
    assert Distribution.of_scores(torch.zeros(2, 3), one).scalars is None
    assert Distribution.of_scores(torch.zeros(1, 3), one).scalars is not None
