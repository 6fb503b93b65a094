"""Tapped networks: the same answers, the right features at each exit, and cascades made of them."""

import pytest
import torch
from torch import nn

from offramp._core.errors import InputError, UnsupportedError
from offramp.models import WRAPPERS, ClassHead, ModelSpec, build, cifar_resnet, class_head, resnet21
from offramp.stages import Cascade, cut_points, measure_flops
from offramp.train.class_exits import (
    LargestOfGroup,
    Tap,
    TappedNet,
    attachment_points,
    branch_pool,
    tapped_spec,
)

POINTS = ["relu", "layer1.0", "layer2.0.bn2", "layer2"]
TAPS = [
    Tap(name="cat", reads=("relu", "layer1.0")),
    Tap(name="dog", reads=("layer1.0",)),
    Tap(name="car", reads=("relu", "layer2.0.bn2", "layer2")),
]


@pytest.fixture(scope="module")
def net():
    made = cifar_resnet(8, width=0.5, shortcut="projection", seed=3)
    generator = torch.Generator().manual_seed(1)
    for part in made.modules():  # batch-norm of a trained network is no identity
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
    return made.eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tapped_net(net, images):
    return TappedNet(net, POINTS, TAPS, images[:1])


@pytest.fixture(scope="module")
def cascade(tapped_net, images):
    widths = {"cat": 64, "dog": 32, "car": 32 + 64 + 64}
    heads = {f"exits.{name}": ClassHead(width, 10, 4) for name, width in widths.items()}
    return Cascade.from_network(tapped_net, list(heads), head=heads, example=images[:1])


def test_a_tapped_network_gives_the_same_logits(net, tapped_net, images):
    with torch.no_grad():
        torch.testing.assert_close(tapped_net(images), net(images), rtol=1e-5, atol=1e-5)


def maps(net, images):
    """What each layer gave last, by hooks: pooled by the definition."""
    held = {}
    layers = dict(net.named_modules())
    handles = [
        layers[name].register_forward_hook(lambda _m, _i, out, name=name: held.update({name: out}))
        for name in POINTS
    ]
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    quarter = {}
    for name, values in held.items():
        side = values.shape[-1] // 2
        kept = values.clamp(min=0).unfold(2, side, side).unfold(3, side, side)
        quarter[name] = kept.mean(dim=(4, 5)).flatten(1)
    return quarter


def test_each_exit_reads_the_pooled_maps_of_its_points(net, cascade, images):
    # "relu" runs in many places of a block; the module of that name at the top runs once
    quarter = maps(net, images)
    carry, found = images, {}
    with torch.no_grad():
        for stage in cascade:
            carry = stage.segment(carry)
            found[stage.name] = carry[0] if isinstance(carry, tuple) else carry
    for tap in TAPS:
        expected = torch.cat([quarter[name] for name in tap.reads], dim=1)
        torch.testing.assert_close(found[f"exits.{tap.name}"], expected)


def test_two_exits_at_one_point_share_the_network(net, cascade, images):
    costs = measure_flops(cascade, images[:1])
    whole = measure_flops(Cascade.from_models({"net": net}), images[:1]).segment[0]
    assert sum(costs.segment) == whole
    assert costs.segment[1] == 0.0
    assert costs.head == (2 * 64, 2 * 32, 2 * 160, 0.0)
    reached = {p.name: p.flops for p in cut_points(net, images[:1])}
    assert costs.segment[0] == reached["layer1"] - 0.0


@pytest.mark.parametrize("batch", [1, 6])
def test_the_last_stage_is_the_network(net, cascade, images, batch):
    with torch.no_grad():
        logits = torch.cat([cascade(x)[:, -1] for x in images.split(batch)])
        torch.testing.assert_close(logits, net(images), rtol=1e-4, atol=1e-5)


def test_superclasses_are_those_of_the_class_predicted(net, images):
    table = [k % 3 for k in range(10)]
    made = TappedNet(net, POINTS[:1], [Tap(name="a", reads=("relu",))], images[:1], table=table)
    with torch.no_grad():
        classes, groups = net(images).argmax(dim=1), made(images).argmax(dim=1)
    assert groups.tolist() == [table[k] for k in classes]
    cascade = Cascade.from_network(
        made, ["exits.a"], head={"exits.a": ClassHead(32, 3, 1)}, example=images[:1]
    )
    with torch.no_grad():
        assert cascade(images)[:, 1].argmax(dim=1).tolist() == groups.tolist()
    with pytest.raises(InputError, match=r"every superclass a class, got \[0, 2\]"):
        LargestOfGroup([0, 2])


def test_it_can_be_built_again_from_a_spec(net, tapped_net, images):
    model = ModelSpec(name="resnet8", arguments={"width": 0.5, "shortcut": "projection", "seed": 3})
    spec = tapped_spec(model, POINTS, TAPS, images.shape[1:])
    again = build(spec)
    again.load_state_dict(tapped_net.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images), tapped_net(images))


def test_a_tap_that_is_not_pooled_gives_the_map_itself(net, images):
    taps = [*TAPS[:1], Tap(name="raw", reads=("layer1.0",), pooled=False)]
    made = TappedNet(net, ["relu", "layer1.0"], taps, images[:1])
    with torch.no_grad():
        torch.testing.assert_close(made(images), net(images), rtol=1e-5, atol=1e-5)
        points = cut_points(made, images[:1])
        shapes = {name: p.shape for p in points for name in (p.name, *p.aliases)}
        layer = dict(net.named_modules())["layer1.0"]
        seen = []
        handle = layer.register_forward_hook(lambda *parts: seen.append(parts[-1]))
        net(images)
        handle.remove()
        cascade = Cascade.from_network(
            made, ["exits.raw"], head={"exits.raw": nn.Flatten()}, example=images[:1]
        )
        flat = cascade.stage("exits.raw").run(images)[0].logits
    assert shapes["exits.raw"] == tuple(seen[0].shape[1:])
    torch.testing.assert_close(flat, seen[0].flatten(1), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="not pooled must read one point"):
        TappedNet(
            net, ["relu", "layer1.0"], [Tap(name="a", reads=TAPS[0].reads, pooled=False)], images
        )


def test_an_import_inside_a_wrapper_needs_the_same_permission(net, images):
    model = ModelSpec(name="offramp.models:cifar_resnet", arguments={"depth": 8})
    spec = tapped_spec(model, ["layer1"], [Tap(name="a", reads=("layer1",))], images.shape[1:])
    assert isinstance(build(spec), TappedNet)
    with pytest.raises(UnsupportedError, match=r"'offramp\.models:cifar_resnet' would import"):
        build(spec, allow_import=False)
    with pytest.raises(InputError, match="'tapped' is registered already"):
        WRAPPERS.add("tapped", lambda: net)


def test_a_head_for_one_class_gives_log_p_and_shares_the_rest():
    head = class_head(4, 5, target=2)
    features = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p = head(features).softmax(dim=1)
        z = head.dense(features)[:, 0]
    torch.testing.assert_close(p[:, 2], z.sigmoid())
    for other in (0, 1, 3, 4):
        torch.testing.assert_close(p[:, other], (1 - z.sigmoid()) / 4)
    everyone = class_head(4, 5)
    with torch.no_grad():
        assert torch.equal(everyone(features), everyone.dense(features))


def test_the_points_lie_behind_each_of_the_21_convolutions():
    net = resnet21().eval()
    points = attachment_points(net, torch.zeros(1, 3, 32, 32))
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(points) == len(convolutions) == 21
    flops = [p.flops for p in points]
    assert flops == sorted(set(flops))
    assert [p.name for p in points if p.name.endswith("bn1")][:2] == [
        "layer1.0.bn1",
        "layer1.1.bn1",
    ]
    assert {p.shape for p in points} == {(16, 32, 32), (32, 16, 16), (64, 8, 8)}


def test_of_a_large_network_points_are_sampled_evenly():
    net = cifar_resnet(32, width=0.25).eval()
    points = attachment_points(net, torch.zeros(1, 3, 16, 16), sampled=5, grid=1)
    assert len(points) == 5
    shares = torch.tensor([p.share for p in points])
    assert (shares - torch.arange(1, 6) / 6).abs().max() < 0.06


def test_a_network_without_maps_has_no_point():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.raises(InputError, match=r"no point behind a convolution .* at least 2 places"):
        attachment_points(net, torch.zeros(1, 4))


def test_pooling_is_relu_then_averages():
    x = torch.tensor([[[[1.0, -1.0], [3.0, 5.0]]]])
    assert branch_pool(2)(x).tolist() == [[1.0, 0.0, 3.0, 5.0]]
    assert branch_pool(1)(x).tolist() == [[2.25]]
    with pytest.raises(InputError, match="grid must be an integer of at least 1, got 0"):
        branch_pool(0)


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ([], r"different names without dots, got \[\]"),
        ([TAPS[1], TAPS[1]], r"got \['dog', 'dog'\]"),
        ([Tap(name="a.b", reads=("relu",))], r"got \['a.b'\]"),
        ([Tap(name="a", reads=())], r"got \[\] for 'a'"),
        (
            [Tap(name="a", reads=("layer1.0", "relu"))],
            r"in their order, got .* for 'a'",
        ),
        ([Tap(name="a", reads=("nowhere",))], r"got \['nowhere'\] for 'a'"),
        ([Tap(name="a", reads=("relu",))], r"got \['layer1.0'\] besides"),
    ],
)
def test_taps_that_make_no_sense_are_refused(net, images, taps, message):
    with pytest.raises(InputError, match=message):
        TappedNet(net, POINTS[:2], taps, images[:1])
