"""Which points are judged on other examples: fronts as they seem, and with optimism added."""

from dataclasses import replace

import numpy as np
import pytest

from offramp.evaluation import fit
from offramp.evaluation.judging import mark_fronts, optimism
from offramp.evaluation.results import RISKS
from offramp.fitting.pareto import pareto_front_reference
from offramp.trace import make_trace

N = 400


@pytest.fixture(scope="module")
def points():
    trace = make_trace(N, stages=3, classes=4, seed=1)
    found = fit(
        trace.split_into({"fit": 1.0}, seed=0),
        ["learned", "threshold", "random"],
        combines=["last"],
        progress=False,
    )
    return [*found.points, *found.singles]


def rules_one_by_one(candidate):
    """Every rule of the stored policy that looks at anything."""
    policy, count = candidate.policy, 0
    for path in policy.topology.paths():
        if policy.topology.children(path[-1]):
            node = policy.node(path)
            count += sum(1 for rule in [node.leave, *node.routes] if not rule.free)
    return count


def test_optimism_is_one_example_for_each_rule_that_looks_at_something(points):
    for point in points:
        assert optimism(point.fit) == rules_one_by_one(point.candidate) / N
    by_method = {p.candidate.method: optimism(p.fit) * N for p in points}
    assert by_method["random"] == 0
    assert {optimism(p.fit) * N for p in points if p.candidate.method == "threshold"} >= {1, 2}
    assert all(optimism(p.fit) == 0 for p in points[-3:])  # single networks have no rules
    assert optimism(replace(points[0].fit, n=0)) == rules_one_by_one(points[0].candidate)


def test_judged_is_what_is_on_a_front_with_or_without_optimism(points):
    marked, wanted = mark_fronts(points)
    costs = np.array([p.fit.cost_ratio for p in points])
    expected = np.zeros(len(points), dtype=bool)
    for risk in RISKS:
        seen = np.array([p.fit.risk(risk) for p in points])
        optimistic = np.array([rules_one_by_one(p.candidate) / p.fit.n for p in points])
        as_seen = pareto_front_reference(costs, seen)
        expected |= as_seen | pareto_front_reference(costs, seen + optimistic)
        if risk == "accuracy_drop":
            assert [p.on_front for p in marked] == as_seen.tolist()
    assert wanted.tolist() == expected.tolist()


def test_of_those_that_lost_nothing_one_of_fewer_rules_is_judged_as_well(points):
    """As they seem the most complex is the cheapest, and all others are beaten."""
    complex_one = max(points, key=lambda p: optimism(p.fit))
    simple = next(p for p in points if optimism(p.fit) * N == 1)
    without_loss = [
        replace(p, fit=replace(p.fit, cost_ratio=cost, accuracy_drop=0.0, negative_flips=0.0))
        for p, cost in ((complex_one, 0.5), (simple, 0.6), (simple, 0.7))
    ]
    assert optimism(complex_one.fit) > optimism(simple.fit)
    marked, wanted = mark_fronts(without_loss)
    assert [p.on_front for p in marked] == [True, False, False]
    assert wanted.tolist() == [True, True, False]
