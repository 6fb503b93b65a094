"""Services from the shell: recorded under a ceiling, fitted, and called where it is allowed."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offramp.cli import main
from offramp.project.config.sections import StageSection
from offramp.project.networks import service_of
from offramp.trace import load_trace
from support.openai_server import StandIn

KEY = "sk-very-secret-7131"

CONFIG = """
[data]
kind = "texts"
path = "texts.csv"
splits = {{ fit = 80, calibrate = 60, test = 60 }}

[[stage]]
name = "cheap"
[stage.openai]
url = "{url}"
model = "small"
prompt = "small {{row}}"
key_env = "TINY_KEY"
prices = {{ input = 1.0, output = 1.0 }}
limits = {{ concurrency = 16 }}

[[stage]]
name = "dear"
[stage.openai]
url = "{url}"
model = "large"
prompt = "large {{row}}"
key_env = "TINY_KEY"
prices = {{ input = 20.0, output = 20.0 }}
limits = {{ concurrency = 16 }}

[record]
concurrency = 8

[fit]
policy = "threshold"
combines = ["last"]
max_drop = 0.02
delta = "none"
"""


def says(text):
    """The large one is right; the small one where it is sure."""
    size, word, number = text.split()
    truth = "good" if word == "fine" else "bad"
    other = "bad" if truth == "good" else "good"
    if size == "large":
        return truth, 0.97
    sure = int(number) % 4 > 0
    return (truth, 0.9 + int(number) / 5000) if sure else (other, 0.55)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    with Path("texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for k in range(200):
            word, label = ("fine", "good") if k % 2 else ("poor", "bad")
            writer.writerow([f"{word} {k}", label])
    with StandIn(say=says, key=KEY) as running:
        (tmp_path / "run.toml").write_text(CONFIG.format(url=running.url))
        yield running


def run(capsys, *arguments, code=0):
    assert main([*arguments, "--json"]) == code
    captured = capsys.readouterr()
    return json.loads(captured.out) if code == 0 else captured.err


def test_a_cascade_of_services_from_a_configuration_to_answers(server, tmp_path, capsys):
    error = run(capsys, "record", "-c", "run.toml", "--max-spend", "0.002", code=2)
    assert "max_spend was reached" in error
    assert server.spent < 0.004
    found = run(capsys, "record", "-c", "run.toml", "--max-spend", "1")
    assert found["unit"] == "usd"
    assert set(server.charges.values()) == {1}
    assert server.most_running <= 8
    run(capsys, "fit", found["trace"], "-c", "run.toml", "--bundle", "runs/run/bundle")
    bundle = "runs/run/bundle"
    error = run(capsys, "predict", bundle, "texts.csv", "--out", "a.csv", code=2)
    assert "--allow-network 127.0.0.1" in error
    asked = ["predict", bundle, "texts.csv", "--out", "a.csv", "--allow-network", "127.0.0.1"]
    run(capsys, *asked)
    rows = list(csv.DictReader(Path("a.csv").read_text().splitlines()))
    truth = [row["label"] for row in csv.DictReader(Path("texts.csv").read_text().splitlines())]
    assert [row["class_name"] for row in rows] == truth
    assert {row["stage"] for row in rows} == {"cheap", "dear"}
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(KEY.encode() in file.read_bytes() for file in files)


@pytest.fixture
def fitted(server, capsys):
    """A bundle, beside its trace; the large one costs 20 times as much as the small one."""
    found = run(capsys, "record", "-c", "run.toml")
    run(capsys, "fit", found["trace"], "-c", "run.toml", "--bundle", "runs/run/bundle")
    return "runs/run/bundle"


def test_a_kill_and_ceilings_in_the_middle_of_a_batch_lose_no_answer(server, tmp_path, capsys):
    server.prices = {"input": 20.0, "output": 20.0}
    text = (
        Path("run.toml").read_text().replace("input = 1.0, output = 1.0", "input = 20, output = 20")
    )
    Path("run.toml").write_text(text)
    record = ("record", "-c", "run.toml", "--max-spend")
    assert "max_spend was reached" in run(capsys, *record, "0.08", code=2)
    assert 200 < len(server.charges) < 400  # all of the first stage, and a part of the second
    before, server.latency = len(server.charges), 0.05
    process = subprocess.Popen([sys.executable, "-m", "offramp", *record, "0.125"])
    until = time.monotonic() + 60
    while len(server.charges) < before + 20 and time.monotonic() < until:
        time.sleep(0.005)
    process.kill()
    process.wait()
    server.latency = 0.0
    assert before < len(server.charges) < 400
    assert "max_spend was reached" in run(capsys, *record, "0.05", code=2)
    found = run(capsys, *record, "0.125")
    assert found["n"] == 200
    assert set(server.charges.values()) == {1}
    trace = load_trace(found["trace"])
    assert trace.prices.sum().item() == pytest.approx(server.spent)
    assert [file.name for file in Path("runs/run").iterdir() if "partial" in file.name] == []


ALLOWED = ("--allow-network", "127.0.0.1")


def test_whoever_measures_a_bundle_that_calls_has_to_allow_it(server, fitted, capsys):
    asked = [
        ("bench", fitted, "texts.csv", "--rounds", "1", "--batch-sizes", "8"),
        ("profile", fitted, "texts.csv", "--rounds", "1", "--examples", "8"),
        ("tune", fitted, "texts.csv"),
        ("export", fitted, "--single-file", "a.onnx", "--shape", "3"),
    ]
    before = sum(server.attempts.values())
    for command in asked[:2] + asked[3:]:
        assert "--allow-network 127.0.0.1" in run(capsys, *command, code=2)
    assert sum(server.attempts.values()) == before
    for command in asked[:2]:  # each round asks again, so that it times answers and no memory
        server.attempts.clear()
        run(capsys, *command, *ALLOWED)
        assert min(server.attempts.values()) > 1
    before = sum(server.attempts.values())
    assert "example must be tensors" in run(capsys, *asked[2], *ALLOWED, code=2)
    assert "answers with labels" in run(capsys, *asked[3], *ALLOWED, code=2)
    assert sum(server.attempts.values()) == before


def test_an_input_costs_no_more_than_its_budget(server, fitted, capsys):
    asked = ("predict", fitted, "texts.csv", *ALLOWED, "--out")
    found = run(capsys, *asked, "a.csv", "--max-request-cost", "0.0001")
    rows = list(csv.DictReader(Path("a.csv").read_text().splitlines()))
    assert {row["stage"] for row in rows} == {"cheap"}
    assert all(float(row["cost"]) <= 0.0001 for row in rows)
    free = run(capsys, *asked, "b.csv", "--max-request-cost", "1")
    plain = run(capsys, *asked, "d.csv")
    assert free["exits"] == plain["exits"]
    assert (free["ended_by_budget"], plain["ended_by_budget"]) == (0, 0)
    assert found["ended_by_budget"] == free["exits"]["dear"] > 0
    error = run(capsys, *asked, "c.csv", "--max-request-cost", "0", code=2)
    assert "budget must be at least what the first stage costs" in error


def test_a_budget_is_promised_from_the_shell(server, fitted, capsys):
    fit = ("fit", "runs/run/record.trace", "--policy", "threshold", "--combines", "last")
    asked = ("--max-drop", "0.4", "--delta", "0.1", "--max-request-cost", "0.0002")
    found = run(capsys, *fit, *asked, "--over-budget", "0.5", "--out", "runs/two")
    assert "costs more than 0.0002 usd for at most 50 %" in found["sentence"]
    assert "--max-request-cost 0.0002 --over-budget 0.5" in Path("runs/two/run.json").read_text()
    error = run(capsys, *fit, "--max-request-cost", "0.0002", "--max-cost", "0.5", code=2)
    assert "--max-request-cost must be given with --max-drop and a --delta" in error
    evaluate = ("evaluate", "runs/run/record.trace", "runs/run/chosen.json")
    budget = ("--max-request-cost", "0.0002", "--over-budget", "0.4")
    told = run(capsys, *evaluate, *budget, "--delta", "0.1")["promise"]
    assert "costs more than 0.0002 usd for at most 40 %" in told["sentence"]
    assert "--delta goes with" in run(capsys, *evaluate, *budget, code=2)


def test_wrong_keys_of_a_service_are_named(server, tmp_path, capsys):
    text = CONFIG.format(url=server.url).replace("prompt = ", "promt = ")
    text = text.replace('name = "dear"', 'name = "dear"\nmodel = "x"')
    (tmp_path / "wrong.toml").write_text(text)
    error = run(capsys, "record", "-c", "wrong.toml", code=2)
    for place in ("stage[0].openai.promt:", "stage[0].openai.prompt: is miss", "stage[1].model:"):
        assert place in error


def test_a_service_without_a_key_is_said_by_an_empty_text():
    told = {"url": "https://a.example/v1", "model": "m", "prompt": "{row}", "key_env": ""}
    section = StageSection(name="a", openai=told)
    assert service_of(section, ("x", "y")).module.settings.key_env is None
