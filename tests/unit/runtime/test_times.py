import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offramp._core.batch import split_rows
from offramp._core.errors import FileFormatError, InputError
from offramp._core.schema import from_json, to_json
from offramp._core.topology import Topology
from offramp.policy import Constant, Feature, Linear, Node, Policy
from offramp.runtime import Adaptive, StageTimes
from offramp.runtime.inflight import InFlight, gather
from offramp.runtime.program import Program
from offramp.stages import Cascade, Stage
from offramp.tuning import measure_times


def make_times(segment, *, sizes=(1, 2, 4, 8), stages=None, carry=0.0, raw=0.0, head=0.0):
    """Times of stages given by their segments; one number for all the rest."""
    count = len(segment)
    return StageTimes(
        stages=tuple(stages or (f"s{k}" for k in range(count))),
        sizes=tuple(sizes),
        segment=tuple(map(tuple, segment)),
        head=((head,) * len(sizes),) * count,
        carry=((carry,) * len(sizes),) * count,
        raw=(raw,) * len(sizes),
        where="a test",
    )


def best_split_reference(times, stage, size):
    """Every way to divide a batch into parts, the slow obvious way."""
    least = {0: 0.0}
    for m in range(1, size + 1):
        least[m] = min(times.seconds(stage, part) + least[m - part] for part in range(1, m + 1))
    return least[size]


def test_between_sizes_time_is_a_straight_line_and_beyond_them_in_proportion():
    times = make_times([[1.0, 1.5, 2.5, 6.0]])
    assert [times.seconds(0, m) for m in (1, 2, 3, 4, 6, 8, 16)] == [
        1.0,
        1.5,
        2.0,
        2.5,
        4.25,
        6.0,
        12.0,
    ]


def test_a_batch_is_taken_in_parts_where_a_smaller_size_is_faster_per_example():
    times = make_times([[1.0, 1.2, 1.6, 8.0], [1.0, 1.9, 3.6, 6.0]])
    assert times.split(0, 8) == (4, 4)
    assert times.split(0, 16) == (4, 4, 4, 4)
    assert times.split(0, 3) == (3,)
    assert times.split(1, 8) == (8,)
    assert times.best_size(0) == 4
    assert times.best_size(1) == 8


def test_a_gain_within_the_noise_splits_nothing():
    assert make_times([[1.0, 1.98]], sizes=(1, 2)).split(0, 2) == (2,)
    assert make_times([[1.0, 2.2]], sizes=(1, 2)).split(0, 2) == (1, 1)


def test_joining_what_the_parts_give_is_counted():
    row = [1.0, 1.2, 1.6, 4.0]
    assert make_times([row]).split(0, 8) == (4, 4)
    assert make_times([row], carry=1.0).split(0, 8) == (8,)


@settings(deadline=None, max_examples=60)
@given(
    row=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    size=st.integers(1, 24),
)
def test_parts_hold_everybody_and_never_promise_more_than_the_whole(row, size):
    times = make_times([row])
    parts = times.split(0, size)
    assert sum(parts) == size
    assert min(parts) >= 1
    assert times.planned(0, size) <= times.seconds(0, size) + 1e-12
    assert times.planned(0, size) >= best_split_reference(times, 0, size) - 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (2, 4)}, r"sizes must ascend from 1, got \[2, 4\]"),
        (
            {"segment": ((1.0, 1.0), (1.0, 1.0))},
            r"segment must have one row per stage \(1\), got 2",
        ),
        ({"head": ((1.0,),)}, r"head must have one number per size \(2\), got 1"),
        ({"segment": ((0.0, 1.0),)}, r"segment must hold seconds.*got \(0.0, 1.0\)"),
        ({"raw": (-1.0, 1.0)}, r"raw must hold seconds.*got \(-1.0, 1.0\)"),
    ],
)
def test_senseless_tables_are_refused(change, message):
    fields = vars(make_times([[1.0, 1.0]], sizes=(1, 2))) | change
    with pytest.raises(InputError, match=message):
        StageTimes(**fields)


def test_times_survive_being_written_as_json():
    times = make_times([[0.1, 0.2], [0.3, 1 / 3]], sizes=(1, 7), carry=1e-9)
    assert from_json(StageTimes, json.loads(json.dumps(to_json(times)))) == times
    broken = to_json(times)
    del broken["raw"]
    with pytest.raises(FileFormatError, match="raw"):
        from_json(StageTimes, broken)


def test_every_stage_is_measured_at_every_size_also_where_stages_share_a_segment():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    heads = {"1": {"a": nn.Linear(8, 3), "b": nn.Linear(8, 3)}}
    cascade = Cascade.from_network(net, ["1"], head=heads, example=torch.zeros(1, 4))
    times = measure_times(cascade, torch.zeros(2, 4), batch_sizes=[4, 2], rounds=2, progress=False)
    assert times.sizes == (1, 2, 4)
    assert times.stages == ("1/a", "1/b", "last")
    assert times.segment[0] == times.segment[1]
    assert times.head[2] == times.carry[2] == (0.0, 0.0, 0.0)
    assert min(times.head[0]) > 0 < min(times.raw)
    with pytest.raises(InputError, match="at least one example"):
        measure_times(cascade, torch.zeros(0, 4))
    with pytest.raises(InputError, match="batch_sizes must be an integer of at least 1, got 0"):
        measure_times(cascade, torch.zeros(1, 4), batch_sizes=[0])


class Counted(nn.Module):
    """Notes the sizes of what it reads."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return x * 2


def chain(count, *, carries):
    names = [f"s{k}" for k in range(count)]
    topology = Topology.of(
        names, sources=[-1, *range(count - 1)] if carries else None, edges="chain"
    )
    stages = {
        k: Stage(
            name,
            Counted(),
            head=nn.Identity() if carries else None,
            source=names[k - 1] if carries and k else None,
        )
        for k, name in enumerate(names)
    }
    return topology, stages


def onwards(topology):
    nodes = {p: Node(Constant(False)) for p in topology.paths() if topology.children(p[-1])}
    return Policy(topology, nodes)


@pytest.mark.parametrize("carries", [False, True])
def test_a_stage_takes_a_batch_in_parts_and_gives_the_same(carries):
    topology, stages = chain(2, carries=carries)
    times = make_times([[1.0, 1.1, 1.2, 9.0]] * 2)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    runs = [
        InFlight(Program(onwards(topology), stages, times=given), x, torch.arange(8))
        for given in (times, None)
    ]
    some = torch.tensor([0, 2, 3, 4, 5, 6, 7])
    for stage, rows in ((0, None), (1, some)):
        assert torch.equal(*(run.visit(stage, rows).logits for run in runs))
    assert stages[0].module.sizes == [4, 4, 8]
    assert sorted(stages[1].module.sizes[:2]) == [3, 4]


def test_everybody_runs_where_gathering_costs_more_and_nobody_else_is_influenced():
    topology, stages = chain(3, carries=True)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    x[1] = torch.nan  # leaves after the first stage
    times = make_times([[1.0, 1.0, 1.0, 1.0]] * 3, carry=1.0, raw=1.0)
    flight = InFlight(Program(onwards(topology), stages, times=times), x, torch.arange(8))
    flight.visit(0, None)
    rows = torch.tensor([0, 2, 5])
    assert torch.equal(flight.visit(1, rows).logits, x[rows] * 4)
    assert torch.equal(flight.visit(2, rows[1:]).logits, x[rows[1:]] * 8)
    assert [stages[k].module.sizes for k in range(3)] == [[8], [8], [8]]


def test_answers_with_measured_times_are_those_without():
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        nets = {name: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for name in "abc"}
    cascade = Cascade.from_models(nets, edges="chain")
    nodes = {
        path: Node(Linear.threshold(Feature("max_prob", path[-1]), 0.4))
        for path in cascade.topology.paths()
        if cascade.topology.children(path[-1])
    }
    policy = Policy(cascade.topology, nodes, combine="mean")
    x = torch.randn(37, 4, generator=generator) * 3
    plain = Adaptive(cascade, policy)(x)
    assert len(set(plain.stage.tolist())) == 3
    for row in ([1.0, 1.1, 1.2, 9.0], [5.0, 5.0, 5.0, 5.0]):
        times = make_times([row] * 3, stages="abc", raw=1.0)
        timed = Adaptive(cascade, policy, times=times)(x)
        assert torch.equal(timed.stage, plain.stage)
        torch.testing.assert_close(timed.log_probs, plain.log_probs)


def test_times_of_other_stages_are_refused():
    cascade = Cascade.from_models({"a": nn.Linear(4, 3)})
    policy = Policy(cascade.topology, {})
    with pytest.raises(InputError, match=r"stages \('a',\), got those of \('s0',\)"):
        Adaptive(cascade, policy, times=make_times([[1.0]], sizes=(1,)))


@pytest.mark.parametrize("layout", ["plain", "channels_last", "strided", "tuple"])
def test_gathering_keeps_values_and_memory_format(layout):
    x = torch.randn(6, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([0, 3, 4])
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
        assert gather(x, rows).is_contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        x = x.transpose(2, 3)
    if layout == "tuple":
        assert torch.equal(gather((x, x), rows)[1], x[rows])
    else:
        assert torch.equal(gather(x, rows), x[rows])


def test_batches_of_every_kind_are_split_in_order():
    x = torch.arange(10).reshape(5, 2)
    for batch, first in ((x, lambda b: b), ((x, -x), lambda b: b[0]), ({"x": x}, lambda b: b["x"])):
        parts = split_rows(batch, (2, 3))
        assert [type(part) for part in parts] == [type(batch)] * 2
        assert torch.equal(torch.cat([first(part) for part in parts]), x)
