"""Cutting: segments in sequence are the network, whatever rows are dropped on the way."""

import copy
import pickle
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from torch import nn

from offramp._core.batch import apply
from offramp.backends import fold
from offramp.models import cifar_preresnet, cifar_resnet, extract_logits, small_cnn
from offramp.policy import Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, cut, cut_points, take_rows
from support.properties import examples

N = 7


def tensor(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lively(net, seed=0):
    """Weights and statistics of the size that training leaves, so that a difference shows."""
    generator = torch.Generator().manual_seed(seed)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            size = part.num_features
            part.running_mean = torch.randn(size, generator=generator) * 0.1
            part.running_var = torch.rand(size, generator=generator) + 0.5
    for parameter in net.parameters():
        if parameter.dim() > 1:
            fan = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=generator) * (1.5 / fan) ** 0.5
    return net.eval()


class Dense(nn.Module):
    """Every layer reads all before it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 2 * k, 2, 3, padding=1) for k in range(3))
        self.linear = nn.Linear(9, 4)

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(F.relu(layer(torch.cat(features, 1))))
        return self.linear(torch.cat(features, 1).mean((2, 3)))


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.pool, self.linear = nn.MaxPool2d(2), nn.Linear(11, 4)

    def forward(self, x):
        both = self.bn(torch.cat([self.one(x), self.two(x)], 1))
        x = self.pool(torch.cat([both, F.avg_pool2d(x, 3, stride=1, padding=1)], 1))
        return self.linear(x.mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.squeeze, self.excite, self.linear = nn.Linear(8, 2), nn.Linear(2, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = F.silu(self.conv(x), inplace=True)
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        x = x * gate[:, :, None, None]
        return self.linear(x.flatten(2).max(2).values)


class BatchSizes(nn.Module):
    """Uses the batch size late, and in every way."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 4)
        self.token = nn.Parameter(torch.ones(1, 1, 4))

    def forward(self, x):
        n = x.shape[0]
        token = self.token.expand(n, -1, -1)
        x = self.first(x).view(n, 4, -1).transpose(1, 2)
        x = self.second(torch.cat([token, x], 1))
        x = x.reshape(n * x.shape[1], 4).relu().view(n, -1, 4)
        x = self.linear(x + token) + torch.zeros(n, 1, 4) + x.new_ones(n, 1, 1)
        return x[:, 0].view(x.shape[0], -1) + torch.arange(4, device=x.device)


class Shared(nn.Module):
    """A layer used twice, tied weights, dropout, and an object as output."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 6, bias=False)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.end = nn.Linear(6, 6, bias=False)
        self.end.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x)
        x = x + self.block(x)
        x = x + self.block(x)
        return SimpleNamespace(loss=None, logits=self.end(x))


class InPlace(nn.Module):
    """Changes tensors in place, one of them the carry."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.linear = (
            nn.Conv2d(3, 4, 3),
            nn.ReLU(inplace=True),
            nn.Linear(4, 4),
        )
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.bn(self.conv(x))
        x = self.relu(x)
        x += 1
        return self.linear(self.changed(x.mean((2, 3))))

    def changed(self, x):
        return x


class ThroughView(InPlace):
    """Changes a part of a tensor through a view of it."""

    def changed(self, x):
        x[:, 0] *= 2
        return x


class SequenceFirst(nn.Module):
    """The batch is the second axis inside."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.inner(x.transpose(0, 1))  # (t, n, 8)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.linear(self.norm(x).mean(0))


class Masked(nn.Module):
    """A mapping of inputs; the mask is read at both ends."""

    def __init__(self):
        super().__init__()
        self.embed, self.linear = nn.Embedding(20, 8), nn.Linear(8, 4)
        self.inner = nn.Linear(8, 8)

    def forward(self, ids, mask=None):
        mask = mask[:, :, None].to(torch.float32)
        x = self.embed(ids) * mask
        parts = self.inner(x).chunk(2, dim=-1)
        x = torch.cat([parts[0].tanh(), parts[1]], -1)
        return {"logits": self.linear((x * mask).sum(1) / mask.sum(1))}


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.linear = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(8, 4)

    def forward(self, left, right):
        return self.linear(torch.cat([self.left(left), self.right(right).relu()], 1))


def images():
    return tensor(N, 3, 8, 8)


def tokens():
    mask = torch.ones(N, 5, dtype=torch.int64)
    mask[1, 2:] = 0
    return {"ids": torch.arange(N * 5).reshape(N, 5) % 20, "mask": mask}


NETWORKS = {
    "resnet": (lambda: cifar_resnet(8, width=0.5), images),
    "projection": (lambda: cifar_resnet(8, width=0.5, shortcut="projection"), images),
    "preresnet": (lambda: cifar_preresnet(8, width=0.5), images),
    "small_cnn": (lambda: small_cnn(width=4, in_channels=3), images),
    "dense": (Dense, images),
    "inception": (Inception, images),
    "squeeze_excite": (SqueezeExcite, images),
    "batch_sizes": (BatchSizes, images),
    "shared": (Shared, lambda: tensor(N, 6)),
    "in_place": (InPlace, images),
    "through_view": (ThroughView, images),
    "sequence_first": (SequenceFirst, lambda: tensor(N, 5, 5)),
    "masked": (Masked, tokens),
    "pair": (Pair, lambda: (tensor(N, 3), tensor(N, 5, seed=1))),
}


SLOW = {"projection", "preresnet"}  # residual as "resnet" is: make test-slow


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NETWORKS],
)
def case(request):
    """A network, cut at every point it has, an input, and the answer of the uncut network."""
    make, example = NETWORKS[request.param]
    net, x = lively(make()), example()
    names = [point.name for point in cut_points(net, take_rows(x, torch.arange(1)))]
    with torch.no_grad():
        reference = extract_logits(apply(net, copy.deepcopy(x)))
    return SimpleNamespace(
        net=net, x=x, names=names, segments=cut(net, names, x), reference=reference
    )


@pytest.mark.parametrize("m", [1, 2, N])
@torch.no_grad()
def test_the_segments_in_sequence_are_the_network(case, m):
    assert len(case.segments) == len(case.names) + 1 >= 3
    batch = take_rows(case.x, torch.arange(m))
    for segment in case.segments:
        batch = apply(segment, batch)
    torch.testing.assert_close(batch, case.reference[:m], rtol=0, atol=1e-5)
    assert case.reference.std() > 1e-2  # otherwise nothing was compared


@examples(8, allow=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@torch.no_grad()
def test_rows_can_be_dropped_at_every_cut(case, data):
    batch, rows = case.x, torch.arange(N)
    for segment in case.segments[:-1]:
        batch = apply(segment, batch)
        kept = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, unique=True))
        batch, rows = take_rows(batch, torch.tensor(kept)), rows[kept]
    answer = apply(case.segments[-1], batch)
    torch.testing.assert_close(answer, case.reference[rows], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_segment_changes_neither_its_input_nor_what_came_across(case):
    """A head, or another stage, may read a carry after the next segment has run."""
    batch = case.x
    for segment in case.segments:
        before = copy.deepcopy(batch)
        after = apply(segment, batch)
        for one, other in zip(parts(batch), parts(before), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        batch = after


def parts(batch):
    if isinstance(batch, Mapping):
        return list(batch.values())
    return [batch] if isinstance(batch, torch.Tensor) else list(batch)


@torch.no_grad()
def test_segments_survive_copying_and_preparing(case):
    batch, other = case.x, case.x
    for segment in case.segments:
        batch = apply(copy.deepcopy(segment), batch)
        other = apply(fold(segment), other)
    torch.testing.assert_close(batch, case.reference, rtol=0, atol=1e-5)
    torch.testing.assert_close(other, case.reference, rtol=1e-4, atol=1e-4)


def test_the_weights_are_shared_and_untouched(case):
    own = {id(parameter) for parameter in case.net.parameters()}
    found = [id(p) for segment in case.segments for p in segment.parameters()]
    assert set(found) == own
    with torch.no_grad():
        torch.testing.assert_close(extract_logits(apply(case.net, case.x)), case.reference)


def test_points_are_where_the_layers_end():
    points = {p.name: p for p in cut_points(cifar_resnet(8).eval(), tensor(1, 3, 32, 32))}
    assert points["layer1"].aliases == ("layer1.0", "layer1.0.relu", "layer1.0.relu@2")
    assert points["layer2"].shape == (32, 16, 16)
    assert points["layer2"].live == ((32, 16, 16),)
    assert points["layer2.0.conv1"].live == ((32, 16, 16), (16, 32, 32))  # and the shortcut
    assert "linear" not in points


def test_flops_are_cumulative_and_those_of_the_network():
    net = cifar_resnet(20).eval()
    points = cut_points(net, tensor(1, 3, 32, 32))
    flops = [point.flops for point in points]
    assert flops == sorted(flops)
    assert flops[0] == 2 * 442_368  # the first convolution; He et al. count multiply-adds
    assert flops[-1] + 2 * 640 == pytest.approx(2 * 40.55e6, rel=1e-3)


def test_every_tensor_that_is_read_later_is_carried():
    points = {p.name: p for p in cut_points(lively(Dense()), images())}
    assert points["layers.1"].live == ((2, 8, 8), (3, 8, 8), (2, 8, 8))
    lively_masked = {p.name: p for p in cut_points(lively(Masked()), tokens())}
    assert lively_masked["inner"].live == ((5, 8), (5, 1))


def test_a_batch_that_is_not_the_first_axis_is_carried_first():
    net, x = lively(SequenceFirst()), tensor(N, 5, 6)[:, :, :5]
    first, _ = cut(net, ["inner"], x)
    assert first(x).shape == (N, 5, 8)


def test_batch_norms_fold_within_segments():
    net = lively(cifar_resnet(8))
    segments = cut(net, ["layer1", "layer2"], tensor(1, 3, 32, 32))
    left = [m for s in segments for m in fold(s).modules() if isinstance(m, nn.BatchNorm2d)]
    assert not left
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 7


def test_gradients_reach_the_network():
    net = lively(small_cnn(width=4))
    first, last = cut(net, ["features.1"], tensor(1, 1, 8, 8))
    last(first(tensor(2, 1, 8, 8))).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_early_exits_are_stages_that_share_one_network():
    net = lively(cifar_resnet(8))
    x = tensor(N, 3, 16, 16)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    heads = {
        "layer1.0.conv1": nn.Sequential(pooled, nn.Linear(16, 10)).eval(),  # carries the shortcut
        "layer2": {
            "linear": nn.Sequential(pooled, nn.Linear(32, 10)).eval(),
            "deep": nn.Sequential(pooled, nn.Linear(32, 8), nn.Linear(8, 10)).eval(),
        },
    }
    cascade = Cascade.from_network(net, list(heads), head=heads, example=x[:1])
    assert cascade.topology.names == ("layer1.0.conv1", "layer2/linear", "layer2/deep", "last")
    assert cascade.topology.sources == (-1, 0, 0, 1)
    assert len(cascade.topology.paths()) == 5
    with torch.no_grad():
        logits = cascade(x)
        torch.testing.assert_close(logits[:, 3], net(x), rtol=0, atol=1e-5)
        first = heads["layer1.0.conv1"](net.layer1[0].conv1(net.relu(net.bn1(net.conv1(x)))))
    torch.testing.assert_close(logits[:, 0], first, rtol=0, atol=1e-5)


def test_segments_can_be_pickled_for_worker_processes():
    segments = cut(lively(small_cnn(width=4)), ["pool"], tensor(1, 1, 8, 8))
    x = tensor(2, 1, 8, 8)
    again = pickle.loads(pickle.dumps(segments[0]))
    torch.testing.assert_close(again(x), segments[0](x))


class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(144, 4)

    def forward(self, x):
        return self.linear(self.conv(x).view(x.shape[0], -1))


@torch.no_grad()
def test_a_view_holds_for_a_carry_of_other_strides():
    """Preparation makes tensors channels last, which no view can flatten."""
    net = lively(Viewed())
    first, last = (fold(segment) for segment in cut(net, ["conv"], images()))
    carry = first(images())
    assert not carry.is_contiguous()
    torch.testing.assert_close(last(carry), net(images()), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_engine_runs_exits_as_it_runs_any_cascade():
    """Survivors are compacted at each exit; whoever stays to the end gets the network's answer."""
    net, x = lively(cifar_resnet(8, width=0.5)), images()
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    heads = {
        "layer1": lively(nn.Sequential(pooled, nn.Linear(8, 10, bias=False))),
        "layer2.0.conv1": lively(nn.Sequential(pooled, nn.Linear(16, 10, bias=False))),
    }
    cascade = Cascade.from_network(net, list(heads), head=heads, example=x[:1])
    logits = cascade(x)
    sure = logits.softmax(2).max(2).values  # (n, s)
    first = sure[:, 0].median().item()
    second = sure[sure[:, 0] < first, 1].max().item() - 1e-5
    nodes = {
        path: Node(Linear.threshold(Feature("max_prob", path[-1]), bound))
        for path, bound in [((0,), first), ((0, 1), second)]
    }
    answer = Adaptive(cascade, Policy(cascade.topology, nodes))(x)
    assert set(answer.stage.tolist()) == {0, 1, 2}
    chosen = logits[torch.arange(N), answer.stage].log_softmax(1)
    torch.testing.assert_close(answer.log_probs.log_softmax(1), chosen, rtol=0, atol=1e-5)
