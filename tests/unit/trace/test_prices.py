"""Prices that differ from example to example: kept in a trace, and what they come to."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from offramp._core.costs import Costs, PricedCosts
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.trace import (
    from_npz,
    from_parquet,
    from_predictions,
    load_trace,
    make_trace,
    save_trace,
)

LABELS = {"a": [0, 1, 1], "b": [0, 1, 0]}
PRICES = np.array([[0.1, 4.0], [0.2, 1.0], [0.6, 1.0]])


def priced(n=60, seed=0, **options):
    trace = make_trace(n, stages=3, seed=seed, **options)
    spread = np.random.default_rng(seed).lognormal(0, 0.7, size=(n, 3))
    return replace(trace, prices=torch.from_numpy(spread * np.array(trace.costs.segment)))


@pytest.mark.parametrize(
    "costs", [PRICES, PRICES.tolist(), {"b": PRICES[:, 1], "a": torch.from_numpy(PRICES[:, 0])}]
)
def test_prices_are_kept_whatever_they_come_as(costs):
    trace = from_predictions(LABELS, [0, 1, 0], costs=costs, unit="usd")
    assert trace.prices.tolist() == PRICES.tolist()
    assert trace.costs.segment == (pytest.approx(0.3), 2.0)
    note = "a: mean of 3 prices from 0.1 to 0.6; b: mean of 3 prices from 1 to 4"
    assert trace.costs.note == note


def test_prices_that_do_not_differ_are_costs_and_nothing_else():
    one = from_predictions(LABELS, [0, 1, 0], costs={"a": 0.1, "b": 0.7}, unit="usd")
    for many in ({"a": [0.1] * 3, "b": [0.7] * 3}, np.tile([0.1, 0.7], (3, 1))):
        trace = from_predictions(LABELS, [0, 1, 0], costs=many, unit="usd")
        assert trace.prices is None
        assert trace.costs == one.costs
    assert replace(one, prices=torch.tensor([[0.1, 0.7]] * 3, dtype=torch.float64)).prices is None


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        (torch.ones(3, 1), r"prices must have shape \(3, 2\)"),
        (torch.tensor([[1.0, 2], [1, -2], [1, 2]]), "got -2.0 for example 1, stage 'b'"),
        (torch.tensor([[1.0, 2], [1, 2], [torch.nan, 2]]), "got nan for example 2, stage 'a'"),
    ],
)
def test_wrong_prices_are_named(prices, message):
    trace = from_predictions(LABELS, [0, 1, 0], costs=PRICES, unit="usd")
    with pytest.raises(InputError, match=message):
        replace(trace, prices=prices)


def test_a_table_of_prices_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"costs must have shape \(3, 2\), got \(3, 3\)"):
        from_predictions(LABELS, [0, 1, 0], costs=np.ones((3, 3)), unit="usd")


def test_they_go_along_with_their_examples_into_files_and_back(tmp_path):
    trace = priced()
    part = trace.take(torch.tensor([5, 2, 40]))
    assert torch.equal(part.prices, trace.prices[[5, 2, 40]])
    assert part.costs == trace.costs  # what a policy knows beforehand
    assert part.mean_cost(1) == pytest.approx(float(part.prices[:, 1].mean()))
    save_trace(trace, tmp_path / "a.trace")
    again = load_trace(tmp_path / "a.trace")
    assert torch.equal(again.prices, trace.prices)
    assert again.prices.dtype == torch.float64


def test_another_unit_leaves_them_behind():
    trace = priced()
    seconds = Costs.simple("seconds", [1.0, 2.0, 3.0])
    assert trace.with_costs(seconds).prices is None
    assert trace.with_costs(trace.costs).prices is trace.prices


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_files_hold_them_under_a_name(kind, tmp_path):
    named = {"predictions": {"a": "a", "b": "b"}, "labels": "y", "unit": "usd"}
    costs = {"a": 0.5, "b": "price_b"}
    columns = {**{k: np.array(v) for k, v in LABELS.items()}, "y": np.array([0, 1, 0])}
    columns["price_b"] = PRICES[:, 1]
    path = tmp_path / f"answers.{kind}"
    if kind == "npz":
        np.savez(path, **columns)
        trace = from_npz(path, costs=costs, **named)
    else:
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), path)
        trace = from_parquet(path, costs=costs, **named)
    assert trace.prices.tolist() == [[0.5, 4.0], [0.5, 1.0], [0.5, 1.0]]


def test_priced_costs_are_the_costs_of_each_example_by_itself():
    topology = Topology.of(["a", "b", "c"], sources=[-1, 0, -1], groups=["g", "h", "i"])
    costs = Costs(unit="usd", segment=(1, 2, 3), head=(0.1, 0.2, 0.3), decision=(0.01, 0.02, 0.03))
    prices = np.random.default_rng(0).uniform(size=(5, 3))
    bill = PricedCosts(mean=costs, prices=prices)
    each = [replace(costs, segment=tuple(row)) for row in prices.tolist()]
    for path in topology.paths():
        for decided in ((), path, path[:1]):
            one_by_one = [table.path(topology, path, decided) for table in each]
            assert bill.path(topology, path, decided) == pytest.approx(one_by_one)
    alone = [table.alone(topology, 1) for table in each]
    assert bill.alone(topology, 1) == pytest.approx(alone)
    relative = bill.relative_to(topology, 1)
    assert relative.alone(topology, 1).mean() == pytest.approx(1.0)
    assert relative.path(topology, (0, 2), (0,)) == pytest.approx(
        [table.path(topology, (0, 2), (0,)) / np.mean(alone) for table in each]
    )
