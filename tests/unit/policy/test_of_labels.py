"""Three values with their counts say the same as c + 1 columns, for each example alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples

from offramp._core.errors import InputError
from offramp._core.outputs import FAILED, StageOutput
from offramp.policy import Feature
from offramp.policy.features import FEATURES, Distribution, scaled_log_probs
from offramp.policy.of_labels import OfLabels, distribution_of


def said(classes, seed, n=200):
    """Labels within the classes and outside, with confidences of all sizes, the ends among them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, classes + 2, (n, 1), generator=generator)
    sure = torch.rand(n, generator=generator) ** 2
    ends = torch.tensor([0.0, 1.0, 1e-7, 1 - 1e-7, 1 / classes])
    sure[: len(ends)] = ends
    return StageOutput(classes=classes, ranked=labels, confidence=sure)


def columns(output, temperature):
    """The slow twin: all columns."""
    return Distribution(scaled_log_probs(output.scores(), temperature))


@given(st.integers(2, 60), st.floats(0.05, 20.0), st.integers(0, 2**31))
@examples(40)
def test_it_says_what_the_columns_say(classes, temperature, seed):
    output, temperature = said(classes, seed), torch.tensor(temperature)
    found, slow = OfLabels(output, temperature), columns(output, temperature)
    assert torch.equal(found.log_probs, slow.log_probs)
    assert torch.equal(found.label, slow.label)
    for kind in FEATURES:
        torch.testing.assert_close(
            FEATURES[kind](found), FEATURES[kind](slow), rtol=1e-4, atol=1e-5
        )


@given(st.integers(2, 60), st.integers(0, 2**31))
@examples(40)
def test_an_example_does_not_depend_on_the_others(classes, seed):
    output, temperature = said(classes, seed), torch.tensor(1.3)
    whole = OfLabels(output, temperature)
    some = torch.randperm(200, generator=torch.Generator().manual_seed(seed))[:30]
    part = OfLabels(output.take(some), temperature)
    for kind in FEATURES:
        values = FEATURES[kind](whole)
        assert torch.equal(FEATURES[kind](part), values[some])
        for row in some[:5].tolist():
            alone = OfLabels(output.take(torch.tensor([row])), temperature)
            number, error = alone.scalars.number(kind), alone.scalars.error
            assert number == Feature(kind, 0).scalar(alone.scalars, lambda _: None)
            assert abs(number - values[row].item()) <= error < 1e-3
            assert alone.scalars.label == whole.label[row]


def test_each_may_have_a_temperature_of_its_own():
    output, each = said(5, 0, n=20), torch.linspace(0.5, 2.0, 20)[:, None]
    found = OfLabels(output, each)
    for row in range(20):
        one = OfLabels(output.take(torch.tensor([row])), each[row, 0])
        assert found.entropy[row] == one.entropy[0]


def test_no_answer_is_not_a_number():
    sure = torch.tensor([torch.nan, 0.5])
    output = StageOutput(classes=3, ranked=torch.tensor([[FAILED], [1]]), confidence=sure)
    found = OfLabels(output, torch.tensor(1.0))
    for kind in FEATURES:
        assert FEATURES[kind](found).isnan().tolist() == [True, False]


def test_scores_stay_columns_and_labels_alone_have_no_probabilities():
    logits = StageOutput(classes=2, logits=torch.zeros(1, 2))
    assert type(distribution_of(logits, torch.tensor(1.0))) is Distribution
    assert type(distribution_of(said(3, 0), torch.tensor(1.0))) is OfLabels
    with pytest.raises(InputError, match="Labels without confidences"):
        OfLabels(StageOutput(classes=2, ranked=torch.zeros(1, 1).long()), torch.tensor(1.0))
    values = StageOutput(classes=1, features=torch.ones(1, 2))
    assert distribution_of(values, torch.tensor(1.0)).values is values.features
