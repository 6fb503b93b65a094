import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError, UnknownNameError
from offramp._core.topology import Topology
from offramp.policy import Constant, Feature, Linear, Node, Policy
from offramp.runtime import Adaptive, StageTimes
from offramp.runtime.times import FULL, full_sizes
from offramp.stages import Cascade, Stage
from offramp.testing import random_policy, random_topology


class Clock:
    """Time goes by when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Segment(nn.Module):
    """Element by element, so that a row does not depend on its batch; notes batch sizes."""

    def __init__(self, k):
        super().__init__()
        self.k, self.sizes = k, []

    def forward(self, x, extra=None):
        self.sizes.append(len(x))
        return torch.sin(x * (self.k + 2)) * 4 + (0 if extra is None else extra)


def cascade_of(topology):
    """A cascade whose stages continue each other as a topology says."""
    names = topology.names
    stages = [
        Stage(
            name,
            Segment(k),
            head=nn.Identity(),
            source=None if topology.sources[k] == -1 else names[topology.sources[k]],
        )
        for k, name in enumerate(names)
    ]
    for stage in stages:
        stage.keeps_company = True  # as after recording, so that nothing runs to find it out
    return Cascade(stages, edges=[(names[j], names[k]) for j, k in topology.edges])


def thresholds(topology, value):
    nodes = {
        path: Node(Linear.threshold(Feature("max_prob", path[-1]), value))
        for path in topology.paths()
        if topology.children(path[-1])
    }
    return Policy(topology, nodes)


def equal(a, b):
    return torch.equal(a.nan_to_num(nan=123.0), b.nan_to_num(nan=123.0))


def collected(delivered):
    """By id, each answer's fields; every id must come once."""
    found = {}
    for ids, answer in delivered:
        assert len(ids) == len(answer) > 0
        for row, name in enumerate(ids.tolist()):
            assert name not in found, "answered once"
            found[name] = (answer, row)
    return found


def assert_same(found, batches, ids, model):
    for batch, names in zip(batches, ids, strict=True):
        wanted = model(batch, names)
        for row, name in enumerate(names):
            answer, at = found.pop(name)
            for field in ("stage", "nonfinite", "valid", "labels"):
                assert getattr(answer, field)[at] == getattr(wanted, field)[row]
            assert equal(answer.log_probs[at], wanted.log_probs[row])
            if wanted.cost is not None:
                assert answer.cost[at] == wanted.cost[row]
    assert not found


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    combine=st.sampled_from(["last", "mean", "log_linear"]),
    full=st.integers(1, 8),
    deadline=st.sampled_from([None, 0.0, 2.5]),
    broken=st.booleans(),
    shared=st.booleans(),
)
def test_every_input_is_answered_once_and_as_by_itself(
    seed, sizes, combine, full, deadline, broken, shared
):
    drawn = random_topology(4, seed=seed, share=0.8)
    sources = [-1, 0, 1, 2] if shared else None
    topology = Topology.of(drawn.names, sources=sources).part(drawn.edges, root=drawn.root)
    edges = "chain" if shared else "full"
    cascade = cascade_of(Topology.of(drawn.names, sources=sources, edges=edges))
    policy = random_policy(topology, seed=seed, classes=3, combine=combine)
    model = Adaptive(cascade, policy, costs=Costs.simple("flops", [1.0, 2.0, 4.0, 8.0]))
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(n, 3, generator=generator) for n in sizes]
    if broken and len(batches[0]):
        batches[0][0, 0] = torch.nan
    starts = np.cumsum([0, *sizes])
    ids = [list(range(start, start + n)) for start, n in zip(starts, sizes, strict=False)]
    clock = Clock()

    def ticking():
        for batch in batches:
            clock.now += 1.0
            yield batch

    stream = model.stream(ticking(), ids, batch_size=full, deadline=deadline, clock=clock)
    assert_same(collected(stream), batches, ids, model)


def chain_model(value=0.6, **arguments):
    topology = Topology.of(["a", "b"])
    cascade = cascade_of(topology)
    return cascade, Adaptive(cascade, thresholds(topology, value), **arguments)


def of_leavers(pattern):
    """One class is sure for those who leave after the first stage."""
    rows = [[9.0, 0.0] if leaves else [0.0, 0.0] for leaves in pattern]
    return torch.arcsin(torch.tensor(rows) / 9) / 2


def test_survivors_wait_until_a_batch_is_full():
    cascade, model = chain_model()
    batch = of_leavers([True, False, True, False, False])  # three of five go on
    delivered = list(model.stream([batch] * 4, batch_size={"b": 5}))
    assert cascade.stage("a").module.sizes == [5, 5, 5, 5]
    assert cascade.stage("b").module.sizes == [5, 5, 2]
    assert [sorted(ids.tolist()) for ids, _ in delivered] == [
        [0, 2],
        [5, 7],
        [1, 3, 4, 6, 8],
        [10, 12],
        [15, 17],
        [9, 11, 13, 14, 16],
        [18, 19],
    ]


def test_when_the_deadline_passes_whoever_is_there_goes_on():
    cascade, model = chain_model()
    clock = Clock()
    batch = of_leavers([False])

    def batches():
        for _ in range(3):
            yield batch
            clock.now += 1.0
        yield None  # at 3 the first has waited for 3 seconds
        clock.now += 5.0
        yield batch

    stream = model.stream(batches(), batch_size=100, deadline=2.5, clock=clock)
    delivered = [ids.tolist() for ids, _ in stream]
    assert delivered == [[0, 1, 2], [3]]
    assert cascade.stage("b").module.sizes == [3, 1]


def test_no_deadline_waits_to_the_end_and_a_deadline_of_zero_waits_never():
    for deadline, sizes in ((None, [2, 1]), (0.0, [1, 1, 1])):
        cascade, model = chain_model()
        list(model.stream([of_leavers([False])] * 3, batch_size=2, deadline=deadline))
        assert cascade.stage("b").module.sizes == sizes


def test_the_full_size_is_the_best_one_of_the_measured_times():
    times = StageTimes(
        stages=("a", "b"),
        sizes=(1, 2, 4),
        segment=((1.0, 1.5, 2.0), (1.0, 1.2, 9.0)),
        head=((0.0,) * 3,) * 2,
        carry=((0.0,) * 3,) * 2,
        raw=(0.0,) * 3,
        where="a test",
    )
    topology = Topology.of(["a", "b"])
    assert full_sizes(None, topology, times) == {0: 4, 1: 2}
    assert full_sizes(None, topology, None) == {0: FULL, 1: FULL}
    assert full_sizes({"a": 3}, topology, times) == {0: 3, 1: 2}
    cascade, model = chain_model(times=times)
    list(model.stream([of_leavers([False])] * 4))
    assert cascade.stage("b").module.sizes == [2, 2]


def test_names_come_back_with_their_answers_and_key_the_draws():
    _, model = chain_model()
    batches = [of_leavers([True, False]), of_leavers([False, True])]
    ids = [["cat", "dog"], np.array(["emu", "fox"])]
    found = collected(model.stream(batches, ids, batch_size=2))
    assert {name: int(answer.stage[row]) for name, (answer, row) in found.items()} == {
        "cat": 0,
        "dog": 1,
        "emu": 1,
        "fox": 0,
    }


def test_mappings_are_gathered_too():
    topology = Topology.of(["a", "b"])
    cascade = cascade_of(topology)
    model = Adaptive(cascade, Policy(topology, {(0,): Node(Constant(False))}))
    batch = {"x": torch.randn(3, 2), "extra": torch.ones(3, 2)}
    assert_same(
        collected(model.stream([batch, batch], [[0, 1, 2], [3, 4, 5]], batch_size=4)),
        [batch, batch],
        [[0, 1, 2], [3, 4, 5]],
        model,
    )
    assert cascade.stage("b").module.sizes[:2] == [4, 2]


def test_what_is_not_finite_waits_for_nobody():
    cascade, model = chain_model()
    batch = of_leavers([False, False])
    batch[0, 0] = torch.nan
    delivered = list(model.stream([batch], batch_size=100))
    assert cascade.stage("b").module.sizes == [2]
    assert delivered[0][1].valid.tolist() == [False, True]
    assert delivered[0][1].nonfinite.tolist() == [2, 0]


def test_a_stream_of_nothing_delivers_nothing():
    _, model = chain_model()
    assert list(model.stream([])) == []
    assert list(model.stream([None, torch.zeros(0, 2)])) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"deadline": -1.0}, InputError, "deadline must be finite and at least 0, got -1.0"),
        ({"batch_size": 0}, InputError, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": {"b": 0}}, InputError, r"batch_size\['b'\] must be .* got 0"),
        ({"batch_size": {"bb": 1}}, UnknownNameError, "no stage 'bb'"),
        ({"ids": [[1, 2]]}, InputError, r"ids must have shape \(1,\).*got \(2,\)"),
        ({"ids": []}, InputError, "ids must hold one entry per batch, got none"),
    ],
)
def test_senseless_arguments_are_refused(arguments, error, message):
    _, model = chain_model()
    with pytest.raises(error, match=message):
        list(model.stream([of_leavers([True])], **arguments))


def test_a_bad_batch_is_named():
    cascade = Cascade.from_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    model = Adaptive(cascade, thresholds(cascade.topology, 0.9))
    with pytest.raises(InputError, match=r"\(n, 4\) float32.*cannot run on \(n, 5\) float32"):
        list(model.stream([torch.zeros(2, 4), torch.zeros(2, 5)]))
