"""What goes wrong: in stages, in requests, with clients, on the disk; and nobody else notices."""

import http.client
import json
import random
import re
import shutil
import socket
import threading
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from offramp._core.costs import Costs
from offramp.bundle import load
from offramp.policy import Candidate, Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.serve import model as served_model
from offramp.serve.bodies import Room
from offramp.serve.errors import RequestError
from offramp.stages import Cascade
from support.served import (
    SECONDS,
    inputs_of,
    make_bundle,
    request_of,
    running,
    same,
    until,
)

INFER = "/v2/models/net/infer"


class Net(nn.Module):
    """Row by row. Raises at numbers above 50, is NaN below -50, and waits at its gate."""

    def __init__(self, k):
        super().__init__()
        self.k, self.gate, self.sizes = k, None, []

    def forward(self, x):
        self.sizes.append(len(x))
        if self.gate is not None:
            assert self.gate.wait(SECONDS)
        if bool((x > 50).any()):
            raise RuntimeError("too bright")
        return torch.where(x < -50, torch.nan, torch.sin(x * (self.k + 2)) * 4)


def make(threshold=0.6):
    cascade = Cascade.from_models({"a": Net(0), "b": Net(1)})
    for stage in cascade:
        stage.keeps_company = True
        stage.run(torch.zeros(1, 3))  # the first batch is copied and compared
        stage.module.sizes.clear()
    node = Node(Linear.threshold(Feature("max_prob", 0), threshold))
    candidate = Candidate(
        policy=Policy(cascade.topology, {(0,): node}), method="mine", reference="b"
    )
    model = Adaptive(cascade, candidate, costs=Costs.simple("flops", [1.0, 2.0]))
    return model, [stage.module for stage in cascade]


@contextmanager
def serving(monkeypatch, model, tmp_path, **settings):
    monkeypatch.setattr(served_model, "load_resumed", lambda *_, **__: model)
    with running({"net": tmp_path}, **settings) as client:
        yield client


def rows(n, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


class Asking(threading.Thread):
    """A request in a thread of its own."""

    def __init__(self, client, body, path=INFER):
        super().__init__(daemon=True)
        self.client, self.body, self.path, self.found = client, body, path, None
        self.start()

    def run(self):
        self.found = self.client(self.path, self.body)

    def said(self):
        self.join(SECONDS)
        assert self.found is not None
        return self.found


def open_gate_after(gate, condition):
    until(condition)
    gate.set()


# ---- stages


def test_one_bad_row_in_a_shared_batch_costs_nobody_else(monkeypatch, tmp_path):
    model, (first, _) = make()
    with serving(monkeypatch, model, tmp_path) as client:
        first.gate = threading.Event()
        blocker = Asking(client, request_of(rows(1)))
        until(lambda: first.sizes)
        good = [Asking(client, request_of(rows(2, k), id=f"{k}")) for k in range(3)]
        bad = Asking(client, request_of(torch.full((1, 3), 99.0)))
        mixed = Asking(client, request_of(torch.cat([rows(1), torch.full((1, 3), 99.0)]), id="m"))
        open_gate_after(first.gate, lambda: client.waiting() == 10)
        assert blocker.said()[0] == 200
        for k, asking in enumerate(good):
            status, _, said = asking.said()
            assert status == 200
            outputs = {one["name"]: one["data"] for one in said["outputs"]}
            assert same(rows(2, k), outputs, model, [f"{k}/0", f"{k}/1"])
        status, _, said = bad.said()
        assert (status, "too bright" in said["error"]) == (500, True)
        status, _, said = mixed.said()
        outputs = {one["name"]: one["data"] for one in said["outputs"]}
        assert (status, outputs["valid"], outputs["label"][1]) == (200, [True, False], -1)
        assert outputs["reason"][1] == "error"
        assert outputs["probabilities"][3:] == [None] * 3
        assert "row 1: RuntimeError: too bright" in said["parameters"]["errors"]
        assert max(first.sizes) > 1  # they did share a batch


def test_good_requests_go_on_after_a_stage_has_raised(monkeypatch, tmp_path):
    model, _ = make()
    with serving(monkeypatch, model, tmp_path) as client:
        client.infer(rows(1))  # before that, nobody knows what the stages can read
        for k in range(10):
            assert client(INFER, request_of(torch.full((1, 3), 99.0)))[0] == 500
            outputs = client.infer(rows(3, k), id="g")
            assert same(rows(3, k), outputs, model, [f"g/{row}" for row in range(3)])
        assert client("/v2/health/ready")[0] == 200


def test_nothing_finite_is_no_answer_and_says_so(monkeypatch, tmp_path):
    model, _ = make()
    with serving(monkeypatch, model, tmp_path) as client:
        outputs = client.infer(torch.tensor([[-99.0] * 3, [0.1] * 3]))
    assert outputs["valid"] == [False, True]
    assert outputs["reason"][0] == "nonfinite"
    assert outputs["label"][0] == -1
    assert outputs["probabilities"][:3] == [None] * 3


def test_a_batch_that_never_fills_is_run_all_the_same(monkeypatch, tmp_path):
    model, _ = make()
    with serving(monkeypatch, model, tmp_path, max_queue=2, max_rows=2) as client:
        for k in range(5):
            assert client(INFER, request_of(rows(1, k)))[0] == 200


def test_a_slow_stage_is_not_waited_for_beyond_the_deadline(monkeypatch, tmp_path):
    model, (_, second) = make(threshold=1.0)
    with serving(monkeypatch, model, tmp_path) as client:
        second.gate = threading.Event()
        held = Asking(client, request_of(rows(1)))
        until(lambda: second.sizes)  # the only engine thread is busy there
        late = request_of(rows(2), parameters={"timeout": 200_000})
        status, _, said = client(INFER, late)
        assert (status, "time" in said["error"]) == (408, True)
        until(lambda: client.waiting() == 1)
        second.gate.set()
        assert held.said()[0] == 200
        assert client(INFER, request_of(rows(2)))[0] == 200


def test_what_cannot_be_reached_in_time_is_answered_by_what_was_visited(monkeypatch, tmp_path):
    model, (_, second) = make(threshold=1.0)
    with serving(monkeypatch, model, tmp_path) as client:
        second.gate = threading.Event()
        held = Asking(client, request_of(rows(1)))
        until(lambda: second.sizes)
        time.sleep(0.2)  # it is now known to be slow
        second.gate.set()
        assert held.said()[0] == 200
        second.gate = None
        outputs = client.infer(rows(4), parameters={"timeout": 150_000})
    assert set(outputs["reason"]) == {"deadline"}
    assert set(outputs["stage"]) == {"a"}


# ---- who is taken in


def test_those_beyond_the_queue_are_sent_away_and_told_when_to_come_back(monkeypatch, tmp_path):
    model, (first, _) = make()
    with serving(monkeypatch, model, tmp_path, max_queue=8) as client:
        first.gate = threading.Event()
        held = [Asking(client, request_of(rows(2, k))) for k in range(4)]
        until(lambda: client.waiting() == 8)
        status, headers, said = client(INFER, request_of(rows(1)))
        assert status == 429
        assert 1 <= int(headers["retry-after"]) <= 60
        assert "The queue must hold at most 8 examples" in said["error"]
        first.gate.set()
        assert {asking.said()[0] for asking in held} == {200}
        assert client(INFER, request_of(rows(1)))[0] == 200
        status, _, said = client(INFER, request_of(rows(9)))
        assert (status, "at most 8 examples, got 9" in said["error"]) == (413, True)


def test_a_large_request_does_not_keep_small_ones_waiting(monkeypatch, tmp_path):
    model, (first, _) = make(threshold=0.0)
    with serving(monkeypatch, model, tmp_path) as client:
        first.gate = threading.Event()
        large = Asking(client, request_of(rows(1000), id="large"))
        until(lambda: first.sizes)
        small = Asking(client, request_of(rows(1), id="small"))
        until(lambda: client.waiting() == 1001)
        first.gate.set()
        small.said()
        place = first.sizes.index(1) if 1 in first.sizes else first.sizes.index(65)
        assert place <= 3  # of 16 slices
        said = large.said()[2]
        assert max(first.sizes) <= 65
        outputs = {one["name"]: one["data"] for one in said["outputs"]}
        assert same(rows(1000), outputs, model, [f"large/{k}" for k in range(1000)])


def test_a_large_request_answers_all_rows_that_can_be(monkeypatch, tmp_path):
    model, _ = make()
    x = rows(200)
    x[70] = x[150] = 99.0
    with serving(monkeypatch, model, tmp_path) as client:
        outputs = client.infer(x, id="r")
    valid = [k for k in range(200) if outputs["valid"][k]]
    assert sorted(set(range(200)) - set(valid)) == [70, 150]
    answer = model(x[valid], [f"r/{k}" for k in valid])
    assert [outputs["label"][k] for k in valid] == answer.labels.tolist()


def test_clients_that_vanish_are_let_go(monkeypatch, tmp_path):
    model, (first, second) = make(threshold=1.0)
    with serving(monkeypatch, model, tmp_path) as client:
        first.gate = threading.Event()
        held = Asking(client, request_of(rows(1)))
        until(lambda: first.sizes)
        gone = []
        for k in range(20):
            connection = http.client.HTTPConnection(*client.address)
            connection.request("POST", INFER, json.dumps(request_of(rows(3, k))))
            gone.append(connection)
        until(lambda: client.waiting() == 61)
        for connection in gone:
            connection.close()
        until(lambda: client.waiting() == 1)
        first.gate.set()
        assert held.said()[0] == 200
        assert sum(second.sizes) == 1
        assert client(INFER, request_of(rows(2)))[0] == 200


# ---- what comes in


@pytest.fixture(scope="module")
def narrow(bundle):
    """A server that takes little, and waits for nobody."""
    limits = {"max_body": 20_000, "body_seconds": 0.3, "header_seconds": 0.3}
    with running({"net": bundle}, token="secret-token", **limits) as client:
        yield client


TOKEN = {"Authorization": "Bearer secret-token"}


def test_bodies_that_are_too_large_are_refused_before_they_are_read(narrow):
    status, headers, said = narrow(INFER, b" " * 30_000, headers=TOKEN)
    assert (status, "at most 20000 bytes" in said["error"]) == (413, True)
    assert headers["connection"] == "close"

    def parts():
        for _ in range(100):
            yield b" " * 1000

    connection = http.client.HTTPConnection(*narrow.address, timeout=SECONDS)
    try:
        connection.request("POST", INFER, parts(), TOKEN, encode_chunked=True)
        status = connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):
        status = 413  # it was sent away before all was there
    finally:
        connection.close()
    assert status == 413


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_bodies_that_unpack_to_too_much_are_refused(narrow, packed):
    stream = zlib.compressobj(9, zlib.DEFLATED, 31 if packed == "gzip" else 15)
    body = stream.compress(b" " * 10_000_000) + stream.flush()
    status, _, said = narrow(INFER, body, headers={**TOKEN, "Content-Encoding": packed})
    assert (status, "at most 20000 bytes" in said["error"]) == (413, True)
    status, _, said = narrow(INFER, b"abc", headers={**TOKEN, "Content-Encoding": packed})
    assert (status, f"must be {packed}" in said["error"]) == (400, True)
    assert narrow(INFER, b"abc", headers={**TOKEN, "Content-Encoding": "br"})[0] == 415


def raw(client, *parts):
    """Send bytes as they are, and what comes back until the other side closes."""
    with socket.create_connection(client.address, timeout=SECONDS) as held:
        for part in parts:
            held.sendall(part)
        found = b""
        while part := held.recv(4096):
            found += part
    return found


def test_those_who_dawdle_are_sent_away(narrow):
    head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret-token\r\n"
    said = raw(narrow, head.encode() + b"Content-Length: 1000\r\n\r\n", b"{")
    assert said.startswith(b"HTTP/1.1 408")
    assert b'{"error": "The request must be there within 0.3 s' in said
    assert raw(narrow, b"POST /v2/models") == b""  # never came to the end of its headers
    assert raw(narrow) == b""  # never said anything
    assert narrow("/v2", headers=TOKEN)[0] == 200


@pytest.mark.parametrize(
    "given",
    [None, "Bearer", "Bearer wrong", "Basic secret-token", "secret-token", "Bearer secret-tokenx"],
)
@pytest.mark.parametrize("path", ["/v2", "/v2/models/net", "/nowhere", "/v2/models/nett"])
def test_wrong_tokens_are_refused_wherever_they_knock(narrow, given, path):
    headers = {} if given is None else {"Authorization": given}
    status, headers, said = narrow(path, headers=headers)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert "secret" not in said["error"]


def test_probes_need_no_token(narrow):
    assert narrow("/v2/health/live")[0] == narrow("/v2/health/ready")[0] == 200
    assert narrow("/v2", headers={"Authorization": "bearer secret-token"})[0] == 200


def test_pages_of_others_cannot_steer_this_machine(client):
    path = "/v2/repository/models/net/unload"
    status, _, said = client(path, b"", headers={"Origin": "https://evil.example"})
    assert (status, "evil.example" in said["error"]) == (403, True)
    assert client("/v2/models/net/ready")[0] == 200
    own = {"Origin": client.url}
    assert client(INFER, request_of(inputs_of(1)), headers=own)[0] == 200


def spoiled(generator):
    """A good request with something wrong in it."""
    body = request_of(torch.zeros(1, 1, 8, 8))
    odd = [None, -1, 0, 1e400, "x", [], {}, [[]], True, 2**70, "\ud800", {"a": []}, [1, "a"]]
    place = generator.choice(["inputs", "id", "parameters", "outputs", "entry", "text"])
    value = generator.choice(odd)
    if place == "entry":
        key = generator.choice(["name", "shape", "datatype", "data", "parameters"])
        body["inputs"][0][key] = value
    elif place != "text":
        body[place] = value
    text = json.dumps(body).encode()
    if place == "text":
        k = generator.randrange(len(text))
        text = text[:k] + generator.randbytes(generator.randrange(4)) + text[k + 2 :]
    headers = {}
    if generator.random() < 0.3:
        size = generator.choice(["-1", "0", "5", "x", str(len(text)), str(10**30), ""])
        headers["Inference-Header-Content-Length"] = size
    return text, headers


# The other variant takes half a minute: as many as would show a leak.
@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_malformed_requests_are_refused_and_leave_nothing_behind(client, count):
    generator, found, before = random.Random(0), Counter(), 0.0
    connection = http.client.HTTPConnection(*client.address, timeout=SECONDS)
    for k in range(count):
        text, headers = spoiled(generator)
        connection.request("POST", INFER, text, headers)
        answer = connection.getresponse()
        content = answer.read()
        found[answer.status] += 1
        assert answer.status == 200 or set(json.loads(content)) == {"error"}, (text, content)
        if k == count // 2:
            before = resident_mib()
    connection.close()
    assert set(found) <= {200, 400, 408}, found
    assert found[400] > count // 5
    assert client.waiting() == 0
    if count > 1000:
        assert resident_mib() - before < 20


def resident_mib():
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    return float(re.search(r"VmRSS:\s+(\d+) kB", status.read_text())[1]) / 1024


# ---- the disk


def test_a_bundle_that_changes_on_the_disk_changes_no_answer(tmp_path):
    path = make_bundle(tmp_path / "net")
    model, x = load(path), inputs_of(20)
    with running({"net": path}) as client:
        for file in path.iterdir():
            file.write_bytes(b"\0" * file.stat().st_size)
        assert same(x, client.infer(x, id="a"), model, [f"a/{k}" for k in range(20)])
        status, _, said = client("/v2/repository/models/net/load", b"")
        assert status == 400
        assert "manifest.json" in said["error"]
        shutil.rmtree(path)
        assert client("/v2/repository/models/net/load", b"")[0] == 400
        assert same(x, client.infer(x, id="a"), model, [f"a/{k}" for k in range(20)])
        assert client("/v2/health/ready")[0] == 200


def test_no_more_bytes_are_held_than_there_is_room_for():
    room = Room(10)
    room.take(6)
    with pytest.raises(RequestError, match="must have at most 10 bytes together"):
        room.take(5)
    room.give(6)
    room.take(10)
    assert room.taken == 10
