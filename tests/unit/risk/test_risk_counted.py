"""Bets on counts agree with one example after another, and refuse what lies outside."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.errors import InputError
from offramp.risk import Range, binomial_p_values, counted_p_value, fewest_counted, tuned_bet
from offramp.risk.counted import counted_p_value_reference
from support.properties import examples

COSTS = np.array([0.25, 0.5, 1.25])
PATHS = Range(low=0.25, high=1.25, limit=0.6)


@examples(60)
@given(
    counts=st.lists(st.integers(0, 12), min_size=3, max_size=3),
    limit=st.sampled_from([0.3, 0.6, 1.1]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 9),
)
def test_counts_give_what_one_example_after_another_gives_in_any_order(counts, limit, share, seed):
    within = Range(low=0.25, high=1.25, limit=limit)
    bet = share * within.highest_bet
    losses = np.repeat(COSTS, counts)
    np.random.default_rng(seed).shuffle(losses)
    twin = counted_p_value_reference(losses.tolist(), within=within, bet=bet)
    found = counted_p_value(COSTS, np.array(counts), within=within, bet=bet)
    assert found == pytest.approx(twin, rel=1e-9)
    assert 0 < found <= 1


def test_a_limit_that_cannot_be_exceeded_is_certain_and_one_that_cannot_be_kept_is_not():
    counts = np.array([1, 1, 1])
    certain = Range(low=0.25, high=1.25, limit=1.25)
    assert counted_p_value(COSTS, counts, within=certain, bet=0.0) == 0.0
    assert counted_p_value_reference(COSTS.tolist(), within=certain, bet=0.0) == 0.0
    hopeless = Range(low=0.25, high=1.25, limit=0.25)
    assert counted_p_value(COSTS, counts, within=hopeless, bet=0.0) == 1.0
    assert fewest_counted(within=certain, delta=0.1) == 1


def test_losses_that_vary_little_need_much_fewer_examples():
    """Costs between 0.45 and 0.55 in a range of 0 to 1: an exact test knows the mean alone."""
    values, counts = np.array([0.45, 0.55]), np.array([150, 150])
    within = Range(low=0.0, high=1.0, limit=0.52)
    bet = tuned_bet(values, counts, 300, within=within, delta=0.1)
    assert counted_p_value(values, counts, within=within, bet=bet) < 0.01
    assert binomial_p_values(np.array([150]), 300, max_risk=0.52)[0] > 0.2


def test_the_bet_is_that_of_the_formula_and_never_goes_bankrupt():
    values, counts = np.array([0.0, 1.0]), np.array([90, 10])
    within = Range(low=0.0, high=1.0, limit=0.2)
    spread = (0.25 + 90 * 0.1**2 + 10 * 0.9**2) / 101
    expected = math.sqrt(2 * math.log(10) / (500 * spread))
    assert tuned_bet(values, counts, 500, within=within, delta=0.1) == pytest.approx(expected)
    nobody = tuned_bet(values, np.array([0, 0]), 500, within=within, delta=0.1)
    assert nobody == pytest.approx(math.sqrt(2 * math.log(10) / (500 / 4)))
    few = tuned_bet(values, counts, 1, within=within, delta=0.1)
    assert few == within.highest_bet == pytest.approx(0.75 / 0.8)


@pytest.mark.parametrize("limit", [0.01, 0.1, 0.5])
def test_the_fewest_examples_are_where_nothing_lost_just_passes_with_the_highest_bet(limit):
    within = Range(low=-3.0, high=3.0, limit=limit)
    n = fewest_counted(within=within, delta=0.05)
    p = [
        counted_p_value(np.array([0.0]), np.array([m]), within=within, bet=within.highest_bet)
        for m in (n - 1, n)
    ]
    assert p[1] <= 0.05 < p[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Range(low=1.0, high=1.0, limit=0.5), r"low below high, got 1.0, 1.0 and 0.5"),
        (lambda: Range(low=0.0, high=float("nan"), limit=0.5), r"must be finite.*got 0.0, nan"),
        (
            lambda: counted_p_value(np.array([1.5]), np.array([1]), within=PATHS, bet=0.1),
            r"values must be in \[0.25, 1.25\], got 1.5",
        ),
        (
            lambda: counted_p_value(np.array([np.nan]), np.array([1]), within=PATHS, bet=0.1),
            r"values must be in \[0.25, 1.25\], got nan",
        ),
        (
            lambda: counted_p_value(COSTS, np.array([1, 1, 1]), within=PATHS, bet=1.2),
            r"bet must be in \[0, 1.15385\], got 1.2",
        ),
        (
            lambda: counted_p_value(COSTS, np.array([1, 1, 1]), within=PATHS, bet=-0.1),
            r"bet must be finite and at least 0, got -0.1",
        ),
        (
            lambda: tuned_bet(COSTS, np.array([1, 1, 1]), 9, within=PATHS, delta=10.0),
            r"delta must be in \(0, 1\), got 10.0. .*: 10 % is 0.1",
        ),
        (lambda: fewest_counted(within=PATHS, delta=0.0), r"delta must be in \(0, 1\), got 0.0"),
    ],
)
def test_what_lies_outside_is_refused_by_its_value(call, message):
    with pytest.raises(InputError, match=message):
        call()
