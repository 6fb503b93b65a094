"""Services from the shell: recorded under a ceiling, fitted, and called where it is allowed."""

import csv
import json
from pathlib import Path

import pytest

from offramp.cli import main
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


def test_wrong_keys_of_a_service_are_named(server, tmp_path, capsys):
    text = CONFIG.format(url=server.url).replace("prompt = ", "promt = ")
    text = text.replace('name = "dear"', 'name = "dear"\nmodel = "x"')
    (tmp_path / "wrong.toml").write_text(text)
    error = run(capsys, "record", "-c", "wrong.toml", code=2)
    for place in ("stage[0].openai.promt:", "stage[0].openai.prompt: is miss", "stage[1].model:"):
        assert place in error
