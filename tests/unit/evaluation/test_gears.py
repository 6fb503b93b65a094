import numpy as np
import pytest
import torch
from torch import nn

from offramp import from_json, to_json
from offramp._core.errors import InputError
from offramp.evaluation import evaluate, fit
from offramp.policy.gears import SCORES, Gears
from offramp.runtime import Adaptive
from offramp.stages import Cascade
from offramp.trace.testing import make_trace


class Recorded(nn.Module):
    """Says what was recorded of the examples at some positions."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, rows):
        return self.logits[rows[:, 0]]


@pytest.fixture(scope="module")
def trace():
    made = make_trace(4000, accuracies=[0.75, 0.85, 0.9], classes=3, seed=1)
    return made.split_into({"fit": 1500, "calibrate": 1500, "test": 1000}, seed=0)


@pytest.fixture(scope="module")
def frontier(trace):
    return fit(trace, "threshold", combines=["last"], confidences=["margin"], progress=False)


def test_each_gear_has_its_own_limit_and_all_share_delta(frontier, trace):
    gears = frontier.gears((0.1, 0.02, 0.05), delta=0.05)
    assert gears.names == ("reference", "drop-2", "drop-5", "drop-10")
    assert gears.delta == 0.05
    assert not gears.left_out
    costs = [gear.cost_ratio for gear in gears]
    assert costs[0] == 1.0
    assert costs == sorted(costs, reverse=True)
    for gear, drop in zip(list(gears)[1:], (0.02, 0.05, 0.1), strict=True):
        assert gear.guarantee.bound == drop
        assert gear.guarantee.delta == 0.05
        assert gear.guarantee.p_value <= 0.05
        assert "promises of all of them hold at once" in gear.guarantee.assumptions[-1]
        found = evaluate(trace.subset("calibrate"), gear.candidate, bootstrap=0)
        assert gear.cost_ratio == pytest.approx(found.cost_ratio)
        assert np.array(gear.exits) == pytest.approx(np.array(found.exit_share) * found.n)
        assert found.accuracy_drop < drop
    assert sum(gears["reference"].exits) == 1500


def test_a_gear_is_as_good_as_its_own_promise_where_nothing_is_doubtful(frontier):
    """One limit alone is tested as `cheapest` tests it."""
    alone = frontier.gears((0.05,), delta=0.1)["drop-5"]
    choice = frontier.cheapest(max_drop=0.05, delta=0.1)
    assert to_json(alone.candidate) == to_json(choice.candidate)
    assert alone.guarantee.p_value == choice.guarantee.p_value
    assert alone.guarantee.tested == choice.guarantee.tested


def test_what_cannot_be_promised_is_left_out_and_says_so(frontier):
    gears = frontier.gears({"never": 1e-4, "careful": 0.02, "same": 0.0201}, delta=0.1)
    assert gears.names == ("reference", "careful")
    assert "it takes log(delta)/log(1 - max_drop) = 23025 examples" in gears.left_out["never"]
    assert "nothing cheaper than gear 'careful'" in gears.left_out["same"]


def test_where_no_gear_can_be_promised_the_reference_is_left(trace):
    frontier = fit(
        trace.subset("fit"), "threshold", combines=["last"], confidences=["margin"], progress=False
    )
    gears = frontier.gears((0.05, 0.1))
    assert gears.names == ("reference",)
    assert all("no calibrate part" in why for why in gears.left_out.values())
    assert "nothing is lost" in gears["reference"].sentence


def test_gears_are_read_back_as_they_were_written(frontier):
    gears = frontier.gears((0.02, 0.1))
    assert to_json(from_json(Gears, to_json(gears))) == to_json(gears)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (0.02, "several limits, or limits by name"),
        ("0.02", "several limits, or limits by name"),
        ((), "at least one limit"),
        ((0.02, 0.02), "must differ"),
        ((0.02, 0.0), "max_drops"),
        ((2,), "max_drops"),
        ({"reference": 0.02}, "none 'reference'"),
        ({"Very Fast": 0.02}, "small letters"),
        ({"x" * 41: 0.02}, "up to 40"),
    ],
)
def test_limits_that_cannot_be_are_refused(frontier, given, said):
    with pytest.raises(InputError, match=said):
        frontier.gears(given)


@pytest.mark.parametrize("risk", ["cost", "over_budget", "acuracy"])
def test_gears_limit_a_loss(frontier, risk):
    with pytest.raises(InputError, match="risk"):
        frontier.gears((0.02,), risk=risk)


def test_with_the_examples_gears_know_how_sure_their_answers_were(frontier, trace):
    part = trace.subset("calibrate")
    gears = frontier.gears((0.02, 0.1), examples=part)
    rows = torch.arange(len(part))[:, None]
    names = part.topology.names
    cascade = Cascade.from_models({n: Recorded(part.logits[:, k]) for k, n in enumerate(names)})
    for gear in gears:
        sure = Adaptive(cascade, gear.candidate)(rows, part.ids).confidence.numpy()
        assert gear.scores == tuple(int((sure < score).sum()) for score in SCORES)
    assert frontier.gears((0.02,))["drop-2"].scores == ()
    with pytest.raises(InputError, match="those that gears are tested on, got 1500 others"):
        frontier.gears((0.02,), examples=trace.subset("fit"))
