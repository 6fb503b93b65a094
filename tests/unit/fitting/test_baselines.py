"""Random, agreement and threshold policies."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.keys import example_keys
from offramp.evaluation.replay import replay
from offramp.fitting.baselines import fit_agreement, fit_random
from offramp.fitting.pareto import pareto_front
from offramp.fitting.temperature import fit_temperatures
from offramp.fitting.thresholds import fit_threshold
from offramp.policy import Candidate, Constant, Feature, Linear, Node, Policy
from offramp.policy.features import COMBINED, CONFIDENCES, Distribution
from offramp.trace import Trace, make_trace
from support.properties import examples


def with_decision_costs(trace: Trace) -> Trace:
    s = len(trace.topology)
    return trace.with_costs(
        Costs(
            unit="flops",
            segment=trace.costs.segment,
            head=(0.25,) * s,
            decision=tuple(0.1 * (k + 1) for k in range(s)),
        )
    )


def figures(trace: Trace, candidate: Candidate) -> tuple[float, float, float]:
    """Cost, error and excess by replay."""
    done = replay(trace, candidate.policy, top=candidate.top)
    f_wrong = trace.wrong(trace.topology.index(candidate.reference), top=candidate.top)
    return done.cost.mean(), done.wrong.mean(), (done.wrong & ~f_wrong).mean()


# --- threshold
# ---------------------------------------------------------------------------------------


def every_threshold(trace: Trace, kind: str, combine: str) -> list[Candidate]:
    """All candidates of a chain of two, built one by one."""
    temperatures = fit_temperatures(trace)
    probe = Feature(kind, 0)
    scores = trace.output(0).scores() / torch.tensor(temperatures[0])
    values = probe.of(lambda _: distribution(scores)).unique().tolist()
    sign = CONFIDENCES[kind]
    rules = [Constant(False), *[Linear.threshold(probe, v, sign=sign) for v in values]]
    return [
        Candidate(
            policy=Policy(
                trace.topology.chain([0, 1]),
                {(0,): Node(rule)},
                temperatures=temperatures,
                combine=combine,
            ),
            method="threshold",
            reference="stage1",
        )
        for rule in rules
    ]


def distribution(scores):
    return Distribution(scores.log_softmax(dim=1))


@pytest.mark.parametrize("kind", list(CONFIDENCES))
@pytest.mark.parametrize("combine", ["last", "mean"])
def test_two_stages_give_the_front_of_all_thresholds(kind, combine):
    trace = with_decision_costs(make_trace(40, stages=2, seed=7))
    found = fit_threshold(
        trace, reference="stage1", confidences=[kind], combines=[combine], grid=400
    )
    have = {figures(trace, s) for s in found}
    every = np.array([figures(trace, s) for s in every_threshold(trace, kind, combine)])
    front = pareto_front(every[:, 0], every[:, 1]) | pareto_front(every[:, 0], every[:, 2])
    np.testing.assert_allclose(sorted(have), sorted({tuple(row) for row in every[front]}))


@examples(15)
@given(seed=st.integers(0, 2**31), combine=st.sampled_from(["last", "mean", "log_linear"]))
def test_no_setting_of_a_longer_chain_beats_another_when_replayed(seed, combine):
    """Holds only if the scans' figures are those of a replay."""
    trace = with_decision_costs(make_trace(60, stages=3, seed=seed))
    chain = trace.topology.chain([0, 1, 2])
    found = fit_threshold(
        trace, reference="stage2", topologies=[chain], combines=[combine], confidences=["margin"]
    )
    values = np.array([figures(trace, s) for s in found]).round(9)
    on = pareto_front(values[:, 0], values[:, 1]) | pareto_front(values[:, 0], values[:, 2])
    assert on.all()


def best_objective(values: np.ndarray, trade_off: float) -> float:
    return (values[:, 1] + trade_off * values[:, 0] / 16.0).min()


@pytest.mark.parametrize("seed", range(3))
def test_three_stages_come_near_an_exhaustive_search(seed):
    trace = make_trace(24, stages=3, seed=seed)
    chain = trace.topology.chain([0, 1, 2])
    options = {"temperatures": [1.0, 1.0, 1.0], "combines": ["last"], "confidences": ["margin"]}
    found = fit_threshold(trace, reference="stage2", topologies=[chain], grid=1000, **options)
    have = np.array([figures(trace, s) for s in found])
    margins = [Feature("margin", k) for k in (0, 1)]
    cuts = [
        [None, *distribution(trace.output(k).scores()).margin.unique().tolist()] for k in (0, 1)
    ]
    every = []
    for pair in itertools.product(*cuts):
        rules = [
            Constant(False) if v is None else Linear.threshold(f, v)
            for v, f in zip(pair, margins, strict=True)
        ]
        policy = Policy(chain, {(0,): Node(rules[0]), (0, 1): Node(rules[1])})
        every.append(figures(trace, Candidate(policy=policy, method="", reference="stage2")))
    for trade_off in (0.01, 0.1, 0.3, 1.0):
        gap = best_objective(have, trade_off) - best_objective(np.array(every), trade_off)
        assert -1e-9 <= gap <= 0.5 / 24  # coordinate search may stop short, by half an error


def test_the_grid_bounds_the_number_of_settings_per_chain():
    trace = make_trace(500, stages=3)
    found = fit_threshold(trace, reference="stage2", grid=10)
    chains = [s.policy.topology.describe() for s in found]
    assert len(set(chains)) == 4
    assert max(chains.count(c) for c in chains) <= 10


def test_thresholds_look_at_the_answer_itself():
    trace = make_trace(300, stages=3)
    chain = trace.topology.chain([0, 1, 2])
    for combine, stage in [("mean", COMBINED), ("last", 1)]:
        found = fit_threshold(trace, reference="stage2", topologies=[chain], combines=[combine])
        rules = [s.policy.node((0, 1)).leave for s in found]
        looked = {f.stage for r in rules if isinstance(r, Linear) for f in r.features}
        assert looked == {stage}


def test_given_temperatures_and_weights_are_used():
    trace = make_trace(200, stages=2)
    weights = {(0,): (1.0,), (1,): (1.0,), (0, 1): (0.3, 0.7)}
    found = fit_threshold(
        trace,
        reference="stage1",
        combines=["log_linear"],
        temperatures=[2.0, 3.0],
        weights=weights,
    )
    policy = found[0].policy
    assert policy.temperatures.tolist() == [2.0, 3.0]
    assert policy.combination.weights[(0, 1)] == (0.3, 0.7)


def test_thresholds_beat_leaving_at_random():
    trace = make_trace(3000, stages=2, seed=0)
    threshold = np.array([figures(trace, s) for s in fit_threshold(trace, reference="stage1")])
    random = np.array([figures(trace, s) for s in fit_random(trace, reference="stage1")])
    for cost, error, _ in random[1:-1]:
        assert (threshold[threshold[:, 0] <= cost, 1] < error).any()


def test_top_m_and_labels_with_confidences_are_fitted():
    trace = make_trace(300, stages=2, classes=6, seed=0)
    found = fit_threshold(trace, reference="stage1", top=3)
    assert all(s.top == 3 for s in found)
    labels = make_trace(300, stages=2, classes=6, kind="labels", seed=0)
    assert len(fit_threshold(labels, reference="stage1")) > 3


def test_what_cannot_be_fitted_is_refused():
    trace = make_trace(50, stages=3)
    with pytest.raises(InputError, match=r"confidences must be one of .* got 'max_prop'.*max_prob"):
        fit_threshold(trace, reference="stage2", confidences=["max_prop"])
    with pytest.raises(InputError, match="must be chains of two or more stages, got"):
        fit_threshold(trace, reference="stage2", topologies=[trace.topology])
    with pytest.raises(InputError, match="grid must be an integer of at least 1, got 0"):
        fit_threshold(trace, reference="stage2", grid=0)


# --- random --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_uniform_policy_leaves_at_its_rate_after_each_stage(rate):
    trace = make_trace(4000, stages=3)
    chain = trace.topology.chain([0, 1, 2])
    (candidate,) = fit_random(trace, reference="stage2", rates=[rate], topologies=[chain])
    last = replay(trace, candidate.policy).last
    expected = [rate, (1 - rate) * rate, (1 - rate) ** 2]
    assert np.bincount(last, minlength=3) / 4000 == pytest.approx(expected, abs=0.03)


def test_the_uniform_policy_does_not_look_at_outputs():
    trace = make_trace(500, stages=2, seed=0)
    other = make_trace(500, stages=2, seed=1)
    (candidate,) = fit_random(trace, reference="stage1", rates=[0.5])
    np.testing.assert_array_equal(
        replay(trace, candidate.policy).last, replay(other, candidate.policy).last
    )


def test_uniform_policies_may_combine():
    trace = make_trace(300, stages=2)
    for combine in ("mean", "log_linear"):
        found = fit_random(trace, reference="stage1", rates=[0.0], combine=combine)
        assert found[0].policy.combine == combine


def test_a_rate_in_per_cent_is_refused():
    with pytest.raises(InputError, match=r"rate must be in \[0, 1\], got 50"):
        fit_random(make_trace(10, stages=2), reference="stage1", rates=[50])


# --- agreement ------------------------------------------------------------------------------------


def test_agreement_leaves_at_the_second_stage_where_labels_agree():
    trace = make_trace(400, stages=3, kind="labels", seed=2)
    (candidate,) = fit_agreement(trace, reference="stage2", options=[(1, 1)])
    agree = (trace.ranked[:, 0, 0] == trace.ranked[:, 1, 0]).numpy()
    assert 0 < agree.sum() < 400
    np.testing.assert_array_equal(replay(trace, candidate.policy).last, np.where(agree, 1, 2))


def test_agreement_options_follow_from_the_ranks_that_are_known():
    trace = make_trace(50, stages=3, classes=4, kind="labels")  # four ranks
    pairs = {
        (s.parameters["depth"], s.parameters["shared"])
        for s in fit_agreement(trace, reference="stage2")
    }
    assert pairs == {(1, 1), (3, 1), (3, 2), (3, 3)}


def test_on_longer_chains_each_stage_is_compared_with_the_one_before():
    trace = make_trace(300, stages=4, kind="labels", seed=2)
    chain = trace.topology.chain([0, 1, 2, 3])
    (candidate,) = fit_agreement(trace, reference="stage3", topologies=[chain], options=[(1, 1)])
    first = trace.ranked[:, :, 0].numpy()
    expected = [next((k for k in (1, 2) if row[k] == row[k - 1]), 3) for row in first]
    assert replay(trace, candidate.policy).last.tolist() == expected


def test_agreement_of_two_stages_saves_nothing_and_is_refused():
    trace = make_trace(50, stages=2, kind="labels")
    with pytest.raises(InputError, match="needs three or more stages, got 'stage0 -> stage1'"):
        fit_agreement(trace, reference="stage1", topologies=[trace.topology.chain([0, 1])])


# --- keys -----------------------------------------------------------------------------------------


def test_keys_of_names_are_fixed_forever_and_not_negative():
    keys = example_keys(np.array(["a", "b", "a"]))
    assert keys.dtype == torch.int64
    assert keys[0] == keys[2] != keys[1]
    assert keys.tolist()[0] == int.from_bytes(bytes.fromhex("40f89e395b66422f"), "big") >> 1
    many = example_keys(np.array([f"image {i}" for i in range(2000)]))
    assert len(many.unique()) == 2000
    assert (many >= 0).all()


def test_keys_of_integers_are_themselves():
    assert example_keys(np.array([5, -2], dtype=np.int32)).tolist() == [5, -2]
