"""Which candidates pass: the last before the first that fails, never that one; and no sentinels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.errors import InputError
from offramp.risk import (
    Controlled,
    NonePassed,
    Passed,
    binomial_p_values,
    bonferroni,
    conformal_risk_control,
    fixed_sequence,
    holm,
)
from offramp.risk.conformal import conformal_risk_control_reference
from offramp.risk.selection import fixed_sequence_reference, holm_reference

P_VALUES = st.lists(st.sampled_from([0.0, 0.01, 0.05, 0.06, 0.5, 1.0]), max_size=8)


def test_the_setting_before_the_first_failure_is_returned_not_the_failure():
    """Public code returned the first row that failed: the one with risk 0.5 at a limit of 0.1."""
    risks = np.array([0.0, 0.03, 0.5, 0.9])
    p_values = binomial_p_values(np.rint(1000 * risks).astype(np.int64), 1000, max_risk=0.1)
    assert fixed_sequence(p_values, delta=0.1) == Passed(index=1, p_value=float(p_values[1]))


def test_no_answer_is_a_type_and_not_the_last_candidate():
    found = fixed_sequence(np.array([0.7, 0.0, 0.0]), delta=0.1)
    assert isinstance(found, NonePassed)
    assert not hasattr(found, "index")
    assert found.reason == "the safest candidate has p = 0.7, above delta = 0.1"


def test_where_all_pass_the_cheapest_is_returned():
    assert fixed_sequence(np.array([0.0, 0.1, 0.02]), delta=0.1) == Passed(index=2, p_value=0.1)


def test_of_no_settings_none_passes():
    none = np.empty(0)
    assert isinstance(fixed_sequence(none, delta=0.1), NonePassed)
    assert holm(none, delta=0.1).tolist() == bonferroni(none, delta=0.1).tolist() == []


@given(values=P_VALUES)
def test_walking_step_by_step_gives_the_same(values):
    p_values = np.array(values, dtype=np.float64)
    assert fixed_sequence(p_values, delta=0.05) == fixed_sequence_reference(p_values, delta=0.05)


@given(values=P_VALUES)
def test_holm_is_taking_the_smallest_again_and_again_and_passes_all_that_bonferroni_does(values):
    p_values = np.array(values, dtype=np.float64)
    found = holm(p_values, delta=0.05)
    assert found.tolist() == holm_reference(p_values, delta=0.05).tolist()
    assert (found >= bonferroni(p_values, delta=0.05)).all()


def test_a_set_without_an_order_pays_for_its_size():
    p_values = np.array([0.04, 0.5, 0.012])
    assert bonferroni(p_values, delta=0.05).tolist() == [False, False, True]
    assert holm(p_values, delta=0.05).tolist() == [False, False, True]
    assert holm(np.array([0.04, 0.025]), delta=0.05).tolist() == [True, True]


@given(seed=st.integers(0, 10**6), limit=st.sampled_from([0.05, 0.3, 0.9]))
def test_conformal_risk_control_is_the_cheapest_setting_within_the_bound(seed, limit):
    rng = np.random.default_rng(seed)
    steps = rng.random((12, 5)) * (rng.random((12, 5)) < 0.3)
    losses = np.minimum(1.0, steps.cumsum(axis=1))
    found = conformal_risk_control(losses, max_risk=limit)
    twin = conformal_risk_control_reference(losses, max_risk=limit)
    if isinstance(found, Controlled):
        assert isinstance(twin, Controlled)
        assert found.index == twin.index
        assert found.bound == pytest.approx(twin.bound)
        assert found.bound <= limit
    else:
        assert found == twin


def test_conformal_risk_control_adds_one_worst_example():
    """49 of 50 right and the mean itself at the limit: without the example it would pass."""
    losses = np.zeros((50, 1))
    losses[0] = 1.0
    assert isinstance(conformal_risk_control(losses, max_risk=0.02), NonePassed)
    assert conformal_risk_control(losses, max_risk=2 / 51) == Controlled(index=0, bound=2 / 51)


def test_conformal_risk_control_refuses_losses_that_fall():
    losses = np.array([[0.0, 0.2, 0.2], [0.0, 1.0, 0.5]])
    with pytest.raises(InputError, match=r"got 1.0 and then 0.5 for example 1, candidates 1 and 2"):
        conformal_risk_control(losses, max_risk=0.1)


@pytest.mark.parametrize("test", [fixed_sequence, holm, bonferroni])
def test_levels_and_p_values_outside_are_refused(test):
    with pytest.raises(InputError, match=r"delta must be in \(0, 1\), got 5"):
        test(np.array([0.1]), delta=5)
    with pytest.raises(InputError, match=r"p_values must be in \[0, 1\], got 1.5"):
        test(np.array([0.1, 1.5]), delta=0.1)
    with pytest.raises(InputError, match=r"p_values must be in \[0, 1\], got nan"):
        test(np.array([np.nan]), delta=0.1)
    with pytest.raises(InputError, match=r"shape \(k,\), got \(1, 1\)"):
        test(np.array([[0.1]]), delta=0.1)


def test_losses_outside_and_limits_outside_are_refused():
    with pytest.raises(InputError, match=r"losses must be in \[0, 1\], got 2.0"):
        conformal_risk_control(np.array([[2.0]]), max_risk=0.1)
    with pytest.raises(InputError, match=r"max_risk must be in \(0, 1\), got 5"):
        conformal_risk_control(np.array([[0.0]]), max_risk=5)
    assert isinstance(conformal_risk_control(np.zeros((3, 0)), max_risk=0.5), NonePassed)
