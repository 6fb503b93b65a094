"""What a policy may look at, and nothing more."""

import inspect

import pytest
import torch

from offramp._core.errors import InputError
from offramp._core.outputs import StageOutput
from offramp._core.topology import Topology
from offramp.policy import Constant, Evidence, Node, Policy
from offramp.policy.features import COMBINED

POLICY = Policy(Topology.of(["a", "b"]), {(0,): Node(Constant(False))}, combine="mean")


def a_view(rows=None) -> Evidence:
    logits = torch.arange(8.0).reshape(4, 2)
    ids = torch.arange(4) if rows is None else rows
    return Evidence(POLICY, (0,), [StageOutput(classes=2, logits=logits), None], ids, rows)


def test_outputs_are_gathered_for_the_rows_that_stand_here():
    rows = torch.tensor([2, 0])
    view = a_view(rows)
    assert len(view) == 2
    assert view.output(0).logits.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert a_view().output(0).logits.shape == (4, 2)


def test_a_stage_that_nobody_visited_cannot_be_seen():
    with pytest.raises(InputError, match="Stage 1 has not been visited"):
        a_view().output(1)


def test_what_is_combined_follows_the_path():
    both = [StageOutput(classes=2, logits=torch.randn(1, 2)) for _ in range(2)]
    view = Evidence(POLICY, (0,), both, torch.arange(1))
    alone = view.distribution(COMBINED).log_probs
    assert torch.equal(alone, view.distribution(0).log_probs)
    view.follow(1)
    assert view.path == (0, 1)
    mean = torch.stack([both[k].logits.softmax(1) for k in range(2)]).mean(0)
    torch.testing.assert_close(view.distribution(COMBINED).log_probs, mean.log())


def test_there_is_no_label_to_peek_at():
    assert set(inspect.signature(Evidence).parameters) == {
        "policy",
        "path",
        "outputs",
        "ids",
        "rows",
        "known",
    }
    assert not any("label" in name for name in dir(Evidence))
