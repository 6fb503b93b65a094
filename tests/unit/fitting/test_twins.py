"""Fits that share sorts, scans and starts, against those that begin from nothing each time."""

import numpy as np
import pytest
import torch

from offramp._core.costs import Costs
from offramp._core.topology import Topology
from offramp.fitting.learned import fit_learned
from offramp.fitting.newton import fit_weighted_logistic
from offramp.fitting.tables import Tables
from offramp.fitting.temperature import fit_temperatures
from offramp.fitting.thresholds import _features_of, _front, _Search
from offramp.fitting.weighted import TreeFit, fit_topology
from offramp.policy.features import CONFIDENCES
from offramp.policy.rules import linear_score
from offramp.testing.slow import replay_slow
from offramp.trace import Trace
from offramp.trace.testing import make_trace
from reference.fitting import (
    fit_topology_slow,
    logistic_slow,
    scan_slow,
    thresholds_slow,
)

WEIGHTS = (0.0, 0.01, 0.05, 0.2, 0.6)


def tables_of(part: Trace, combine: str = "last") -> Tables:
    return Tables(
        part,
        temperatures=fit_temperatures(part),
        combine=combine,
        reference=len(part.topology) - 1,
    )


def with_heads(part: Trace) -> Trace:
    s = len(part.topology)
    costs = Costs(unit="flops", segment=part.costs.segment, head=(0.2,) * s, decision=(0.05,) * s)
    return part.with_costs(costs)


@pytest.mark.parametrize("edges", ["chain", "full"])
@pytest.mark.parametrize("combine", ["last", "mean"])
@pytest.mark.parametrize("seed", range(2))
def test_fits_are_those_of_the_twin(seed, combine, edges):
    part = with_heads(make_trace(n=150, stages=3, seed=seed))
    topology = Topology.of(part.stages, edges=edges)
    costs = part.costs.relative_to(part.topology, 2)
    fit = TreeFit(tables_of(part, combine), topology, costs)
    for weight in WEIGHTS:
        found = fit_topology(fit, weight)
        slow = fit_topology_slow(tables_of(part, combine), topology, costs, weight)
        assert found.policy.topology == slow.topology
        assert found.objective == pytest.approx(slow.objective, abs=1e-12)
        replayed = replay_slow(part, found.policy)
        root = (found.policy.topology.root,)
        left = slow.takes[root][0] if root in slow.takes else np.ones(len(part), dtype=bool)
        np.testing.assert_array_equal(replayed.last == root[0], left)


def test_sums_of_features_are_those_of_a_rule_bit_for_bit():
    tables, path = tables_of(make_trace(n=500, stages=3, seed=0)), (0, 1, 2)
    tables.ensure([path])
    weights = torch.randn(len(tables.features(path)), generator=torch.Generator().manual_seed(1))
    columns = [torch.from_numpy(column) for column in tables.columns(path)]
    expected = linear_score(columns, weights, torch.tensor(0.0)).numpy()
    np.testing.assert_array_equal(tables.weighted_sum(path, weights.numpy()), expected)


@pytest.mark.parametrize("kind", ["logits", "labels"])
def test_sums_with_classes_are_those_of_a_rule_bit_for_bit(kind):
    part, path = make_trace(n=300, stages=3, classes=30, seed=0, kind=kind), (0, 1)
    if kind == "labels":  # in place of a class "none of them", which no column is of
        assert part.ranked is not None
        part.ranked[:50, 1, 0] = 30
    options = {"temperatures": [1.0, 2.0, 1.0], "combine": "mean", "reference": 2}
    tables = Tables(part, **options, class_features=True)
    tables.ensure([path])
    features = tables.features(path)
    assert [f.kind for f in features[-29:]] == [f"predicts_{c}" for c in range(29)]
    weights = torch.randn(len(features), generator=torch.Generator().manual_seed(1))
    dense = Tables(part, **options, features_of=lambda path: features)
    dense.ensure([path])
    np.testing.assert_array_equal(
        tables.weighted_sum(path, weights.numpy()),
        linear_score(
            [torch.from_numpy(column) for column in dense.columns(path)],
            weights,
            torch.tensor(0.0),
        ).numpy(),
    )


def test_a_topology_reached_twice_is_fitted_once():
    part = make_trace(n=500, accuracies=[0.7, 0.7001, 0.95], seed=2)
    assert part.logits is not None
    part.logits[:, 1] = torch.tensor([1.0, 0, 0, 0])  # always says class 0: not worth asking
    costs = part.costs.relative_to(part.topology, 2)
    chains = [part.topology.chain(stages) for stages in ([0, 2], [0, 1, 2])]
    trees = {chain: TreeFit(tables_of(part), chain, costs) for chain in chains}
    short, long = (fit_topology(trees[chain], 0.02, trees) for chain in chains)
    assert long is short
    alone = fit_topology(TreeFit(tables_of(part), chains[1], costs), 0.02)
    assert alone.topology == short.topology
    assert alone.objective == pytest.approx(short.objective, abs=1e-12)


def test_candidates_are_unlike_each_other():
    part = make_trace(n=300, stages=3, seed=1)
    found = fit_learned(part, reference="stage2", cost_weights=[0.2, 0.2, 1.0, 2.0, 3.0])
    texts = [
        (str(c.policy.topology), c.policy.combine, [str(p) for p in c.policy.state_dict().values()])
        for c in found
    ]
    assert len(texts) == len({str(text) for text in texts})


@pytest.mark.parametrize("seed", range(5))
def test_single_precision_of_the_curvature_moves_no_solution(seed):
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(size=(300, 6)), np.ones(300)])
    x[:, 1] = x[:, 0] + 1e-4 * x[:, 1]  # nearly the same column twice
    positive = rng.random(300) < 1 / (1 + np.exp(-4 * x[:, 2]))
    weights = rng.exponential(size=300) ** 6
    found = fit_weighted_logistic(x, positive, weights, ridge=1e-2)
    np.testing.assert_allclose(found, logistic_slow(x, positive, weights, 1e-2), atol=1e-4)


@pytest.mark.parametrize("kind", ["max_prob", "entropy"])
@pytest.mark.parametrize("seed", range(3))
def test_thresholds_are_those_of_a_search_that_remembers_nothing(seed, kind, monkeypatch):
    part = with_heads(make_trace(n=120, stages=4, seed=seed))
    tables = Tables(
        part,
        temperatures=fit_temperatures(part),
        combine="last",
        reference=3,
        features_of=_features_of(part, "last", [kind]),
    )
    chain = Topology.of(part.stages, edges="chain")
    tables.ensure(chain.paths())
    costs = part.costs.relative_to(part.topology, 3)

    def search():
        return _Search(tables, chain, kind, CONFIDENCES[kind], costs)

    def values(trials):
        return [(t.thresholds, t.cost, t.error, t.negative_flips) for t in trials]

    expected = values(_front(thresholds_slow(search()), 50))
    assert values(search().candidates(50)) == expected
    monkeypatch.setattr("offramp.fitting.thresholds._NUMBERS_KEPT", 0)  # one scan at a time
    assert values(search().candidates(50)) == expected


def test_a_scan_says_of_every_threshold_what_each_example_costs_and_loses():
    part = with_heads(make_trace(n=60, stages=3, seed=3))
    tables = Tables(
        part,
        temperatures=fit_temperatures(part),
        combine="mean",
        reference=2,
        features_of=_features_of(part, "mean", ["margin"]),
    )
    chain = Topology.of(part.stages, edges="chain")
    tables.ensure(chain.paths())
    search = _Search(tables, chain, "margin", 1.0, part.costs.relative_to(part.topology, 2))
    for values, at in (((None, 0.5), 0), ((0.6, None), 1), ((None, None), 1)):
        scan = search.scan(values, at)
        found = np.column_stack([scan.cost, scan.losses.T])
        np.testing.assert_allclose(found, scan_slow(search, values, at), atol=1e-12)
