"""Costs: what a path costs, against charging each segment by hand."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.schema import from_json, to_json
from offramp._core.topology import Topology

EXITS = Topology.of(["a", "b", "c"], edges="chain", sources=[-1, 0, 1])
TABLE = Costs(unit="flops", segment=(1, 10, 100), head=(0.1, 0.2, 0.3), decision=(7, 8, 9))


def test_an_exit_that_is_skipped_costs_its_segment_but_not_its_head():
    skipping = EXITS.part([(0, 2)])
    assert TABLE.visit(skipping, (0,), 2) == pytest.approx(10 + 100 + 0.3)
    assert TABLE.alone(EXITS, 2) == pytest.approx(1 + 10 + 100 + 0.3)


def test_decisions_are_charged_where_they_are_taken_only():
    assert TABLE.path(EXITS, (0, 1), decided=(0,)) == pytest.approx(1 + 0.1 + 10 + 0.2 + 7)
    assert TABLE.path(EXITS, (0, 1), decided=()) == pytest.approx(1 + 0.1 + 10 + 0.2)


def test_alternative_heads_pay_their_common_segment_once():
    groups = Topology.of(
        ["a", "b1", "b2"],
        groups=["a", "b", "b"],
        sources=[-1, 0, 0],
        edges=[("a", "b1"), ("b1", "b2")],
    )
    assert TABLE.visit(groups, (0, 1), 2) == pytest.approx(0.3)


positive = st.floats(0, 1e9, allow_nan=False)


@given(st.lists(positive, min_size=1, max_size=4), st.data())
def test_a_path_of_whole_networks_costs_their_sum(costs, data):
    topology = Topology.of([str(k) for k in range(len(costs))])
    path = data.draw(st.sampled_from(topology.paths()))
    table = Costs.simple("usd", costs)
    assert table.path(topology, path, ()) == pytest.approx(sum(costs[k] for k in path))


@given(st.lists(positive, min_size=1, max_size=4))
@settings(deadline=None)  # the first of all reads loads pydantic
def test_costs_survive_json(costs):
    table = Costs.simple("usd", costs, note="price list")
    assert from_json(Costs, to_json(table)) == table


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_cost_outside_its_domain_is_named_with_its_stage(bad):
    with pytest.raises(InputError, match=rf"segment costs .* got {bad} for stage 1"):
        Costs.simple("flops", [1.0, bad])


def test_lengths_must_agree():
    with pytest.raises(InputError, match=r"head must have one cost per stage, shape \(2,\), got"):
        Costs(unit="flops", segment=(1, 2), head=(0,), decision=(0, 0))


def test_a_unit_must_have_a_name():
    with pytest.raises(InputError, match="unit must be a name"):
        Costs.simple("", [1.0])


def test_flat_costs_are_warned_about_with_names_and_ratio():
    topology = Topology.of(["a", "b", "c"])
    with pytest.warns(UserWarning, match=r"'b' costs 1\.50 times 'a'") as caught:
        Costs.simple("flops", [1.0, 1.5, 6.0]).warn_if_flat(topology)
    assert len(caught) == 1


def test_steep_costs_are_not_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Costs.simple("flops", [1.0, 2.0, 4.0]).warn_if_flat(Topology.of(["a", "b", "c"]))
