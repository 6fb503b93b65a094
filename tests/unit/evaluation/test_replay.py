"""Replay against its slow twin, on random topologies, rules and combinations."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.evaluation import evaluate, evaluate_all
from offramp.evaluation.replay import replay
from offramp.fitting.thresholds import fit_threshold
from offramp.policy import Agreement, Candidate, Constant, Feature, Linear, Node, Policy, Random
from offramp.policy.features import COMBINED
from offramp.testing.slow import replay_slow
from offramp.trace import Trace, make_trace
from support.properties import examples


def random_topology(rng: np.random.Generator, s: int) -> Topology:
    pairs = [(j, k) for j in range(s) for k in range(j + 1, s) if rng.random() < 0.7]
    return Topology.of([f"stage{k}" for k in range(s)]).part(pairs)


def random_rule(rng: np.random.Generator, path: tuple[int, ...]):
    kind = rng.integers(4 if len(path) > 1 else 3)
    if kind == 0:
        return Constant(bool(rng.integers(2)))
    if kind == 1:
        return Random(float(rng.random()), int(rng.integers(100)), path[-1])
    if kind == 2:
        names = ["max_prob", "margin", "log_margin", "entropy", "log_prob_2", f"agrees_{path[0]}"]
        stages = [COMBINED, *path]
        features = [
            Feature(str(rng.choice(names)), int(rng.choice(stages)))
            for _ in range(rng.integers(1, 4))
        ]
        return Linear(features, rng.normal(size=len(features)).tolist(), float(rng.normal()))
    return Agreement((path[-2], path[-1]))


def random_policy(rng: np.random.Generator, topology: Topology) -> Policy:
    nodes = {
        path: Node(
            random_rule(rng, path),
            [random_rule(rng, path) for _ in topology.children(path[-1])[1:]],
        )
        for path in topology.paths()
        if topology.children(path[-1])
    }
    combine = str(rng.choice(["last", "mean", "log_linear"]))
    weights = {p: (0.1 + rng.random(len(p))).tolist() for p in topology.paths()}
    return Policy(
        topology,
        nodes,
        temperatures=(0.5 + rng.random(len(topology))).tolist(),
        combine=combine,
        weights=weights if combine == "log_linear" else None,
    )


def random_case(seed: int, kind: str = "logits", n: int = 12) -> tuple[Trace, Policy]:
    rng = np.random.default_rng(seed)
    topology = random_topology(rng, int(rng.integers(1, 5)))
    trace = make_trace(n, seed=seed, kind=kind, topology=topology)
    costs = Costs(
        unit="flops", **{f: tuple(rng.random(len(topology)).tolist()) for f in COST_FIELDS}
    )
    return trace.with_costs(costs), random_policy(rng, topology)


COST_FIELDS = ("segment", "head", "decision")
FIELDS = ("path", "last", "visited", "labels", "wrong", "cost", "closest")


def assert_equal(fast, slow):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name), err_msg=name)
    assert fast.paths == slow.paths


@examples(60)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["logits", "labels"]),
    chunk=st.integers(1, 14),
)
def test_replay_equals_walking_each_example_on_its_own(seed, kind, chunk):
    trace, policy = random_case(seed, kind)
    slow = replay_slow(trace, policy)
    assert_equal(replay(trace, policy), slow)
    assert_equal(replay(trace, policy, chunk=chunk), slow)


def test_the_random_cases_reach_every_kind_of_path():
    found = [random_case(seed) for seed in range(60)]
    lengths = {len(p) for t, c in found for p in [c.topology.paths()[replay(t, c).path[0]]]}
    assert lengths >= {1, 2, 3}
    assert any(len(c.topology.children(0)) > 1 for _, c in found)
    assert {c.combine for _, c in found} == {"last", "mean", "log_linear"}


@examples(25)
@given(seed=st.integers(0, 2**31), top=st.integers(1, 4))
def test_top_m_answers_equal_the_slow_twin_and_hold_the_smaller_ones(seed, top):
    trace, policy = random_case(seed)
    found = replay(trace, policy, top=top)
    assert_equal(found, replay_slow(trace, policy, top=top))
    np.testing.assert_array_equal(found.labels[:, :1], replay(trace, policy, top=1).labels)
    assert (found.wrong <= replay(trace, policy, top=1).wrong).all()


@examples(40)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["logits", "labels"]))
def test_many_settings_at_once_are_evaluated_as_one_by_one(seed, kind):
    trace, first = random_case(seed, kind, n=30)
    rng = np.random.default_rng(seed)
    others = [
        random_policy(rng, trace.topology.part(e for e in trace.topology.edges if rng.random() < p))
        for p in (0.5, 1.0, 1.0)
    ]
    sweep = [
        Candidate(policy=policy, method="", reference=str(rng.choice(trace.stages)), top=top)
        for policy in (first, *others)
        for top in ((1, 2) if kind == "logits" else (1,))
    ]
    together = evaluate_all(trace, sweep)
    assert together == [evaluate(trace, candidate, bootstrap=0) for candidate in sweep]


def test_many_settings_at_once_are_the_same_in_runs_of_examples():
    trace = make_trace(700, stages=2, classes=1000, seed=0)  # several runs of 400
    found = fit_threshold(trace, reference="stage1", confidences=["entropy"], grid=5)
    assert evaluate_all(trace, found) == [evaluate(trace, s, bootstrap=0) for s in found]


@examples(25)
@given(seed=st.integers(0, 2**31))
def test_what_happens_to_an_example_does_not_depend_on_the_others(seed):
    trace, policy = random_case(seed)
    whole = replay(trace, policy)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(trace)))
    shuffled = replay(trace.take(order), policy)
    np.testing.assert_array_equal(shuffled.path, whole.path[order])
    np.testing.assert_array_equal(shuffled.labels, whole.labels[order])


def test_cost_depends_on_the_way_and_not_on_the_last_stage_alone():
    trace = make_trace(200, stages=3, seed=3)
    topology = trace.topology
    margin = Linear.threshold(Feature("margin", 0), 0.5)
    nodes = {
        (0,): Node(Constant(False), [margin]),  # to stage 1 if sure, else to stage 2
        (0, 1): Node(Constant(False)),
    }
    done = replay(trace, Policy(topology, nodes))
    assert set(done.last) == {2}
    assert set(done.cost) == {1.0 + 16.0, 1.0 + 4.0 + 16.0}
    assert done.visited[:, 1].sum() == (done.cost == 21.0).sum()


def test_a_decision_that_looks_at_nothing_is_not_charged():
    trace = make_trace(20, stages=2, seed=0)
    costs = Costs(unit="flops", segment=(1, 4), head=(0, 0), decision=(0.5, 0.5))
    trace = trace.with_costs(costs)
    for rule, charge in [
        (Constant(False), 0.0),
        (Random(0.0, 0, 0), 0.0),
        (Linear.threshold(Feature("max_prob", 0), 2.0), 0.5),
    ]:
        done = replay(trace, Policy(trace.topology, {(0,): Node(rule)}))
        assert set(done.cost) == {5.0 + charge}
        assert np.isinf(done.closest).sum() == 0 or rule.free


def test_stages_that_share_work_pay_for_a_segment_once():
    topology = Topology.of(["exit0", "exit1"], sources=[-1, 0])
    trace = make_trace(10, topology=topology)
    trace = trace.with_costs(Costs(unit="flops", segment=(3, 5), head=(0.25, 0.5), decision=(0, 0)))
    on = replay(trace, Policy(topology, {(0,): Node(Constant(False))}))
    assert set(on.cost) == {3 + 0.25 + 5 + 0.5}
    alone = replay(trace, Candidate.single(topology, "exit1", reference="exit1").policy)
    assert set(alone.cost) == {3 + 5 + 0.5}


def test_rankings_without_scores_can_be_replayed():
    base = make_trace(50, stages=3, kind="labels", seed=1)
    trace = Trace(
        topology=base.topology,
        labels=base.labels,
        classes=base.classes,
        costs=base.costs,
        ranked=base.ranked,
    )
    chain = trace.topology.chain([0, 1, 2])
    policy = Policy(chain, {(0,): Node(Constant(False)), (0, 1): Node(Agreement((0, 1)))})
    done = replay(trace, policy, top=2)
    assert_equal(done, replay_slow(trace, policy, top=2))
    agree = (trace.ranked[:, 0, 0] == trace.ranked[:, 1, 0]).numpy()
    np.testing.assert_array_equal(done.last, np.where(agree, 1, 2))


def test_a_stage_alone_errs_exactly_where_the_trace_says_it_does():
    for kind in ("logits", "labels"):
        trace = make_trace(80, stages=2, kind=kind, seed=2)
        for k, name in enumerate(trace.stages):
            policy = Candidate.single(trace.topology, name, reference=name).policy
            np.testing.assert_array_equal(replay(trace, policy).wrong, trace.wrong(k))


def test_services_that_report_confidences_below_chance_keep_their_label():
    base = make_trace(60, stages=2, classes=2, kind="labels", seed=4)
    trace = Trace(
        topology=base.topology,
        labels=base.labels,
        classes=2,
        costs=base.costs,
        ranked=base.ranked,
        confidence=base.confidence * torch.linspace(0, 0.5, 60)[:, None],
    )
    policy = Candidate.single(trace.topology, "stage0", reference="stage0").policy
    np.testing.assert_array_equal(replay(trace, policy).wrong, trace.wrong(0))


def test_examples_named_by_text_draw_the_same_numbers_in_any_order():
    base = make_trace(200, stages=2, seed=0)
    names = np.array([f"image {i}" for i in range(200)])
    trace = Trace(
        topology=base.topology,
        labels=base.labels,
        classes=base.classes,
        costs=base.costs,
        logits=base.logits,
        ids=names,
    )
    policy = Policy(trace.topology, {(0,): Node(Random(0.5, 7, 0))})
    done = replay(trace, policy)
    assert 60 < (done.last == 0).sum() < 140
    back = torch.arange(199, -1, -1)
    np.testing.assert_array_equal(replay(trace.take(back), policy).last, done.last[::-1])


def test_a_policy_of_another_cascade_is_refused():
    trace = make_trace(10, stages=2)
    other = Candidate.single(Topology.of(["a", "b"]), "b", reference="b").policy
    with pytest.raises(InputError, match=r"names \('a', 'b'\), but the trace has \('stage0'"):
        replay(trace, other)


def test_a_chunk_of_nothing_is_refused():
    trace = make_trace(10, stages=2)
    policy = Candidate.single(trace.topology, "stage0", reference="stage1").policy
    with pytest.raises(InputError, match="chunk must be an integer of at least 1, got 0"):
        replay(trace, policy, chunk=0)
