"""Maps of 1-D and 3-D convolutions have heads, and two axes are never taken for tokens."""

import sys
import types
from functools import cache

import pytest
import torch
from torch import nn

import offramp
from offramp._core.batch import flat
from offramp._core.errors import InputError
from offramp.bundle import load, save
from offramp.data import arrays
from offramp.models import ModelSpec, build, head_arguments, make_head, token_linear
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade, cut, cut_points
from offramp.train import train_heads
from offramp.train.class_exits import Tap, TappedNet, attachment_points, branch_features

SIGNAL, VIDEO = torch.zeros(1, 1, 64), torch.zeros(1, 1, 4, 8, 8)


def seeded(make):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return make().eval()


def signal_net():
    return seeded(
        lambda: nn.Sequential(
            *(nn.Conv1d(1, 16, 9, padding=4), nn.BatchNorm1d(16), nn.ReLU()),
            *(nn.Conv1d(16, 16, 5, padding=2), nn.ReLU()),
            *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4)),
        )
    )


def video_net():
    return seeded(
        lambda: nn.Sequential(
            *(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 2)),
        )
    )


def signals():
    """Waves of four frequencies, at any phase."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (500,), generator=g)
    phase = 6.28 * torch.rand(500, 1, generator=g)
    x = torch.sin(torch.arange(64.0) * (0.2 + 0.25 * labels[:, None]) + phase)
    x = x + 0.3 * torch.randn(500, 64, generator=g)
    return arrays(x[:, None], labels).split_into({"train": 0.6, "test": 0.4}, seed=0)


def videos():
    """Stripes across or along, moving."""
    g = torch.Generator().manual_seed(0)
    labels, phase = torch.arange(200) % 2, 6.28 * torch.rand(200, 1, 1, 1, generator=g)
    one = torch.sin(2.0 * torch.arange(8.0) + torch.arange(4.0)[:, None, None] + phase)
    stripes = one.expand(200, 4, 8, 8)
    x = torch.where(labels[:, None, None, None] == 0, stripes, stripes.transpose(2, 3))
    x = x + 0.2 * torch.randn(200, 4, 8, 8, generator=g)
    return arrays(x[:, None], labels).split_into({"train": 0.6, "test": 0.4}, seed=0)


@cache
def shapes_of(make, sides):
    points = cut_points(seeded(make), torch.zeros(1, *sides))
    return {name: p.shape for p in points for name in (p.name, *p.aliases)}


def accuracy(net, at, data, **options):
    cascade = Cascade.from_network(net, [at], example=data.batch(0, 1).inputs, **options)
    options = {"epochs": 12, "seed": 0, "batch_size": 32, "learning_rate": 0.03}
    train_heads(cascade, data.subset("train"), progress=False, **options)
    return offramp.record(cascade, data.subset("test"), progress=False).accuracy(0)


# Maps with one axis behind the channels.


@pytest.mark.parametrize("kind", ["gap_linear", "conv_head"])
def test_a_head_learns_what_a_signal_is(kind):
    shape = shapes_of(signal_net, (1, 64))["2"]
    options = {"filters": 16} if kind == "conv_head" else {}
    head = ModelSpec(name=kind, arguments=head_arguments(kind, shape, 4, **options))
    assert accuracy(signal_net(), "2", signals(), head={"2": head}) > 0.97


def test_the_head_for_whoever_names_none_reads_all_channels():
    net = signal_net()
    cascade = Cascade.from_network(net, ["2"], example=SIGNAL)
    assert cascade.stage("2").head_spec.name == "conv_head"
    assert cascade.stage("2").head_spec.arguments["axes"] == 1


def test_tokens_are_refused_where_the_layer_is_a_convolution():
    shape = shapes_of(signal_net, (1, 64))["2"]
    with pytest.raises(InputError, match=r"is of maps.* 'gap_linear', 'pool_mlp', 'conv_head'\."):
        head_arguments("token_linear", shape, 4)
    assert head_arguments("token_linear", shape, 4, layout="channels_last", pooling="mean")


@pytest.mark.parametrize("kind", ["gap_linear", "token_linear"])
def test_two_axes_of_which_nobody_tells_are_refused_with_both_repairs(kind):
    with pytest.raises(InputError, match=r"layout='channels_first' .*or layout='channels_last'"):
        make_head(kind, (16, 64), 4)
    first = make_head("gap_linear", (16, 64), 4, layout="channels_first")
    last = make_head("token_linear", (16, 64), 4, layout="channels_last", pooling="first")
    assert first(torch.zeros(2, 16, 64)).shape == last(torch.zeros(2, 16, 64)).shape == (2, 4)


def test_a_head_made_by_hand_for_the_wrong_axis_is_warned_about():
    head = token_linear(64, 4, pooling="mean")
    with pytest.warns(UserWarning, match="features in another axis.*'gap_linear'"):
        Cascade.from_network(signal_net(), ["2"], head={"2": head}, example=SIGNAL)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"channels": 16, "classes": 4}, r"must read 2 axes, .*\(16, 64\), but it is made for 3"),
        ({"channels": 8, "classes": 4, "axes": 1}, "must read 16 features.* is made for 8"),
    ],
)
def test_a_head_made_by_hand_for_another_shape_is_refused(arguments, said):
    head = ModelSpec(name="gap_linear", arguments=arguments)
    with pytest.raises(InputError, match=said):
        Cascade.from_network(signal_net(), ["2"], head={"2": head}, example=SIGNAL)


def test_axes_that_no_convolution_has_are_refused():
    with pytest.raises(InputError, match=r"axes must be 1 .*, 2 .* or 3 .*got 4"):
        build(ModelSpec(name="gap_linear", arguments={"channels": 4, "classes": 2, "axes": 4}))


def test_a_bundle_holds_them(tmp_path, monkeypatch):
    module = types.ModuleType("own_signals")
    module.make = signal_net
    monkeypatch.setitem(sys.modules, "own_signals", module)
    spec = ModelSpec(name="own_signals:make")
    cascade = Cascade.from_network(build(spec), ["2"], example=SIGNAL, spec=spec)
    save(
        Adaptive(cascade, Candidate.single(cascade.topology, "2", reference="last")), tmp_path / "b"
    )
    x = torch.randn(5, 1, 64, generator=torch.Generator().manual_seed(0))
    loaded = load(tmp_path / "b", allow_import=True)
    answers = loaded(x).log_probs.log_softmax(dim=1)
    torch.testing.assert_close(answers, cascade.stage("2").run(x)[0].logits.log_softmax(dim=1))


# Maps with three.


def test_a_head_learns_what_a_video_is():
    shape = shapes_of(video_net, (1, 4, 8, 8))["1"]
    head = ModelSpec(name="gap_linear", arguments=head_arguments("gap_linear", shape, 2))
    assert head.arguments["axes"] == 3
    assert accuracy(video_net(), "1", videos(), head={"1": head}) > 0.95


# What tells which axis holds the features.


class Patches(nn.Module):
    """Maps that become tokens: the channels of a convolution, moved behind the places."""

    def __init__(self):
        super().__init__()
        self.maps, self.tokens = nn.Conv2d(3, 8, 4, stride=4), nn.Identity()
        self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.maps(x).flatten(2).transpose(1, 2))
        return self.last(x.mean(dim=1))


class LastChannels(nn.Module):
    """A block that works with the channels behind, and one that gives them so."""

    def __init__(self):
        super().__init__()
        self.maps, self.norm, self.mix = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 8)
        self.behind, self.last = nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x):
        x = self.maps(x)
        x = x + self.mix(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.last(self.behind(x.permute(0, 2, 3, 1)).mean(dim=(1, 2)))


class Mixed(nn.Module):
    """What a convolution gives, and what a linear layer gives of the same sizes, added."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv1d(6, 6, 1), nn.Linear(6, 6)
        self.both, self.last = nn.ReLU(), nn.Linear(36, 4)

    def forward(self, x):
        return self.last(self.both(self.one(x) + self.other(x)).flatten(1))


class Recurrent(nn.Module):
    """A convolution over time, and then an LSTM."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 8, 3, padding=1)
        self.lstm, self.norm = nn.LSTM(8, 6, batch_first=True), nn.ReLU()
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        x, _ = self.lstm(self.conv(x).transpose(1, 2))
        return self.last(self.norm(x)[:, -1])


CASES = [
    (Patches, (3, 16, 16), "maps", "channels_first"),
    (Patches, (3, 16, 16), "norm", "channels_last"),
    (LastChannels, (3, 8, 8), "maps", "channels_first"),
    (LastChannels, (3, 8, 8), "behind", "channels_last"),
    (Mixed, (6, 6), "both", None),
    (Recurrent, (2, 12), "conv", "channels_first"),
    (Recurrent, (2, 12), "norm", "channels_last"),
]


@pytest.mark.parametrize(("make", "sides", "layer", "layout"), CASES)
def test_the_kind_of_the_layer_tells(make, sides, layer, layout):
    assert shapes_of(make, sides)[layer].layout == layout


def test_maps_with_their_channels_behind_get_no_head_for_maps():
    shape = shapes_of(LastChannels, (3, 8, 8))["behind"]
    with pytest.raises(InputError, match=r"is of tokens.* there are: 'token_linear'"):
        head_arguments("gap_linear", shape, 4)
    assert head_arguments("token_linear", shape, 4)["pooling"] == "mean"


def test_branches_of_one_class_are_attached_to_maps_alone():
    names = [p.name for p in attachment_points(seeded(LastChannels), torch.zeros(1, 3, 8, 8))]
    assert "behind" not in names
    assert "maps" in names


@pytest.mark.parametrize(
    ("make", "example", "axes"), [(signal_net, SIGNAL, 1), (video_net, VIDEO, 3)]
)
def test_branches_of_one_class_read_maps_of_any_axes(make, example, axes, tmp_path):
    net, data = make(), arrays(example.expand(6, *example.shape[1:]) + 0.1, [0, 1] * 3)
    points = attachment_points(net, example)
    found = branch_features(tmp_path, net, points, data, progress=False)
    assert found.widths == tuple(point.shape[0] * 2**axes for point in points)
    taps = [Tap(name="a", reads=tuple(point.name for point in points))]
    with_taps = TappedNet(net, [point.name for point in points], taps, example)
    first, *_ = cut(with_taps, ["exits.a"], example)
    torch.testing.assert_close(
        flat(first(data.inputs))[0], found.take(torch.arange(6)), rtol=0, atol=2e-3
    )
