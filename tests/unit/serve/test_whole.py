"""Several processes as one: numbers are summed, all load or nobody does, each hears the others."""

import asyncio
import socket

import pytest

from offramp.serve.channel import Channel
from offramp.serve.errors import RequestError
from offramp.serve.hub import Hub
from offramp.serve.merge import lasting, merged
from offramp.serve.metrics import Metrics
from offramp.serve.scrape import Scrape
from offramp.serve.whole import summed


def counted(n, gear="fast"):
    metrics = Metrics()
    for _ in range(n):
        metrics.refused("m", "full")
    metrics.alarm("m", "promise", on=n > 2)
    metrics.gear("m", gear, ["fast", "slow"])
    metrics._requests.labels("m").observe(0.1 * n)
    metrics._queue.labels("m", "a").set(n)
    return metrics.text()


def test_one_is_as_it_was():
    text = counted(2)
    assert merged([text]) == text


def test_what_is_counted_is_summed_and_the_rest_is_the_largest():
    whole = Scrape.of(merged([counted(2), "", counted(3, "slow")]))
    assert whole.total("offramp_refused_total", model="m") == 5
    assert whole.total("offramp_request_duration_seconds_count") == 2
    assert whole.total("offramp_request_duration_seconds_bucket", le="0.25") == 1
    assert whole.total("offramp_queue_examples", stage="a") == 5
    assert whole.total("offramp_alarm") == 1
    assert whole.total("offramp_gear", gear="fast") == whole.total("offramp_gear", gear="slow") == 1
    assert whole.total("offramp_build_info") == 1


def test_what_the_dead_have_counted_stays_until_the_model_is_gone():
    kept = Scrape.of(lasting([counted(2), counted(3)]))
    assert kept.total("offramp_refused_total") == 5
    assert kept.values("gear") == []
    assert Scrape.of(lasting([counted(2)], without="m")).total("offramp_refused_total") == 0


def stats(n, *, gear="fast", expected=0.5, alarms=()):
    return {
        **{"name": "m", "version": "1", "workers": 1, "queue": n, "waiting": {"a": n, "b": 0}},
        **{"gear": gear, "gears": ["reference", "careful", "fast"], "held": False},
        **{"examples": n, "nonfinite": 0, "cost": 1.0 * n, "reference_cost": 4.0 * n},
        "stages": [{"name": "a", "exits": n, "expected": expected}],
        "audits": {"waiting": 1, "compared": n, "differ": 0, "without_label": 7},
        "promises": [{"gear": "fast", "risk": "error", "n": n}],
        "drift": [{"gear": "fast", "kind": "exits", "n": n}],
        "alarms": list(alarms),
    }


def test_the_stats_of_one_are_those_of_the_whole():
    assert summed([stats(3)]) | {"drift": []} == stats(3) | {"drift": []}


def test_stats_are_summed():
    alarm = {"kind": "exits", "gear": "fast", "text": "They leave elsewhere."}
    each = [stats(1, gear="careful", alarms=[alarm]), stats(3, expected=0.1, alarms=[alarm])]
    whole = summed(each)
    assert (whole["workers"], whole["queue"], whole["examples"], whole["cost"]) == (2, 4, 4, 4.0)
    assert whole["waiting"] == {"a": 4, "b": 0}
    assert whole["gear"] == "fast"  # the cheapest that is in use
    assert whole["stages"] == [{"name": "a", "exits": 4, "expected": pytest.approx(0.2)}]
    assert whole["audits"] == {"waiting": 2, "compared": 4, "differ": 0, "without_label": 7}
    assert whole["promises"][0]["n"] == 3  # watched in common
    assert [one["worker"] for one in whole["drift"]] == [0, 1]
    assert whole["alarms"] == [alarm]
    assert summed([stats(0), stats(2, expected=None)])["stages"][0]["expected"] is None
    assert summed([stats(0), stats(2)])["stages"][0]["expected"] == 0.5


# ---- channels


async def pair(one, other):
    ends = [Channel(*each) for each in zip(socket.socketpair(), (one, other), strict=True)]
    return ends, [await end.open() for end in ends]


def test_both_sides_ask_and_errors_are_told():
    async def answer(verb, given):
        if verb == "wrong":
            raise RequestError(404, "There is none.")
        if verb == "late":
            await asyncio.Event().wait()
        return {"verb": verb, **given}

    async def run():
        (one, other), reading = await pair(answer, answer)
        large = "x" * 300_000
        assert await one.ask("a", text=large) == {"verb": "a", "text": large}
        assert await asyncio.gather(*(other.ask("b", k=k) for k in range(9))) == [
            {"verb": "b", "k": k} for k in range(9)
        ]
        with pytest.raises(RequestError, match="There is none") as raised:
            await other.ask("wrong")
        assert raised.value.status == 404
        with pytest.raises(TimeoutError):
            await one.ask("late", within=0.01)
        waiting = asyncio.create_task(one.ask("late"))
        await asyncio.sleep(0)
        other.close()
        with pytest.raises(ConnectionError):
            await waiting
        await asyncio.gather(*reading)
        with pytest.raises(ConnectionError):
            await one.ask("a")

    asyncio.run(run())


# ---- the hub


class Worker:
    """What a worker answers, and what it was asked."""

    def __init__(self, **wrong):
        self.wrong, self.asked = wrong, []

    async def ask(self, verb, within=None, **given):
        self.asked.append(verb)
        if verb in self.wrong:
            raise self.wrong[verb]
        return counted(2) if verb == "metrics" else stats(2) if verb == "stats" else None


def hub_of(tmp_path, *workers):
    ended = []
    hub = Hub({"m": tmp_path}, ended.append, within=5.0)
    for k, worker in enumerate(workers):
        hub.joined(k, worker)
    return hub, ended


def test_all_load_or_nobody_does(tmp_path):
    good, bad = Worker(), Worker(prepare=RequestError(400, "damaged"))
    hub, _ = hub_of(tmp_path, good, bad)
    with pytest.raises(RequestError, match="damaged"):
        asyncio.run(hub.load("m"))
    assert good.asked == bad.asked == ["prepare", "drop"]
    assert hub.known["m"].number == 1
    bad.wrong = {}
    assert asyncio.run(hub.load("m")) == "2"
    assert good.asked[2:] == bad.asked[2:] == ["prepare", "take"]
    assert hub.known["m"].number == 2


def test_who_comes_to_no_end_of_loading_is_ended_and_nobody_takes_it(tmp_path):
    good, hangs = Worker(), Worker(prepare=TimeoutError())
    hub, ended = hub_of(tmp_path, good, hangs)
    with pytest.raises(RequestError, match="A worker has said nothing for 5 s"):
        asyncio.run(hub.load("m"))
    assert (ended, good.asked, hub.known["m"].number) == ([1], ["prepare", "drop"], 1)
    late = Worker(take=TimeoutError())
    hub, ended = hub_of(tmp_path, good, late)
    assert asyncio.run(hub.load("m")) == "2"
    assert ended == [1]  # and comes back with what the other has


def test_who_dies_while_others_load_does_not_hinder_them(tmp_path):
    good, dead = Worker(), Worker(prepare=ConnectionError(), take=ConnectionError())
    hub, ended = hub_of(tmp_path, good, dead)
    assert asyncio.run(hub.load("m")) == "2"
    assert ended == []
    late = Worker(take=RequestError(500, "disk full"))
    hub, ended = hub_of(tmp_path, good, late)
    assert asyncio.run(hub.load("m")) == "2"
    assert ended == [1]  # it comes back with what the others have


def test_one_loads_before_the_others_who_go_on_where_that_ends_it(tmp_path):
    dead, good = Worker(prepare=ConnectionError()), Worker()
    hub, _ = hub_of(tmp_path, dead, good)
    with pytest.raises(RequestError, match="A worker has ended while it loaded the bundle"):
        asyncio.run(hub.load("m"))
    assert (good.asked, hub.known["m"].number) == (["drop"], 1)


def test_who_does_not_hear_that_it_is_to_end_is_named(tmp_path):
    hub, _ = hub_of(tmp_path, Worker(), Worker(stop=TimeoutError()), Worker(stop=ConnectionError()))
    assert asyncio.run(hub.stop(5.0)) == [1]


def test_what_is_held_and_unloaded_is_known_to_who_comes_later(tmp_path):
    hub, _ = hub_of(tmp_path, Worker(), Worker())
    asyncio.run(hub.hold("m", "fast"))
    assert hub.known["m"].gear == "fast"
    asyncio.run(hub.unload("m"))
    assert (hub.known["m"].loaded, hub.known["m"].gear) == (False, None)
    wrong = Worker(hold=RequestError(400, "no such gear"))
    hub, _ = hub_of(tmp_path, wrong)
    with pytest.raises(RequestError, match="no such gear"):
        asyncio.run(hub.hold("m", "fats"))
    assert hub.known["m"].gear is None


def test_counters_never_fall_when_a_worker_dies_or_is_late(tmp_path):
    hub, _ = hub_of(tmp_path, Worker(), Worker())

    def total():
        scrape = Scrape.of(asyncio.run(hub.metrics()))
        return scrape.total("offramp_refused_total"), scrape.total("offramp_workers")

    assert total() == (4, 2)
    hub.left(1)
    assert total() == (4, 1)
    hub.joined(1, Worker(metrics=TimeoutError()))
    assert total() == (4, 2)
    hub.joined(1, Worker())
    assert total() == (6, 2)


def test_nobody_is_there(tmp_path):
    hub, _ = hub_of(tmp_path)
    for verb in (hub.stats("m"), hub.hold("m", None), hub.load("m")):
        with pytest.raises(RequestError, match="No worker answers"):
            asyncio.run(verb)
