import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from offramp._core.errors import InputError
from offramp.models import cifar_preresnet, cifar_resnet, load_weights, resnet21, small_cnn
from offramp.models.depth import blocks_per_layer, filters
from offramp.models.networks.shortcuts import PadShortcut
from support.properties import examples

CIFAR = Path(__file__).parents[4] / "shared" / "data" / "cifar10"
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)


def multiply_adds(net, shape=(1, 3, 32, 32)) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(shape))
    return counter.get_total_flops() / 2


def layers_with_weights(net) -> int:
    return sum(isinstance(part, nn.Conv2d | nn.Linear) for part in net.modules())


def obvious_option_a(x, after, stride):
    n, before, height, width = x.shape
    out = torch.zeros(n, after, -(-height // stride), -(-width // stride))
    front = (after - before) // 2
    for i, c, h, w in itertools.product(
        range(n), range(before), range(0, height, stride), range(0, width, stride)
    ):
        out[i, front + c, h // stride, w // stride] = x[i, c, h, w]
    return out


@examples(25)
@given(
    before=st.integers(1, 4),
    more=st.integers(0, 5),
    stride=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
)
def test_option_a_agrees_with_copying_pixel_by_pixel(before, more, stride, height, width):
    x = torch.rand((2, before, height, width), generator=torch.Generator().manual_seed(0)) + 1
    fast = PadShortcut(before, before + more, stride)(x)
    assert torch.equal(fast, obvious_option_a(x, before + more, stride))


def test_option_a_keeps_channels_last():
    x = torch.rand(2, 16, 8, 8).to(memory_format=torch.channels_last)
    assert PadShortcut(16, 32, 2)(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("depth", "nearest"),
    [(21, "20 or 26"), (19, "14 or 20"), (7, "8"), (2, "8"), (1, "8"), (110 + 1, "110 or 116")],
)
def test_an_illegal_depth_gets_the_nearest_legal_ones_named(depth, nearest):
    with pytest.raises(InputError, match=rf"got {depth}\. Nearest: {nearest}\.$"):
        blocks_per_layer(depth)


@pytest.mark.parametrize("make", [cifar_resnet, cifar_preresnet])
@pytest.mark.parametrize("depth", [8, 14, 20, 56])
def test_a_network_has_as_many_layers_on_its_main_path_as_it_says(make, depth):
    assert layers_with_weights(make(depth, shortcut="identity", width=0.125)) == depth
    assert layers_with_weights(make(depth, shortcut="projection", width=0.125)) == depth + 2


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 40.55), (32, 68.86), (44, 97.17), (56, 125.49), (110, 252.9)]
)
def test_resnets_cost_the_published_multiply_adds(depth, millions):
    assert multiply_adds(cifar_resnet(depth)) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("depth", [8, 20, 32, 56, 110])
def test_pre_activation_resnets_cost_what_guan_et_al_count_less_the_doubled_strides(depth):
    m = (depth - 2) // 6
    guan = 6 * m * 2_359_296 + 442_368 + 262_144
    doubled = 2 * 1_179_648  # each of the two stride-2 convolutions, once too often
    assert multiply_adds(cifar_preresnet(depth)) == guan - doubled + 64 * 10


def test_resnet21_is_resnet20_with_two_projections():
    net, plain = resnet21(), cifar_resnet(20)
    extra = set(net.state_dict()) - set(plain.state_dict())
    assert {name.split(".shortcut")[0] for name in extra} == {"layer2.0", "layer3.0"}
    assert layers_with_weights(net) == 22
    assert multiply_adds(net) - multiply_adds(plain) == 2 * 131_072


def test_width_classes_and_channels_are_respected():
    assert filters(1.5) == (24, 48, 96)
    for make in (cifar_resnet, cifar_preresnet):
        net = make(8, width=0.5, classes=7, in_channels=1)
        assert net(torch.zeros(2, 1, 28, 20)).shape == (2, 7)
        assert net.linear.in_features == 32


@pytest.mark.parametrize("make", [cifar_resnet, cifar_preresnet])
def test_bad_arguments_are_refused_with_their_value(make):
    with pytest.raises(InputError, match=r"width must be .* greater than 0, got 0\.0"):
        make(8, width=0.0)
    with pytest.raises(InputError, match=r"classes must be .* at least 1, got 0"):
        make(8, classes=0)
    with pytest.raises(
        InputError, match=r"shortcut must be one of .* got 'projektion'.*'projection'"
    ):
        make(8, shortcut="projektion")


def test_pre_activation_identity_shortcut_reads_the_input_itself():
    block = cifar_preresnet(8, shortcut="identity", width=0.25).layer2[0].eval()
    nn.init.zeros_(block.conv2.weight)  # nothing but the shortcut is left
    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), obvious_option_a(x, 8, 2))


def test_pre_activation_projection_reads_the_activated_input():
    block = cifar_preresnet(8, width=0.25).layer2[0].eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    expected = nn.functional.conv2d(block.bn1(x).relu(), block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(
    "make", [lambda s: cifar_resnet(8, seed=s), lambda s: small_cnn(width=4, seed=s)]
)
def test_first_weights_depend_on_the_seed_alone(make):
    def values(net):
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    first, other = values(make(1)), values(make(2))
    torch.rand(3)  # the global generator does not matter
    assert torch.equal(first, values(make(1)))
    assert not torch.equal(first, other)


def test_first_weights_have_the_spread_of_he_initialization():
    weight = cifar_resnet(8, seed=3).layer3[0].conv2.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_small_cnns_have_the_convolutions_asked_for():
    net = small_cnn(width=3, depth=4)
    assert layers_with_weights(net) == 5
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(InputError, match="depth must be at least 2 convolutions, got 1"):
        small_cnn(depth=1)
    with pytest.raises(InputError, match=r"width must be .* got 0"):
        small_cnn(width=0)


def test_the_demo_sizes_grow_at_least_fourfold():
    sizes = ({"width": 3, "depth": 2}, {"width": 7, "depth": 2}, {"width": 16, "depth": 4})
    costs = [multiply_adds(small_cnn(**size), (1, 1, 8, 8)) for size in sizes]
    assert all(after >= 4 * before for before, after in itertools.pairwise(costs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while exporting
@pytest.mark.parametrize(
    "make", [lambda: cifar_resnet(8), lambda: cifar_preresnet(8), lambda: resnet21()]
)
def test_networks_export_with_any_batch_size(make):
    net = make().eval()
    example = (torch.zeros(4, 3, 32, 32),)
    program = torch.export.export(net, example, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for n in (2, 7):
        x = torch.rand((n, 3, 32, 32), generator=torch.Generator().manual_seed(n))
        torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize("make", [cifar_resnet, cifar_preresnet])
def test_channels_last_gives_the_same_logits(make):
    net = make(14, width=0.5).eval()
    x = torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = net(x)
        last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last, atol=1e-5, rtol=1e-5)


@pytest.mark.shared
@pytest.mark.skipif(not CIFAR.is_dir(), reason="the pretrained ResNets are not beside the project")
@pytest.mark.parametrize("depth", [20, 56])
def test_pretrained_resnets_reproduce_their_recorded_logits(depth):
    count = 200 if depth == 20 else 50
    with np.load(CIFAR / "test_jpeg_1000_5500.npz") as file:
        images = torch.from_numpy(file["images"][:count]).permute(0, 3, 1, 2)
    with np.load(CIFAR / "resnet_logits" / "test_jpeg_1000_5500.npz") as file:
        recorded = torch.from_numpy(file[f"logits_resnet{depth}"][:count])
    net = cifar_resnet(depth)
    load_weights(net, CIFAR / "resnet_weights" / f"resnet{depth}_state.npz")
    with torch.no_grad():
        logits = net.eval()((images / 255 - MEAN) / STD)
    torch.testing.assert_close(logits, recorded, atol=1e-3, rtol=0)
