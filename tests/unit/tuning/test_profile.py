import json
import time

import pytest
import torch
from torch import nn

from offramp._core.errors import InputError
from offramp._core.schema import to_json
from offramp._core.topology import Topology
from offramp.policy import Constant, Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.runtime.events import KINDS
from offramp.stages import Cascade
from offramp.tuning import profile


class Clock:
    """Only slow networks take time."""

    now = 0.0

    def __call__(self):
        self.now += 1e-12  # nothing takes no time at all
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _only_networks_take_time(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", CLOCK)


class Slow(nn.Module):
    """Takes a known time per call, and is as sure of class 0 as its input says."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        CLOCK.now += self.seconds
        return torch.cat([x, torch.zeros_like(x)], dim=1)


def slow_model(first=0.002, second=0.006):
    cascade = Cascade.from_models({"small": Slow(first), "large": Slow(second)})
    sure = Linear.threshold(Feature("max_prob", 0), 0.9)
    return Adaptive(cascade, Policy(cascade.topology, {(0,): Node(sure)}))


LEAVES, STAYS = [9.0], [0.0]


def test_time_is_put_down_to_the_stages_that_took_it():
    found = profile(slow_model(), torch.tensor([LEAVES, STAYS, LEAVES, STAYS]), rounds=3)
    small, large = found.stages
    assert (small.visits, large.visits) == (4, 2)
    assert small.seconds["stage"] == pytest.approx(0.002)
    assert large.seconds["stage"] == pytest.approx(0.006)
    assert found.total_s == pytest.approx(0.008) == sum(map(found.seconds, KINDS))
    # calls take the same time for any number, so 4 at once is best: a quarter of a call each
    assert found.ideal_s == pytest.approx(0.002 + 2 * 0.006 / 4)
    assert found.over_ideal == pytest.approx(found.total_s / found.ideal_s)


def test_spans_follow_each_other_and_cover_one_batch():
    found = profile(slow_model(), torch.tensor([LEAVES, STAYS]), rounds=1)
    starts = [span.start_s for span in found.spans]
    assert starts == sorted(starts)
    assert all(a.end_s <= b.start_s for a, b in zip(found.spans, found.spans[1:], strict=False))
    assert {span.kind for span in found.spans} >= {"stage", "decision", "wait", "compaction"}
    assert found.spans[-1].end_s == pytest.approx(0.008)
    assert {span.stage for span in found.spans} == {"", "small", "large"}


@pytest.mark.parametrize(
    ("rows", "size", "waits"),
    [
        ([LEAVES, LEAVES], None, 1),  # one decision for all
        ([STAYS, STAYS, LEAVES], None, 1),  # the last stage asks nothing
        ([STAYS, STAYS], 1, 1),  # per batch
    ],
)
def test_the_host_waits_once_per_decision_and_batch(rows, size, waits):
    found = profile(slow_model(0, 0), torch.tensor(rows), batch_size=size, rounds=1)
    assert found.waits == waits


def test_two_ways_to_a_segment_are_asked_about_and_counted():
    topology = Topology.of(["r", "b", "c"], sources=[-1, -1, 1])
    from offramp.stages import Stage

    stages = [
        Stage("r", nn.Identity(), head=nn.Identity()),
        Stage("b", nn.Identity(), head=nn.Identity()),
        Stage("c", nn.Identity(), head=nn.Identity(), source="b"),
    ]
    cascade = Cascade(stages, edges=[("r", "b"), ("b", "c")])
    part = cascade.topology
    nodes = {(0,): Node(Constant(False)), (0, 1): Node(Constant(False))}
    found = profile(Adaptive(cascade, Policy(part, nodes)), torch.zeros(3, 2), rounds=1)
    assert topology.names == part.names
    assert found.waits == 2
    assert [stage.visits for stage in found.stages] == [3, 3, 3]


def test_a_pass_takes_the_examples_a_batch_at_a_time():
    found = profile(slow_model(), torch.tensor([STAYS] * 5), batch_size=2, rounds=2)
    assert (found.examples, found.batch_size, found.rounds) == (5, 2, 2)
    assert found.total_s == pytest.approx(3 * 0.008)
    assert found.ideal_s == pytest.approx(5 * 0.008 / 2)
    assert [stage.visits for stage in found.stages] == [5, 5]


def test_a_profile_is_written_as_json():
    found = profile(slow_model(0, 0), torch.tensor([STAYS]), rounds=1)
    written = json.loads(json.dumps(to_json(found)))
    assert written["over_ideal"] == found.over_ideal
    assert written["spans"][0]["kind"] == found.spans[0].kind


def test_profiles_of_nothing_are_refused():
    with pytest.raises(InputError, match="at least one example"):
        profile(slow_model(), torch.zeros(0, 1))
    with pytest.raises(InputError, match="rounds must be an integer of at least 1, got 0"):
        profile(slow_model(), torch.zeros(1, 1), rounds=0)


def test_watching_changes_no_answer():
    model, x = slow_model(0, 0), torch.tensor([LEAVES, STAYS, LEAVES])
    seen = []
    watched = model.watched(x, mark=lambda *mark: seen.append(mark))
    plain = model(x)
    assert torch.equal(watched.log_probs, plain.log_probs)
    assert torch.equal(watched.stage, plain.stage)
    assert ("stage", 1, 1) in seen
