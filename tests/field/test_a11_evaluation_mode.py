import sys
import threading

import pytest
import torch
from torch import nn

from offramp._core.errors import UnsupportedError
from offramp.policy import Constant, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade


class Switched(nn.Module):
    """Stands for another thread: switches a network to training while it runs."""

    def __init__(self, net):
        super().__init__()
        self.net, self.whom = net, None

    def forward(self, x):
        if self.whom is not None:
            self.whom.train()
        return self.net(x)


def layers(seed):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=0.0), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return net.eval()


def model_of(nets, **arguments):
    cascade = Cascade.from_models(nets)
    return Adaptive(cascade, Policy(cascade.topology, {(0,): Node(Constant(False))}), **arguments)


def draw(n):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("part", [(), (1,), (2,)])
def test_a_part_that_somebody_switches_between_batches_is_put_back(n, part):
    nets = {"a": layers(0), "b": layers(1)}
    model = model_of(nets)
    right = model(draw(n)).log_probs
    switched = nets["b"]
    for k in part:
        switched = switched[k]
    switched.train()
    assert torch.equal(model(draw(n)).log_probs, right)
    switched.train()
    alone = Adaptive.single(Cascade.from_models({"a": nets["a"], "b": nets["b"].eval()}), "b")
    switched.train()
    torch.testing.assert_close(alone(draw(n)).log_probs, right)


@pytest.mark.parametrize("n", [1, 5])
def test_what_is_switched_while_it_answers_raises_and_the_next_batch_is_right(n):
    first = Switched(layers(0))
    nets = {"a": first, "b": layers(1)}
    model = model_of(nets)
    right = model(draw(n)).log_probs
    for whom in (nets["b"], nets["b"][1], nets["b"][2]):
        first.whom = whom
        with pytest.raises(UnsupportedError, match="training mode while it answered"):
            model(draw(n))
        with pytest.raises(UnsupportedError, match="training mode while it answered"):
            list(model.stream([draw(n)]))
        first.whom = None
        assert torch.equal(model(draw(n)).log_probs, right)


@pytest.fixture
def _often():
    """Threads take turns fifty times as often: more to go wrong, in less time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_often")
def test_of_a_thread_that_trains_meanwhile_no_wrong_answer_comes_through():
    nets = {"a": layers(0), "b": layers(1)}
    model = model_of(nets)
    x = draw(4)
    right = model(x).log_probs
    over = threading.Event()

    def trains():
        while not over.is_set():
            nets["b"].train()

    thread = threading.Thread(target=trains)
    thread.start()
    answered, refused = 0, 0
    try:
        for _ in range(200):
            try:
                found = model(x).log_probs
            except UnsupportedError:
                refused += 1
                continue
            answered += 1
            assert torch.equal(found, right)
    finally:
        over.set()
        thread.join()
    assert answered + refused == 200


def test_copies_of_optimize_cannot_be_switched():
    nets = {"a": layers(0), "b": layers(1)}
    model = model_of(nets, fold=True)
    right = model(draw(3)).log_probs
    first = Switched(nets["a"])
    first.whom = nets["b"]
    nets["b"].train()
    assert torch.equal(model(draw(3)).log_probs, right)
    assert nets["b"].training


def test_what_trains_whatever_it_is_told_is_left_alone():
    class Always(nn.Module):
        def train(self, mode=True):
            return super().train(True)

        def forward(self, x):
            return x

    model = model_of({"a": nn.Sequential(nn.Linear(6, 3), Always()), "b": layers(1)})
    assert len(model(draw(2))) == 2


def test_logits_are_ordinary_tensors_on_request():
    answer = model_of({"a": layers(0), "b": layers(1)})(draw(2))
    own = answer.clone()
    own.log_probs.add_(1)
    weight = torch.ones(3, requires_grad=True)
    (own.log_probs @ weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(own.labels, answer.labels)
    assert own.stage_names == answer.stage_names
    assert own.cost is None
