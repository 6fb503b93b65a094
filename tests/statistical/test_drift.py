"""A watch over drift raises false alarms no more often than it says, and finds what has changed.

Thousands of watches side by side: each draws a baseline of its own, then sees examples of the same
source, for a long time. The share that ever raises an alarm must not be above delta, by a binomial
test at 1e-3; deliberately broken twins fail the same test.
"""

import numpy as np
import pytest
from scipy.stats import binomtest, chi2

from offramp.runtime.monitor import STAKES, unspent
from offramp.serve.watch import BLOCK, DriftMonitor, after_block, limits_of

DELTA = 0.1
BLOCKS = 60
FAST, FULL = 1000, 10_000
RUNS = pytest.mark.parametrize(
    "runs", [FAST, pytest.param(FULL, marks=pytest.mark.statistical)], ids=["fast", "full"]
)


def unlikely(alarms, runs):
    return binomtest(int(alarms), runs, DELTA, alternative="greater").pvalue < 1e-3


def drawn(shares, size, runs, blocks=BLOCKS, later=None, since=0, seed=0):
    """Counts of a baseline, `(runs, k)`, and of each block after it, `(blocks, runs, k)`."""
    rng = np.random.default_rng(seed)
    before = rng.multinomial(size, shares, size=runs)
    calm = rng.multinomial(BLOCK, shares, size=(since, runs))
    rest = rng.multinomial(BLOCK, shares if later is None else later, size=(blocks - since, runs))
    return before, np.concatenate([calm, rest])


def alarms(before, after, size, limits=None):
    """After which block each run raises its alarm; infinity where it never does."""
    runs, e = before.shape
    if limits is None:
        limits = np.array([limits_of(tuple(row), size, DELTA) for row in before.tolist()])
    capital, at = np.zeros((runs, 2 * e, len(STAKES))), np.full(runs, np.inf)
    for k, block in enumerate(after, start=1):
        counts = np.concatenate([block, BLOCK - block], axis=1).astype(float)
        capital = after_block(capital, counts, blocks=k, limits=limits)
        wealth = capital.sum(axis=(1, 2)) / (2 * e) + unspent(k)
        at[(wealth * DELTA >= 2) & np.isinf(at)] = k
        capital[np.isfinite(at)] = 0.0  # after an alarm nothing is bet any more
    return at


WORLDS = {
    "three exits": ([0.6, 0.3, 0.1], 1000),
    "a rare exit": ([0.995, 0.005], 500),
    "a small baseline": ([0.5, 0.5], 60),
    "ten": ([0.1] * 10, 300),
    "an exit that is never seen": ([0.8, 0.2, 0.0], 1000),
}


@RUNS
@pytest.mark.parametrize("name", WORLDS)
def test_false_alarms_ever_are_not_above_delta(name, runs):
    shares, size = WORLDS[name]
    found = alarms(*drawn(shares, size, runs), size)
    assert not unlikely(np.isfinite(found).sum(), runs)


@pytest.mark.parametrize(
    ("since", "later", "soon"),
    [
        (0, [0.4, 0.4, 0.2], 4),
        (0, [0.53, 0.35, 0.12], 55),
        (50, [0.4, 0.4, 0.2], 6),
        (0, [0.6, 0.2, 0.2], 9),
    ],
)
def test_what_has_changed_is_found_soon(since, later, soon):
    """Blocks of 100 from the change to the alarm, in half of the runs."""
    before, after = drawn([0.6, 0.3, 0.1], 2000, 200, blocks=since + 100, later=later, since=since)
    found = alarms(before, after, 2000)
    early = found <= since
    assert early.mean() <= DELTA
    assert np.median((found - since)[~early]) <= soon


def test_one_watch_does_what_many_side_by_side_do():
    before, after = drawn([0.6, 0.3, 0.1], 500, 6, blocks=30, later=[0.5, 0.3, 0.2])
    together = alarms(before, after, 500)
    assert np.isfinite(together).any()
    rng = np.random.default_rng(1)
    for run, at in enumerate(together):
        watch = DriftMonitor.of("abc", before[run], 500, delta=DELTA)
        for block in after[:, run]:
            rows = np.repeat(np.eye(3, dtype=bool), block, axis=0)
            for part in np.array_split(rng.permutation(rows), 7):
                watch = watch.update(part)
        assert (np.inf if watch.alarm_at is None else watch.alarm_at / BLOCK) == at
        assert watch.n == 3000


# Broken twins.


def a_baseline_that_is_believed(before, after, size):
    """Its shares are taken for the chances themselves."""
    shares = np.clip(before / size, 1e-6, 1 - 1e-6)
    return alarms(before, after, size, limits=np.concatenate([shares, 1 - shares], axis=1))


def a_test_after_every_block(before, after, size):
    """A test of two samples for a fixed number of examples, taken again and again."""
    at = np.full(len(before), np.inf)
    for k, total in enumerate(after.cumsum(axis=0), start=1):
        n = k * BLOCK
        pooled = (before + total) / (size + n)
        wrong = (total - n * pooled) ** 2 / (n * pooled) + (before - size * pooled) ** 2 / (
            size * pooled
        )
        at[(chi2.sf(wrong.sum(axis=1), before.shape[1] - 1) < DELTA) & np.isinf(at)] = k
    return at


@pytest.mark.parametrize("twin", [a_baseline_that_is_believed, a_test_after_every_block])
def test_the_test_above_catches_a_broken_watch(twin):
    before, after = drawn([0.6, 0.3, 0.1], 300, FAST)
    assert not unlikely(np.isfinite(alarms(before, after, 300)).sum(), FAST)
    assert unlikely(np.isfinite(twin(before, after, 300)).sum(), FAST)
