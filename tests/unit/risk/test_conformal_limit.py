"""The conformal limit of one number."""

import math

import numpy as np
import pytest

from offramp._core.errors import InputError
from offramp.risk import conformal_limit
from offramp.risk.conformal import conformal_limit_reference


@pytest.mark.parametrize("n", [1, 5, 9, 10, 19, 20, 99])
@pytest.mark.parametrize("delta", [0.05, 0.1, 0.25, 0.5])
def test_it_is_the_smallest_value_that_few_enough_exceed(n, delta):
    values = np.random.default_rng(n).integers(0, 8, size=n).astype(np.float64)  # with ties
    assert conformal_limit(values, delta=delta) == conformal_limit_reference(
        values.tolist(), delta=delta
    )


def test_too_few_values_limit_nothing():
    assert conformal_limit(np.ones(8), delta=0.1) == math.inf
    assert conformal_limit(np.ones(9), delta=0.1) == 1.0


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, np.nan]), np.ones((2, 2))])
def test_what_is_no_list_of_numbers_is_refused(values):
    with pytest.raises(InputError, match="finite numbers"):
        conformal_limit(values, delta=0.1)
