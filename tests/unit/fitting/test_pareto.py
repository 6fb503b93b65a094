"""The Pareto filter against comparing every pair."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.errors import InputError
from offramp.fitting.pareto import pareto_front, pareto_front_reference

# few distinct values, so that ties in either are common
VALUES = st.integers(0, 4).map(float)


@given(st.lists(st.tuples(VALUES, VALUES), max_size=12))
def test_the_front_equals_that_of_comparing_every_pair(points):
    costs = np.array([c for c, _ in points])
    risks = np.array([r for _, r in points])
    np.testing.assert_array_equal(pareto_front(costs, risks), pareto_front_reference(costs, risks))


def test_equal_points_stay_together():
    mask = pareto_front(np.array([1.0, 1.0, 1.0]), np.array([2.0, 2.0, 3.0]))
    assert mask.tolist() == [True, True, False]


def test_lengths_must_agree():
    with pytest.raises(InputError, match=r"risks must have shape \(2\), got \(1,\)"):
        pareto_front(np.array([1.0, 2.0]), np.array([1.0]))
