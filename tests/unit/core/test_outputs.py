"""Stage outputs: logits, labels with confidences, rankings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.errors import InputError
from offramp._core.outputs import StageOutput


def test_a_label_with_a_confidence_becomes_that_probability():
    output = StageOutput(
        classes=3, ranked=torch.tensor([[1], [0]]), confidence=torch.tensor([0.6, 0.9])
    )
    probabilities = output.scores().softmax(dim=1)
    expected = torch.tensor([[0.2, 0.6, 0.2, 0.0], [0.9, 0.05, 0.05, 0.0]])
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)


@given(st.integers(2, 20), st.lists(st.floats(0, 1, width=32), min_size=2, max_size=8))
def test_a_label_stays_the_likeliest_and_a_higher_confidence_never_lowers_it(classes, given_):
    confidence = torch.tensor(sorted(given_))
    output = StageOutput(
        classes=classes,
        ranked=torch.full((len(confidence), 1), classes - 1),
        confidence=confidence,
    )
    probabilities = output.scores().double().softmax(dim=1)
    assert (probabilities.argmax(dim=1) == classes - 1).all()
    assert (probabilities[:, classes - 1].diff() >= -1e-6).all()


@pytest.mark.parametrize("label", [-1, 3, 99])
def test_a_label_outside_the_classes_keeps_its_confidence_in_a_column_of_its_own(label):
    output = StageOutput(classes=3, ranked=torch.tensor([[label]]), confidence=torch.tensor([0.7]))
    probabilities = output.scores().softmax(dim=1)[0]
    torch.testing.assert_close(probabilities[3].item(), 0.7, atol=1e-5, rtol=0)
    torch.testing.assert_close(probabilities[:3], torch.full((3,), 0.1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_a_service_that_is_certain_gives_finite_scores(confidence):
    output = StageOutput(
        classes=2, ranked=torch.tensor([[0]]), confidence=torch.tensor([confidence])
    )
    assert torch.isfinite(output.scores()).all()


def test_a_ranking_alone_has_no_scores():
    output = StageOutput(classes=3, ranked=torch.tensor([[1, 0]]))
    assert not output.scored
    with pytest.raises(InputError, match="rankings without logits"):
        output.scores()


@given(st.lists(st.integers(-2, 2), min_size=2, max_size=6), st.integers(1, 6))
def test_top_is_a_stable_sort_so_that_ties_go_to_the_lowest_index(row, m):
    m = min(m, len(row))
    output = StageOutput(classes=len(row), logits=torch.tensor([row], dtype=torch.float32))
    slow = sorted(range(len(row)), key=lambda k: (-row[k], k))[:m]
    assert output.top(m)[0].tolist() == slow


def test_more_labels_than_are_known_is_an_error_with_both_numbers():
    with pytest.raises(InputError, match="top 3 is asked for, but only 2"):
        StageOutput(classes=5, ranked=torch.tensor([[1, 0]])).top(3)
    with pytest.raises(InputError, match="top 3 of 2 classes"):
        StageOutput(classes=2, logits=torch.zeros(1, 2)).top(3)


def test_rows_take_every_field_along():
    output = StageOutput(
        classes=3, ranked=torch.tensor([[0], [1], [2]]), confidence=torch.tensor([0.1, 0.2, 0.3])
    )
    some = output.take(torch.tensor([2, 0]))
    assert len(some) == 2
    assert some.ranked.tolist() == [[2], [0]]
    torch.testing.assert_close(some.confidence, torch.tensor([0.3, 0.1]))


def both_forms():
    logits = torch.arange(12.0).reshape(4, 3)
    ranked, confidence = torch.tensor([[0], [7], [2], [1]]), torch.tensor([0.9, 0.8, 0.4, 0.6])
    return [
        StageOutput(classes=3, logits=logits),
        StageOutput(classes=3, ranked=ranked, confidence=confidence),
    ]


@pytest.mark.parametrize("said", both_forms(), ids=["logits", "confidence"])
def test_parts_are_taken_put_together_and_placed_as_their_scores_are(said):
    scores = said.scores()
    assert scores.shape == (4, said.width)
    front, back = torch.tensor([0, 1]), torch.tensor([2, 3])
    parts = [said.take(rows) for rows in (front, back)]
    assert torch.equal(parts[0].scores(), scores[front])
    assert torch.equal(parts[0].concat(parts[1:]).scores(), scores)
    placed = parts[1].placed(torch.tensor([5, 1]), 6)
    assert len(placed) == 6
    assert torch.equal(placed.scores()[[5, 1]], scores[back])
    assert torch.equal(placed.top(1)[[5, 1]], said.top(1)[back])
