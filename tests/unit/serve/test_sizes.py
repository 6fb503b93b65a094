import time

import pytest
import torch
from torch import nn

from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.serve.inputs import Inputs
from offramp.serve.sizes import _clock_of, measured_sizes
from offramp.stages import Cascade


class Slow(nn.Module):
    """Takes its time of a clock that is turned by hand: so much for a batch, so much for each.

    Somebody disturbs the runs from one to another, which take half as long again.
    """

    def __init__(self, clock, batch, each, disturbed=range(0)):
        super().__init__()
        self.clock, self.batch, self.each, self.sizes = clock, batch, each, []
        self.layer, self.disturbed = nn.Linear(4, 3), disturbed

    def forward(self, x):
        slower = 1.5 if len(self.sizes) in self.disturbed else 1.0
        each = self.each[len(x)] if isinstance(self.each, dict) else self.each
        self.clock[0] += slower * (self.batch + each * len(x))
        self.sizes.append(len(x))
        return self.layer(x)


def served(small, large):
    clock = [0.0]
    nets = {"small": Slow(clock, *small), "large": Slow(clock, *large)}
    cascade = Cascade.from_models(nets)
    for stage in cascade:
        stage.keeps_company = True
    model = Adaptive(cascade, Candidate.single(cascade.topology, "small", reference="large"))
    inputs = Inputs(model, 1)
    inputs.noise = lambda n: torch.zeros(n, 4)
    return inputs, nets, lambda: clock[0]


def test_a_full_batch_is_the_smallest_that_costs_hardly_more_than_any_other():
    inputs, _, clock = served((0.001, 0.01), (0.1, 0.01))
    assert measured_sizes(inputs.model, inputs, clock) == {"small": 2, "large": 64}


def test_larger_batches_are_not_tried_where_they_gain_nothing():
    inputs, nets, clock = served((0.001, 0.01), (0.0, 0.05))
    assert measured_sizes(inputs.model, inputs, clock) == {"small": 2, "large": 1}
    assert max(nets["large"].sizes) == 16


def test_nothing_is_measured_where_nobody_knows_what_inputs_look_like():
    inputs, nets, clock = served((0.0, 0.01), (0.0, 0.05))
    inputs.noise = lambda n: None
    assert measured_sizes(inputs.model, inputs, clock) == {}
    assert nets["large"].sizes == []


@pytest.mark.parametrize("batch", [0.001, 0.05])
def test_slow_batches_are_measured_once(batch):
    inputs, nets, clock = served((batch, 0.0), (10 * batch, 0.0))
    measured_sizes(inputs.model, inputs, clock)
    assert nets["small"].sizes.count(1) == (5 if batch < 0.005 else 1)


@pytest.mark.parametrize(("more", "full"), [(0.12, 16), (0.08, 8)])
def test_a_batch_that_costs_a_tenth_more_for_each_example_is_not_full(more, full):
    each = {1: 3.0, 2: 2.0, 4: 1.5, 8: 1.0 + more, 16: 1.0, 32: 1.0}
    inputs, _, clock = served((0.0, 0.1), (0.0, each))
    assert measured_sizes(inputs.model, inputs, clock)["large"] == full


@pytest.mark.parametrize("first", range(15))
def test_what_disturbs_a_round_of_measurements_does_not_choose(first):
    calm, _, clock = served((0.002, 0.001), (0.005, 0.005))
    inputs, _, disturbed = served((0.002, 0.001, range(first, first + 5)), (0.005, 0.005))
    expected = measured_sizes(calm.model, calm, clock)
    assert measured_sizes(inputs.model, inputs, disturbed) == expected


@pytest.mark.parametrize(("threads", "told"), [(1, time.thread_time), (2, time.perf_counter)])
def test_where_one_thread_computes_only_its_own_seconds_count(threads, told, monkeypatch):
    inputs, _, _ = served((0.0, 0.01), (0.0, 0.05))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert _clock_of(inputs.model) is told
