"""The paired bootstrap intervals cover what they promise, by repetition.

A population with known risk is drawn from again and again; the 95 % interval of the mean difference
must contain the truth in about 95 % of draws. Percentile intervals of a thousand losses that are
mostly 0 fall a little short; 93 % is what is asked, tested at 1e-3. A twin that resamples too many
examples, as if there were more data than there are, fails the same test.
"""

import numpy as np
import pytest
from scipy.stats import binomtest

from offramp.evaluation.evaluate import paired_intervals

PROMISED = 0.93
POPULATIONS = {
    "few errors": (0.02, 0.01),
    "many of both": (0.15, 0.15),
    "corrections only": (0.0, 0.05),
    "ties": (0.5, 0.5),
}


def too_sure(values, counts, *, rounds, seed):
    """The broken twin: as if every example were there four times."""
    return paired_intervals(values, 4 * counts, rounds=rounds, seed=seed)


def covered(intervals, losses: float, corrections: float, draws: int) -> int:
    """In how many draws of 1,000 examples the interval contains the true mean."""
    rng = np.random.default_rng(0)
    values = np.array([[1.0], [-1.0], [0.0]])
    hits = 0
    for seed in range(draws):
        counts = rng.multinomial(1000, [losses, corrections, 1 - losses - corrections])
        ((low, high),) = intervals(values, counts, rounds=500, seed=seed)
        hits += low <= losses - corrections <= high
    return hits


def p_value(hits: int, draws: int) -> float:
    return binomtest(hits, draws, PROMISED, alternative="less").pvalue


@pytest.mark.parametrize("name", POPULATIONS)
def test_intervals_cover_the_truth(name):
    draws = 300
    assert p_value(covered(paired_intervals, *POPULATIONS[name], draws), draws) > 1e-3


def test_intervals_that_are_too_narrow_fail_the_same_test():
    draws = 300
    assert p_value(covered(too_sure, *POPULATIONS["many of both"], draws), draws) < 1e-3


@pytest.mark.statistical
@pytest.mark.parametrize("name", POPULATIONS)
def test_intervals_cover_the_truth_in_thousands_of_draws(name):
    draws = 5000
    assert p_value(covered(paired_intervals, *POPULATIONS[name], draws), draws) > 1e-3
