"""What must hold for every frontier and every choice on it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.evaluation import fit, references
from offramp.fitting.oracles import ORACLES
from offramp.fitting.pareto import pareto_front
from offramp.trace import make_trace
from support.properties import examples

POINTS = st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])] * 2), max_size=12)


@pytest.fixture(scope="module")
def frontier():
    return fit(
        make_trace(300, stages=3, seed=3), ["random", "threshold"], combines=["last"], grid=12
    )


@given(points=POINTS)
def test_no_point_of_a_pareto_front_is_dominated_and_every_other_point_is(points):
    costs, risks = (np.array([p[axis] for p in points], dtype=np.float64) for axis in (0, 1))
    for i, on_front in enumerate(pareto_front(costs, risks)):
        better = (costs <= costs[i]) & (risks <= risks[i])
        strictly = better & ((costs < costs[i]) | (risks < risks[i]))
        assert bool(strictly.any()) is not bool(on_front)


@given(
    losses=st.tuples(*[st.floats(0, 0.5)] * 2),
    risk=st.sampled_from(["accuracy_drop", "negative_flips"]),
)
def test_allowing_more_loss_never_costs_more(frontier, losses, risk):
    strict, loose = (
        frontier.cheapest(max_drop=loss, risk=risk, delta=None) for loss in sorted(losses)
    )
    assert loose.judged.cost_ratio <= strict.judged.cost_ratio + 1e-12


@given(costs=st.tuples(*[st.floats(0.1, 2)] * 2))
def test_paying_more_never_loses_more(frontier, costs):
    tight, wide = (frontier.best(max_cost=cost) for cost in sorted(costs))
    if tight.refused is None:
        assert wide.judged.accuracy_drop <= tight.judged.accuracy_drop + 1e-12


@given(seed=st.integers(0, 2**31 - 1))
@examples(8)
def test_the_oracles_are_ordered_as_their_freedom_is(seed):
    trace = make_trace(200, stages=3, seed=seed)
    found = {p.name: p for p in references(trace, "stage2") if p.kind == "oracle"}
    paper, neutral, free = (found[f"{kind} oracle"] for kind in ORACLES)
    assert free.cost_ratio <= neutral.cost_ratio + 1e-12
    assert neutral.cost_ratio <= paper.cost_ratio + 1e-12
    assert free.accuracy >= max(neutral.accuracy, paper.accuracy)
    assert paper.negative_flips == neutral.negative_flips == 0
    assert max(trace.accuracy(k) for k in range(3)) <= free.accuracy
