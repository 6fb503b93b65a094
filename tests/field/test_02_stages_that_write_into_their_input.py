import numpy as np
import pytest
import torch
from torch import nn

import offramp
from offramp._core.errors import UnsupportedError
from offramp.data import arrays
from offramp.policy import Constant, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Stage, fuse, given_costs
from offramp.train.class_exits.evidence import predictions


def draw(n=40):
    return torch.rand(n, 8, generator=torch.Generator().manual_seed(0))


class Pure(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.f = nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.f.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))

    def forward(self, x):
        return self.f((x - 0.5) / 0.25)


class InPlace(Pure):
    """The usual normalization, in place."""

    def forward(self, x):
        x -= 0.5
        x /= 0.25
        return self.f(x)


class ThroughData(Pure):
    """Behind the back of the version counter."""

    def forward(self, x):
        x.data.sub_(0.5).div_(0.25)
        return self.f(x)


class ThroughNumpy(Pure):
    def forward(self, x):
        held = x.numpy()
        np.subtract(held, 0.5, out=held)
        np.divide(held, 0.25, out=held)
        return self.f(x)


class Named(Pure):
    def forward(self, pixels, shift):
        pixels -= 0.5
        shift += 1.0
        return self.f(pixels / 0.25)


class Centre(nn.Module):
    def forward(self, x):
        return x.sub_(0.5).div_(0.25)


def everybody_to(cascade, last):
    nodes = {(k,): Node(Constant(False)) for k in range(last)}
    topology = cascade.topology.chain([0, last])
    return Policy(topology, nodes)


def expected(x):
    with torch.no_grad():
        return torch.stack([Pure(0)(x), Pure(1)(x)], 1)


KINDS = [InPlace, ThroughData, ThroughNumpy]


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_holds_what_each_network_says_about_the_data_as_they_are(kind):
    x = draw()
    data = arrays(x.clone(), expected(x)[:, 1].argmax(1))
    cascade = Cascade.from_models({"a": kind(0), "b": kind(1)})
    costs = given_costs(cascade, "u", {"a": 1, "b": 9})
    trace = offramp.record(cascade, data, costs=costs, batch_size=16, progress=False)
    assert trace.accuracy(1) == 1.0
    torch.testing.assert_close(trace.logits, expected(x))
    assert torch.equal(data.inputs, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 7])
def test_a_batch_given_to_adaptive_stays_what_it_was(kind, n):
    cascade = Cascade.from_models({"a": kind(0), "b": kind(1)})
    model = Adaptive(cascade, everybody_to(cascade, 1))
    for _ in range(3):
        mine = draw(n)
        answer = model(mine)
        assert torch.equal(mine, draw(n))
        torch.testing.assert_close(answer.log_probs, expected(draw(n))[:, 1].log_softmax(1))


def test_costs_that_are_counted_or_timed_leave_the_example_alone():
    x = draw(1)
    cascade = Cascade.from_models({"a": InPlace(0), "b": InPlace(1)})
    with pytest.warns(UserWarning, match="a step saves little"):
        offramp.stages.measure_flops(cascade, x)
    with pytest.warns(UserWarning, match="a step saves little"):
        offramp.stages.measure_seconds(cascade, x, batch_sizes=[1], rounds=1)
    assert torch.equal(x, draw(1))


def test_a_transform_that_writes_into_the_raw_input_does_not_reach_the_next_stage():
    nets = {"a": Pure(0).f, "b": Pure(1).f}
    cascade = Cascade.from_models(nets, transform=Centre())
    x = draw()
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(cascade(x), expected(draw()))
    assert torch.equal(x, draw())


def test_inputs_in_a_mapping_or_tuple_stay_what_they_were():
    for batch in ({"pixels": draw(), "shift": torch.zeros(40)}, (draw(), torch.zeros(40))):
        cascade = Cascade.from_models({"a": Named(0), "b": Named(1)})
        model = Adaptive(cascade, everybody_to(cascade, 1))
        for _ in range(2):
            torch.testing.assert_close(
                model(batch).log_probs, expected(draw())[:, 1].log_softmax(1)
            )
        held = list(batch.values()) if isinstance(batch, dict) else list(batch)
        assert torch.equal(held[0], draw())
        assert not held[1].any()


def exits(rectifies):
    """An exit whose head begins with a rectifier, and a stage that continues before it."""
    body, rest = nn.Linear(8, 6), nn.Linear(6, 3)
    head = nn.Sequential(nn.ReLU(inplace=rectifies), nn.Linear(6, 3))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in (body, rest, head[1]):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            layer.bias.zero_()
    return Cascade(
        [Stage("a", body, head=head), Stage("b", rest, head=nn.Identity(), source="a")],
        edges="chain",
    )


def test_a_head_that_writes_into_its_carry_does_not_reach_who_continues():
    x = draw()
    with torch.no_grad():
        right = exits(False)(x)
        assert torch.equal(exits(True)(x), right)
        assert torch.equal(fuse(exits(True), [["a", "b"]])(x), right)
    cascade = exits(True)
    model = Adaptive(cascade, everybody_to(cascade, 1))
    for _ in range(2):
        torch.testing.assert_close(model(x).log_probs, right[:, 1].log_softmax(1))


class Later(Pure):
    """Writes into its input for some inputs only."""

    def forward(self, x):
        if float(x.max()) > 5:
            x.clamp_(max=1.0)
        return super().forward(x)


def test_a_stage_that_writes_later_than_on_the_first_batch_is_found_out_and_given_copies():
    cascade = Cascade.from_models({"a": Later(0), "b": Pure(1)})
    model = Adaptive(cascade, everybody_to(cascade, 1))
    model(draw())
    bad = draw().mul_(10)

    class Always(Later):
        def forward(self, x):
            x.clamp_(max=1.0)
            return Pure.forward(self, x)

    cascade.stage(0).module.__class__ = Always
    with pytest.raises(UnsupportedError, match="Stage 'a' has written into its input"):
        model(bad)
    mine = draw().mul_(10)
    torch.testing.assert_close(model(mine).log_probs, expected(draw() * 10)[:, 1].log_softmax(1))
    assert torch.equal(mine, draw() * 10)


def test_who_writes_into_the_batch_from_elsewhere_is_not_taken_for_the_stage():
    shared = draw()

    class Meanwhile(Pure):
        """Stands for another thread that fills the rest of a ring buffer."""

        def forward(self, x):
            shared[-1] += 1
            return super().forward(x)

    cascade = Cascade.from_models({"a": Meanwhile(0), "b": Pure(1)})
    model = Adaptive(cascade, everybody_to(cascade, 1))
    for _ in range(3):
        assert len(model(shared[:4])) == 4


def test_predictions_of_a_network_leave_the_data_set_alone():
    x = draw()
    data = arrays(x.clone(), torch.zeros(40, dtype=torch.int64))
    found = predictions(InPlace(0).eval(), data)
    assert found.tolist() == expected(x)[:, 0].argmax(1).tolist()
    assert torch.equal(data.inputs, x)


@pytest.mark.parametrize("n", [1, 3])
def test_a_network_that_writes_into_its_input_can_be_cut_and_leaves_the_example_alone(n):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = Pure(0).f, nn.Linear(3, 3)

        def forward(self, x):
            x -= 0.5
            return self.last(self.inner(x))

    net, example = Net().eval(), draw(n)
    cascade = Cascade.from_network(net, ["inner"], head={"inner": nn.Identity()}, example=example)
    assert torch.equal(example, draw(n))
    x = draw()
    with torch.no_grad():
        torch.testing.assert_close(cascade(x)[:, 1], net(draw()))
    assert torch.equal(x, draw())
