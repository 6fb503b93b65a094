"""Cost meters against counts by hand."""

import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from offramp._core.errors import InputError, MissingExtraError, UnknownNameError, UnsupportedError
from offramp.models import cifar_resnet
from offramp.stages import (
    Cascade,
    Stage,
    given_costs,
    measure_flops,
    measure_joules,
    measure_seconds,
)


def images(m=1):
    return torch.zeros(m, 3, 8, 8)


def convolutional(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


def by_hand(width):
    return 2 * (8 * 8 * width * 3 * 9 + width * 10)


@pytest.mark.parametrize("m", [1, 7])
def test_flops_are_counted_per_example_with_a_multiply_add_as_two(m):
    cascade = Cascade.from_models({"small": convolutional(4), "large": convolutional(16)})
    costs = measure_flops(cascade, images(m))
    assert costs.unit == "flops"
    assert costs.segment == (by_hand(4), by_hand(16))
    assert costs.head == costs.decision == (0.0, 0.0)


def test_the_count_of_resnet20_is_the_published_one():
    cascade = Cascade.from_models({"resnet20": cifar_resnet(20).eval()})
    assert measure_flops(cascade, torch.zeros(1, 3, 32, 32)).segment == (2 * 40_551_040,)


def test_segments_and_heads_are_counted_apart():
    body, rest = nn.Linear(4, 6), nn.Linear(6, 60)
    cascade = Cascade(
        [
            Stage("a", body, head=nn.Linear(6, 3)),
            Stage("b", rest, head=nn.Linear(60, 3), source="a"),
        ]
    )
    costs = measure_flops(cascade, torch.zeros(2, 4))
    assert costs.segment == (2 * 4 * 6, 2 * 6 * 60)
    assert costs.head == (2 * 6 * 3, 2 * 60 * 3)


def test_alternative_heads_carry_the_cost_of_their_common_segment_each():
    body = nn.Linear(4, 6)
    cascade = Cascade(
        [
            Stage("h1", body, head=nn.Linear(6, 3), group="g"),
            Stage("h2", body, head=nn.Linear(6, 3), group="g"),
        ],
        edges=[("h1", "h2")],
    )
    with pytest.warns(UserWarning, match="'h2' costs"):
        costs = measure_flops(cascade, torch.zeros(1, 4))
    assert costs.segment == (48, 48)
    assert costs.path(cascade.topology, (0, 1), ()) == 48 + 2 * 36


def test_fused_transformer_layers_are_counted():
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, x):
            return self.layer(x)[:, 0]

    with pytest.warns(UserWarning, match="training mode"):
        cascade = Cascade.from_models({"text": Tiny()})
    costs = measure_flops(cascade, torch.zeros(1, 5, 16))
    linear = 2 * 5 * (16 * 48 + 16 * 16 + 2 * 16 * 32)
    attention = 2 * 2 * 2 * 5 * 5 * 8
    assert costs.segment == (linear + attention,)


def test_steps_below_twice_the_cost_are_warned_about():
    cascade = Cascade.from_models({"a": nn.Linear(4, 10), "b": nn.Linear(6, 10)})
    cascade.stage("b").transform = nn.ConstantPad1d((0, 2), 0.0)
    with pytest.warns(UserWarning, match=r"'b' costs 1\.50 times 'a'"):
        measure_flops(cascade, torch.zeros(1, 4))


def test_a_cascade_without_countable_work_is_an_error_instead_of_free():
    with pytest.raises(UnsupportedError, match="No floating-point operation"):
        measure_flops(Cascade.from_models({"a": nn.Identity()}), torch.zeros(1, 4))


class Sleeping(nn.Module):
    """Takes a time that grows with the batch."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        time.sleep(self.seconds * len(x))
        return x


def test_seconds_are_per_example_and_stages_take_turns():
    fast, slow = Sleeping(0.002), Sleeping(0.02)
    cascade = Cascade.from_models({"fast": fast, "slow": slow})
    found = measure_seconds(cascade, torch.zeros(2, 3), batch_sizes=(1, 3), rounds=5)
    assert sorted(found) == [1, 3]
    for size, costs in found.items():
        assert costs.unit == "seconds"
        assert 0.002 <= costs.segment[0] < costs.segment[1]
        assert 0.02 <= costs.segment[1] < 0.055  # without the division it is 0.06 for three
        assert f"batch size {size}" in costs.note
        assert "threads" in costs.note
    once = 1 + 2 + 5  # to get the inputs, to warm up, to measure
    assert fast.sizes == slow.sizes == [1] * once + [3] * once


def test_a_segment_that_stages_share_is_timed_once():
    shared, head = Sleeping(0.002), nn.Linear(3, 4)
    stages = [
        Stage("a", shared, head=head, group="one"),
        Stage("b", shared, head=nn.Linear(3, 4), group="one"),
        Stage("end", nn.Linear(3, 4), source="a"),
    ]
    costs = measure_seconds(
        Cascade(stages, edges=[("a", "end"), ("b", "end")]),
        torch.zeros(1, 3),
        batch_sizes=[1],
        rounds=3,
    )[1]
    assert costs.segment[0] == costs.segment[1] >= 0.002
    assert costs.head[0] != costs.head[1]
    assert len(shared.sizes) == 1 + 2 + 3  # to get the inputs, to warm up, to measure


def test_one_slow_round_does_not_move_the_median(monkeypatch):
    network = Sleeping(0.0)
    cascade = Cascade.from_models({"a": network})
    original = network.forward

    def disturbed(x):
        if len(network.sizes) == 4:
            time.sleep(0.3)
        return original(x)

    monkeypatch.setattr(network, "forward", disturbed)
    found = measure_seconds(cascade, torch.zeros(1, 3), batch_sizes=[1], rounds=5)
    assert found[1].segment[0] < 0.05


@pytest.mark.parametrize("sizes", [[0], [-1], []])
def test_batch_sizes_are_checked(sizes):
    with pytest.raises(InputError, match="batch_sizes must"):
        measure_seconds(
            Cascade.from_models({"a": nn.Linear(3, 2)}), torch.zeros(1, 3), batch_sizes=sizes
        )


class Meter:
    """Stands in for the energy monitor: every forward call of a stage costs what it says."""

    gpu_indices = ()
    cpu_indices = (0,)
    joules = 0.0

    def __init__(self, gpu_indices=None, cpu_indices=None):
        Meter.joules = 0.0

    def begin_window(self, key):
        self.start = Meter.joules

    def end_window(self, key):
        used = Meter.joules - self.start
        return SimpleNamespace(gpu_energy={}, cpu_energy={0: used / 2}, dram_energy={0: used / 2})


class Burning(nn.Module):
    def __init__(self, joules):
        super().__init__()
        self.joules = joules

    def forward(self, x):
        Meter.joules += self.joules
        return x


def install(monkeypatch, meter):
    package, monitor = ModuleType("zeus"), ModuleType("zeus.monitor")
    monitor.ZeusMonitor = meter
    monkeypatch.setitem(sys.modules, "zeus", package)
    monkeypatch.setitem(sys.modules, "zeus.monitor", monitor)


def test_joules_are_those_of_the_counters_per_example(monkeypatch):
    install(monkeypatch, Meter)
    cascade = Cascade.from_models({"a": Burning(4.0), "b": Burning(20.0)})
    costs = measure_joules(cascade, torch.zeros(2, 3), rounds=2, window_s=0.005)
    assert costs.unit == "joules"
    assert costs.segment == pytest.approx((2.0, 10.0))
    assert "batch size 2" in costs.note


def test_counters_that_do_not_move_are_an_error(monkeypatch):
    install(monkeypatch, Meter)
    with pytest.raises(UnsupportedError, match=r"did not move within 0\.005 seconds"):
        measure_joules(Cascade.from_models({"a": Burning(0.0)}), torch.zeros(2, 3), window_s=0.005)


def test_a_machine_without_counters_is_an_error(monkeypatch):
    class Blind(Meter):
        cpu_indices = ()

    install(monkeypatch, Blind)
    with pytest.raises(UnsupportedError, match="reports no energy for cpu"):
        measure_joules(Cascade.from_models({"a": Burning(1.0)}), torch.zeros(2, 3))

    class Forbidden(Meter):
        def __init__(self, **_):
            raise PermissionError("RAPL is for root")

    install(monkeypatch, Forbidden)
    with pytest.raises(UnsupportedError, match="cannot be read: RAPL is for root"):
        measure_joules(Cascade.from_models({"a": Burning(1.0)}), torch.zeros(2, 3))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus", None)
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    with pytest.raises(MissingExtraError, match=r"offramp\[energy\]"):
        measure_joules(Cascade.from_models({"a": nn.Linear(3, 2)}), torch.zeros(1, 3))


def test_given_costs_are_put_in_the_order_of_the_stages():
    cascade = Cascade.from_models({"small": nn.Linear(3, 2), "large": nn.Linear(3, 2)})
    costs = given_costs(cascade, "usd", {"large": 3.0, "small": 1.0}, note="list")
    assert (costs.segment, costs.unit, costs.note) == ((1.0, 3.0), "usd", "list")
    with pytest.raises(InputError, match=r"every stage; \['large'\] have none"):
        given_costs(cascade, "usd", {"small": 1.0})
    with pytest.raises(UnknownNameError, match="Did you mean 'large'"):
        given_costs(cascade, "usd", {"small": 1.0, "larg": 1.0})
