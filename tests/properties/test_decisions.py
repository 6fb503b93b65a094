"""What must hold for every policy on every trace, whoever fitted it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp.evaluation import evaluate, replay
from offramp.policy import Candidate, Constant, Feature, Linear, Node, Policy
from offramp.policy.features import CONFIDENCES
from offramp.testing import random_policy, random_topology
from offramp.trace import make_trace
from support.properties import examples

SEEDS = st.integers(0, 2**31 - 1)
STAGES, CLASSES = 3, 4
KINDS = sorted(CONFIDENCES)


def threshold_policy(topology, kind, value, combine="last"):
    """One value on one statistic after every stage; higher values ask for more sureness."""
    sign = CONFIDENCES[kind]
    nodes = {
        path: Node(Linear.threshold(Feature(kind, path[-1]), sign * value, sign=sign))
        for path in topology.paths()
        if topology.children(path[-1])
    }
    return Policy(topology, nodes, combine=combine)


def chain_trace(seed, n=60):
    trace = make_trace(n, stages=STAGES, classes=CLASSES, seed=seed)
    return trace, trace.topology.chain(range(STAGES))


def wandering(seed):
    """A trace and a policy drawn at random, over a random part of the edges."""
    topology = random_topology(STAGES, seed=seed, shared=bool(seed % 2))
    trace = make_trace(40, classes=CLASSES, seed=seed, topology=topology)
    combine = ("last", "mean", "log_linear")[seed % 3]
    return trace, random_policy(topology, seed=seed, classes=CLASSES, combine=combine)


@given(seed=SEEDS, kind=st.sampled_from(KINDS), values=st.tuples(*[st.floats(-3, 3)] * 2))
@examples(40)
def test_a_higher_threshold_never_exits_earlier(seed, kind, values):
    trace, chain = chain_trace(seed)
    low, high = sorted(values)
    early = replay(trace, threshold_policy(chain, kind, low))
    late = replay(trace, threshold_policy(chain, kind, high))
    assert (early.last <= late.last).all()
    assert (early.cost <= late.cost).all()


def test_the_thresholds_above_do_move_examples():
    trace, chain = chain_trace(0)
    early, late = (replay(trace, threshold_policy(chain, "max_prob", v)) for v in (0.5, 0.95))
    assert (early.last < late.last).any()


def test_a_threshold_with_the_wrong_sign_would_be_caught():
    trace, chain = chain_trace(0)

    def upside_down(value):
        rule = Linear.threshold(Feature("max_prob", 0), value, sign=-1.0)
        nodes = {(0,): Node(rule), (0, 1): Node(Constant(True))}
        return replay(trace, Policy(chain, nodes)).last

    assert (upside_down(0.5) > upside_down(0.95)).any()


@given(seed=SEEDS)
@examples(40)
def test_every_example_costs_between_the_cheapest_and_the_dearest_path(seed):
    trace, policy = wandering(seed)
    done = replay(trace, policy)
    priced = [trace.costs.path(trace.topology, p, policy.decided(p)) for p in done.paths]
    assert (done.cost >= min(priced) - 1e-9).all()
    assert (done.cost <= max(priced) + 1e-9).all()
    root = trace.costs.alone(trace.topology, policy.topology.root)
    assert (done.cost >= root - 1e-9).all()


@given(seed=SEEDS)
@examples(30)
def test_what_an_example_visited_is_a_path_of_the_policy_that_ends_where_it_left(seed):
    trace, policy = wandering(seed)
    done = replay(trace, policy)
    allowed = set(policy.topology.paths())
    for row in range(len(trace)):
        walked = tuple(np.flatnonzero(done.visited[row]).tolist())
        assert walked in allowed
        assert walked[-1] == done.last[row]


@given(seed=SEEDS)
@examples(30)
def test_shares_add_up_and_the_difference_lies_within_the_new_errors(seed):
    trace, policy = wandering(seed)
    reference = trace.stages[-1]
    found = evaluate(trace, Candidate(policy=policy, method="random", reference=reference))
    assert sum(found.exit_share) == pytest.approx(1)
    spent = sum(found.useful_share) + sum(found.overhead_share) + found.decision_share
    assert spent == pytest.approx(1)
    assert found.negative_flips <= 1
    assert found.accuracy_drop <= found.negative_flips + 1e-12
    assert found.accuracy == pytest.approx(found.reference_accuracy - found.accuracy_drop)
    low, high = found.accuracy_drop_ci
    assert low - 1e-12 <= found.accuracy_drop <= high + 1e-12


@given(seed=SEEDS)
@examples(30)
def test_shuffling_the_examples_shuffles_the_outcome_and_nothing_else(seed):
    trace, policy = wandering(seed)
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    done, shuffled = replay(trace, policy), replay(trace.take(order), policy)
    assert np.array_equal(done.path[order.numpy()], shuffled.path)
    assert np.array_equal(done.labels[order.numpy()], shuffled.labels)


@given(seed=SEEDS, temperature=st.floats(0.1, 10))
@examples(30)
def test_a_temperature_changes_sureness_but_no_label_of_a_stage_alone(seed, temperature):
    trace, _ = chain_trace(seed)
    chain = trace.topology.chain([1])
    plain = replay(trace, Policy(chain, {}))
    scaled = replay(trace, Policy(chain, {}, temperatures=[temperature] * STAGES))
    assert np.array_equal(plain.labels, scaled.labels)


@given(seed=SEEDS)
@examples(30)
def test_the_mean_of_a_stage_with_itself_and_weights_of_one_stage_change_nothing(seed):
    trace, chain = chain_trace(seed)
    nodes = {p: Node(Constant(False)) for p in chain.paths()[:-1]}
    alone = replay(trace, Policy(chain, nodes))
    weights = {p: [0.0] * (len(p) - 1) + [1.0] for p in chain.paths()}
    pooled = replay(trace, Policy(chain, nodes, combine="log_linear", weights=weights))
    assert np.array_equal(alone.labels, pooled.labels)


@given(seed=SEEDS)
@examples(20)
def test_leaving_always_is_the_root_alone_and_leaving_never_is_the_last_stage(seed):
    trace, chain = chain_trace(seed)
    inner = [p for p in chain.paths() if chain.children(p[-1])]
    for take, stage in ((True, 0), (False, STAGES - 1)):
        done = replay(trace, Policy(chain, {p: Node(Constant(take)) for p in inner}))
        assert (done.last == stage).all()
        assert np.array_equal(done.wrong, trace.wrong(stage))


def test_paths_grow_by_one_stage_at_a_time():
    topology = random_topology(4, seed=0, share=1.0)
    inner = {p for p in topology.paths() if len(p) > 1}
    assert all(p[:-1] in set(topology.paths()) for p in inner)
    assert all(a < b for p in inner for a, b in pairwise(p))
