"""Choosing an operating point: what is allowed, what is cheapest, and when to refuse."""

import json
import statistics
from dataclasses import replace

import pytest
import torch

from offramp._core.errors import InputError, SplitOverlapError
from offramp._core.schema import from_json, to_json
from offramp.evaluation import Frontier, evaluate, fit, sweep
from offramp.evaluation.evaluate import pooled
from offramp.evaluation.judging import on_front
from offramp.evaluation.measured import choose
from offramp.evaluation.results import RISKS, FrontierPoint
from offramp.fitting.baselines import fit_random
from offramp.fitting.thresholds import fit_threshold
from offramp.policy import Candidate
from offramp.trace import make_trace


@pytest.fixture(scope="module")
def trace():
    return make_trace(3000, stages=3, seed=5)


@pytest.fixture(scope="module")
def frontier(trace):
    return fit(trace, "threshold", combines=["last"], confidences=["margin"], progress=False)


def point(
    cost: float, difference: float, negative_flips: float | None = None, *, base
) -> FrontierPoint:
    """A made-up point: only what the choice looks at differs from `base`."""
    changed = replace(
        base.fit,
        cost_ratio=cost,
        accuracy_drop=difference,
        negative_flips=difference if negative_flips is None else negative_flips,
    )
    return replace(base, fit=changed, calibrate=None, judged_on_both=None)


def guarded(p: FrontierPoint) -> float:
    """The difference plus one standard error, from the counts of losses and corrections."""
    found = p.judged
    lost = [1] * round(found.n * found.negative_flips)
    won = [-1] * round(found.n * (found.negative_flips - found.accuracy_drop))
    losses = lost + won + [0] * (found.n - len(lost) - len(won))
    return statistics.fmean(losses) + statistics.pstdev(losses) / found.n**0.5 - 1e-12


def test_cheapest_is_the_cheapest_allowed_point_of_the_front(frontier):
    for max_drop in (0.0, 0.01, 0.02, 0.05):
        chosen = frontier.cheapest(max_drop=max_drop, delta=None)
        assert chosen.refused is None
        assert chosen.judged.accuracy_drop <= max_drop
        assert chosen.judged.split == "fit + calibrate"
        allowed = [p for p in frontier.pareto if guarded(p) <= max_drop]
        assert chosen.judged.cost_ratio == min(p.judged.cost_ratio for p in allowed)
        assert chosen.judged.cost_ratio < chosen.alternative.judged.cost_ratio


def test_a_larger_allowed_loss_never_costs_more(frontier):
    for risk in ("accuracy_drop", "negative_flips"):
        costs = [
            frontier.cheapest(max_drop=b, risk=risk, delta=None).judged.cost_ratio
            for b in (0.02, 0.04, 0.06, 0.1)
        ]
        assert costs == sorted(costs, reverse=True)


def test_best_is_the_dual(frontier):
    for max_cost in (0.2, 0.4, 0.8):
        chosen = frontier.best(max_cost=max_cost)
        assert chosen.refused is None
        assert chosen.judged.cost_ratio <= max_cost
        allowed = [p for p in frontier.pareto if p.judged.cost_ratio <= max_cost]
        assert chosen.judged.accuracy_drop == min(p.judged.accuracy_drop for p in allowed)


def test_excess_is_limited_where_excess_is_asked_for(frontier):
    chosen = frontier.cheapest(max_drop=0.03, risk="negative_flips", delta=None)
    assert chosen.judged.negative_flips <= 0.03
    assert chosen.risk == "negative_flips"


def test_the_sentence_says_what_was_chosen_and_what_it_beats(frontier):
    sentence = frontier.cheapest(max_drop=0.02, delta=None).sentence
    assert "of stage2 alone" in sentence
    assert "on 3000 examples (fit + calibrate)" in sentence
    assert "no single network within the limit is cheaper than stage2" in sentence
    generous = frontier.cheapest(max_drop=0.15, delta=None)
    alone = generous.alternative.candidate.policy.topology
    assert alone.names[alone.root] != "stage2"
    assert f"the best single network, {alone.names[alone.root]} alone" in generous.sentence


def test_no_point_of_the_front_is_beaten_on_fit(frontier):
    everything = [*frontier.points, *frontier.singles]
    for p in frontier.pareto:
        assert p.on_front
        assert not any(
            q.fit.cost_ratio <= p.fit.cost_ratio and q.fit.accuracy_drop < p.fit.accuracy_drop
            for q in everything
        )
    costs = [p.fit.cost_ratio for p in frontier.pareto]
    assert costs == sorted(costs)


def test_calibrate_is_looked_at_for_points_on_a_front_and_for_no_other(frontier):
    everything = [*frontier.points, *frontier.singles]
    fronts = {id(p) for risk in RISKS for p in frontier.front(risk)}
    for risk in RISKS:  # and without the optimism of the fit
        on = on_front(everything, risk, without_optimism=True)
        fronts |= {id(p) for p, kept in zip(everything, on, strict=True) if kept}
    assert all((p.calibrate is not None) == (id(p) in fronts) for p in frontier.points)
    assert all(p.calibrate is not None for p in frontier.singles)


def test_a_cascade_that_saves_nothing_is_advised_against():
    trace = make_trace(1500, accuracies=[0.6, 0.95], seed=0)
    random = fit(trace, "random", progress=False)
    found = random.cheapest(max_drop=0.0, delta=None)
    assert found.outcome == "do not cascade"
    assert "Do not use a cascade here" in found.sentence
    assert found.candidate.label == "stage1 alone"
    assert found.numbers["cost_ratio"] == 1.0


def test_a_single_network_that_is_as_good_as_f_is_preferred_to_a_cascade():
    trace = make_trace(1500, accuracies=[0.9, 0.9], seed=0)
    trace.logits[:, 1] = trace.logits[:, 0]
    found = fit(trace, "threshold", reference="stage1", progress=False).cheapest(
        max_drop=0.01, delta=None
    )
    assert found.outcome == "do not cascade"
    assert found.candidate.label == "stage0 alone"


def test_a_budget_below_everything_names_the_cheapest_network(frontier):
    found = frontier.best(max_cost=0.001)
    assert found.outcome == "do not cascade"
    assert "no candidate stays within 0.001 of the cost of stage2" in found.sentence
    assert found.candidate.label == "stage0 alone"


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
    assert found.refused is None
    assert found.alternative is None
    assert "no single network stays within the limit" in found.sentence


def test_the_rule_of_choice_on_made_up_points(frontier):
    base = frontier.points[0]
    points = [point(c, d, base=base) for c, d in [(0.3, 0.03), (0.5, 0.01), (0.4, 0.01), (1, 0)]]
    assert (
        choose(points, limited="accuracy_drop", limit=0.01, minimized="cost", margin=0) is points[2]
    )
    assert choose(points, limited="cost", limit=0.5, minimized="accuracy_drop") is points[2]
    assert choose(points, limited="accuracy_drop", limit=-0.01, minimized="cost", margin=0) is None
    # a mean that exceeds the limit in its last bit alone is within it
    nearly = [point(0.1, 0.1 + 0.2, base=base)]
    assert (
        choose(nearly, limited="accuracy_drop", limit=0.3, minimized="cost", margin=0) is nearly[0]
    )


def test_calibrate_decides_where_fit_would_have_been_too_hopeful(frontier):
    hopeful = point(0.1, 0.0, base=frontier.points[0])
    sober = replace(hopeful, calibrate=point(0.1, 0.09, base=hopeful).fit)
    assert (
        choose([hopeful], limited="accuracy_drop", limit=0.01, minimized="cost", margin=0)
        is hopeful
    )
    assert choose([sober], limited="accuracy_drop", limit=0.01, minimized="cost", margin=0) is None


def test_a_margin_asks_for_more_than_luck(frontier):
    lucky = point(0.1, 0.0, negative_flips=0.05, base=frontier.points[0])
    assert choose([lucky], limited="accuracy_drop", limit=0.0, minimized="cost", margin=0) is lucky
    assert choose([lucky], limited="accuracy_drop", limit=0.0, minimized="cost") is None
    with pytest.raises(InputError, match=r"margin must be finite and at least 0, got -1"):
        frontier.cheapest(max_drop=0.01, margin=-1, delta=None)


def test_two_parts_pooled_are_one_evaluation_of_both(trace):
    candidate = fit(trace, "threshold", progress=False).points[0].candidate
    both = trace.take(torch.arange(1200))
    halves = [both.take(torch.arange(500)), both.take(torch.arange(500, 1200))]
    whole = to_json(evaluate(both, candidate, bootstrap=0))
    parts = [evaluate(half, candidate, bootstrap=0) for half in halves]
    found = to_json(pooled(*parts))
    numbers = [name for name, value in found.items() if isinstance(value, float)]
    assert {"cost", "cost_ratio", "accuracy", "accuracy_drop", "decision_share"} <= set(numbers)
    for name in (*numbers, "exit_share", "visit_share", "useful_share", "overhead_share"):
        assert found[name] == pytest.approx(whole[name]), name
    assert found["n"] == whole["n"] == len(both)


def test_without_a_calibrate_part_fit_decides(trace):
    only_fit = trace.split_into({"fit": 0.5, "test": 0.5}, seed=0)
    chosen = fit(only_fit, "threshold", progress=False).cheapest(max_drop=0.02, delta=None)
    assert chosen.calibrate is None
    assert chosen.judged.split == "fit"


@pytest.mark.parametrize("bad", [-0.1, 1.0, 2, float("nan")])
def test_a_loss_outside_its_domain_is_named(frontier, bad):
    with pytest.raises(InputError, match=rf"max_drop must be in \[0, 1\), got {bad}.*divided"):
        frontier.cheapest(max_drop=bad, delta=None)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_a_cost_outside_its_domain_is_named(frontier, bad):
    with pytest.raises(InputError, match=f"max_cost must be finite and greater than 0, got {bad}"):
        frontier.best(max_cost=bad)


def test_best_single_wants_exactly_one_limit(frontier):
    with pytest.raises(InputError, match="exactly one of max_drop and max_cost, got None and None"):
        frontier.best_single()
    assert frontier.best_single(max_drop=0.0).candidate.label == "stage2 alone"
    assert frontier.best_single(max_cost=0.3).candidate.label == "stage1 alone"


def test_parts_that_share_examples_are_refused(trace):
    candidates = fit_random(trace, reference="stage2", rates=[0.5])
    with pytest.raises(SplitOverlapError, match="3000 examples are in both"):
        sweep(candidates, trace, trace, reference="stage2", progress=False)


def test_settings_of_another_reference_are_refused(trace):
    candidates = fit_random(trace, reference="stage1", rates=[0.5])
    with pytest.raises(
        InputError, match="must have the reference 'stage2' and top 1, got 'stage1'"
    ):
        sweep(candidates, trace, reference="stage2", progress=False)


def test_everything_chosen_becomes_json_and_reads_back_to_the_same_policy(frontier, trace):
    chosen = frontier.cheapest(max_drop=0.02, delta=None)
    text = json.dumps([to_json(chosen), to_json(frontier)], allow_nan=False)
    value = json.loads(text)[0]
    again = from_json(Candidate, value["point"]["candidate"])
    first, second = (evaluate(trace, s, bootstrap=0) for s in (chosen.candidate, again))
    assert replace(first, candidate=again) == replace(second, candidate=again)
    refusal = fit(make_trace(200, stages=2), "random", rates=[0.5], progress=False)
    json.dumps(to_json(refusal.best(max_cost=0.001)), allow_nan=False)


def test_a_sweep_judges_f_by_its_own_uncombined_answer(trace):
    part = trace.split_into({"fit": 500}, seed=0).subset("fit")
    candidates = fit_threshold(part, reference="stage2", combines=["mean"], confidences=["margin"])
    found = sweep(candidates, part, reference="stage2", progress=False)
    assert {p.fit.reference_accuracy for p in found.points} == {part.accuracy(2)}
