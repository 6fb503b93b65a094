"""What a policy may look at, and nothing more."""

import inspect

import pytest
import torch

from offramp._core.errors import InputError
from offramp._core.outputs import StageOutput
from offramp.policy import Evidence


def a_view(rows=None) -> Evidence:
    logits = torch.arange(8.0).reshape(4, 2)
    visited = torch.tensor([[True, False], [True, True], [True, True], [True, False]])
    ids = torch.arange(4)
    if rows is not None:
        visited, ids = visited[rows], ids[rows]
    return Evidence([StageOutput(classes=2, logits=logits), None], visited, ids, rows)


def test_outputs_are_gathered_for_the_rows_that_stand_here():
    rows = torch.tensor([2, 0])
    view = a_view(rows)
    assert len(view) == 2
    assert view.output(0).logits.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert a_view().output(0).logits.shape == (4, 2)


def test_a_stage_that_nobody_visited_cannot_be_seen():
    with pytest.raises(InputError, match="Stage 1 has not been visited"):
        a_view().output(1)


def test_on_is_true_for_exactly_the_stages_of_the_path():
    view = a_view()
    assert view.on((0,)).tolist() == [True, False, False, True]
    assert view.on((0, 1)).tolist() == [False, True, True, False]
    assert not view.on((1,)).any()


def test_there_is_no_label_to_peek_at():
    assert set(inspect.signature(Evidence).parameters) == {
        "outputs",
        "visited",
        "ids",
        "rows",
        "known",
    }
    assert not any("label" in name for name in dir(Evidence))
