"""A network with exits answers as the network does at every size, or refuses the size by name."""

import copy
from contextlib import suppress

import pytest
import torch
from torch import nn

import offramp
from offramp._core.batch import apply
from offramp._core.errors import InputError
from offramp.backends.fold import fold
from offramp.models import ModelSpec
from offramp.stages import cut

WORDS = 30


def filled(net):
    """The network with weights that are the same each time, ready to answer."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
    return net.eval()


class MeanOverTime(nn.Module):
    """Divides by a size that it reads."""

    def __init__(self):
        super().__init__()
        self.e, self.m, self.f = nn.Embedding(WORDS, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.f(torch.relu(self.m(self.e(x))).sum(1) / x.shape[1])


class Loop(nn.Module):
    """Runs once for each time step."""

    def __init__(self):
        super().__init__()
        self.e, self.c = nn.Embedding(WORDS, 8), nn.GRUCell(8, 8)
        self.m, self.f = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        e, h = self.e(x), torch.zeros(x.shape[0], 8)
        for t in range(x.shape[1]):
            h = self.c(e[:, t], h)
        return self.f(torch.relu(self.m(h)))


class Same(nn.Module):
    """Pads by as much as its input's size needs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 8, 3, stride=2)
        self.f = nn.Linear(8, 3)

    def forward(self, x):
        for conv in (self.a, self.b):
            need = [max((-(-s // 2) - 1) * 2 + 3 - s, 0) for s in x.shape[-2:]]
            up, left = need[0] // 2, need[1] // 2
            x = conv(nn.functional.pad(x, (left, need[1] - left, up, need[0] - up))).relu()
        return self.f(x.mean((2, 3)))


class Pooled(nn.Sequential):
    """Looks at no size."""

    def __init__(self):
        conv = nn.Conv2d(3, 6, 3, padding=1)
        super().__init__(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3))


class Positions(nn.Module):
    """Has a vector for each of 16 places."""

    def __init__(self):
        super().__init__()
        self.e, self.m, self.f = nn.Embedding(WORDS, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.p = nn.Parameter(torch.randn(1, 16, 8))

    def forward(self, x):
        return self.f(torch.tanh(self.m(self.e(x) + self.p[:, : x.shape[1]])).amax(1))


class Fours(nn.Module):
    """Takes multiples of four only."""

    def __init__(self):
        super().__init__()
        self.m, self.f = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.f(torch.relu(self.m(x)).view(x.shape[0], -1, 4, 8).sum(2).amax(1))


class FirstSeven(nn.Module):
    """Bakes a slice in, and takes the largest: the same values twice would not show it."""

    def __init__(self):
        super().__init__()
        self.a, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        return self.f(self.a(x)[:, :, : int(x.shape[2])].amax((2, 3)))


def tokens(n, t):
    return torch.randint(0, WORDS, (n, t), generator=torch.Generator().manual_seed(t))


def pictures(n, h, w):
    return torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(h * w))


def in_sequence(segments, x):
    with torch.no_grad():
        for segment in segments:
            x = apply(segment, x)
    return x


def is_right(net, segments, x):
    with torch.no_grad():
        return torch.allclose(in_sequence(segments, x), net(x), atol=1e-5)


@pytest.mark.parametrize("length", [1, 4, 7, 14, 31])
def test_a_mean_over_time_is_the_networks_at_every_length(length):
    net = filled(MeanOverTime())
    assert is_right(net, cut(net, ["m"], tokens(1, 7)), tokens(20, length))


def test_a_loop_over_time_steps_is_refused_at_other_lengths():
    net = filled(Loop())
    segments = cut(net, ["m"], tokens(1, 7))
    assert is_right(net, segments, tokens(20, 7))
    for length in (4, 8, 14):
        with pytest.raises(InputError, match=r"must have size 7 along axis 1, got") as error:
            segments[0](tokens(20, length))
        assert f"cut it with an example of size {length}" in str(error.value)


@pytest.mark.parametrize("example", [16, 21])
def test_padding_computed_from_the_size_is_refused_at_other_sizes(example):
    net = filled(Same())
    segments = cut(net, ["a"], torch.zeros(1, 3, example, example))
    assert is_right(net, segments, pictures(4, example, example))
    for h, w in ((example + 1, example), (example, example + 4), (40, 40)):
        with pytest.raises(InputError, match=f"size {example} along axis [23]"):
            segments[0](pictures(4, h, w))


def test_a_size_that_is_only_sliced_by_is_not_taken_for_free():
    net = filled(FirstSeven())
    segments = cut(net, ["a"], torch.zeros(1, 3, 7, 7))
    for h, w in ((7, 7), (14, 7), (7, 14), (9, 9)):
        try:
            assert is_right(net, segments, pictures(4, h, w))
        except InputError as error:
            assert h != 7
            assert "axis 2" in str(error)  # noqa: PT017


def test_a_network_that_looks_at_no_size_takes_all_of_them():
    net = filled(Pooled())
    segments = cut(net, ["1"], torch.zeros(1, 3, 8, 8))
    for h, w in ((8, 8), (9, 8), (8, 13), (31, 5)):
        assert is_right(net, segments, pictures(4, h, w))
    with pytest.raises(InputError, match="size 3 along axis 1, got 4"):
        segments[0](torch.zeros(1, 4, 8, 8))
    with pytest.raises(InputError, match="must have 4 axes"):
        segments[0](torch.zeros(3, 8, 8))


def test_positions_are_taken_up_to_the_last_one():
    net = filled(Positions())
    segments = cut(net, ["e"], tokens(1, 12))
    for length in (1, 5, 12, 16):
        assert is_right(net, segments, tokens(9, length))
    with pytest.raises(InputError, match="at most 16, got 17"):
        segments[0](tokens(9, 17))


def test_multiples_of_four_are_taken_and_others_are_refused():
    net = filled(Fours())
    segments = cut(net, ["m"], torch.zeros(1, 8, 8))
    for length in (8, 20, 60):
        assert is_right(net, segments, torch.randn(3, length, 8))
    with suppress(InputError):  # torch 2.8 proves it from 8 on only
        assert is_right(net, segments, torch.randn(3, 4, 8))
    for length in (6, 9, 30):
        with pytest.raises(InputError, match=f"does not hold for the size {length}"):
            segments[0](torch.randn(3, length, 8))


def test_a_flattened_text_is_fixed():
    net = nn.Sequential(nn.Embedding(WORDS, 4), nn.Flatten(), nn.Linear(28, 3)).eval()
    segments = cut(net, ["0"], tokens(1, 7))
    assert is_right(net, segments, tokens(5, 7))
    with pytest.raises(InputError, match="size 7 along axis 1, got 8"):
        segments[0](tokens(5, 8))


@pytest.mark.slow
def test_a_layer_that_loops_by_itself_takes_every_length():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.r = nn.Embedding(WORDS, 4), nn.RNN(4, 4, batch_first=True)
            self.f = nn.Linear(4, 3)

        def forward(self, x):
            return self.f(self.r(self.e(x))[0][:, -1])

    net = filled(Sums())
    segments = cut(net, ["e"], tokens(1, 4))
    for length in (2, 4, 9):
        assert is_right(net, segments, tokens(5, length))


def cascade_of_loop():
    return offramp.Cascade.from_network(
        filled(Loop()), ["m"], head={"m": nn.Linear(8, 3)}, example=tokens(1, 7)
    )


def test_recording_and_answering_name_the_size():
    cascade = cascade_of_loop()
    candidate = offramp.Candidate.single(cascade.topology, "last", reference="last")
    model = offramp.Adaptive(cascade, candidate)
    assert len(model(tokens(3, 7))) == 3
    with pytest.raises(InputError, match="size 7 along axis 1, got 9"):
        model(tokens(3, 9))
    batches = [(tokens(4, t), torch.zeros(4, dtype=torch.long)) for t in (7, 9)]
    with pytest.raises(InputError, match="size 7 along axis 1, got 9"):
        offramp.record(cascade, batches, progress=False)


def test_copies_prepared_and_joined_ones_refuse_as_well():
    cascade = cascade_of_loop()
    joined = offramp.join(cascade, [["m", "last"]]) if hasattr(offramp, "fuse") else None
    first = cascade.stage(0).module
    others = [copy.deepcopy(first), fold(first)]
    if joined is not None:
        others.append(joined.stage(0).module)
    for module in others:
        with pytest.raises(InputError, match="size 7 along axis 1, got 9"):
            module(tokens(2, 9))


@pytest.mark.slow
def test_a_bundle_refuses_what_the_cascade_refuses(tmp_path):
    network = ModelSpec(name="resnet8", arguments={"width": 0.25})
    net = offramp.models.build(network).eval()
    flat = ModelSpec(name="gap_linear", arguments={"channels": 4, "classes": 10})
    cascade = offramp.Cascade.from_network(
        net, ["layer1"], head={"layer1": flat}, example=torch.zeros(1, 3, 32, 32), spec=network
    )
    candidate = offramp.Candidate.single(cascade.topology, "last", reference="last")
    offramp.save(offramp.Adaptive(cascade, candidate), tmp_path / "b")
    model = offramp.load(tmp_path / "b")
    for h, w in ((32, 32), (40, 27)):
        x = pictures(3, h, w)
        with torch.no_grad():
            assert torch.allclose(model(x).log_probs, net(x).log_softmax(1), atol=1e-4)
    with pytest.raises(InputError, match="size 3 along axis 1, got 1"):
        model(torch.zeros(2, 1, 32, 32))


def test_segments_answer_to_the_last_bit_as_before_at_the_size_of_the_example():
    net = filled(Pooled())
    segments = cut(net, ["0", "1"], torch.zeros(1, 3, 8, 8))
    x = pictures(5, 8, 8)
    with torch.no_grad():
        assert torch.equal(in_sequence(segments, x), net(x))


@pytest.mark.slow
def test_a_network_with_padding_of_tensorflow_is_right_or_refused():
    timm = pytest.importorskip("timm")
    net = timm.create_model("tf_efficientnet_b0", pretrained=False, num_classes=5).eval()
    segments = cut(net, ["blocks.3"], torch.randn(1, 3, 64, 64))
    assert is_right(net, segments, pictures(2, 64, 64))
    for size in (56, 65, 80):
        with pytest.raises(InputError, match="size 64 along axis 2"):
            segments[0](pictures(2, size, size))
