"""`offramp serve` as a process: started, asked, told to end; and what it says where it cannot."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from offramp.cli import main
from support.served import (
    SECONDS,
    Client,
    answers_until,
    geared_bundle,
    inputs_of,
    request_of,
    until,
)


@contextmanager
def program(*arguments, **environment):
    """`offramp serve` in a process of its own, and a client of it."""
    command = [sys.executable, "-m", "offramp", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        address = re.search(r"http://\S+", process.stderr.readline())
        assert address, process.stderr.read()
        client = Client(address[0], None)
        until(lambda: client("/v2/health/ready")[0] == 200)
        yield process, client
    finally:
        process.kill()
        process.wait(SECONDS)
        process.stderr.close()


def test_what_was_accepted_is_answered_before_it_ends(bundle):
    with program(bundle, "--token-env", "TOKEN", TOKEN="secret") as (process, client):
        headers = {"Authorization": "Bearer secret"}
        body = request_of(inputs_of(600))
        found = answers_until(
            lambda: client("/v2/models/net/infer", body, headers=headers),
            lambda: process.send_signal(signal.SIGTERM),
        )
        assert process.wait(SECONDS) == 0
        rest = process.stderr.read()
    assert "Traceback" not in rest
    assert {status for status, *_ in found} <= {200, 503}
    for status, _, said in found:
        if status == 200:
            assert len(said["outputs"][0]["data"]) == 600


def test_what_was_watched_is_there_again_after_a_kill(tmp_path):
    def stats(client):
        return client("/v2/models/net/stats")[2]

    bundle, ids = geared_bundle(tmp_path / "net"), [f"{k}" for k in range(6)]
    watched = (bundle, "--audit", 1, "--watch", tmp_path / "watch", "--on-alarm", "reference")
    with program(*watched) as (process, client):
        for k, name in enumerate(ids):
            client.infer(inputs_of(1, k), id=name, parameters={"gear": "careful"})
        while not stats(client)["alarms"]:  # the promise of the other gear is false
            client.infer(inputs_of(20))
        until(lambda: stats(client)["audits"]["waiting"] == 0)
        feedback = client("/v2/models/net/feedback", {"ids": ids[:2], "labels": [0, 0]})[2]
        assert feedback == {"counted": 2, "unknown": 0}
        before = stats(client)
        process.kill()
    with program(*watched) as (_, client):
        after = stats(client)
        assert after["examples"] == 0
        assert after["alarms"] == before["alarms"]
        for was, now in zip(before["promises"], after["promises"], strict=True):
            assert now["n"] >= was["n"]
            assert now["capital"] == was["capital"] or now["n"] > was["n"]
        assert client.infer(inputs_of(1))["gear"] == ["reference"]
        feedback = client("/v2/models/net/feedback", {"ids": ids, "labels": [0] * 6})[2]
        assert feedback == {"counted": 4, "unknown": 2}  # those of before are counted once


@pytest.fixture
def interruptible():
    """Interrupts as a terminal has them: whoever runs tests behind a shell may ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_it_as_well(bundle, interruptible):
    with program(bundle) as (process, client):
        client("/v2")
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0


def said_by(capsys, *arguments):
    code = main(["serve", *map(str, arguments)])
    return code, capsys.readouterr().err


def test_a_port_in_use_is_told(bundle, capsys):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        code, said = said_by(capsys, bundle, "--port", port)
    assert code == 2
    assert f"port must be free, and {port} of 127.0.0.1 is in use" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{bundle}", "--token-env", "NOTHING_HERE"), "NOTHING_HERE must hold the token, and is"),
        (("{bundle}", "--host", "no.such.host.invalid"), "host must be an address of this mach"),
        (("{bundle}", "{bundle}"), "Bundles must have different names, got 'net'"),
        (("a b={bundle}",), "The name of a model must be of letters"),
        (("{bundle}/nowhere",), "is not a folder; a bundle is one"),
        (("{bundle}", "--deadline", "-1"), "deadline must be more than 0"),
        (("{bundle}", "--backend", "openvinoo"), "openvino"),
    ],
)
def test_what_it_cannot_do_is_told_and_it_ends(bundle, capsys, monkeypatch, arguments, said):
    monkeypatch.delenv("NOTHING_HERE", raising=False)
    words = [word.format(bundle=bundle) for word in arguments]
    code, found = said_by(capsys, *words, "--port", 0)
    assert code == 2, found
    assert said in " ".join(found.split())
    assert "Traceback" not in found


def test_an_empty_token_is_refused(bundle, capsys, monkeypatch):
    monkeypatch.setenv("EMPTY", " ")
    code, said = said_by(capsys, bundle, "--token-env", "EMPTY", "--port", 0)
    assert (code, "EMPTY must hold the token, and is empty" in said) == (2, True)


def test_programs_are_told_the_address(bundle):
    command = [sys.executable, "-m", "offramp", "serve", str(bundle), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        told = json.loads(process.stdout.readline())
        assert told["models"] == ["net"]
        assert Client(told["url"], None)("/v2/health/live")[0] == 200
    finally:
        process.kill()
        process.wait(SECONDS)
        process.stdout.close()
