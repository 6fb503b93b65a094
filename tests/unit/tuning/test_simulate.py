"""Traffic against replicas: what queueing theory says, and a slow twin of few lines."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.runtime.times import StageTimes
from offramp.tuning.simulate import plan, simulate
from offramp.tuning.traffic import Traffic
from support.properties import examples


def times_of(*rows, sizes=(1, 16)):
    zero = ((0.0,) * len(sizes),) * len(rows)
    names = tuple("abc"[: len(rows)])
    return StageTimes(
        stages=names,
        sizes=sizes,
        segment=rows,
        head=zero,
        carry=zero,
        raw=(0.0,) * len(sizes),
        where="made",
    )


def one(rate, *, seconds=(0.01, 0.01), batch_size=1, patience=0.0, **how):
    return Traffic(
        topology=Topology.of(["a"]),
        times=times_of(seconds),
        shares={(0,): 1.0},
        rate=rate,
        batch_size=batch_size,
        patience=patience,
        **how,
    )


def two(rate=400.0, share=0.25, **how):
    return Traffic(
        topology=Topology.of(["a", "b"]),
        times=times_of((0.002, 0.008), (0.006, 0.024)),
        shares={(0,): 1 - share, (0, 1): share},
        rate=rate,
        batch_size=16,
        **how,
    )


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
def test_one_replica_without_batches_waits_as_long_as_theory_says(busy):
    """A server of constant time with Poisson arrivals: mean wait rho T / (2 (1 - rho))."""
    waits = [simulate(one(busy / 0.01), {"a": 1}, seed=seed).pools[0].waited for seed in range(4)]
    assert np.mean(waits) == pytest.approx(0.01 * busy / (2 * (1 - busy)), rel=0.06)


def served(comes, seconds_of, full):
    """The slow twin: one replica takes whoever waits once it is free."""
    done, free, first = np.zeros(len(comes)), 0.0, 0
    while first < len(comes):
        start = max(free, comes[first])
        last = first
        while last < len(comes) and comes[last] <= start and last - first < full:
            last += 1
        free = start + seconds_of(last - first)
        done[first:last] = free
        first = last
    return done


@given(seed=st.integers(0, 2**20), full=st.integers(1, 16), rate=st.floats(20, 1500))
@examples(15)
def test_it_is_the_slow_twin_where_one_replica_takes_batches(seed, full, rate):
    traffic = one(rate, seconds=(0.002, 0.008), batch_size=full)
    comes = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, 300))
    found = simulate(traffic, {"a": 1}, arrivals=comes)
    wanted = (served(comes, lambda n: traffic.seconds((0,), n), full) - comes)[60:]
    if found.stable:
        assert found.p50 == pytest.approx(np.quantile(wanted, 0.5), abs=1e-9)
        assert found.p99 == pytest.approx(np.quantile(wanted, 0.99), abs=1e-9)


@given(seed=st.integers(0, 2**20), front=st.floats(1e-5, 0.02), rate=st.floats(20, 400))
@examples(15)
def test_who_comes_passes_the_front_one_after_the_other(seed, front, rate):
    traffic = one(rate, seconds=(0.001, 0.001), front=front)
    comes = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, 300))
    found = simulate(traffic, {"a": 1}, arrivals=comes)
    passed = served(comes, lambda _: front, 1)
    wanted = (served(passed, lambda _: 0.001, 1) - comes)[60:]
    if found.stable:
        assert found.p50 == pytest.approx(np.quantile(wanted, 0.5), abs=1e-9)
        assert found.p99 == pytest.approx(np.quantile(wanted, 0.99), abs=1e-9)


def shared(comes, front, seconds, *, fronts, replicas, cores):
    """The slow twin: all that runs gets its part of the cores until the next thing happens."""
    coming, at_front, at_stage = list(enumerate(comes)), [], []  # [example, seconds left]
    done, now = np.zeros(len(comes)), 0.0
    while coming or at_front or at_stage:
        running = at_front[:fronts] + at_stage[:replicas]
        speed = min(1.0, cores / max(len(running), 1))
        ends = [left / speed for _, left in running]
        step = min([*ends, coming[0][1] - now] if coming else ends)
        for each, end in zip(running, ends, strict=True):
            each[1] = 0.0 if end <= step else each[1] - step * speed
        now += step
        at_stage += [[k, seconds] for k, left in at_front if left == 0.0]
        at_front = [each for each in at_front if each[1] > 0.0]
        done[[k for k, left in at_stage if left == 0.0]] = now
        at_stage = [each for each in at_stage if each[1] > 0.0]
        while coming and coming[0][1] <= now:
            at_front.append([coming.pop(0)[0], front])
    return done


@given(
    seed=st.integers(0, 2**20),
    front=st.floats(1e-4, 0.01),
    seconds=st.floats(1e-4, 0.02),
    fronts=st.integers(1, 3),
    replicas=st.integers(1, 3),
    cores=st.integers(1, 4),
)
@examples(15)
def test_what_shares_cores_is_slower_as_the_slow_twin_says(
    seed, front, seconds, fronts, replicas, cores
):
    rate = 0.7 / max(front / fronts, seconds / replicas, (front + seconds) / cores)
    comes = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, 200))
    how = {"fronts": fronts, "cores": cores}
    traffic = one(rate, seconds=(seconds, seconds), front=front, **how)
    found = simulate(traffic, {"a": replicas}, arrivals=comes)
    wanted = (shared(comes, front, seconds, replicas=replicas, **how) - comes)[40:]
    if found.stable:
        assert found.p50 == pytest.approx(np.quantile(wanted, 0.5), rel=1e-6)
        assert found.p99 == pytest.approx(np.quantile(wanted, 0.99), rel=1e-6)


def test_as_many_cores_as_run_at_once_are_as_good_as_any_number():
    traffic = two(front=0.001, fronts=2)
    free = simulate(traffic, {"a": 2, "b": 1})
    many = simulate(dataclasses.replace(traffic, cores=5), {"a": 2, "b": 1})
    assert many.p50 == pytest.approx(free.p50)
    assert many.p99 == pytest.approx(free.p99)
    few = simulate(dataclasses.replace(traffic, cores=2), {"a": 2, "b": 1})
    assert few.p99 > free.p99
    assert few.p50 >= free.p50


def test_cores_are_no_fewer_than_the_work_needs():
    traffic = one(150.0, seconds=(0.01, 0.01), front=0.004, fronts=2)  # 2.1 cores' worth
    assert not simulate(dataclasses.replace(traffic, cores=2), {"a": 3}).stable
    assert simulate(dataclasses.replace(traffic, cores=3), {"a": 3}).stable
    with pytest.raises(InputError, match=r"cores must be more than 2\.1, which stages and fronts"):
        plan(dataclasses.replace(traffic, cores=2), p99=1.0)
    with pytest.raises(InputError, match=r"cores must be more than 3: with as many replicas"):
        plan(dataclasses.replace(traffic, cores=3), p99=0.0145)  # soon, not after thousands
    assert plan(dataclasses.replace(traffic, cores=4), p99=1.0)[0].p99 <= 1.0


def test_a_front_serves_no_more_than_it_can_and_two_serve_twice_as_many():
    assert not simulate(one(150.0, seconds=(1e-4, 1e-4), front=0.01), {"a": 1}).stable
    assert simulate(one(150.0, seconds=(1e-4, 1e-4), front=0.01, fronts=2), {"a": 1}).stable
    with pytest.raises(InputError, match=r"fronts must be more than 1\.5"):
        plan(one(150.0, seconds=(1e-4, 1e-4), front=0.01), p99=1.0)
    with pytest.raises(InputError, match=r"fronts must be more than 1\.5e\+05"):
        plan(one(150.0, seconds=(1e-4, 1e-4), front=1000.0), p99=1.0)  # not of the stages


@pytest.mark.parametrize("front", [0.00109, 0.0011])
def test_what_waits_before_the_fronts_is_not_helped_by_replicas(front):
    traffic = one(900.0, seconds=(1e-4, 1e-4), front=front)
    with pytest.raises(InputError, match=r"fronts must be more than 1: 99 of 100"):
        plan(traffic, p99=0.005)  # at once, not after thousands of replicas
    assert plan(dataclasses.replace(traffic, fronts=2), p99=0.01)[1] == {"a": 1}


def test_fronts_without_number_cost_no_memory():
    found = simulate(one(150.0, seconds=(1e-4, 1e-4), front=0.01, fronts=10**12), {"a": 1})
    assert found.p50 == pytest.approx(0.0101)


def test_everybody_visits_what_their_path_says_and_time_is_spent_once():
    traffic = two()
    found = simulate(traffic, {"a": 1, "b": 1})
    a, b = found.pools
    assert a.visited == 1.0
    assert b.visited == pytest.approx(0.25, abs=0.01)
    assert found.stable
    assert a.utilization < 1
    assert found.p99 >= found.p50 >= 0.002


def test_patience_fills_batches_and_costs_time():
    hasty, patient = (
        simulate(two(rate=2000.0, patience=seconds), {"a": 2, "b": 2}) for seconds in (0.0, 0.05)
    )
    assert patient.pools[1].batch > 2 * hasty.pools[1].batch
    assert patient.pools[1].utilization < hasty.pools[1].utilization
    assert patient.p99 > hasty.p99


def test_more_than_can_be_served_has_no_latency():
    found = simulate(one(150.0), {"a": 1})
    assert not found.stable
    assert found.p99 == np.inf


def test_a_plan_is_in_time_and_one_fewer_of_any_stage_is_not():
    traffic = two(rate=5000.0)
    found, replicas = plan(traffic, p99=0.06)
    assert found.p99 <= 0.06
    assert found.replicas == sum(replicas.values())
    for name, count in replicas.items():
        if count > 1:
            fewer = simulate(traffic, {**replicas, name: count - 1})
            assert fewer.p99 > 0.06 or not fewer.stable or count - 1 >= traffic.loads()[0]


def test_a_cascade_needs_fewer_replicas_than_its_reference():
    traffic = two(rate=5000.0)
    cascade, _ = plan(traffic, p99=0.06)
    alone, _ = plan(traffic.alone("b"), p99=0.06)
    assert cascade.replicas < alone.replicas
    assert cascade.per_million(1.0) < alone.per_million(1.0)
    assert cascade.per_million(2.0) == pytest.approx(2.0 * cascade.replicas / 3600 / 5000.0 * 1e6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rate": 0.0}, "rate must be"),
        ({"rate": np.inf}, "rate must be"),
        ({"shares": {(1,): 1.0}}, "shares must be of the paths"),
        ({"shares": {(0,): 0.5}}, "sum to 1"),
        ({"patience": -1.0}, "patience must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"front": -1.0}, "front must be"),
        ({"fronts": 0}, "fronts must be"),
        ({"cores": 0}, "cores must be"),
        ({"cores": 1.5}, "cores must be"),
    ],
)
def test_wrong_traffic_is_named(change, says):
    good = {
        "topology": Topology.of(["a", "b"]),
        "times": times_of((0.01, 0.01), (0.02, 0.02)),
        "shares": {(0,): 1.0},
        "rate": 1.0,
    }
    with pytest.raises(InputError, match=says):
        Traffic(**{**good, **change})


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"p99 must be at least 0\.01"):
        plan(one(10.0), p99=0.001)
    with pytest.raises(InputError, match="at most 3 replicas"):
        plan(one(1000.0), p99=0.011, most=3)
    with pytest.raises(InputError, match=r"\['b'\] have none"):
        simulate(two(), {"a": 1})
    with pytest.raises(InputError, match="ascend"):
        simulate(one(1.0), {"a": 1}, arrivals=[1.0, 0.5])
    with pytest.raises(InputError, match=r"stages \['a', 'b'\], got \['c'\]"):
        simulate(two(), {"a": 1, "b": 1, "c": 1})


@pytest.mark.parametrize("count", [0, -1, 1.5, float("nan"), True])
def test_replicas_are_whole_numbers(count):
    with pytest.raises(InputError, match="whole number of at least 1"):
        simulate(one(1.0), {"a": count})


@pytest.mark.parametrize(
    "arrivals", [[], [1.0], [1.0, 1.0], [0.0, np.nan, 2.0], [0.0, np.inf], [[0.0, 1.0]]]
)
def test_arrivals_that_are_none_are_refused(arrivals):
    with pytest.raises(InputError, match="arrivals must be at least 2 finite seconds"):
        simulate(one(1.0), {"a": 1}, arrivals=arrivals)


def test_patience_ends_however_large_the_stamps_are():
    """Seconds of a clock leave few digits for patience."""
    comes = np.arange(300) / 100
    patient = one(100.0, batch_size=16, patience=0.0021)
    early = simulate(patient, {"a": 4}, arrivals=comes)
    late = simulate(patient, {"a": 4}, arrivals=1.76e9 + comes)
    assert late.p50 == pytest.approx(early.p50, abs=1e-5)
    assert simulate(one(1e-9, batch_size=16, patience=0.002), {"a": 1}).stable
