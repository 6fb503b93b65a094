"""Points for exits: which ones are taken, and what is measured up to each."""

from dataclasses import replace
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from offramp._core.errors import InputError
from offramp.models import alexnet, cifar_resnet
from offramp.stages import CutPoint, choose_points, cut, cut_points, measure_points


@pytest.fixture(scope="module")
def resnet():
    return cifar_resnet(14).eval()


@pytest.fixture(scope="module")
def points(resnet):
    return cut_points(resnet, torch.zeros(1, 3, 32, 32))


def names(chosen):
    return [point.name for point in chosen]


def made(shares, shapes=None):
    """Points with nothing but what the choice reads."""
    shapes = [(4,)] * len(shares) if shapes is None else shapes
    return [
        CutPoint(name=f"p{k}", aliases=(), shape=s, live=(s,), flops=1000 * share, share=share)
        for k, (share, s) in enumerate(zip(shares, shapes, strict=True))
    ]


def test_ends_of_blocks_are_what_people_mean(points):
    assert names(choose_points(points)) == [
        *("relu", "layer1.0", "layer1", "layer2.0", "layer2", "layer3.0", "layer3"),
    ]
    assert all(len(point.live) == 1 for point in choose_points(points))
    assert choose_points(points, inside=True) == points
    assert len(points) > 30


def test_pooling_is_left_to_the_heads():
    found = choose_points(cut_points(alexnet().eval(), torch.zeros(1, 3, 64, 64)))
    assert names(found)[:3] == ["features.1", "features.4", "features.7"]
    assert "flatten" not in names(found)
    shapes = {point.name: point.shape for point in found}
    assert shapes["features.1"] == (64, 15, 15)  # features.2 pools it


def test_a_glob_stands_for_one_part_of_a_name_and_gives_it_to_the_exit(points):
    found = choose_points(points, match="layer*.*")
    assert names(found) == [f"layer{k}.{m}" for k in (1, 2, 3) for m in (0, 1)]
    assert found[1].aliases == ("layer1", "layer1.1.relu", "layer1.1.relu@2")
    assert names(choose_points(points, match="layer?")) == ["layer1", "layer2", "layer3"]
    inner = choose_points(points, match="layer1.*.conv1", inside=True)
    assert names(inner) == [f"layer1.{k}.conv1" for k in range(2)]
    assert names(choose_points(points, match="layer*.*", every=3)) == ["layer2.0", "layer3.1"]


@given(st.integers(1, 30), st.integers(1, 30))
def test_every_counts_from_the_first_point(n, step):
    found = made([(k + 1) / n for k in range(n)])
    if step > n:
        with pytest.raises(InputError, match=f"every must be at most {n}.*got {step}"):
            choose_points(found, every=step)
    else:
        wanted = [p for k, p in enumerate(found, start=1) if k % step == 0]
        assert choose_points(found, every=step) == wanted
    assert choose_points(found, every=1) == choose_points(found) == found


def distance(chosen, q):
    """Least sum of distances to the fractions, whichever point stands for which."""
    wanted = [k / (q + 1) for k in range(1, q + 1)]
    return min(
        sum(abs(p.share - w) for p, w in zip(order, wanted, strict=True))
        for order in permutations(chosen)
    )


@given(st.lists(st.integers(1, 99), min_size=1, max_size=6, unique=True), st.data())
def test_quantiles_are_the_nearest_of_all_selections(parts, data):
    found = made([part / 100 for part in sorted(parts)])
    q = data.draw(st.integers(1, len(found)))
    chosen = choose_points(found, quantiles=q)
    slow = min(distance(selection, q) for selection in combinations(found, q))
    assert len({p.name for p in chosen}) == q
    assert chosen == sorted(chosen, key=lambda p: p.share)
    assert distance(chosen, q) == pytest.approx(slow)


def test_quantiles_of_a_real_network_are_spread_over_its_operations(points):
    found = choose_points(points, quantiles=3)
    assert names(found) == ["layer1.0", "layer2.0", "layer2"]
    assert [p.share for p in found] == pytest.approx([1 / 4, 2 / 4, 3 / 4], abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be an integer of at least 1, got 0"),
        ({"quantiles": -1}, "quantiles must be an integer of at least 1, got -1"),
        ({"quantiles": 8}, "quantiles must be at most 7, the number of points, got 8"),
        ({"every": 8}, "every must be at most 7, the number of points, got 8"),
        ({"every": 2, "quantiles": 3}, "either every or quantiles, got 2 and 3"),
        ({"match": "layr*.*"}, r"got 'layr\*\.\*'. There are 'conv1', 'bn1'"),
        ({"match": "layer1.*.conv1"}, r"got 'layer1\.\*\.conv1'"),
    ],
)
def test_what_cannot_be_chosen_is_refused(points, arguments, message):
    with pytest.raises(InputError, match=message):
        choose_points(points, **arguments)


def test_a_mask_that_goes_along_does_not_hide_the_ends_of_blocks():
    live = [
        ((4,), (2,)),
        ((4,), (2,), (4,)),
        ((4,), (2,)),
        ((4,), (2,), (4,)),
        ((4,), (2,)),
        ((4,),),
    ]
    shares = [0.1, 0.2, 0.3, 0.5, 0.6, 0.99]
    carrying = [replace(p, live=t) for p, t in zip(made(shares), live, strict=True)]
    assert choose_points(carrying) == [carrying[k] for k in (0, 2, 4, 5)]
    assert choose_points(carrying, inside=True) == carrying


def test_without_points_or_counted_operations_there_is_a_reason():
    with pytest.raises(InputError, match="at least one point of cut_points, got none"):
        choose_points([])
    with pytest.raises(InputError, match="operations that can be counted"):
        choose_points(made([0.0, 0.0]), quantiles=1)


def test_shares_are_parts_of_the_networks_operations(points):
    whole = {p.flops / p.share for p in points}
    assert max(whole) == pytest.approx(min(whole))
    assert max(whole) == pytest.approx(2 * 27_000_000, rel=0.1)
    nothing = cut_points(nn.Sequential(nn.ReLU(), nn.Tanh()).eval(), torch.zeros(1, 4))
    assert [p.share for p in nothing] == [0.0]


def test_time_grows_with_what_has_run():
    layers = nn.Linear(8, 2048), nn.Linear(2048, 2048), nn.Linear(2048, 8), nn.Linear(8, 3)
    net = nn.Sequential(*layers).eval()
    found = measure_points(
        net, torch.rand(1, 8), cut_points(net, torch.rand(1, 8)), batch_size=64, rounds=9
    )
    assert len(found) == 4
    assert found == sorted(found)
    assert found[1] - found[0] > found[0]
    assert found[1] - found[0] > found[2] - found[1]


def test_times_are_for_one_example(monkeypatch):
    sizes = []
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    at = cut_points(net, torch.rand(1, 4))

    def seconds(parts, rounds, device):
        sizes.extend(len(part()) for part in parts)
        return [6.0, 3.0, 12.0]

    monkeypatch.setattr("offramp.stages.cutting.choose.median_seconds", seconds)
    assert measure_points(net, torch.rand(2, 4), at, batch_size=3) == [2.0, 3.0, 7.0]
    assert sizes == [3, 3, 3]


def test_inputs_that_are_a_mapping_are_timed():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, values, mask):
            return self.second(self.first(values) * mask)

    net = Masked().eval()
    example = {"values": torch.rand(1, 4), "mask": torch.ones(1, 5)}
    at = choose_points(cut_points(net, example), inside=True)
    assert len(measure_points(net, example, at, rounds=1)) == len(at) + 1


def test_wrong_numbers_are_named():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval()
    at = cut_points(net, torch.rand(1, 4))
    with pytest.raises(InputError, match="rounds must be an integer of at least 1, got 0"):
        measure_points(net, torch.rand(1, 4), at, rounds=0)
    with pytest.raises(InputError, match="batch_size must be an integer of at least 1, got 0"):
        measure_points(net, torch.rand(1, 4), at, batch_size=0)
    with pytest.raises(InputError, match="at must list at least one layer"):
        measure_points(net, torch.rand(1, 4), [])


def test_chosen_points_can_be_cut(resnet, points):
    x = torch.rand(3, 3, 32, 32)
    carry = x
    for segment in cut(resnet, names(choose_points(points, quantiles=3)), x):
        carry = segment(carry)
    assert torch.allclose(carry, resnet(x), atol=1e-5)
