"""A watch is its slow twin, goes on from what was stored, and refuses what is foreign."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp._core.errors import FileFormatError, InputError
from offramp._core.schema import from_json, to_json
from offramp.runtime import MONITORED, RiskMonitor, audit_mask
from offramp.runtime.monitor import starts_until, unspent, wealth_reference

LOSSES = {"accuracy_drop": [-1.0, 0.0, 0.5, 1.0], "negative_flips": [0.0, 0.25, 1.0]}


def watching(risk="negative_flips", limit=0.1, delta=0.05):
    return RiskMonitor(limit=limit, delta=delta, risk=risk)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), risk=st.sampled_from(sorted(LOSSES)), limit=st.sampled_from([0.02, 0.3]))
def test_the_wealth_is_that_of_every_start_and_every_bet(data, risk, limit):
    losses = data.draw(st.lists(st.sampled_from(LOSSES[risk]), max_size=40))
    found = watching(risk, limit, delta=1e-300).update(losses)
    assert found.wealth == pytest.approx(wealth_reference(losses, limit=limit, risk=risk))
    assert found.n == len(losses)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), risk=st.sampled_from(sorted(LOSSES)))
def test_it_does_not_matter_how_audits_are_bundled(data, risk):
    losses = data.draw(st.lists(st.sampled_from(LOSSES[risk]), max_size=60))
    cut = data.draw(st.integers(0, len(losses)))
    whole = watching(risk).update(losses)
    stored = json.loads(json.dumps(to_json(watching(risk).update(losses[:cut]))))
    assert from_json(RiskMonitor, stored).update(losses[cut:]) == whole
    one_by_one = watching(risk)
    for loss in losses:
        one_by_one = one_by_one.update(loss)
    assert one_by_one == whole


@pytest.mark.parametrize("risk", sorted(LOSSES))
def test_on_average_no_audit_gains_anything_where_the_risk_is_the_limit(risk):
    """The wealth after any past, averaged over what may come next, is the wealth before."""
    limit = 0.1
    rng = np.random.default_rng(0)
    least = MONITORED[risk]
    high = (limit - least) / (1 - least)  # the chance of 1 against `least` with this mean
    for length in (0, 1, 9, 10, 25):
        before = watching(risk, limit, 1e-9).update(rng.choice(LOSSES[risk], size=length))
        after = high * before.update(1.0).wealth + (1 - high) * before.update(least).wealth
        assert after == pytest.approx(before.wealth)


def test_an_alarm_stays_and_says_when_it_was():
    watch = watching().update(np.zeros(30)).update(np.ones(5))
    assert watch.alarm
    later = watch.update(np.zeros(1000))
    assert later.alarm
    assert later.n == 1035
    assert later.alarm_at == watch.alarm_at
    assert later.wealth == watch.wealth >= 20
    within = watching().update(np.concatenate([np.zeros(30), np.ones(5), np.zeros(7)]))
    assert within.alarm_at == watch.alarm_at
    assert from_json(RiskMonitor, to_json(within)) == within


def test_the_alarm_is_raised_where_the_wealth_reaches_one_over_delta():
    losses = [0.0] * 12 + [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    wealths = [
        wealth_reference(losses[:n], limit=0.1, risk="negative_flips")
        for n in range(len(losses) + 1)
    ]
    first = next(n for n, wealth in enumerate(wealths) if wealth >= 20)
    assert watching().update(losses).alarm_at == first
    assert not watching(delta=0.99 / wealths[first]).update(losses[:first]).alarm


def test_shares_of_the_starts_add_up_to_the_capital():
    given_out = [unspent(k - 1) - unspent(k) for k in range(1, 5000)]
    assert min(given_out) > 0
    assert sum(given_out) + unspent(4999) == pytest.approx(1.0)
    assert [starts_until(n, 0.1) for n in (0, 1, 10, 11)] == [0, 1, 1, 2]
    assert starts_until(1, 0.9) == 1


def test_a_watch_that_starts_again_finds_a_late_fault_sooner_than_one_that_does_not():
    """The broken twin has one start: what it lost in the calm it has to win back."""
    rng = np.random.default_rng(1)
    losses = np.concatenate([rng.random(6000) < 0.005, rng.random(3000) < 0.1]).astype(float)
    found = watching(limit=0.02).update(losses)
    stakes = np.geomspace(0.02, 0.8, 6)
    once = (1 + stakes[:, None] * (losses / 0.02 - 1)).cumprod(axis=1).mean(axis=0)
    alone = int(np.argmax(once >= 20)) if (once >= 20).any() else len(losses)
    assert found.alarm_at is not None
    assert 6000 < found.alarm_at < 6300
    assert alone > found.alarm_at + 300


def test_audits_are_drawn_by_key_at_their_rate_and_unrelated_to_random_rules():
    ids = np.arange(200_000)
    drawn = audit_mask(ids, rate=0.02, seed=3)
    assert abs(drawn.mean() - 0.02) < 0.002
    assert np.array_equal(audit_mask(ids[::-1], rate=0.02, seed=3)[::-1], drawn)
    more = audit_mask(ids, rate=0.1, seed=3)
    assert (more >= drawn).all()
    other = audit_mask(ids, rate=0.02, seed=4)
    assert abs((drawn & other).mean() - 0.02**2) < 3e-4
    assert not audit_mask(ids, rate=0.0, seed=3).any()
    assert audit_mask(ids, rate=1.0, seed=3).all()
    names = np.array(["a", "b", "c"])
    assert (
        audit_mask(names, rate=0.5, seed=0).tolist() == audit_mask(names, rate=0.5, seed=0).tolist()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 2}, r"limit must be in \(0, 1\), got 2. A percentage"),
        ({"delta": 5}, r"delta must be in \(0, 1\), got 5"),
        ({"risk": "negative_flip"}, "got 'negative_flip'. Did you mean 'negative_flips'"),
    ],
)
def test_a_promise_outside_its_domain_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        RiskMonitor(**{"limit": 0.1, "delta": 0.1, **change})


@pytest.mark.parametrize(
    ("risk", "losses", "message"),
    [
        ("negative_flips", [0.0, -1.0], r"lie in \[0, 1\] for the risk 'negative_flips', got -1.0"),
        ("accuracy_drop", [-2.0], r"lie in \[-1, 1\] for the risk 'accuracy_drop', got -2.0"),
        ("negative_flips", [np.nan], "got nan"),
        ("negative_flips", [[0.0]], r"got shape \(1, 1\)"),
    ],
)
def test_losses_outside_their_domain_are_refused(risk, losses, message):
    with pytest.raises(InputError, match=message):
        watching(risk).update(losses)


def test_a_rate_outside_its_domain_is_refused():
    with pytest.raises(InputError, match=r"rate must be in \[0, 1\], got 5"):
        audit_mask(np.arange(3), rate=5, seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"capital": [1.0]},
        {"capital": [float("nan")] * 6},
        {"capital": [-1.0] * 6},
        {"capital": "many"},
        {"n": -1},
        {"n": None},
        {"limit": 3},
        {"alarm_at": "soon"},
    ],
)
def test_a_stored_watch_that_was_changed_is_refused(change):
    stored = to_json(watching().update([0.0]))
    with pytest.raises(FileFormatError, match=next(iter(change)) + "|JSON"):
        from_json(RiskMonitor, {**stored, **change})
    with pytest.raises(FileFormatError, match="limit"):
        from_json(RiskMonitor, {k: v for k, v in stored.items() if k != "limit"})
