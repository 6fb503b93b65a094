"""A watch raises false alarms no more often than it says, at any time, and finds what is broken.

Side by side, thousands of watches see losses whose risk is known. While the promise holds, even
just so, the share that ever raises an alarm must not be above delta, by a binomial test at 1e-3.
Deliberately broken twins fail the same test. Where the risk rises, at once or slowly, early or
late, alarms must come, and soon.
"""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from offramp.runtime import RiskMonitor
from offramp.runtime.monitor import after_audit, starts_until, unspent

LIMIT, DELTA = 0.02, 0.1
AUDITS = 3000
FAST, FULL = 1000, 10_000
RUNS = pytest.mark.parametrize(
    "runs", [FAST, pytest.param(FULL, marks=pytest.mark.statistical)], ids=["fast", "full"]
)


def unlikely(alarms: int, runs: int) -> bool:
    """True if so many alarms contradict that each comes with probability `DELTA` at most."""
    return binomtest(alarms, runs, DELTA, alternative="greater").pvalue < 1e-3


def drawn(losses, corrections, runs, seed=0):
    """Losses 1, -1, 0 with probabilities that change from audit to audit, `(audits, runs)`."""
    rng = np.random.default_rng(seed)
    u = rng.random((len(losses), runs))
    lost, won = np.asarray(losses)[:, None], np.asarray(corrections)[:, None]
    return np.where(u < lost, 1.0, np.where(u < lost + won, -1.0, 0.0))


def alarms(losses, risk, limit=LIMIT):
    """After which audit each run raises its alarm; infinity where it never does."""
    capital = np.zeros((losses.shape[1], len(RiskMonitor(limit=limit, delta=DELTA).capital)))
    at = np.full(losses.shape[1], np.inf)
    for n, row in enumerate(losses, start=1):
        capital = after_audit(capital, row[:, None], n=n, limit=limit, risk=risk)
        wealth = capital.sum(axis=1) + unspent(starts_until(n, limit))
        at[(wealth * DELTA >= 1) & np.isinf(at)] = n
    return at


def constant(value):
    return np.full(AUDITS, value)


def waves(low, high, length=150):
    """Risk that goes up and down, never above `high`."""
    return np.where(np.arange(AUDITS) // length % 2 == 0, low, high)


HOLDING = {
    "new errors, at the limit": ("negative_flips", constant(LIMIT), constant(0.0)),
    "waves up to the limit": ("negative_flips", waves(0.0, LIMIT), constant(0.0)),
    "differences, seldom, at the limit": (
        "accuracy_drop",
        constant(LIMIT + 0.005),
        constant(0.005),
    ),
    "differences, often, at the limit": ("accuracy_drop", constant(LIMIT + 0.3), constant(0.3)),
    "differences that move": ("accuracy_drop", waves(0.05, 0.2), waves(0.03, 0.18)),
    "corrections only": ("accuracy_drop", constant(0.0), constant(0.1)),
}


@RUNS
@pytest.mark.parametrize("name", HOLDING)
def test_false_alarms_ever_are_not_above_delta(name, runs):
    risk, losses, corrections = HOLDING[name]
    found = alarms(drawn(losses, corrections, runs), risk)
    assert not unlikely(int(np.isfinite(found).sum()), runs)


def test_the_bound_is_not_idle():
    """A watch that never raises an alarm would pass the test above."""
    found = alarms(drawn(*HOLDING["new errors, at the limit"][1:], FAST), "negative_flips")
    assert np.isfinite(found).sum() > 0.01 * FAST


@RUNS
def test_bounded_losses_at_the_limit_raise_no_more_alarms_either(runs):
    """Losses that are neither 0 nor 1: 0, 1/4 and 1, with a mean of 0.1."""
    rng = np.random.default_rng(4)
    losses = rng.choice([0.0, 0.25, 1.0], p=[0.79, 0.1467, 0.0633], size=(600, runs))
    found = alarms(losses, "negative_flips", limit=0.79 * 0.0 + 0.1467 * 0.25 + 0.0633)
    assert not unlikely(int(np.isfinite(found).sum()), runs)


def test_a_watch_by_itself_does_what_many_side_by_side_do():
    losses = drawn(constant(0.05), constant(0.01), 5)
    together = alarms(losses, "accuracy_drop")
    for column, at in zip(losses.T, together, strict=True):
        alone = RiskMonitor(limit=LIMIT, delta=DELTA, risk="accuracy_drop").update(column).alarm_at
        assert (np.inf if alone is None else alone) == at
    assert np.isfinite(together).any()


# Faults: what must be found, and how soon. Medians over runs, in audits.


def delays(risk, losses, corrections, *, since, runs=200):
    """Audits from the beginning of the fault to the alarm; infinite where there is none."""
    found = alarms(drawn(losses, corrections, runs), risk)
    early = found <= since
    assert early.mean() <= DELTA
    return (found - since)[~early]


def shifted(before, after, at, audits):
    return np.where(np.arange(audits) < at, before, after)


@pytest.mark.parametrize(
    ("risk", "since", "after", "soon"),
    [
        ("negative_flips", 0, (0.08, 0.0), 130),
        ("negative_flips", 0, (0.04, 0.0), 800),
        ("negative_flips", 5000, (0.08, 0.0), 300),
        ("accuracy_drop", 0, (0.12, 0.03), 330),
        ("accuracy_drop", 5000, (0.12, 0.03), 850),
    ],
)
def test_a_sudden_shift_is_found_early_and_late(risk, since, after, soon):
    before = (0.01, 0.0) if risk == "negative_flips" else (0.05, 0.05)
    losses, corrections = (
        shifted(b, a, since, since + 3000) for b, a in zip(before, after, strict=True)
    )
    found = delays(risk, losses, corrections, since=since)
    assert np.median(found) < soon
    assert np.isfinite(found).mean() > 0.95


def test_a_slow_drift_is_found_before_it_has_gone_far():
    """The risk rises from half the limit to five times as much in 5,000 audits."""
    losses = np.interp(np.arange(7000), [2000, 7000], [LIMIT / 2, 5 * LIMIT])
    crossed = int(np.flatnonzero(losses > LIMIT)[0])
    found = delays("negative_flips", losses, np.zeros(7000), since=crossed)
    assert np.isfinite(found).all()
    assert losses[crossed + int(np.median(found))] < 2.7 * LIMIT


# Broken twins: each must fail the test that the watch passes.


def repeated_tests(losses):
    """A test for a fixed number of audits at delta, taken again after every 50."""
    n = np.arange(1, len(losses) + 1)[:, None]
    p_values = binom.sf(losses.cumsum(axis=0) - 1, n, LIMIT)
    return (p_values[49::50] <= DELTA).any(axis=0)


def bets_that_see_the_outcome(losses):
    """The bet of an audit is sized by a mean that the audit itself is part of."""
    n = np.arange(1, len(losses) + 1)[:, None]
    mean = (LIMIT + losses.cumsum(axis=0)) / (1 + n)
    bets = np.clip((mean - LIMIT) / (LIMIT * (1 - LIMIT)), 0.0, 0.8 / LIMIT)
    wealth = (1 + bets * (losses - LIMIT)).cumprod(axis=0)
    return (wealth * DELTA >= 1).any(axis=0)


def starts_that_are_not_paid_for(losses):
    """Each start has the whole capital, as in a detector that only bounds the mean time."""
    wealth = np.zeros(losses.shape[1])
    highest = np.zeros(losses.shape[1])
    for row in losses:
        wealth = (wealth + 1) * (1 + 5.0 * (row - LIMIT))
        highest = np.maximum(highest, wealth)
    return highest * DELTA >= 1


@pytest.mark.parametrize(
    "twin", [repeated_tests, bets_that_see_the_outcome, starts_that_are_not_paid_for]
)
def test_the_test_above_catches_a_broken_watch(twin):
    losses = drawn(*HOLDING["new errors, at the limit"][1:], FAST)
    assert not unlikely(int(np.isfinite(alarms(losses, "negative_flips")).sum()), FAST)
    assert unlikely(int(twin(losses).sum()), FAST)
