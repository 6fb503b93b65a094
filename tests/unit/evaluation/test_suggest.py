"""Few of many stages: found on one half of fit, judged on the other, and nothing else is read."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from offramp import suggest
from offramp._core.errors import InputError, TopologyError, UnknownNameError
from offramp._core.topology import Topology
from offramp.evaluation import evaluate_all
from offramp.evaluation.suggest import _AgreementSearch
from offramp.fitting.baselines import fit_agreement
from offramp.trace import Trace, from_predictions, make_trace

ACCURACIES = [0.55, 0.56, 0.7, 0.71, 0.72, 0.85, 0.86, 0.92]


def many(n=3000, kind="logits", seed=0):
    topology = Topology.of([f"net{k}" for k in range(8)], edges="chain")
    trace = make_trace(n, topology=topology, accuracies=ACCURACIES, seed=seed, kind=kind)
    costs = replace(trace.costs, segment=(1.0, 3.0, 1.5, 6.0, 3.0, 9.0, 5.0, 16.0))
    return replace(trace, costs=costs)


def divided(trace: Trace) -> Trace:
    return trace.split_into({"fit": 0.5, "calibrate": 0.3, "test": 0.2}, seed=1)


def test_few_of_many_make_a_cascade_that_is_good_on_examples_never_looked_at():
    trace = divided(many(6000))
    found = suggest(trace, size=3, max_drop=0.02)
    assert 2 <= len(found.stages) <= 3
    assert found.choice.cascade
    assert {"net1", "net3", "net5"}.isdisjoint(found.stages)  # dearer than better ones
    assert set(found.trace.stages) == {*found.stages, "net7"}
    chosen = found.frontier.cheapest(max_drop=0.03)
    assert chosen.outcome == "certified"
    (on_test,) = evaluate_all(found.trace.subset("test"), [chosen.candidate])
    assert on_test.cost_ratio < 0.6
    assert on_test.accuracy_drop < 0.04  # four standard errors are 0.02 here


def test_neither_calibrate_nor_test_is_read():
    trace = divided(many(1500))
    noise = torch.randn(trace.logits.shape, generator=torch.Generator().manual_seed(0))
    other = trace.split != 1
    garbled = replace(
        trace,
        logits=torch.where(other[:, None, None], noise, trace.logits),
        labels=torch.where(other, 0, trace.labels),
    )
    one, two = suggest(trace), suggest(garbled)
    assert one.stages == two.stages
    assert one.choice.judged == two.choice.judged or one.choice.sentence == two.choice.sentence


@pytest.fixture(scope="module")
def labels() -> Trace:
    """Eight networks that err independently, so that two of them that agree are right."""
    rng = np.random.default_rng(0)
    truth = rng.integers(10, size=2000)
    said = {
        f"net{k}": np.where(rng.uniform(size=2000) < right, truth, rng.integers(10, size=2000))
        for k, right in enumerate(ACCURACIES)
    }
    costs = dict(zip(said, (1.0, 1.2, 1.5, 1.6, 1.7, 14.0, 15.0, 16.0), strict=True))
    return from_predictions(said, truth, costs=costs, unit="flops", edges="chain")


def test_the_search_by_labels_measures_what_replay_measures(labels):
    search = _AgreementSearch(labels, "net7", 1)
    before = [k for k in range(7) if labels.costs.segment[k] < 16]
    chains = [*combinations(before, 2), *combinations(before, 3)][::3]
    measured = dict(search._measured(chains))
    topologies = [labels.topology.chain([*chain, 7]) for chain in chains]
    candidates = fit_agreement(labels, reference="net7", topologies=topologies, options=[(1, 1)])
    for chain, e in zip(chains, evaluate_all(labels, candidates), strict=True):
        assert measured[chain] == pytest.approx((e.cost_ratio, e.negative_flips))


def test_labels_alone_suffice_for_three_stages_and_not_for_two(labels):
    found = suggest(labels, size=3, max_drop=0.04)
    assert len(found.stages) == 3
    assert found.choice.candidate.method == "agreement"
    assert found.frontier.points
    two = suggest(labels, size=2, max_drop=0.001)
    assert not two.choice.cascade
    assert two.stages == ("net7",)
    assert two.frontier is None


def test_losses_without_labels_are_searched_too():
    made = many(2000, kind="losses")
    found = suggest(made, size=2, max_drop=0.03)
    assert len(found.stages) == 2
    assert found.trace.losses.shape[1] == len(found.trace.stages)


def test_a_part_of_a_trace_keeps_what_its_stages_said():
    trace = replace(many(50), prices=torch.rand(50, 8, dtype=torch.float64))
    few = trace.only(["net2", "net6", "net7"])
    assert few.stages == ("net2", "net6", "net7")
    assert few.topology.edges == ((0, 1), (0, 2), (1, 2))
    assert torch.equal(few.logits, trace.logits[:, [2, 6, 7]])
    assert torch.equal(few.prices, trace.prices[:, [2, 6, 7]])
    assert few.costs.segment == (1.5, 5.0, 16.0)
    assert np.array_equal(few.wrong(1), trace.wrong(6))


def test_what_cannot_be_suggested_is_refused():
    trace = many(200)
    for size, message in ((1, "size must be at least 2"), (0, "size must be")):
        with pytest.raises(InputError, match=message):
            suggest(trace, size=size)
    with pytest.raises(UnknownNameError, match="net8"):
        suggest(trace, reference="net8")
    with pytest.raises(InputError, match="policy must be one of"):
        suggest(trace, policy="stopping")
    exits = Topology.of(["a", "b"], sources=[-1, 0], edges="chain")
    with pytest.raises(TopologyError, match="which continues 'a'"):
        suggest(make_trace(100, topology=exits))
    with pytest.raises(TopologyError, match="topological order"):
        trace.only(["net3", "net2"])
