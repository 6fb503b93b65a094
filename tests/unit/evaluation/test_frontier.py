"""Choosing an operating point: what is allowed, what is cheapest, and when to refuse."""

import json
import statistics
from dataclasses import replace

import pytest
import torch

from offramp._core.errors import InputError, SplitOverlapError
from offramp._core.schema import from_json, to_json
from offramp.evaluation import DoNotCascade, Frontier, OperatingPoint, evaluate, fit, sweep
from offramp.evaluation.evaluate import pooled
from offramp.evaluation.frontier import choose
from offramp.evaluation.results import FrontierPoint
from offramp.fitting.baselines import fit_uniform
from offramp.fitting.thresholds import fit_myopic
from offramp.policy import Setting
from offramp.trace import make_trace


@pytest.fixture(scope="module")
def trace():
    return make_trace(3000, stages=3, seed=5)


@pytest.fixture(scope="module")
def frontier(trace):
    return fit(trace, "myopic", combines=["last"], confidences=["margin"], progress=False)


def point(cost: float, difference: float, excess: float | None = None, *, base) -> FrontierPoint:
    """A made-up point: only what the choice looks at differs from `base`."""
    changed = replace(
        base.fit,
        cost_ratio=cost,
        difference=difference,
        excess=difference if excess is None else excess,
    )
    return replace(base, fit=changed, calibrate=None, judged_on_both=None)


def guarded(p: FrontierPoint) -> float:
    """The difference plus one standard error, from the counts of losses and corrections."""
    found = p.judged
    lost = [1] * round(found.n * found.excess)
    won = [-1] * round(found.n * (found.excess - found.difference))
    losses = lost + won + [0] * (found.n - len(lost) - len(won))
    return statistics.fmean(losses) + statistics.pstdev(losses) / found.n**0.5 - 1e-12


def test_cheapest_is_the_cheapest_allowed_point_of_the_front(frontier):
    for max_loss in (0.0, 0.01, 0.02, 0.05):
        chosen = frontier.cheapest(max_loss=max_loss)
        assert isinstance(chosen, OperatingPoint)
        assert chosen.judged.difference <= max_loss
        assert chosen.judged.split == "fit + calibrate"
        allowed = [p for p in frontier.pareto if guarded(p) <= max_loss]
        assert chosen.judged.cost_ratio == min(p.judged.cost_ratio for p in allowed)
        assert chosen.judged.cost_ratio < chosen.best_single.judged.cost_ratio


def test_a_larger_allowed_loss_never_costs_more(frontier):
    for risk in ("difference", "excess"):
        costs = [
            frontier.cheapest(max_loss=b, risk=risk).judged.cost_ratio
            for b in (0.02, 0.04, 0.06, 0.1)
        ]
        assert costs == sorted(costs, reverse=True)


def test_best_is_the_dual(frontier):
    for max_cost in (0.2, 0.4, 0.8):
        chosen = frontier.best(max_cost=max_cost)
        assert isinstance(chosen, OperatingPoint)
        assert chosen.judged.cost_ratio <= max_cost
        allowed = [p for p in frontier.pareto if p.judged.cost_ratio <= max_cost]
        assert chosen.judged.difference == min(p.judged.difference for p in allowed)


def test_excess_is_limited_where_excess_is_asked_for(frontier):
    chosen = frontier.cheapest(max_loss=0.03, risk="excess")
    assert chosen.judged.excess <= 0.03
    assert chosen.risk == "excess"


def test_the_sentence_says_what_was_chosen_and_what_it_beats(frontier):
    sentence = frontier.cheapest(max_loss=0.02).sentence
    assert "of stage2 alone" in sentence
    assert "on 3000 examples (fit + calibrate)" in sentence
    assert "no single network within the limit is cheaper than stage2" in sentence
    generous = frontier.cheapest(max_loss=0.15)
    alone = generous.best_single.setting.policy.topology
    assert alone.names[alone.root] != "stage2"
    assert f"the best single network, {alone.names[alone.root]} alone" in generous.sentence


def test_no_point_of_the_front_is_beaten_on_fit(frontier):
    everything = [*frontier.points, *frontier.singles]
    for p in frontier.pareto:
        assert p.on_front
        assert not any(
            q.fit.cost_ratio <= p.fit.cost_ratio and q.fit.difference < p.fit.difference
            for q in everything
        )
    costs = [p.fit.cost_ratio for p in frontier.pareto]
    assert costs == sorted(costs)


def test_calibrate_is_looked_at_for_points_on_a_front_and_for_no_other(frontier):
    fronts = {id(p) for risk in ("difference", "excess") for p in frontier.front(risk)}
    assert all((p.calibrate is not None) == (id(p) in fronts) for p in frontier.points)
    assert all(p.calibrate is not None for p in frontier.singles)


def test_a_cascade_that_saves_nothing_is_advised_against():
    trace = make_trace(1500, accuracies=[0.6, 0.95], seed=0)
    uniform = fit(trace, "uniform", progress=False)
    found = uniform.cheapest(max_loss=0.0)
    assert isinstance(found, DoNotCascade)
    assert "Do not use a cascade here" in found.reason
    assert found.best_single.setting.label == "stage1 alone"
    assert found.setting.label == "stage1 alone"
    assert found.numbers["best_single_cost_ratio"] == 1.0


def test_a_single_network_that_is_as_good_as_f_is_preferred_to_a_cascade():
    trace = make_trace(1500, accuracies=[0.9, 0.9], seed=0)
    trace.logits[:, 1] = trace.logits[:, 0]
    found = fit(trace, "myopic", reference="stage1", progress=False).cheapest(max_loss=0.01)
    assert isinstance(found, DoNotCascade)
    assert found.setting.label == "stage0 alone"


def test_a_budget_below_everything_names_the_cheapest_network(frontier):
    found = frontier.best(max_cost=0.001)
    assert isinstance(found, DoNotCascade)
    assert "no setting stays within 0.001 of the cost of stage2" in found.reason
    assert found.setting.label == "stage0 alone"


def test_a_policy_cheaper_than_every_network_needs_no_network_to_beat(frontier):
    base = frontier.points[0]
    policy = Frontier(
        points=(point(0.05, 0.2, base=base),),
        singles=tuple(
            point(c, 0.0, base=s) for c, s in zip((0.5, 1, 2), frontier.singles, strict=True)
        ),
        reference="stage2",
    )
    found = policy.best(max_cost=0.1)
    assert isinstance(found, OperatingPoint)
    assert found.best_single is None
    assert "no single network stays within the limit" in found.sentence


def test_the_rule_of_choice_on_made_up_points(frontier):
    base = frontier.points[0]
    points = [point(c, d, base=base) for c, d in [(0.3, 0.03), (0.5, 0.01), (0.4, 0.01), (1, 0)]]
    assert choose(points, limited="difference", limit=0.01, minimised="cost", margin=0) is points[2]
    assert choose(points, limited="cost", limit=0.5, minimised="difference") is points[2]
    assert choose(points, limited="difference", limit=-0.01, minimised="cost", margin=0) is None
    # a mean that exceeds the limit in its last bit alone is within it
    nearly = [point(0.1, 0.1 + 0.2, base=base)]
    assert choose(nearly, limited="difference", limit=0.3, minimised="cost", margin=0) is nearly[0]


def test_calibrate_decides_where_fit_would_have_been_too_hopeful(frontier):
    hopeful = point(0.1, 0.0, base=frontier.points[0])
    sober = replace(hopeful, calibrate=point(0.1, 0.09, base=hopeful).fit)
    assert (
        choose([hopeful], limited="difference", limit=0.01, minimised="cost", margin=0) is hopeful
    )
    assert choose([sober], limited="difference", limit=0.01, minimised="cost", margin=0) is None


def test_a_margin_asks_for_more_than_luck(frontier):
    lucky = point(0.1, 0.0, excess=0.05, base=frontier.points[0])
    assert choose([lucky], limited="difference", limit=0.0, minimised="cost", margin=0) is lucky
    assert choose([lucky], limited="difference", limit=0.0, minimised="cost") is None
    with pytest.raises(InputError, match=r"margin must be finite and at least 0, got -1"):
        frontier.cheapest(max_loss=0.01, margin=-1)


def test_two_parts_pooled_are_one_evaluation_of_both(trace):
    setting = fit(trace, "myopic", progress=False).points[0].setting
    both = trace.rows(torch.arange(1200))
    halves = [both.rows(torch.arange(500)), both.rows(torch.arange(500, 1200))]
    whole = to_json(evaluate(both, setting, bootstrap=0))
    parts = [evaluate(half, setting, bootstrap=0) for half in halves]
    found = to_json(pooled(*parts))
    numbers = [name for name, value in found.items() if isinstance(value, float)]
    assert {"cost", "cost_ratio", "accuracy", "difference", "decision_share"} <= set(numbers)
    for name in (*numbers, "exit_share", "visit_share", "useful_share", "overhead_share"):
        assert found[name] == pytest.approx(whole[name]), name
    assert found["n"] == whole["n"] == len(both)


def test_without_a_calibrate_part_fit_decides(trace):
    only_fit = trace.divided({"fit": 0.5, "test": 0.5}, seed=0)
    chosen = fit(only_fit, "myopic", progress=False).cheapest(max_loss=0.02)
    assert chosen.calibrate is None
    assert chosen.judged.split == "fit"


@pytest.mark.parametrize("bad", [-0.1, 1.0, 2, float("nan")])
def test_a_loss_outside_its_domain_is_named(frontier, bad):
    with pytest.raises(InputError, match=rf"max_loss must be in \[0, 1\), got {bad}.*divided"):
        frontier.cheapest(max_loss=bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_a_cost_outside_its_domain_is_named(frontier, bad):
    with pytest.raises(InputError, match=f"max_cost must be finite and greater than 0, got {bad}"):
        frontier.best(max_cost=bad)


def test_best_single_wants_exactly_one_limit(frontier):
    with pytest.raises(InputError, match="exactly one of max_loss and max_cost, got None and None"):
        frontier.best_single()
    assert frontier.best_single(max_loss=0.0).setting.label == "stage2 alone"
    assert frontier.best_single(max_cost=0.3).setting.label == "stage1 alone"


def test_parts_that_share_examples_are_refused(trace):
    settings = fit_uniform(trace, reference="stage2", rates=[0.5])
    with pytest.raises(SplitOverlapError, match="3000 examples are in both"):
        sweep(settings, trace, trace, reference="stage2", progress=False)


def test_settings_of_another_reference_are_refused(trace):
    settings = fit_uniform(trace, reference="stage1", rates=[0.5])
    with pytest.raises(
        InputError, match="must have the reference 'stage2' and top 1, got 'stage1'"
    ):
        sweep(settings, trace, reference="stage2", progress=False)


def test_everything_chosen_becomes_json_and_reads_back_to_the_same_policy(frontier, trace):
    chosen = frontier.cheapest(max_loss=0.02)
    text = json.dumps([to_json(chosen), to_json(frontier)], allow_nan=False)
    value = json.loads(text)[0]
    again = from_json(Setting, value["setting"])
    first, second = (evaluate(trace, s, bootstrap=0) for s in (chosen.setting, again))
    assert replace(first, setting=again) == replace(second, setting=again)
    refusal = fit(make_trace(200, stages=2), "uniform", rates=[0.5], progress=False)
    json.dumps(to_json(refusal.best(max_cost=0.001)), allow_nan=False)


def test_a_sweep_judges_f_by_its_own_uncombined_answer(trace):
    part = trace.divided({"fit": 500}, seed=0).part("fit")
    settings = fit_myopic(part, reference="stage2", combines=["mean"], confidences=["margin"])
    found = sweep(settings, part, reference="stage2", progress=False)
    assert {p.fit.reference_accuracy for p in found.points} == {part.accuracy(2)}
