"""The most that could be saved is said too low with probability delta at most, by repetition.

A large trace is the population; what a policy that knew the labels would save on it is known. Few
examples are drawn from it with replacement, again and again; the limit that advice gives must be
below the truth no more often than delta, by a binomial test at 1e-3. The saving measured on the
examples themselves, without a limit, fails the same test.
"""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from offramp.evaluation import saving_bound
from offramp.trace import make_trace

DELTA = 0.1
FAST, FULL = 100, 2000
POPULATIONS = {
    "two stages": {"accuracies": (0.7, 0.9)},
    "three stages, labels": {"accuracies": (0.6, 0.8, 0.9), "kind": "labels"},
    "no use": {"accuracies": (0.3, 0.9)},
}


def too_low(name, draws, *, risk="accuracy_drop", max_drop=0.01, n=200):
    """How often the limit, and how often the measured saving, is below the truth."""
    trace = make_trace(6000, seed=3, **POPULATIONS[name])
    f = trace.stages[-1]

    def bound(part):
        return saving_bound(part, f, max_drop=max_drop, delta=DELTA, risk=risk)

    truth = bound(trace).measured
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        rows = torch.from_numpy(rng.permutation(len(trace))[:n])
        found.append(bound(trace.take(rows)))
    return sum(b.limit < truth for b in found), sum(b.measured < truth for b in found)


def unlikely(count, draws):
    return binomtest(count, draws, DELTA, alternative="greater").pvalue < 1e-3


@pytest.mark.parametrize("risk", ["accuracy_drop", "negative_flips"])
@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize(
    "draws", [FAST, pytest.param(FULL, marks=pytest.mark.statistical)], ids=["fast", "full"]
)
def test_the_most_that_can_be_saved_is_seldom_said_too_low(name, risk, draws):
    limits, _ = too_low(name, draws, risk=risk)
    assert not unlikely(limits, draws)


def test_the_test_above_catches_a_saving_without_a_limit():
    _, measured = too_low("two stages", FAST)
    assert unlikely(measured, FAST)
