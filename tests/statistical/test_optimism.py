"""The optimism of a fit, by repetition: about one example for each rule that was placed.

Each rule decides for a part of the examples of its own, who have a score and lose something or
nothing if they leave. The cut stands as low as n examples permit without a loss. The next example
is lost where it lies above all losing ones of its part, so the risk is at most rules / (n + 1).
Twins that take less away are refuted by the same test.
"""

import numpy as np
import pytest
from scipy.stats import norm

N, FAST, FULL = 60, 2000, 40_000
DRAWS = pytest.mark.parametrize(
    "draws", [FAST, pytest.param(FULL, marks=pytest.mark.statistical)], ids=["fast", "full"]
)


def risks(rules, draws, *, losing=0.4, seed=0):
    """True risk of what n examples made of `rules` cuts, `(draws,)`.

    Scores are uniform and say nothing of losses, so a cut at c has the risk `losing` * (1 - c).
    """
    rng = np.random.default_rng(seed)
    score = rng.random((draws, N))
    loses = rng.random((draws, N)) < losing
    part = rng.integers(rules, size=(draws, N))
    found = np.zeros(draws)
    for rule in range(rules):
        cut = np.where(loses & (part == rule), score, 0.0).max(axis=1)
        found += losing * (1 - cut) / rules
    return found


def too_high(found, limit):
    """True if the risks contradict, at 1e-3, that they are `limit` at most in the mean."""
    return found.mean() - norm.isf(1e-3) * found.std() / len(found) ** 0.5 > limit


@DRAWS
@pytest.mark.parametrize("rules", [1, 2, 5])
def test_the_optimism_of_a_fit_is_one_example_for_each_rule(rules, draws):
    found = risks(rules, draws)
    assert not too_high(found, rules / (N + 1))
    assert found.mean() > 0.8 * rules / (N + 1)  # nor is it much less


@pytest.mark.parametrize("rules", [2, 5])
def test_the_test_above_catches_who_takes_one_example_for_all_rules(rules):
    assert too_high(risks(rules, FAST), 1 / (N + 1))


def test_the_test_above_catches_who_takes_the_fit_at_its_word():
    assert too_high(risks(1, FAST), 0.0)
