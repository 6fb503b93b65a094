"""What `Cascade.from_network` builds, shares and remembers."""

import copy

import pytest
import torch
from torch import nn

from offramp._core.errors import InputError, UnknownNameError
from offramp.models import ModelSpec, build, head_arguments
from offramp.stages import (
    Cascade,
    Normalize,
    OfFirst,
    SegmentSpec,
    choose_points,
    cut_points,
    own_head,
    synthetic_example,
)

AT = ["layer1.0", "layer2.0.conv1"]  # the second carries a shortcut as well
NET = ModelSpec(name="resnet8", arguments={"width": 0.25})
IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255
TRANSFORM = Normalize(1 / 255, 0.5, 0.25)


def head_spec(kind, channels, **options):
    return ModelSpec(name=kind, arguments=head_arguments(kind, (channels, 8, 8), 10, **options))


def heads():
    return {
        AT[0]: head_spec("gap_linear", 4),
        AT[1]: {
            "gap": head_spec("gap_linear", 8),
            "conv": head_spec("conv_head", 8, filters=4),
            "own": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
        },
    }


def make_cascade(net=None, **changes):
    given = {"head": heads(), "example": IMAGES, "transform": TRANSFORM, "spec": NET}
    return Cascade.from_network(net or build(NET), AT, **(given | changes))


@pytest.fixture(scope="module")
def cascade():
    return make_cascade()


def test_heads_may_be_specs_that_are_built_and_remembered(cascade):
    given = heads()
    assert cascade.stage(AT[0]).head_spec == given[AT[0]]
    assert cascade.stage(f"{AT[1]}/conv").head_spec == given[AT[1]]["conv"]
    assert cascade.stage(f"{AT[1]}/own").head_spec is None
    assert cascade.stage("last").head_spec is None
    for stage in list(cascade)[:3]:
        wanted, found = build(stage.head_spec), own_head(stage.head)
        assert type(found) is type(wanted)
        for name, value in wanted.state_dict().items():
            assert torch.equal(found.state_dict()[name], value)


def test_a_head_reads_the_first_tensor_where_several_are_carried(cascade):
    assert not isinstance(cascade.stage(AT[0]).head, OfFirst)
    assert isinstance(cascade.stage(f"{AT[1]}/gap").head, OfFirst)


def test_each_segment_remembers_how_to_get_it_again(cascade):
    specs = [stage.spec for stage in cascade]
    assert all(isinstance(spec, SegmentSpec) for spec in specs)
    assert [spec.index for spec in specs] == [0, 1, 1, 1, 2]
    cut = specs[0].cut
    assert all(spec.cut is cut for spec in specs)
    assert (cut.model, cut.at) == (NET, tuple(AT))
    assert (cut.example.shape, cut.example.dtype) == ((1, 3, 16, 16), torch.float32)
    assert cut.example.abs().max() <= 1  # after the transform, and made up


def test_without_a_spec_nothing_is_remembered():
    assert all(stage.spec is None for stage in make_cascade(spec=None))


def test_weights_are_those_of_the_network_counted_once():
    net = build(NET)
    cascade = make_cascade(net)
    counted = sum(p.numel() for p in cascade.parameters())
    own = sum(p.numel() for stage in cascade if stage.head for p in stage.head.parameters())
    assert counted == own + sum(p.numel() for p in net.parameters())
    assert {id(p) for p in net.parameters()} <= {id(p) for p in cascade.parameters()}


def test_a_state_dict_carries_everything_over_to_another_cascade():
    one, other = make_cascade(), make_cascade()
    with torch.no_grad():
        for p in one.parameters():
            p.add_(0.1)
    assert not torch.equal(one(IMAGES), other(IMAGES))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(IMAGES), other(IMAGES))


def test_a_copy_shares_weights_among_its_segments_and_none_with_the_original(cascade):
    copied = copy.deepcopy(cascade)
    assert torch.equal(copied(IMAGES), cascade(IMAGES))
    assert len(list(copied.parameters())) == len(list(cascade.parameters()))
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in cascade.parameters()}
    assert copied.stage(f"{AT[1]}/gap").module is copied.stage(f"{AT[1]}/conv").module


def test_a_cascade_moves_as_a_whole(cascade):
    moved = copy.deepcopy(cascade).to(torch.float64)
    assert {p.dtype for p in moved.parameters()} == {torch.float64}
    carry = TRANSFORM(IMAGES).double()
    for index in (0, 1, 4):
        module = moved.stage(index).module
        carry = module(carry) if isinstance(carry, torch.Tensor) else module(*carry)
    assert carry.dtype == torch.float64
    torch.testing.assert_close(carry.float(), cascade(IMAGES)[:, -1])


def test_a_head_that_does_not_exist_suggests_the_near_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'gap_linear'"):
        make_cascade(head={**heads(), AT[0]: ModelSpec(name="gap_linaer")})
    with pytest.raises(InputError, match="gap_linear refuses"):
        make_cascade(head={**heads(), AT[0]: ModelSpec(name="gap_linear")})


# What stands for an example.


def test_a_stand_in_keeps_kind_shape_type_and_whole_numbers_but_no_measured_values():
    ids = torch.tensor([[5, 6, 7], [1, 1, 1]])
    given = {"ids": ids, "mask": ids > 5, "x": torch.full((2, 4), 9.0, dtype=torch.float16)}
    found = synthetic_example(given)
    assert list(found) == list(given)
    assert torch.equal(found["ids"], ids[:1])
    assert torch.equal(found["mask"], ids[:1] > 5)
    assert (found["x"].dtype, found["x"].shape) == (torch.float16, (1, 4))
    assert found["x"].abs().max() <= 1
    assert len(found["x"].unique()) == 4
    assert [t.shape for t in synthetic_example([ids, ids.float()])] == [(1, 3), (1, 3)]


def test_a_stand_in_is_a_copy():
    ids = torch.tensor([[5, 6]])
    found = synthetic_example(ids)
    ids.zero_()
    assert found.tolist() == [[5, 6]]
    x = torch.zeros(1, 2, requires_grad=True)
    assert not synthetic_example(x).requires_grad


# Exits by number, heads by name.


@pytest.mark.parametrize("count", [1, 2, 3])
def test_so_many_exits_are_spread_over_the_computation(count):
    net = build(NET)
    found = Cascade.from_network(net, count, example=IMAGES[:1], transform=TRANSFORM)
    points = choose_points(cut_points(net, TRANSFORM(IMAGES[:1])), quantiles=count)
    assert found.topology.names == (*(point.name for point in points), "last")
    given = Cascade.from_network(net, points, example=IMAGES[:1], transform=TRANSFORM)
    assert [stage.head_spec for stage in given] == [stage.head_spec for stage in found]


def test_a_name_makes_the_same_heads_as_specs_do():
    options = {"example": IMAGES[:1], "transform": TRANSFORM}
    named = Cascade.from_network(build(NET), AT, head="gap_linear", **options)
    found = cut_points(build(NET), TRANSFORM(IMAGES[:1]))
    points = {name: p.shape for p in found for name in (p.name, *p.aliases)}
    specs = {
        name: ModelSpec(name="gap_linear", arguments=head_arguments("gap_linear", points[name], 10))
        for name in AT
    }
    given = Cascade.from_network(build(NET), AT, head=specs, **options)
    assert [stage.head_spec for stage in named] == [stage.head_spec for stage in given]
    assert torch.equal(named(IMAGES), given(IMAGES))


def test_heads_may_be_made_by_a_function_and_several_stand_side_by_side():
    asked = []

    def flat(shape, classes):
        asked.append((tuple(shape), classes))
        return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes))

    heads = {name: {"flat": flat, "gap": "gap_linear"} for name in AT[:2]}
    cascade = Cascade.from_network(
        build(NET), AT[:2], head=heads, example=IMAGES[:1], transform=TRANSFORM
    )
    assert cascade.topology.names[:2] == (f"{AT[0]}/flat", f"{AT[0]}/gap")
    assert len(asked) == 2
    assert cascade.stage(f"{AT[0]}/flat").head_spec is None
    assert cascade(IMAGES).shape[1:] == (5, 10)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"exits": "layer1"}, r"exits must be a number, or a list .* got the text 'layer1'"),
        ({"exits": 0}, "exits must be an integer of at least 1, got 0"),
        ({"exits": 1000}, r"exits must be at most \d+, the number of ends of blocks, got 1000"),
        ({"exits": 1, "head": nn.Linear(4, 10)}, "head must make a head for each exit.*one Linear"),
        ({"exits": 1, "head": "gap_linaer"}, "Did you mean 'gap_linear'"),
        ({"exits": 1, "head": "token_linear"}, "There is no head for the exit"),
    ],
)
def test_exits_and_heads_that_are_refused(wrong, message):
    with pytest.raises((ValueError, KeyError), match=message):
        Cascade.from_network(build(NET), example=IMAGES[:1], transform=TRANSFORM, **wrong)
