import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from offramp._core.errors import InputError
from offramp.fitting.newton import Classes, fit_weighted_logistic


def problem(seed: int, n: int = 400, d: int = 5):
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(size=(n, d)), np.ones(n)])
    truth = rng.normal(size=d + 1)
    positive = rng.random(n) < 1 / (1 + np.exp(-x @ truth))
    return x, positive, rng.exponential(size=n) ** 3


@pytest.mark.parametrize("seed", range(5))
def test_newton_finds_what_scikit_learn_finds(seed):
    x, positive, weights = problem(seed)
    ridge = 0.01
    ours = fit_weighted_logistic(x, positive, weights, ridge=ridge)
    # scikit-learn minimizes C * sum(w loss) + |b|^2 / 2, the intercept unpenalized.
    oracle = LogisticRegression(
        C=1 / (ridge * weights.sum()), solver="newton-cholesky", tol=1e-10, max_iter=1000
    )
    oracle.fit(x[:, :-1], positive, sample_weight=weights)
    np.testing.assert_allclose(ours[:-1], oracle.coef_[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours[-1], oracle.intercept_[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_classes_are_what_their_columns_are(count):
    """As labels and as one column for each class but the last; the third is in no example."""
    x, positive, weights = problem(3)
    labels = np.random.default_rng(4).integers(0, count, 400)
    labels[labels == 2] = 0
    classes = Classes.of(labels, count)
    columns = (labels[:, None] == np.arange(count - 1)) * classes.scale
    spread = columns.std(axis=0)
    np.testing.assert_allclose(spread[spread > 0], 1.0)
    ours = fit_weighted_logistic(x, positive, weights, ridge=0.01, classes=classes)
    wide = np.hstack([x[:, :-1], columns, x[:, -1:]])  # the intercept stands last
    dense = fit_weighted_logistic(wide, positive, weights, ridge=0.01)
    np.testing.assert_allclose(
        ours, np.concatenate([dense[:5], dense[-1:], dense[5:-1]]), atol=1e-5
    )


def test_a_warm_start_leads_to_the_same_solution():
    x, positive, weights = problem(7)
    cold = fit_weighted_logistic(x, positive, weights)
    warm = fit_weighted_logistic(x, positive, weights, start=np.full(6, 3.0))
    np.testing.assert_allclose(cold, warm, atol=1e-5)


def test_separable_examples_do_not_run_away():
    x = np.column_stack([np.repeat([-1.0, 1.0], 50), np.ones(100)])
    found = fit_weighted_logistic(x, x[:, 0] > 0, np.ones(100), ridge=1e-3)
    assert np.isfinite(found).all()
    assert 1 < found[0] < 100


def test_one_class_only_is_no_error():
    x, _, weights = problem(1)
    assert np.isfinite(fit_weighted_logistic(x, np.ones(400, dtype=bool), weights)).all()


def test_doubling_all_weights_changes_nothing():
    x, positive, weights = problem(2)
    np.testing.assert_allclose(
        fit_weighted_logistic(x, positive, weights),
        fit_weighted_logistic(x, positive, 2 * weights),
        atol=1e-7,
    )


def test_weights_that_are_all_zero_are_refused_with_their_sum():
    x, positive, _ = problem(0)
    with pytest.raises(InputError, match=r"weights must not all be 0, got a sum of 0\.0"):
        fit_weighted_logistic(x, positive, np.zeros(400))
    with pytest.raises(InputError, match=r"ridge must be greater than 0, got -1"):
        fit_weighted_logistic(x, positive, np.ones(400), ridge=-1)
