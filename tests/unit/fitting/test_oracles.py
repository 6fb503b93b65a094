"""The three oracles against their slow twins, their definitions, and figures on real outputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.fitting.oracles import ORACLES, oracle, oracle_reference
from offramp.trace import Trace, make_trace
from support.properties import examples

SHARED = Path(__file__).parents[4] / "shared/data/cifar10/resnet_logits"


@examples(40)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(ORACLES), top=st.integers(1, 2))
def test_oracles_equal_walking_each_example_on_its_own(seed, kind, top):
    rng = np.random.default_rng(seed)
    s = int(rng.integers(1, 5))
    full = Topology.of([f"stage{k}" for k in range(s)])
    topology = full.part(e for e in full.edges if rng.random() < 0.7)
    trace = make_trace(15, seed=seed, topology=full)
    trace = trace.with_costs(Costs.simple("flops", rng.random(s).tolist()))
    reference = f"stage{rng.integers(s)}"
    fast = oracle(trace, kind, topology=topology, reference=reference, top=top)
    slow = oracle_reference(trace, kind, topology=topology, reference=reference, top=top)
    np.testing.assert_array_equal(fast.last, slow.last)
    np.testing.assert_allclose(fast.cost, slow.cost)
    np.testing.assert_array_equal(fast.wrong, slow.wrong)


def by_hand(right: list[list[int]]) -> tuple[Trace, Topology]:
    """A trace of two classes with label 0 where each stage is right or wrong as written."""
    table = torch.tensor(right)  # (n, s)
    logits = torch.stack([table, 1 - table], dim=2).float()
    topology = Topology.of([f"stage{k}" for k in range(table.shape[1])])
    trace = Trace(
        topology=topology,
        labels=torch.zeros(len(right), dtype=torch.int64),
        classes=2,
        costs=Costs.simple("flops", [1.0, 2.0, 4.0]),
        logits=logits,
    )
    return trace, topology.chain(range(table.shape[1]))


CASES = [[1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("kind", "leaves"),
    [
        ("paper", [0, 2, 1, 2, 2, 2, 2]),
        ("neutral", [0, 2, 1, 2, 0, 2, 0]),
        ("free", [0, 0, 1, 2, 0, 0, 1]),
    ],
)
def test_the_definitions_on_every_pattern(kind, leaves):
    trace, chain = by_hand(CASES)
    found = oracle(trace, kind, topology=chain, reference="stage2")
    assert found.last.tolist() == leaves
    assert found.cost.tolist() == [[1.0, 3.0, 7.0][k] for k in leaves]
    assert found.wrong.tolist() == [not row[k] for row, k in zip(CASES, leaves, strict=True)]


def test_in_a_full_graph_the_cheapest_path_is_taken():
    trace, _ = by_hand([[0, 0, 1]])
    found = oracle(trace, "free", topology=trace.topology, reference="stage2")
    assert found.cost.tolist() == [5.0]  # past the middle stage


@examples(20)
@given(seed=st.integers(0, 2**31))
def test_on_a_chain_that_ends_in_f_two_oracles_are_exactly_as_good_as_f(seed):
    trace = make_trace(100, stages=3, seed=seed)
    chain = trace.topology.chain([0, 1, 2])
    paper, neutral, free = (
        oracle(trace, kind, topology=chain, reference="stage2") for kind in ORACLES
    )
    np.testing.assert_array_equal(paper.wrong, trace.wrong(2))
    np.testing.assert_array_equal(neutral.wrong, trace.wrong(2))
    assert (free.wrong <= neutral.wrong).all()
    right = ~neutral.wrong  # where the reference errs, the free one may pay to correct it
    assert (free.cost <= neutral.cost)[right].all()
    assert (neutral.cost <= paper.cost).all()


def test_deciding_costs_an_oracle_nothing():
    trace = make_trace(50, stages=2)
    expensive = trace.with_costs(Costs(unit="f", segment=(1, 4), head=(0, 0), decision=(9, 9)))
    chain = trace.topology.chain([0, 1])
    first, second = (
        oracle(t, "paper", topology=chain, reference="stage1") for t in (trace, expensive)
    )
    np.testing.assert_array_equal(first.cost, second.cost)


def test_an_unknown_oracle_is_refused():
    trace = make_trace(10, stages=2)
    with pytest.raises(InputError, match=r"kind must be one of .* got 'soft'"):
        oracle(trace, "soft", topology=trace.topology, reference="stage1")


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real outputs lie beside the repository")
@pytest.mark.parametrize(
    ("kind", "cost", "accuracy"),
    [("paper", 0.573, 0.832), ("neutral", 0.465, 0.832), ("free", 0.405, 0.892)],
)
def test_the_figures_of_the_methods_page_on_real_networks(kind, cost, accuracy):
    (file,) = SHARED.glob("test_jpeg*.npz")
    with np.load(file, allow_pickle=False) as held:
        logits = np.stack([held["logits_resnet20"], held["logits_resnet56"]], axis=1)
        labels = held["labels"].astype(np.int64)
        macs = held["macs"][[0, 3]].astype(np.float64)
    topology = Topology.of(["resnet20", "resnet56"])
    trace = Trace(
        topology=topology,
        labels=torch.from_numpy(labels),
        classes=10,
        costs=Costs.simple("flops", (2 * macs).tolist()),
        logits=torch.from_numpy(logits),
    )
    found = oracle(trace, kind, topology=topology, reference="resnet56")
    # the page's figures differ by a standard error at most; these logits are the networks' own
    assert found.cost.mean() / (2 * macs[1]) == pytest.approx(cost, abs=0.004)
    assert 1 - found.wrong.mean() == pytest.approx(accuracy, abs=0.004)
