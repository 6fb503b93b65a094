"""Two processes behind one port: whoever is asked, the answer is that of the whole."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

import offramp
from offramp import Adaptive, Candidate, Cascade, save
from offramp.cli import main
from offramp.models import ModelSpec
from support.served import (
    SECONDS,
    Client,
    answers_until,
    geared_bundle,
    inputs_of,
    make_bundle,
    request_of,
    same,
    until,
)
from support.stopping import build

INFER = "/v2/models/net/infer"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


class Served:
    """A server of two workers, what it writes, and who they are."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "offramp", "serve", *map(str, arguments)]
        self.process = subprocess.Popen(
            [*command, "--workers", "2", "--port", "0"], stderr=subprocess.PIPE, text=True
        )
        self.lines, self.urls = [], []
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()
        until(lambda: self.urls or self.process.poll() is not None, 4 * SECONDS)
        self.client = Client(self.urls[0], None)
        until(lambda: self.number("offramp_workers") == 2, 4 * SECONDS)

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            self.urls += re.findall(r"listening at (http://\S+)", line)

    def number(self, name):
        text = self.client("/metrics")[2].decode()
        return sum(
            float(v) for v in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.M)
        )

    def pids(self):
        found = []
        for child in (
            Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ):
            with suppress(FileNotFoundError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
        return found

    def workers(self, n=8):
        """Who has answered some requests: ids begin with a name that each process has drawn."""
        said = [self.client(INFER, request_of(inputs_of(1))) for _ in range(n)]
        assert {status for status, *_ in said} == {200}
        return {one["id"].partition("-")[0] for _, _, one in said}

    def everywhere(self, path):
        """What both say, asked several times on new connections."""
        return [self.client(path)[2] for _ in range(8)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {"net": make_bundle(folder / "net"), "geared": geared_bundle(folder / "geared")}


@pytest.fixture(scope="module")
def served(bundles, tmp_path_factory):
    watch = tmp_path_factory.mktemp("watch")
    found = Served(
        *bundles.values(),
        "--audit",
        1,
        "--on-alarm",
        "reference",
        "--watch",
        watch,
        "--gears",
        "auto",
        "--hang-seconds",
        10,
    )
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait(SECONDS)
        found.reading.join(SECONDS)
        found.process.stderr.close()


def test_both_answer_as_the_model_does(served, bundles):
    until(lambda: len(served.workers()) == 2)
    model, x = offramp.load(bundles["net"]), inputs_of(12)
    for k in range(8):
        assert same(
            x, served.client.infer(x, id=f"{k}"), model, [f"{k}/{row}" for row in range(12)]
        )


def test_numbers_are_those_of_both_whoever_is_asked(served):
    before = served.number("offramp_examples_total")
    names = served.workers(20)
    assert served.number("offramp_examples_total") == before + 20
    until(lambda: len(names | served.workers()) == 2)
    told = served.everywhere("/v2/models/net/stats")
    assert {one["workers"] for one in told} == {2}
    assert len({one["examples"] for one in told}) == 1
    assert told[0]["examples"] == sum(stage["exits"] for stage in told[0]["stages"])
    assert served.number("offramp_build_info") == 1
    assert served.number("offramp_request_duration_seconds_count") >= 20


def test_a_gear_is_held_by_both_and_let_go(served):
    path = "/v2/models/geared"
    assert served.client(f"{path}/gear", {"gear": "careful"})[2]["held"] is True
    assert {one["gear"] for one in served.everywhere(f"{path}/stats")} == {"careful"}
    said = {served.client.infer(inputs_of(1), "geared")["gear"][0] for _ in range(8)}
    assert said == {"careful"}
    status, _, wrong = served.client(f"{path}/gear", {"gear": "fats"})
    assert (status, "gear must be one of" in wrong["error"]) == (400, True)
    assert served.client(f"{path}/gear", {"gear": "fast"})[2]["gear"] == "fast"
    assert served.client(f"{path}/gear", {"gear": None})[2]["held"] is False


def test_labels_are_counted_whoever_has_answered(served):
    def audits():
        return served.client("/v2/models/geared/stats")[2]["audits"]

    before, ids = audits()["compared"], [f"late-{k}" for k in range(12)]
    for k, name in enumerate(ids):
        status, _, said = served.client(
            "/v2/models/geared/infer",
            request_of(inputs_of(1, k), id=name, parameters={"gear": "careful"}),
        )
        assert (status, said["parameters"]["gear"]) == (200, "careful")
    until(lambda: audits()["compared"] >= before + 12)
    assert audits()["without_label"] >= 12
    path = "/v2/models/geared/feedback"
    counted = [served.client(path, {"id": name, "label": 0})[2]["counted"] for name in ids]
    assert counted == [1] * 12
    assert served.client(path, {"id": ids[0], "label": 0})[2] == {"counted": 0, "unknown": 1}
    promises = served.client("/v2/models/geared/stats")[2]["promises"]
    assert [one["n"] for one in promises if one["gear"] == "careful"] == [12]


def test_a_reload_reaches_both_or_nobody(served, bundles, tmp_path):
    path, model = "/v2/repository/models/net", "/v2/models/net"
    status, _, said = served.client(f"{path}/load", b"")
    assert (status, said["version"]) == (200, "2"), said
    assert {tuple(one["versions"]) for one in served.everywhere(model)} == {("2",)}
    whole = shutil.copytree(bundles["net"], tmp_path / "whole")
    weights = next(bundles["net"].glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4])
    status, _, said = served.client(f"{path}/load", b"")
    assert status == 400, said
    assert {tuple(one["versions"]) for one in served.everywhere(model)} == {("2",)}
    shutil.copyfile(whole / weights.name, weights)
    assert served.client(f"{path}/unload", b"")[0] == 200
    assert {served.client(f"{model}/ready")[0] for _ in range(8)} == {503}
    assert served.number('offramp_examples_total{model="net"') == 0
    assert served.client(f"{path}/load", b"")[2]["version"] == "3"
    assert {served.client(f"{model}/ready")[0] for _ in range(8)} == {200}
    status, _, said = served.client("/v2/repository/models/nett/load", b"")
    assert (status, "net" in said["error"]) == (404, True)


def test_an_alarm_in_one_holds_in_both(served):
    def raised():
        served.client.infer(inputs_of(20), "geared")
        return served.client("/v2/models/geared/stats")[2]["alarms"]

    until(raised)
    until(
        lambda: (
            {served.client.infer(inputs_of(1), "geared")["gear"][0] for _ in range(8)}
            == {"reference"}
        )
    )
    assert all(one["alarms"] for one in served.everywhere("/v2/models/geared/stats"))
    assert served.number("offramp_alarm") >= 1
    until(lambda: any("is broken" in line for line in served.lines))
    assert sum("is broken" in line for line in served.lines) == 1  # one says so


def test_the_parent_has_not_loaded_torch(served):
    maps = Path(f"/proc/{served.process.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert all("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in served.pids())


def test_a_worker_that_dies_is_started_again_and_knows_what_the_others_do(served):
    before, pids, names = served.number("offramp_examples_total"), served.pids(), served.workers()
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: served.number("offramp_worker_restarts_total") == 1)
    for k in range(20):  # the other one answers meanwhile
        assert served.client(INFER, request_of(inputs_of(2, k)))[0] == 200
    assert served.number("offramp_examples_total") >= before + 40
    until(lambda: len(served.workers() - names) == 1, 4 * SECONDS)
    assert any(
        "is started again in 0 s: it ended with signal SIGKILL" in line for line in served.lines
    )
    assert {tuple(one["versions"]) for one in served.everywhere("/v2/models/net")} == {("3",)}
    said = {served.client.infer(inputs_of(1), "geared")["gear"][0] for _ in range(8)}
    assert said == {"reference"}  # the alarm


def test_a_worker_that_hangs_is_started_anew(served):
    names, (hung, _) = served.workers(), served.pids()
    os.kill(hung, signal.SIGSTOP)
    until(lambda: any("it has said nothing for 10 s" in line for line in served.lines), 4 * SECONDS)
    until(lambda: served.number("offramp_worker_restarts_total") == 2)
    until(lambda: len(served.workers() - names) == 1, 4 * SECONDS)
    assert hung not in served.pids()


def test_what_was_accepted_is_answered_before_both_end(served):
    body = request_of(inputs_of(400))

    def end():
        served.process.send_signal(signal.SIGTERM)
        for pid in served.pids():  # a service manager may tell all of them
            os.kill(pid, signal.SIGTERM)

    found = answers_until(lambda: served.client(INFER, body), end)
    assert served.process.wait(SECONDS) == 0
    served.reading.join(SECONDS)
    assert not any("Traceback" in line for line in served.lines)
    assert {status for status, *_ in found} <= {200, 503}
    assert all(len(said["outputs"][0]["data"]) == 400 for status, _, said in found if status == 200)


def test_what_is_no_bundle_is_told_before_any_begins(tmp_path, capsys):
    code = main(["serve", str(tmp_path / "nowhere"), "--workers", "2", "--port", "0"])
    said = capsys.readouterr().err
    assert code == 2
    assert "manifest.json" in said


@pytest.mark.slow  # the one above is its quick variant: here they begin, and then cannot load
def test_what_they_cannot_load_is_told_and_all_end(tmp_path, capsys):
    bundle = make_bundle(tmp_path / "net")
    weights = next(bundle.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4])
    code = main(["serve", str(bundle), "--workers", "2", "--port", "0"])
    said = capsys.readouterr().err
    assert code == 2
    assert weights.name in said


@pytest.mark.slow  # tests/unit/serve/test_hanging.py is its quick variant
@pytest.mark.parametrize("often", ["once", "always"])
def test_a_worker_that_hangs_while_it_loads(tmp_path, often):
    spec = ModelSpec(name="tests.support.stopping:build", arguments={"folder": str(tmp_path)})
    net = Cascade.from_models({"a": build(tmp_path)}, specs={"a": spec})
    alone = Candidate.single(net.topology, "a", reference="a")
    save(Adaptive(net, alone), tmp_path / "net", input_shape=(4,))
    (tmp_path / often).touch()
    command = [sys.executable, "-m", "offramp", "serve", str(tmp_path / "net"), "--workers", "2"]
    command += ["--port", "0", "--allow-import", "--hang-seconds", "8"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if len(re.findall(r"Worker \d is ready", "".join(lines))) == 2:
                process.send_signal(signal.SIGTERM)
        code = process.wait(4 * SECONDS)
    said = "".join(lines)
    assert "it has said nothing for 8 s while it loads" in said
    if often == "once":
        assert code == 0
        assert "listening at" in said
    else:
        assert code != 0
        assert re.search(r"Worker \d is given up after 3 times: it has said nothing for 8 s", said)
