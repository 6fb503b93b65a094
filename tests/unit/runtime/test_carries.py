import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offramp._core.topology import Topology
from offramp.policy import Constant, Feature, Linear, Node, Policy
from offramp.runtime.inflight import InFlight
from offramp.runtime.plans import plan_segments
from offramp.runtime.program import Program
from offramp.runtime.walk import walk
from offramp.stages import Stage
from offramp.testing import random_policy, random_topology
from reference.walk import route_reference


def flight_of(topology, stages, batch, n, policy=None):
    policy = random_policy(topology, seed=0, classes=3) if policy is None else policy
    return InFlight(Program(policy, stages), batch, torch.arange(n))


def paths_of(answer):
    return [answer.paths[way] for way in answer.path.tolist()]


class Segment(nn.Module):
    """Changes the carry element by element; column 0 is the example's number and stays."""

    def __init__(self, k):
        super().__init__()
        self.k = k
        self.seen = []

    def forward(self, x):
        assert len(x) > 0, "nothing runs for nobody"
        self.seen += x[:, 0].int().tolist()
        return torch.cat([x[:, :1], torch.sin(x[:, 1:] * (self.k + 2))], dim=1)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen += x[:, 0].int().tolist()
        return x[:, 1:] * 4


def stages_of(topology):
    names = topology.names
    return {
        k: Stage(
            names[k],
            Segment(k),
            head=Head(),
            source=None if topology.sources[k] == -1 else names[topology.sources[k]],
        )
        for k in range(len(topology))
    }


def inputs(n, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, classes, generator=generator)
    return torch.cat([torch.arange(n)[:, None].float(), values], dim=1)


def all_outputs(topology, x):
    """What every stage would say about everybody, computed stage by stage on fresh modules."""
    columns = []
    for k in range(len(topology)):
        carry, fresh = x, stages_of(topology)
        for j in topology.lineage(k):
            carry = fresh[j].segment(carry)
        columns.append(fresh[k].answer(carry).logits)
    return torch.stack(columns, dim=1)


def run(topology, policy, x, stages):
    flight = flight_of(topology, stages, x, len(x), policy)
    return walk(flight), flight


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**20),
    n=st.sampled_from([1, 2, 7, 33]),
    combine=st.sampled_from(["last", "mean"]),
    shared=st.booleans(),
    count=st.integers(1, 5),
)
def test_every_segment_and_head_runs_once_for_exactly_those_who_need_it(
    seed, n, combine, shared, count
):
    topology = random_topology(count, seed=seed, shared=shared)
    policy = random_policy(topology, seed=seed, classes=3, combine=combine)
    x, stages = inputs(n, 3, seed), stages_of(topology)
    answer, flight = run(topology, policy, x, stages)
    paths = paths_of(answer)
    for k, stage in stages.items():
        needing = [i for i, p in enumerate(paths) if any(k in topology.lineage(j) for j in p)]
        visiting = [i for i, p in enumerate(paths) if k in p]
        assert sorted(stage.module.seen) == needing
        assert stage.head.seen == visiting
    wanted = route_reference(policy, all_outputs(topology, x), torch.arange(n))
    assert torch.equal(answer.path, wanted.path)
    assert torch.equal(answer.log_probs, wanted.log_probs)
    if len(topology.active) == 1 or any(p[-1] == topology.active[-1] for p in paths):
        assert flight.held == frozenset()


def test_an_unused_exit_costs_its_segment_but_not_its_head():
    whole = Topology.of(["a", "b", "c"], sources=[-1, 0, 1], edges="chain")
    topology = whole.chain(["a", "c"])
    policy = Policy(topology, {(0,): Node(Constant(False))})
    stages = stages_of(topology)
    run(topology, policy, inputs(4, 3, 0), stages)
    assert stages[1].module.seen == [0, 1, 2, 3]
    assert stages[1].head.seen == []


def test_a_policy_that_starts_at_a_late_exit_runs_all_segments_below_it():
    whole = Topology.of(["a", "b", "c"], sources=[-1, 0, 1], edges="chain")
    plans = plan_segments(whole.chain(["c"]))
    assert plans[2].segments == (0, 1, 2)
    assert plans[2].by_some == frozenset()
    assert plans[2].keep == frozenset()


def test_the_raw_input_and_the_carries_are_let_go_when_nobody_needs_them_any_more():
    topology = Topology.of(["a", "b", "c"], sources=[-1, 0, 1], edges="chain")
    flight = flight_of(topology, stages_of(topology), inputs(3, 2, 0), 3)
    assert flight.held == {""}
    flight.visit(0, None)
    assert flight.held == {"a"}
    flight.visit(1, torch.tensor([0, 2]))
    assert flight.held == {"b"}
    flight.visit(2, torch.tensor([2]))
    assert flight.held == frozenset()


def test_networks_that_all_read_the_raw_input_hold_nothing_else():
    topology = Topology.of(["a", "b"])
    flight = flight_of(topology, stages_of(topology), inputs(3, 2, 0), 3)
    flight.visit(0, None)
    assert flight.held == {""}
    flight.visit(1, None)
    assert flight.held == frozenset()


def test_alternative_heads_at_one_cut_share_the_run_of_their_segment():
    topology = Topology.of(["a", "b1", "b2"], sources=[-1, 0, 0], groups=["a", "b", "b"])
    shared, stages = Segment(1), stages_of(topology)
    for k in (1, 2):
        stages[k] = Stage(f"b{k}", shared, head=Head(), source="a", group="b")
    both = topology.part([(0, 1), (1, 2)])
    nodes = {(0,): Node(Constant(False)), (0, 1): Node(Constant(False))}
    run(both, Policy(both, nodes), inputs(3, 2, 0), stages)
    assert shared.seen == [0, 1, 2]
    assert stages[1].head.seen == stages[2].head.seen == [0, 1, 2]


def test_what_some_have_run_is_not_run_again_for_them():
    """a -> b -> d and a -> d, where d continues c, which continues b: only some lack b."""
    whole = Topology.of(["a", "b", "c", "d"], sources=[-1, 0, 1, 2])
    topology = whole.part([(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)])
    split = Node(Constant(False), [Linear.threshold(Feature("log_prob_1", 0), -0.2)] * 2)
    on = Node(Constant(False))
    policy = Policy(topology, {(0,): split, (0, 1): on, (0, 2): on})
    x, stages = inputs(40, 2, 3), stages_of(topology)
    answer, _ = run(topology, policy, x, stages)
    assert len(set(paths_of(answer))) >= 2
    for stage in stages.values():
        assert sorted(stage.module.seen) == list(range(40))


def test_what_was_run_long_before_is_not_run_again_either():
    """r -> c -> d and r -> d on the chain b, c, d of segments: who came by c has run b as well."""
    whole = Topology.of(["r", "b", "c", "d"], sources=[-1, -1, 1, 2])
    topology = whole.part([(0, 2), (0, 3), (2, 3)])
    split = Node(Constant(False), [Linear.threshold(Feature("max_prob", 0), 0.7)])
    policy = Policy(topology, {(0,): split, (0, 2): Node(Constant(False))})
    x, stages = inputs(40, 2, 3), stages_of(topology)
    answer, _ = run(topology, policy, x, stages)
    assert set(paths_of(answer)) == {(0, 2, 3), (0, 3)}
    for k in (1, 2, 3):
        assert sorted(stages[k].module.seen) == list(range(40))


def test_a_carry_of_some_is_narrowed_to_the_right_ones():
    topology = Topology.of(["a", "b", "c"], sources=[-1, 0, 1], edges="chain")
    flight = flight_of(topology, stages_of(topology), inputs(6, 2, 0), 6)
    wanted = all_outputs(topology, inputs(6, 2, 0))
    for stage, rows in ((0, None), (1, torch.tensor([1, 3, 4, 5])), (2, torch.tensor([3, 5]))):
        logits = flight.visit(stage, rows).logits
        assert torch.equal(logits, wanted[:, stage] if rows is None else wanted[rows, stage])


@pytest.mark.parametrize("kind", ["tensor", "tuple", "mapping"])
def test_batches_may_be_tensors_tuples_or_mappings(kind):
    class Sum(nn.Module):
        def forward(self, left, right=None):
            return left if right is None else left + right

    topology = Topology.of(["a", "b"])
    stages = {k: Stage(name, Sum()) for k, name in enumerate("ab")}
    left, right = torch.arange(6.0).reshape(3, 2), torch.ones(3, 2)
    batch = {"tensor": left, "tuple": (left, right), "mapping": {"left": left, "right": right}}[
        kind
    ]
    flight = flight_of(topology, stages, batch, 3)
    flight.visit(0, None)
    wanted = left if kind == "tensor" else left + right
    assert torch.equal(flight.visit(1, torch.tensor([2])).logits, wanted[2:])


def test_no_copy_is_made_where_everybody_survives():
    held = []

    class Keep(nn.Module):
        def forward(self, x):
            held.append(x)
            return x * 1

    topology = Topology.of(["a", "b", "c"], edges="chain")
    stages = {k: Stage(name, Keep()) for k, name in enumerate("abc")}
    batch = torch.zeros(5, 2)
    for _ in range(2):  # the first time each stage gets a copy, to see whether it writes into it
        held.clear()
        flight = flight_of(topology, stages, batch, 5)
        for stage in range(3):
            flight.visit(stage, None)
    assert len(held) == 3
    assert all(x is batch for x in held)
