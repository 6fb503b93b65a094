import copy

import pytest
import torch
from jaxtyping import config
from torch import fx, nn

from offramp.backends import fold
from offramp.backends.fold import call_functions, fold_batch_norm
from offramp.models import cifar_preresnet, cifar_resnet, small_cnn
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade


@pytest.fixture(autouse=True)
def _unchecked_shapes():
    """Tracing passes stand-ins for tensors, which the checks of the tests would refuse."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def lively(module, seed=0):
    """Statistics and scales as a trained network has them, so that folding matters."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            size = part.num_features
            part.running_mean = torch.randn(size, generator=generator) * 0.1
            part.running_var = torch.rand(size, generator=generator) + 0.5
            part.weight.data = torch.rand(size, generator=generator) + 0.5
            part.bias.data = torch.randn(size, generator=generator) * 0.1
    return module.eval()


def images(n=4, channels=3):
    return torch.randn(n, channels, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("make", "channels", "left"),
    [
        (lambda: cifar_resnet(8, width=0.5), 3, 0),
        (lambda: cifar_resnet(8, width=0.5, shortcut="projection"), 3, 0),
        (lambda: cifar_preresnet(8, width=0.5), 3, 4),  # each first bn of a block, and the last
        (lambda: small_cnn(width=4), 1, 0),
    ],
)
@torch.no_grad()
def test_a_prepared_network_computes_the_same_with_its_batch_norms_folded(make, channels, left):
    net = lively(make())
    before = [p.clone() for p in net.state_dict().values()]
    prepared = fold(net)
    x = images(channels=channels)
    torch.testing.assert_close(prepared(x), net(x), rtol=1e-4, atol=1e-4)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in prepared.modules()) == left
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))
    assert prepared(x).argmax(1).tolist() == net(x).argmax(1).tolist()


def test_convolution_weights_are_channels_last():
    conv = next(m for m in fold(small_cnn(width=4)).modules() if isinstance(m, nn.Conv2d))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


class ReadsTheConvolutionTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        inner = self.conv(x)
        return (inner + self.bn(inner)).mean((2, 3))


class RunsTheNormTwice(ReadsTheConvolutionTwice):
    def forward(self, x):
        return self.bn(self.bn(self.conv(x))).mean((2, 3))


class SharesTheConvolution(ReadsTheConvolutionTwice):
    def __init__(self):
        super().__init__()
        self.again = self.conv

    def forward(self, x):
        return self.again(self.bn(self.conv(x))).mean((2, 3))


class Untraceable(ReadsTheConvolutionTwice):
    def forward(self, x):
        if x.sum() > 0:
            x = x * 2
        return self.bn(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize(
    "kind", [ReadsTheConvolutionTwice, RunsTheNormTwice, SharesTheConvolution, Untraceable]
)
@torch.no_grad()
def test_what_cannot_be_folded_safely_stays_as_it_is(kind):
    net = lively(kind())
    x = images()
    wanted = net(x)
    assert fold_batch_norm(net) == 0
    torch.testing.assert_close(fold(net)(x), wanted)


def test_a_norm_without_fixed_statistics_stays():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    assert fold_batch_norm(net) == 0
    assert fold_batch_norm(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)).train()) == 0


def test_optimize_leaves_the_cascade_as_it_is_and_answers_the_same():
    nets = {"a": lively(small_cnn(width=3, in_channels=3)), "b": lively(cifar_resnet(8, width=0.5))}
    cascade = Cascade.from_models(nets)
    candidate = Candidate.single(cascade.topology, "b", reference="b")
    x = images()
    plain = Adaptive(cascade, candidate)(x)
    fast = Adaptive(cascade, candidate, fold=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in cascade.stage("b").modules())
    torch.testing.assert_close(fast(x).log_probs, plain.log_probs, rtol=1e-4, atol=1e-4)
    static = Adaptive.single(cascade, "b", fold=True)(x)
    torch.testing.assert_close(static.log_probs, plain.log_probs, rtol=1e-4, atol=1e-4)


def statistics(norm, seed):
    generator = torch.Generator().manual_seed(seed)
    norm.running_mean = torch.randn(norm.num_features, generator=generator)
    norm.running_var = torch.rand(norm.num_features, generator=generator) + 0.5
    if norm.affine:
        norm.weight.data = torch.randn(norm.num_features, generator=generator)
        norm.bias.data = torch.randn(norm.num_features, generator=generator)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_norms_of_vectors_are_folded_into_linear_layers_on_either_side(affine, bias):
    net = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(3, affine=affine),
        nn.Linear(3, 5, bias=bias),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.BatchNorm1d(5, affine=affine),
        nn.Linear(5, 2, bias=bias),
    ).eval()
    for k, norm in enumerate(m for m in net.modules() if isinstance(m, nn.BatchNorm1d)):
        statistics(norm, k)
    prepared = fold(net)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in prepared.modules())
    torch.testing.assert_close(prepared(images()), net(images()), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_norm_over_tokens_is_not_taken_for_one_of_vectors():
    """On `(m, t, d)` with t = d the norm scales tokens and the linear layer reads features."""
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    for norm in (net[0], net[2]):
        statistics(norm, 0)
    x = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))
    assert fold_batch_norm(net) == 0
    assert fold_batch_norm(nn.Sequential(nn.Flatten(2), *net)) == 0
    torch.testing.assert_close(fold(net)(x), net(x))


@pytest.mark.parametrize("make", [cifar_resnet, cifar_preresnet])
@pytest.mark.parametrize("folded", [True, False])
@torch.no_grad()
def test_functions_in_place_of_layers_give_the_same_bits(make, folded):
    net = lively(make(8, width=0.5))
    carry = images(3)
    for stage in Cascade.from_network(net, ["layer1.0", "layer2.0"], example=carry):
        segment = copy.deepcopy(stage.module)
        if folded:
            fold_batch_norm(segment)
        expected = segment(carry)
        call_functions(segment)
        given = segment(carry)
        assert torch.equal(given, expected)
        assert not any(isinstance(m, nn.Conv2d | nn.BatchNorm2d) for m in segment.modules())
        carry = stage.module(carry)


class Odd(nn.Module):
    """Layers that must stay, one that runs twice, and names that would meet."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)
        self.a_0 = nn.Conv2d(3, 3, 1, bias=False)
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 3, padding="same"), nn.Identity())
        self.mirrored = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.hooked = nn.Conv2d(3, 3, 1)
        self.hooked.register_forward_hook(lambda *given: given[2] + 1)
        self.batch = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x):
        return self.batch(self.hooked(self.mirrored(self.inner(self.a_0(self.a(self.a(x)))))))


@torch.no_grad()
def test_layers_that_do_more_than_their_function_stay():
    net = fx.symbolic_trace(Odd().eval())
    expected = net(images())
    call_functions(net)
    assert torch.equal(net(images()), expected)
    left = {name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}
    assert left == {"mirrored", "hooked"}
    assert isinstance(net.batch, nn.BatchNorm2d)


@torch.no_grad()
def test_a_prepared_segment_can_be_copied_and_compiled_with_its_weights():
    cascade = Cascade.from_network(
        lively(cifar_resnet(8, width=0.5)), ["layer1.0"], example=images()
    )
    first = fold(cascade.stage(0).module)
    again = copy.deepcopy(first)
    assert torch.equal(again(images()), first(images()))
    assert all(
        p.is_contiguous(memory_format=torch.channels_last)
        for p in again.parameters()
        if p.dim() == 4
    )
    again.load_state_dict(first.state_dict())
