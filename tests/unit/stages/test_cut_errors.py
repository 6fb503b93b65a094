"""Cutting: what is refused, and what the message says."""

import re

import pytest
import torch
from torch import nn

from offramp._core.errors import InputError, UnknownNameError, UnsupportedError
from offramp.models import cifar_resnet, small_cnn
from offramp.stages import Cascade, cut, cut_points

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def net():
    return cifar_resnet(8, width=0.25).eval()


def refused(kind, at, network=None, example=X):
    with pytest.raises(kind) as caught:
        cut(net() if network is None else network, at, example)
    return str(caught.value)


def test_a_layer_that_does_not_exist_is_named_with_the_near_ones():
    message = refused(UnknownNameError, ["layer2.0.conv3"])
    assert "'layer2.0.conv3'" in message
    assert "'layer2.0.conv2'" in message


def test_an_exit_after_the_last_layer_is_the_network_itself():
    message = refused(InputError, ["layer1", "linear"])
    assert "'linear' ends the network" in message
    assert "'flatten'" in message


def test_a_network_in_training_mode_is_refused():
    training = net()
    training.layer1[0].bn1.train()
    message = refused(InputError, ["layer1"], training)
    assert "'layer1.0.bn1'" in message
    assert "eval()" in message
    with pytest.raises(InputError, match="evaluation mode"):
        cut_points(training, X)


def test_two_exits_at_one_point_are_refused():
    message = refused(InputError, ["layer1", "layer1.0"])
    assert "'layer1' and 'layer1.0'" in message


def test_names_out_of_order_are_refused_with_the_right_order():
    assert "['layer1', 'layer2'], got ['layer2', 'layer1']" in refused(
        InputError, ["layer2", "layer1"]
    )


@pytest.mark.parametrize("at", [[], "layer1"])
def test_no_names_or_a_bare_text_are_refused(at):
    assert f"got {at!r}" in refused(InputError, at)


def test_a_layer_that_computes_nothing_is_no_point():
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 3)).eval()
    assert "'1' computes nothing" in refused(InputError, ["1"], network, torch.zeros(2, 3))


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        x = self.one(x)
        if x.sum() > 0:
            return self.two(x)
        return x


def test_control_flow_by_values_is_refused_with_its_place():
    message = refused(UnsupportedError, ["one"], Decides().eval(), torch.ones(2, 3))
    assert "decides by the values" in message
    assert re.search(r"test_cut_errors\.py:\d+ \(if x\.sum\(\) > 0:\)", message)


class NeedsFour(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        x = self.one(x)
        return self.two(x) if x.shape[0] == 2 else x


def test_control_flow_by_batch_size_is_refused():
    message = refused(UnsupportedError, ["one"], NeedsFour().eval(), torch.ones(2, 3))
    assert "batch size as a constant" in message


class Windows(nn.Module):
    """Works on windows, as Swin does: between, windows and examples share one axis."""

    def __init__(self):
        super().__init__()
        self.before, self.inside = nn.Linear(4, 4), nn.Linear(4, 4)
        self.after, self.linear = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        n, t, d = x.shape
        windows = self.before(x).view(n * (t // 2), 2, d)
        windows = self.inside(windows).softmax(1)
        return self.linear(self.after(windows.view(n, t, d)).mean(1))


def test_a_point_among_windows_is_refused_with_the_nearest_that_work():
    network = Windows().eval()
    message = refused(UnsupportedError, ["inside"], network, torch.rand(2, 6, 4))
    assert "(3*batch, 2, 4)" in message
    assert "'before', 'after'" in message
    assert [p.name for p in cut_points(network, torch.rand(2, 6, 4))] == ["before", "after"]


class Mixes(nn.Module):
    """The answer for one example depends on the others, in one of several ways."""

    def __init__(self, how):
        super().__init__()
        self.one, self.two, self.how = nn.Linear(4, 4), nn.Linear(4, 3), how

    def forward(self, x):
        return self.two(self.how(self.one(x)))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (lambda x: x - x.mean(0), "'mean'"),
        (lambda x: (x @ x.T).softmax(1) @ x, "'matmul'"),
        (lambda x: x.cumsum(0), "differ"),
        (lambda x: x.roll(1, 0), "differ"),
        (lambda x: x.softmax(0), "differ"),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_network_whose_examples_mix_is_refused(how, says, rows):
    example = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))
    message = refused(UnsupportedError, ["one"], Mixes(how).eval(), example)
    assert "depends on the others" in message
    assert says in message


class Empty(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.crop, self.two = nn.Linear(4, 4), Crop(), nn.Linear(4, 3)

    def forward(self, x):
        x = self.one(x)
        return self.two(x + self.crop(x).sum(1, keepdim=True))


class Crop(nn.Module):
    def forward(self, x):
        return x[:, 4:].relu()


def test_an_empty_feature_map_is_refused():
    message = refused(InputError, ["crop"], Empty().eval(), torch.rand(2, 4))
    assert "no elements, its shape is (0,)" in message
    assert "'one'" in message


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.two(self.one(x) * torch.rand(x.shape[0], 1))


def test_random_numbers_are_refused():
    assert "random numbers" in refused(UnsupportedError, ["one"], Random().eval(), torch.rand(2, 4))


def test_an_example_that_does_not_fit_is_told_from_a_network_that_cannot_be_cut():
    message = refused(InputError, ["layer1"], example=torch.zeros(2, 1, 16, 16))
    assert "does not run on the example" in message
    assert "got 0" in refused(InputError, ["layer1"], example=X[:0])


def test_exits_need_a_head_each_and_heads_an_exit():
    network = small_cnn(width=4).eval()
    example = torch.zeros(1, 1, 8, 8)
    with pytest.raises(InputError, match=r"\['pool'\] have none"):
        Cascade.from_network(network, ["pool"], head={}, example=example)
    with pytest.raises(UnknownNameError, match="no exit 'pol'"):
        Cascade.from_network(network, ["pool"], head={"pol": nn.Linear(1, 1)}, example=example)
