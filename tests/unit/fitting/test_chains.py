"""The search for chains against exhaustive search, and what it promises."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.schema import to_json
from offramp._core.topology import Topology
from offramp.fitting.chains import (
    MOST_EXHAUSTIVE,
    chains_to_fit,
    promising_chains,
    topologies_to_fit,
)
from offramp.fitting.learned import fit_learned
from offramp.fitting.search import count_chains, sub_chains, sub_topologies
from offramp.fitting.tables import Tables
from offramp.fitting.temperature import fit_temperatures
from offramp.fitting.thresholds import fit_threshold
from offramp.fitting.weighted import TreeFit
from offramp.policy.features import Feature
from offramp.trace.testing import make_trace

TRADE_OFFS = (0.02, 0.1, 0.4)


def exits(groups: int, heads: int, *, n=400, seed=0, head_costs=(0.01, 0.1), gain=0.06):
    """A network of `groups` exits, each of `heads` heads; a deeper one is better and costs more."""
    names = [f"e{g}/{'ab'[h]}" for g in range(groups) for h in range(heads)] + ["end"]
    cuts = [f"e{g}" for g in range(groups) for _ in range(heads)] + ["end"]
    of = [[k for k, cut in enumerate(cuts) if cut == name] for name in dict.fromkeys(cuts)]
    before = [-1, *(ways[0] for ways in of)]
    topology = Topology(
        names=tuple(names),
        sources=tuple(before[[k in ways for ways in of].index(True)] for k in range(len(names))),
        groups=tuple(cuts),
        edges=tuple((j, k) for a, b in itertools.pairwise(of) for j in a for k in b),
    )
    accuracies = [
        0.5 + 0.35 * (g + 1) / (groups + 1) + gain * h for g in range(groups) for h in range(heads)
    ]
    trace = make_trace(n, classes=5, seed=seed, accuracies=[*accuracies, 0.93], topology=topology)
    costs = Costs(
        unit="flops",
        segment=(1.0,) * len(names),
        head=(*[head_costs[h] for _ in range(groups) for h in range(heads)], 0.01),
        decision=(0.0,) * len(names),
    )
    return replace(trace, costs=costs)


def objective_on(part, chain, cost_weight):
    """What one threshold on the log margin after each stage of the chain comes to."""
    reference = len(part.topology) - 1
    tables = Tables(
        part,
        temperatures=fit_temperatures(part),
        combine="last",
        reference=reference,
        features_of=lambda path: [Feature("log_margin", path[-1])],
    )
    costs = part.costs.relative_to(part.topology, reference)
    options = {"families": ("constant", "threshold"), "passes": 0}
    return TreeFit(tables, chain, costs, **options).fit(cost_weight).objective


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cost_weight", TRADE_OFFS)
def test_the_search_finds_nearly_what_trying_every_chain_finds(seed, cost_weight):
    part = exits(3, 2, seed=seed)
    reference = part.stages[-1]
    best = min(objective_on(part, chain, cost_weight) for chain in sub_chains(part.topology))
    found = promising_chains(part, reference=reference, trade_offs=[cost_weight])
    assert min(objective_on(part, chain, cost_weight) for chain in found) <= 1.01 * best


def test_a_search_that_knows_one_exit_only_would_be_noticed():
    part, cost_weight = exits(3, 2), 0.4
    best = min(objective_on(part, chain, cost_weight) for chain in sub_chains(part.topology))
    alone = [c for c in sub_chains(part.topology) if len(c.active) == 2]
    assert min(objective_on(part, chain, cost_weight) for chain in alone) > 1.01 * best


@pytest.mark.parametrize("combine", ["last", "log_linear"])
def test_policies_fitted_on_few_chains_are_nearly_as_good_as_on_all(combine):
    part = make_trace(1000, stages=5, seed=3)
    few = {chain.active for chain in promising_chains(part, reference="stage4")}
    chains = sub_chains(part.topology)
    assert len(few) < 0.7 * len(chains)
    costs = part.costs.relative_to(part.topology, 4)
    tables = Tables(part, temperatures=fit_temperatures(part), combine=combine, reference=4)
    for cost_weight in (0.05, 0.4):
        fits = {chain.active: TreeFit(tables, chain, costs).fit(cost_weight) for chain in chains}
        best = min(fit.objective for fit in fits.values())
        assert min(fits[chain].objective for chain in few) <= 1.02 * best


def test_a_chain_has_one_head_of_each_point_and_either_kind_can_win():
    cheap = exits(4, 2, head_costs=(0.001, 0.9))
    expensive = exits(4, 2, head_costs=(0.001, 0.002), gain=0.15)
    kinds = []
    for part in (cheap, expensive):
        for chain in promising_chains(part, reference="end"):
            points = [part.topology.groups[k] for k in chain.active]
            assert len(set(points)) == len(points)
            if len(points) > 2:
                kinds.append({part.stages[k].split("/")[-1] for k in chain.active} - {"end"})
    assert {"a"} in kinds
    assert {"b"} in kinds


def test_ten_exits_with_two_heads_need_few_chains():
    part = exits(10, 2)
    assert count_chains(part.topology) > 50_000
    with pytest.raises(InputError, match="more than 2048 sub-chains"):
        sub_chains(part.topology)
    chains = promising_chains(part, reference="end")
    assert len(chains) < 60
    found = {chain.active for chain in chains}
    assert all((k, 20) in found for k in range(20))
    assert max(len(chain) for chain in found) == 5


def test_few_chains_are_all_tried_and_the_whole_where_it_branches():
    part = make_trace(60, stages=4, seed=0)
    assert count_chains(part.topology) <= MOST_EXHAUSTIVE
    assert chains_to_fit(part, reference="stage3") == sub_chains(part.topology)
    assert topologies_to_fit(part, reference="stage3") == sub_topologies(part.topology)


def test_learned_and_threshold_policies_have_the_same_chains_to_choose_from():
    part = exits(4, 2, n=100)
    chains = {chain.active for chain in promising_chains(part, reference="end")}
    options = {"reference": "end", "combines": ["last"]}
    threshold = fit_threshold(part, **options, confidences=["margin"], grid=5)
    assert {s.policy.topology.active for s in threshold} == chains
    learned = fit_learned(part, **options, cost_weights=[0.1], families=["threshold"])
    again = fit_learned(
        part, **options, cost_weights=[0.1], families=["threshold"],
        topologies=promising_chains(part, reference="end"),
    )  # fmt: skip
    assert [to_json(s) for s in learned] == [to_json(s) for s in again]


def test_without_scores_there_is_nothing_to_search_by():
    part = replace(make_trace(50, stages=7, kind="labels", seed=0), confidence=None)
    assert len(chains_to_fit(part, reference="stage6")) == 120


def test_very_many_examples_are_thinned_and_the_order_of_chains_is_fixed():
    part = make_trace(12_000, stages=7, seed=0)
    chains = promising_chains(part, reference="stage6")
    assert chains == promising_chains(part, reference="stage6")
    lengths = [len(chain.active) for chain in chains]
    assert lengths == sorted(lengths)


def test_a_stage_that_gains_nothing_is_on_no_searched_chain():
    part = exits(3, 1, n=300)
    broken = part.logits.clone()
    broken[:, 1] = 0.0  # says nothing, so leaving there is a guess
    part = replace(part, logits=broken)
    found = promising_chains(part, reference="end")
    searched = [c.active for c in found if len(c.active) == 3]
    assert searched
    assert not any(1 in chain for chain in searched)


def test_the_count_is_that_of_the_list():
    for topology in (
        Topology.of(list("abcde")),
        Topology.of(list("abc"), edges=[("a", "b"), ("a", "c")]),
        exits(2, 2, n=20).topology,
    ):
        assert count_chains(topology) == len(sub_chains(topology))
    assert np.isclose(count_chains(Topology.of([f"s{k}" for k in range(40)])), 2**40 - 41)
