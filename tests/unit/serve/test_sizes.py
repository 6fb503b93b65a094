import pytest
import torch
from torch import nn

from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.serve.inputs import Inputs
from offramp.serve.sizes import measured_sizes
from offramp.stages import Cascade


class Slow(nn.Module):
    """Takes its time of a clock that is turned by hand: so much for a batch, so much for each."""

    def __init__(self, clock, batch, each):
        super().__init__()
        self.clock, self.batch, self.each, self.sizes = clock, batch, each, []
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        self.clock[0] += self.batch + self.each * len(x)
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
    inputs, _, clock = served((0.0, 0.01), (0.1, 0.01))
    assert measured_sizes(inputs.model, inputs, clock) == {"small": 2, "large": 64}


def test_larger_batches_are_not_tried_where_they_gain_nothing():
    inputs, nets, clock = served((0.0, 0.01), (0.0, 0.05))
    assert measured_sizes(inputs.model, inputs, clock) == {"small": 2, "large": 1}
    assert max(nets["large"].sizes) == 16


def test_nothing_is_measured_where_nobody_knows_what_inputs_look_like():
    inputs, nets, clock = served((0.0, 0.01), (0.0, 0.05))
    inputs.noise = lambda n: None
    assert measured_sizes(inputs.model, inputs, clock) == {}
    assert nets["large"].sizes == []


@pytest.mark.parametrize("batch", [0.002, 0.05])
def test_slow_batches_are_measured_once(batch):
    inputs, nets, clock = served((batch, 0.0), (10 * batch, 0.0))
    measured_sizes(inputs.model, inputs, clock)
    assert nets["small"].sizes.count(1) == (3 if batch < 0.01 else 1)
