"""Whatever the link does, each input is answered once, in bounded time."""

import threading
import time

import numpy as np
import pytest

from offramp.edge import Client, Settings
from offramp.edge.calls import CallError
from offramp.edge.waiting import Waiting
from support.faulty import proxied
from support.served import inputs_of, running, until

N = 24
TIMEOUT = 0.6
SLACK = 20  # of the machine, which may be busy; a call that nobody bounds hangs for longer
FAULTS = {
    "latency": {"latency": 0.05},
    "latency beyond the timeout": {"latency": 2.0},
    "jitter": {"latency": 0.01, "jitter": 0.05},
    "a trickle": {"bandwidth": 500.0},
    "dropped": {"drop": 1.0},
    "some dropped": {"drop": 0.5},
    "reset": {"reset": 1.0},
    "some reset": {"reset": 0.5},
    "half closed": {"half_close": True},
    "outage": {"outage": True},
    "stalled": {"stall": True},
}


def client_of(made, url, **settings):
    settings = {"timeout": TIMEOUT, "breaker_seconds": 0.2, "longest_wait": 0.1, **settings}
    return Client(made.path / "device", Settings(url=url, **settings), threads=1)


def check(told, x, model):
    """Everybody has one answer: the whole's, or that of the device, which says so."""
    whole, alone = model(x), model.cascade.stage("small").run(x)[0].logits.argmax(dim=1)
    assert len(told) == len(x)
    for k in range(len(x)):
        if told.offline[k]:
            assert (told.where[k], told.stage[k]) == ("device", "small")
            assert told.label[k] == alone[k]
            assert told.reason[k] not in ("policy", "last")
        else:
            assert told.label[k] == whole.labels[k]


@pytest.mark.parametrize("name", FAULTS)
def test_everybody_is_answered_once_and_in_time(made, cloud, model, name):
    x = inputs_of(N)
    with proxied(cloud.url, **FAULTS[name]) as proxy:
        client = client_of(made, proxy.url)
        for _ in range(3):
            began = time.monotonic()
            told = client(x.numpy())
            assert time.monotonic() - began < TIMEOUT + SLACK
            check(told, x, model)
        if name in ("outage", "dropped", "stalled", "half closed", "reset"):
            assert told.offline.any()
        assert client.counts["device"] + client.counts["cloud"] == 3 * N
        client.close()


def test_after_an_outage_one_period_of_the_breaker_is_enough(made, cloud, model):
    x = inputs_of(N)
    with proxied(cloud.url) as proxy:
        client = client_of(made, proxy.url, breaker_failures=2)
        for flap in range(2):
            assert not client(x.numpy()).offline.any(), flap
            proxy.faults.outage = True
            proxy.cut_off()
            told = client(x.numpy())
            check(told, x, model)
            assert told.offline.any()
            before = proxy.connections
            assert client(x.numpy()).offline.any()
            assert proxy.connections == before, "nobody is asked while the breaker is open"
            proxy.faults.outage = False
            time.sleep(0.2)
            check(client(x.numpy()), x, model)
        client.close()


def test_many_threads_share_a_client_over_a_flapping_link(made, cloud, model):
    x, found, ends = inputs_of(N), {}, threading.Event()
    with proxied(cloud.url) as proxy:
        client = client_of(made, proxy.url, breaker_seconds=0.05)

        def flap():
            while not ends.is_set():
                proxy.faults.outage = not proxy.faults.outage
                proxy.cut_off()
                ends.wait(0.05)

        def ask(k):
            found[k] = [client(x.numpy()) for _ in range(5)]

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
        flapping = threading.Thread(target=flap)
        flapping.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        ends.set()
        flapping.join(5)
        assert len(found) == 4
        for told in (each for several in found.values() for each in several):
            check(told, x, model)
        assert client.counts["device"] + client.counts["cloud"] == 4 * 5 * N
        client.close()


def test_what_could_not_be_asked_is_asked_later_and_once(made, cloud, model, tmp_path):
    x = inputs_of(N)
    with proxied(cloud.url, outage=True) as proxy:
        client = client_of(made, proxy.url, queue=tmp_path / "queue", breaker_seconds=0.05)
        told = client(x.numpy())
        missed = np.flatnonzero(told.offline)
        assert list(client.flush()) == []
        assert len(list((tmp_path / "queue").glob("*.call"))) == 1
        proxy.faults.outage = False
        time.sleep(0.1)
        again = client_of(made, proxy.url, queue=tmp_path / "queue")  # after a restart
        ((_, later),) = again.flush()
        assert later["label"].tolist() == model(x).labels[missed].tolist()
        assert list(again.flush()) == []
        client.close()
        again.close()


def test_files_of_others_in_the_queue_are_neither_sent_nor_removed(tmp_path):
    others = [tmp_path / "phone.call", tmp_path / "0-1-2.call"]
    for file in others:
        file.write_text("mine")
    waiting = Waiting(tmp_path, 1)
    for k in range(3):
        waiting.put(b"%d" % k)
    assert [content for _, content in waiting.each()] == [b"2"]
    assert (len(waiting), waiting.dropped) == (1, 2)
    assert [file.read_text() for file in others] == ["mine", "mine"]


def test_a_full_queue_lets_the_oldest_go(made, cloud, tmp_path):
    with proxied(cloud.url, outage=True) as proxy:
        client = client_of(made, proxy.url, queue=tmp_path / "q", queue_most=2, attempts=1)
        for _ in range(4):
            client(inputs_of(N).numpy())
        assert len(list((tmp_path / "q").glob("*.call"))) == 2
        client.close()


def test_what_is_refused_is_not_tried_again(made, cloud):
    with proxied(cloud.url) as proxy:
        client = client_of(made, proxy.url, model="nobody", queue=None)
        told = client(inputs_of(N).numpy())
        assert proxy.connections == 1
        assert any("HTTP 404" in reason for reason in told.reason)
        with pytest.raises(CallError, match="404"):
            client.check()
        client.close()


def test_budgets_end_calls_and_say_so(made, cloud):
    x = inputs_of(N).numpy()
    some = client_of(made, cloud.url, timeout=30.0, bytes_per_day=6000)
    told = [some(x) for _ in range(3)]
    assert not told[0].offline.any()
    assert any("bytes of the day" in reason for reason in told[-1].reason)
    assert some.bytes <= 6000
    rare = client_of(made, cloud.url, timeout=30.0, min_time_between=1000.0)
    assert not rare(x).offline.any()
    assert any("asked less than 1000 s ago" in reason for reason in rare(x).reason)
    paid = client_of(made, cloud.url, timeout=30.0, usd_per_call=1.0, usd_per_day=1.5)
    assert not paid(x).offline.any()
    assert any("$1.5 of the day" in reason for reason in paid(x).reason)
    for client in (some, rare, paid):
        client.close()


def test_audits_of_sure_answers_reach_the_watch_of_the_cloud(made, model):
    x = inputs_of(N)
    sure = int((model(x).stage == 0).sum())
    with running({"cloud": made.path / "cloud"}, audit=1.0) as cloud:
        observer = cloud.serving.repository.get("cloud").observer
        client = client_of(made, cloud.url, timeout=30.0, confident_audit_rate=1.0)
        client(x.numpy())
        assert client.counts["audited"] == sure
        assert client.counts["cloud"] == N - sure
        until(lambda: observer.status()["audits"]["compared"] == N)
        client.close()
