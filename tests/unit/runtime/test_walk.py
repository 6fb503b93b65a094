import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from offramp._core.outputs import StageOutput
from offramp._core.topology import Topology
from offramp.policy import Constant, Feature, Linear, Node, Policy
from offramp.runtime.fallback import Fallback
from offramp.runtime.inflight import InFlight
from offramp.runtime.program import Program
from offramp.runtime.walk import walk
from offramp.testing import random_policy, random_topology
from reference.walk import route_reference

SYNCHRONIZING = {"nonzero", "item", "tolist", "__bool__", "__int__", "__float__"}


class CountSyncs(TorchFunctionMode):
    """Counts the calls for which a host would have to wait for its device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        masks = name == "__getitem__" and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1:]
        )
        self.count += masks or name in SYNCHRONIZING
        return function(*args, **(kwargs or {}))


class CountCalls(TorchFunctionMode):
    """Counts the calls of one function of torch."""

    def __init__(self, name):
        super().__init__()
        self.name, self.count = name, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += getattr(function, "__name__", "") == self.name
        return function(*args, **(kwargs or {}))


def outputs_of(n, stages, classes, seed=0, broken=0.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, stages, classes, generator=generator) * 3
    if broken:
        hit = torch.rand(n, stages, generator=generator) < broken
        wrong = torch.tensor([torch.nan, torch.inf, -torch.inf])
        kind = torch.randint(3, (n, stages), generator=generator)
        logits[..., 0] = torch.where(hit, wrong[kind], logits[..., 0])
    return logits


class Injected(InFlight):
    """Stage outputs from a table; remembers who visited what."""

    def __init__(self, policy, outputs, ids):
        super().__init__(Program(policy, {}), torch.empty(len(ids), 0), ids)
        self.table = outputs
        self.visits = {}

    def visit(self, stage, rows):
        everyone = torch.arange(len(self.table))
        assert stage not in self.visits, "a stage is visited once"
        self.visits[stage] = rows
        logits = self.table[everyone if rows is None else rows, stage]
        return StageOutput(classes=logits.shape[1], logits=logits)

    def visitors(self, stage):
        rows = self.visits.get(stage, torch.empty(0))
        return list(range(len(self))) if rows is None else rows.tolist()


def answered(policy, outputs, ids):
    return walk(Injected(policy, outputs, ids))


def paths_of(answer):
    return [answer.paths[way] for way in answer.path.tolist()]


def threshold_chain(stages, value=0.6):
    topology = Topology.of([f"s{k}" for k in range(stages)], edges="chain")
    nodes = {
        tuple(range(k + 1)): Node(Linear.threshold(Feature("max_prob", k), value))
        for k in range(stages - 1)
    }
    return Policy(topology, nodes)


def equal(a, b):
    return torch.equal(a.nan_to_num(nan=123.0), b.nan_to_num(nan=123.0))


@settings(deadline=None, max_examples=120)
@given(
    seed=st.integers(0, 2**20),
    stages=st.integers(1, 5),
    n=st.sampled_from([1, 2, 7, 33]),
    combine=st.sampled_from(["last", "mean", "log_linear"]),
    share=st.sampled_from([0.4, 0.8, 1.0]),
    broken=st.sampled_from([0.0, 0.3]),
)
def test_routing_equals_one_example_and_one_stage_at_a_time(
    seed, stages, n, combine, share, broken
):
    topology = random_topology(stages, seed=seed, share=share)
    policy = random_policy(topology, seed=seed, classes=4, combine=combine)
    outputs = outputs_of(n, stages, 4, seed, broken)
    ids = torch.arange(n) * 7 + seed
    fast = answered(policy, outputs, ids)
    slow = route_reference(policy, outputs, ids)
    assert torch.equal(fast.path, slow.path)
    assert fast.reasons == slow.reasons
    assert fast.stage.tolist() == [path[-1] for path in paths_of(fast)]
    assert torch.equal(fast.valid, slow.valid)
    assert torch.equal(fast.nonfinite, slow.nonfinite)
    assert equal(fast.log_probs, slow.log_probs)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**20), combine=st.sampled_from(["last", "mean", "log_linear"]))
def test_each_stage_sees_exactly_the_examples_whose_path_holds_it(seed, combine):
    topology = random_topology(4, seed=seed, share=0.8)
    policy = random_policy(topology, seed=seed, classes=3, combine=combine)
    flight = Injected(policy, outputs_of(19, 4, 3, seed), torch.arange(19))
    paths = paths_of(walk(flight))
    for stage in range(4):
        wanted = [i for i, path in enumerate(paths) if stage in path]
        assert flight.visitors(stage) == wanted


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**20), combine=st.sampled_from(["last", "mean", "log_linear"]))
def test_an_answer_does_not_depend_on_the_rest_of_the_batch_nor_on_its_order(seed, combine):
    policy = random_policy(random_topology(4, seed=seed), seed=seed, classes=3, combine=combine)
    outputs, ids = outputs_of(12, 4, 3, seed), torch.arange(12)
    whole = answered(policy, outputs, ids)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[:7]
    part = answered(policy, outputs[order], ids[order])
    assert torch.equal(part.log_probs, whole.log_probs[order])
    assert torch.equal(part.path, whole.path[order])


@pytest.mark.parametrize("combine", ["last", "mean", "log_linear"])
@pytest.mark.parametrize("stages", [2, 3, 5])
def test_the_host_waits_once_per_decision_on_a_chain(stages, combine, monkeypatch):
    monkeypatch.setattr("offramp.runtime.walk.at_hand", lambda *_: False)  # as on a device
    monkeypatch.setattr("offramp.runtime.walk._is_finite", lambda _: False)  # not asked there
    topology = Topology.of([f"s{k}" for k in range(stages)], edges="chain")
    weights = {p: [1.0] * len(p) for p in topology.paths()} if combine == "log_linear" else None
    nodes = {
        p: Node(Linear.threshold(Feature("margin", p[-1]), 0.5)) for p in topology.paths()[:-1]
    }
    policy = Policy(topology, nodes, combine=combine, weights=weights)
    flight = Injected(policy, outputs_of(64, stages, 4), torch.arange(64))
    with CountSyncs() as syncs:
        walk(flight)
    assert len(flight.visits) == stages
    assert 0 < syncs.count <= stages - 1


def test_the_host_does_not_wait_for_stages_that_nobody_reaches():
    topology = Topology.of(["a", "b", "c", "d"], edges="chain")
    nodes = {p: Node(Constant(True)) for p in topology.paths()[:-1]}
    policy = Policy(topology, nodes)
    flight = Injected(policy, outputs_of(8, 4, 3), torch.arange(8))
    with CountSyncs() as syncs:
        walk(flight)
    assert list(flight.visits) == [0]
    assert syncs.count == 1


def test_the_counter_of_waits_counts_what_synchronizes():
    values = torch.arange(4)
    with CountSyncs() as syncs:
        values.nonzero()
        int(values[0])
        values[values > 1]
    assert syncs.count == 3


@pytest.mark.parametrize("pattern", list(itertools.product([False, True], repeat=3)))
def test_nothing_is_gathered_where_everybody_goes_on_or_the_batch_is_one_example(pattern):
    policy = threshold_chain(2)
    sure, unsure = torch.tensor([9.0, 0.0]), torch.tensor([0.1, 0.0])
    outputs = torch.stack(
        [torch.stack([sure if leaves else unsure, sure]) for leaves in pattern]
    )  # (3, 2, 2)
    flight = Injected(policy, outputs, torch.arange(3))
    walk(flight)
    seen = flight.visits
    assert seen[0] is None
    if all(pattern):
        assert 1 not in seen
    elif not any(pattern):
        assert seen[1] is None
    else:
        assert seen[1].tolist() == [i for i, leaves in enumerate(pattern) if not leaves]


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("combine", ["last", "mean", "log_linear"])
def test_finite_examples_do_not_pay_for_those_that_are_not(n, combine, monkeypatch):
    """Each stage says its probabilities once, and nothing is kept to fall back on."""
    topology = Topology.of(["a", "b", "c"], edges="chain")
    weights = {p: [1.0] * len(p) for p in topology.paths()} if combine == "log_linear" else None
    never = {p: Node(Linear.threshold(Feature("margin", p[-1]), 2.0)) for p in [(0,), (0, 1)]}
    policy = Policy(topology, never, combine=combine, weights=weights)
    outputs = outputs_of(n, 3, 4)
    counted, kept = CountCalls("log_softmax"), []
    monkeypatch.setattr(Fallback, "after", lambda self, *_, **__: kept.append(self) or self)
    with counted:
        answer = answered(policy, outputs, torch.arange(n))
    assert answer.reasons == ["last"] * n
    # One example alone decides by plain numbers; only what it is answered is a tensor.
    of_last = 1 if n == 1 else 3
    assert counted.count == {"last": of_last, "mean": 3, "log_linear": 4}[combine]
    assert not kept
    outputs[0, 2, 0] = torch.nan
    answered(policy, outputs, torch.arange(n))
    assert kept


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_sum_that_overflows_is_no_infinity(stages):
    outputs = torch.full((3, stages, 2), torch.finfo(torch.float32).max)
    answer = answered(threshold_chain(stages, value=2.0), outputs, torch.arange(3))
    assert answer.valid.all()
    assert answer.reasons == ["last"] * 3


def test_a_broken_example_goes_on_to_the_last_child_and_is_counted():
    topology = Topology.of(["a", "b", "c"])
    always = Node(Constant(True), [Constant(True)])
    policy = Policy(topology, {(0,): always, (0, 1): Node(Constant(True))})
    outputs = torch.zeros(3, 3, 2)
    outputs[0, 0, 1] = torch.nan
    outputs[2, 0, 0] = torch.inf
    outputs[2, 2, 0] = -torch.inf
    routed = answered(policy, outputs, torch.arange(3))
    assert paths_of(routed) == [(0, 2), (0,), (0, 2)]
    assert routed.reasons == ["last", "policy", "nonfinite"]
    assert routed.nonfinite.tolist() == [1, 0, 2]
    assert routed.valid.tolist() == [True, True, False]
    assert routed.log_probs[2].isnan().all()


def test_the_last_finite_stage_answers_in_place_of_a_broken_one():
    policy = threshold_chain(3, value=2.0)  # nobody leaves early
    outputs = outputs_of(2, 3, 4)
    outputs[0, 2] = torch.nan
    routed = answered(policy, outputs, torch.arange(2))
    assert torch.equal(routed.log_probs[0], outputs[0, 1].log_softmax(0))
    assert torch.equal(routed.log_probs[1], outputs[1, 2].log_softmax(0))
    assert routed.valid.all()


def test_a_combination_leaves_out_what_was_not_finite():
    topology = Topology.of(["a", "b"])
    policy = Policy(topology, {(0,): Node(Constant(False))}, combine="mean")
    outputs = outputs_of(2, 2, 3)
    outputs[0, 0] = torch.nan
    routed = answered(policy, outputs, torch.arange(2))
    assert torch.equal(routed.log_probs[0], outputs[0, 1].log_softmax(0))
    expected = (outputs[1].softmax(1)[0] + outputs[1].softmax(1)[1]) / 2
    torch.testing.assert_close(routed.log_probs[1].exp(), expected)


def test_an_empty_batch_has_empty_answers_of_the_right_shapes():
    routed = answered(threshold_chain(3), torch.zeros(0, 3, 5), torch.arange(0))
    assert routed.log_probs.shape == (0, 5)
    assert routed.path.dtype == routed.nonfinite.dtype == torch.int64
    assert routed.valid.dtype == torch.bool


def test_a_twin_that_ignores_broken_outputs_would_be_caught():
    policy, outputs = threshold_chain(2), outputs_of(33, 2, 3, broken=0.5)
    honest = route_reference(policy, outputs, torch.arange(33))
    careless = route_reference(policy, outputs.nan_to_num(), torch.arange(33))
    assert not torch.equal(honest.nonfinite, careless.nonfinite)
    assert not equal(honest.log_probs, careless.log_probs)
