"""P-values agree with their slow twins, promise no more than they may, refuse what is foreign."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from offramp._core.errors import InputError
from offramp.risk import (
    betting_p_values,
    binomial_p_values,
    examples_needed,
    fewest_examples,
    hoeffding_bentkus_p_values,
    paired_p_values,
    rescaled_difference,
    several_risks,
)
from offramp.risk.betting import betting_p_value_reference
from offramp.risk.bounds import binomial_p_values_reference, hoeffding_bentkus_p_values_reference
from offramp.risk.paired import paired_p_value_reference
from support.properties import examples

LIMITS = [0.01, 0.1, 0.5, 0.9]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_binomial_p_values_are_the_sum_of_their_terms(n, limit):
    errors = np.arange(n + 1)
    found = binomial_p_values(errors, n, max_risk=limit)
    np.testing.assert_allclose(found, binomial_p_values_reference(errors, n, max_risk=limit))
    test = [stats.binomtest(e, n, limit, alternative="less").pvalue for e in errors.tolist()]
    np.testing.assert_allclose(found, test)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("n", [1, 5, 40])
def test_hoeffding_bentkus_is_its_formula_and_never_below_the_exact_test(n, limit):
    means = np.linspace(0, 1, 2 * n + 1)
    found = hoeffding_bentkus_p_values(means, n, max_risk=limit)
    twin = hoeffding_bentkus_p_values_reference(means, n, max_risk=limit)
    np.testing.assert_allclose(found, twin, rtol=1e-9)
    exact = binomial_p_values(np.arange(n + 1), n, max_risk=limit)
    assert (found[::2] >= exact - 1e-12).all()


@examples(40)
@given(
    losses=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40),
    limit=st.sampled_from(LIMITS),
    delta=st.sampled_from([0.01, 0.1]),
)
def test_betting_one_example_after_another_gives_the_same(losses, limit, delta):
    column = np.array(losses)[:, None]
    found = betting_p_values(column, max_risk=limit, delta=delta)
    twin = betting_p_value_reference(losses, max_risk=limit, delta=delta)
    assert found[0] == pytest.approx(twin, rel=1e-9)


def test_betting_settings_do_not_see_each_other():
    losses = np.random.default_rng(0).random((50, 3))
    found = betting_p_values(losses, max_risk=0.6, delta=0.1)
    for k in range(3):
        alone = betting_p_values(losses[:, [k]], max_risk=0.6, delta=0.1)
        assert alone[0] == pytest.approx(found[k], rel=1e-12)


@pytest.mark.parametrize(("n", "limit"), [(6, 0.1), (12, 0.05), (12, 0.4), (25, 0.02)])
def test_paired_p_values_are_the_worst_sum_over_every_outcome(n, limit):
    pairs = [(a, c) for a in range(0, n + 1, 2) for c in range(0, n + 1 - a, 3)]
    lost, won = np.array(pairs).T
    found = paired_p_values(lost, won, n, max_difference=limit, slack=0.01)
    for (a, c), p in zip(pairs, found, strict=True):
        twin = paired_p_value_reference(a, c, n, max_difference=limit, slack=0.01, grid=60)
        assert p == pytest.approx(twin, rel=2e-3, abs=1e-9)


def every_outcome(n):
    """Counts of losses and corrections among `n` examples, `(u,)` each."""
    lost, won = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    inside = lost + won <= n
    return lost[inside], won[inside]


def largest_excess(p_values, n, limit):
    """How far P(p <= x) exceeds x at most: over all x and a grid of risks of the limit or above."""
    lost, won = every_outcome(n)
    order = np.argsort(p_values, kind="stable")
    ends = np.append(np.diff(p_values[order]) > 0, True)  # the last outcome of each p-value
    worst = -1.0
    for a in np.append(np.geomspace(limit, 1, 12), [1.3 * limit, limit + 0.01]):
        for c in np.linspace(0, max(0.0, min(1 - a, a - limit)), 9):
            shares = np.array([a, c, max(0.0, 1 - a - c)])
            chance = stats.multinomial.pmf(np.stack([lost, won, n - lost - won], axis=1), n, shares)
            reached = np.cumsum(chance[order])
            worst = max(worst, float((reached - p_values[order])[ends].max()))
    return worst


def plug_in_p_values(lost, won, n, limit):
    """The broken twin: the share of discordant examples is taken to be what was seen."""
    found = np.ones(len(lost))
    for k, (i, j) in enumerate(zip(lost.tolist(), won.tolist(), strict=True)):
        if i - j < n * limit:
            d, q = np.arange(n + 1), max(limit, (i + j) / n)
            reached = (i - j - n * limit) / np.sqrt(i + j + n * limit)
            most = np.floor((n * limit + reached * np.sqrt(d + n * limit) + d) / 2 + 1e-9)
            tail = stats.binom.cdf(most, d, (1 + limit / q) / 2)
            found[k] = min(1.0, float((stats.binom.pmf(d, n, q) * tail).sum()))
    return found


@pytest.mark.parametrize(("n", "limit"), [(6, 0.1), (20, 0.05), (20, 0.4), (30, 0.02), (40, 0.1)])
def test_paired_p_values_are_small_no_more_often_than_they_say(n, limit):
    """By every outcome of `n` examples: at the limit and above, P(p <= x) <= x for every x."""
    lost, won = every_outcome(n)
    found = paired_p_values(lost, won, n, max_difference=limit, slack=1e-3)
    assert largest_excess(found, n, limit) <= 1e-5
    if n >= 20:
        assert largest_excess(plug_in_p_values(lost, won, n, limit), n, limit) > 1e-3


CASES = [(3, 1, 200, 0.03), (20, 15, 1500, 0.01), (0, 2, 60, 0.05), (24, 25, 114, 0.02)]


def test_the_grid_of_discordance_rates_is_fine_enough():
    """The chance of a wrong promise at any rate between the grid's is that at the grid's."""
    for lost, won, n, limit in CASES:
        (found,) = paired_p_values(
            np.array([lost]), np.array([won]), n, max_difference=limit, slack=1e-3
        )
        top = stats.beta.ppf(1 - 1e-3, lost + won + 1, n - lost - won)
        worst = 0.0
        for q in np.linspace(limit, top, 1000):
            d = np.arange(n + 1)
            reached = (lost - won - n * limit) / np.sqrt(lost + won + n * limit)
            most = np.floor((n * limit + reached * np.sqrt(d + n * limit) + d) / 2 + 1e-9)
            tail = stats.binom.cdf(most, d, (1 + limit / q) / 2)
            worst = max(worst, float((stats.binom.pmf(d, n, q) * tail).sum()))
        assert found >= (worst + 1e-3) * (1 - 1e-3)


def test_without_corrections_the_paired_test_allows_nearly_as_much_as_the_binomial_one():
    lost = np.arange(30)
    paired = paired_p_values(lost, np.zeros_like(lost), 500, max_difference=0.03, slack=0.005)
    exact = binomial_p_values(lost, 500, max_risk=0.03)
    assert (paired >= exact - 1e-12).all()
    assert (exact <= 0.1).sum() - (paired <= 0.1).sum() in (0, 1)


def test_a_paired_p_value_falls_with_corrections_and_rises_with_losses():
    grid = np.arange(0, 30, 5)
    lost, won = (axis.ravel() for axis in np.meshgrid(grid, grid, indexing="ij"))
    table = paired_p_values(lost, won, 400, max_difference=0.05).reshape(6, 6)
    assert (np.diff(table, axis=0) >= -1e-12).all()
    assert paired_p_values(np.array([5]), np.array([5]), 400, max_difference=0.05)[0] < 0.02


def test_of_several_risks_the_largest_p_value_counts():
    values = np.random.default_rng(1).random((3, 5))
    assert several_risks(values).tolist() == [max(column) for column in values.T.tolist()]


def test_differences_are_moved_to_the_unit_interval():
    moved, limit = rescaled_difference(np.array([[-1.0, 0.0, 1.0]]), 0.02)
    assert moved.tolist() == [[0.0, 0.5, 1.0]]
    assert limit == pytest.approx(0.51)
    assert 2 * moved.mean() - 1 == 0.0


def test_where_answers_seldom_differ_the_paired_test_allows_the_most():
    """Why differences are not tested by the bounds for any losses in [0, 1]."""
    n, won, limit, delta = 1500, 12, 0.01, 0.1
    lost = np.arange(25)
    paired = paired_p_values(lost, np.full(25, won), n, max_difference=limit, slack=delta / 20)
    rng = np.random.default_rng(0)
    columns = [[1.0] * k + [-1.0] * won + [0.0] * (n - k - won) for k in lost.tolist()]
    moved, moved_limit = rescaled_difference(
        np.stack([rng.permutation(column) for column in columns], axis=1), limit
    )
    bet = betting_p_values(moved, max_risk=moved_limit, delta=delta)
    bounded = hoeffding_bentkus_p_values(moved.mean(axis=0), n, max_risk=moved_limit)
    assert (paired <= delta).sum() > (bet <= delta).sum() > won
    assert (bounded > 0.5).all()


@pytest.mark.parametrize(("limit", "delta", "n"), [(0.005, 0.05, 598), (0.02, 0.05, 149)])
def test_the_fewest_examples_are_where_no_error_at_all_just_passes(limit, delta, n):
    assert fewest_examples(max_risk=limit, delta=delta) == n
    none = np.array([0])
    assert binomial_p_values(none, n, max_risk=limit)[0] <= delta
    assert binomial_p_values(none, n - 1, max_risk=limit)[0] > delta


def test_examples_needed_is_the_first_number_that_passes():
    for start in (1, 40, 149, 150, 400):
        found = examples_needed(lambda n: 0.98**n, delta=0.05, at_least=start)
        assert found == max(start, 149)
    assert examples_needed(lambda n: 0.5, delta=0.05) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: binomial_p_values(np.array([1]), 9, max_risk=5),
            r"max_risk .*got 5\. A pe",
        ),
        (
            lambda: binomial_p_values(np.array([10]), 9, max_risk=0.1),
            r"errors .*\[0, 9\].*10",
        ),
        (lambda: binomial_p_values(np.array([0]), 0, max_risk=0.1), "n must be an integer.*got 0"),
        (
            lambda: hoeffding_bentkus_p_values(np.array([1.5]), 9, max_risk=0.1),
            r"means must be in \[0, 1\], got 1.5",
        ),
        (
            lambda: betting_p_values(np.array([[0.5], [-1.0]]), max_risk=0.1, delta=0.1),
            r"losses must be in \[0, 1\], got -1.0. Differences",
        ),
        (
            lambda: betting_p_values(np.array([[np.nan]]), max_risk=0.1, delta=0.1),
            r"losses must be in \[0, 1\], got nan",
        ),
        (
            lambda: betting_p_values(np.zeros((0, 2)), max_risk=0.1, delta=0.1),
            r"at least one example.*\(0, 2\)",
        ),
        (
            lambda: betting_p_values(np.zeros((2, 1)), max_risk=0.1, delta=5.0),
            r"delta must be in \(0, 1\), got 5.0. A percentage",
        ),
        (
            lambda: paired_p_values(np.array([4]), np.array([6]), 9, max_difference=0.1),
            r"losses \+ corrections must be .*got 10",
        ),
        (
            lambda: paired_p_values(np.array([4]), np.array([1, 1]), 9, max_difference=0.1),
            r"shape",
        ),
        (lambda: rescaled_difference(np.array([2.0]), 0.1), r"in \[-1, 1\], got 2.0"),
        (lambda: rescaled_difference(np.array([0.0]), 1.0), r"in \(-1, 1\), got 1.0"),
        (lambda: several_risks(np.zeros(3)), r"shape \(r, k\).*\(3,\)"),
        (lambda: fewest_examples(max_risk=0.0, delta=0.1), r"max_risk must be .*got 0.0"),
    ],
)
def test_what_lies_outside_is_refused_by_its_value(call, message):
    with pytest.raises(InputError, match=message):
        call()
