import csv
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offramp._core.errors import FileFormatError, InputError, UnsupportedError
from offramp._core.schema import to_json
from offramp.bundle import load
from offramp.cli import demo
from offramp.data import arrays
from offramp.evaluation import evaluate
from offramp.models import small_cnn
from offramp.project import demo as demo_run
from offramp.project.worlds import WORLDS
from offramp.project.worlds import cifar10 as cifar10_world
from offramp.project.worlds import digits as digits_world
from offramp.project.worlds import languages as languages_world
from offramp.project.worlds import services as services_world
from offramp.stages import Cascade, measure_flops
from offramp.trace import load_trace
from support import functions

SHARED = [parent / "shared" / "data" / "cifar10" for parent in Path(__file__).parents]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The demo with smaller networks and less training."""
    networks = (
        replace(digits_world.NETWORKS[0], epochs=5),
        replace(digits_world.NETWORKS[2], width=12, depth=4, epochs=6, learning_rate=0.01),
    )
    out = tmp_path_factory.mktemp("demo") / "run"
    told = []
    found = demo_run.run_demo(
        out,
        seed=3,
        world=digits_world.of_networks(networks),
        rounds=2,
        progress=False,
        tell=told.append,
    )
    return found, out, told


def test_the_demo_leaves_a_whole_run_behind(short):
    _, out, told = short
    assert len(told) == 6
    assert {path.name for path in out.iterdir()} == {
        *("run.json", "digits.trace", "frontier.json", "chosen.json", "evaluation.json"),
        *("timing.json", "bundle", "test.npz", "example.png", "predictions.csv"),
        *("report.html", "report.json"),
    }
    assert {path.name for path in out.parent.iterdir()} == {"run"}


def test_its_numbers_are_those_of_its_files(short):
    found, out, _ = short
    test = load_trace(out / "digits.trace").subset("test")
    again = evaluate(test, load(out / "bundle").candidate, seed=0)
    assert to_json(again) == to_json(found.chosen)
    shown = json.loads((out / "report.json").read_text())
    assert shown["test"]["accuracy"] == found.chosen.accuracy
    assert shown["timing"] == [dict(row) for row in found.live.timing]
    assert [c["unit"] for c in shown["costs"]] == ["flops", "seconds", "seconds"]
    assert found.singles.keys() == {"small", "large"}
    assert found.singles["large"].accuracy == test.accuracy(1)


def test_runtime_and_fresh_process_agree_with_replay(short):
    found, _, _ = short
    assert found.live.replayed + found.live.undecided == found.chosen.n == 347
    assert found.live.undecided <= 3
    assert found.live.predicted == 347


def test_the_summary_fits_a_terminal_and_says_allowed_promised_and_reached(short):
    found, _, _ = short
    lines = demo.summary(found)
    assert len(lines) <= 22
    assert fits(lines, found)
    text = "\n".join(lines)
    assert f"{100 * found.chosen.accuracy:.1f} %" in text
    said = [line.split()[0] for line in lines if line.startswith("  ") and ":" in line[:12]]
    assert said[:3] == ["allowed:", "promised:", "reached:"]
    assert f"points lost on {found.chosen.n} test images" in text
    assert f"Report: {found.report}" in lines


def test_the_three_commands_that_follow_work_when_they_are_pasted(
    short, run, monkeypatch, tmp_path
):
    found, out, _ = short
    monkeypatch.chdir(tmp_path)
    serve, predict, report = found.next
    told = run(*shlex.split(predict)[1:])
    assert told.code == 0, told.err
    (row,) = rows_of(tmp_path / "answers.csv")
    with np.load(out / "test.npz") as held:
        first = held["images"][:1]
    assert row["label"] == str(load(out / "bundle")(torch.from_numpy(first)).labels.item())
    assert run(*shlex.split(predict)[1:]).code == 0  # and again
    assert run(*shlex.split(report)[1:]).code == 0
    with served(serve, tmp_path) as url:
        with urllib.request.urlopen(f"{url}/v2") as answer:
            assert json.load(answer)["name"]
        asked = {  # a file of an image, and its pixels
            "image/png": (out / "example.png").read_bytes(),
            "application/json": json.dumps({"rows": first.tolist()}).encode(),
        }
        said = [said_to(f"{url}/predict", body, kind) for kind, body in asked.items()]
    assert said[0] == said[1]
    assert str(said[0]["label"]) == row["label"]


def ready(url):
    """Whether a server has warmed its model; until then it says 503."""
    try:
        return urllib.request.urlopen(f"{url}/v2/health/ready").close() is None
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 503:
            raise
        return False


def said_to(url, body, kind):
    """What a server says of the one example of a request, but how it is called."""
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    with urllib.request.urlopen(request) as answer:
        (one,) = json.load(answer)["answers"]
    return {name: value for name, value in one.items() if name != "id"}


def fits(lines, found):
    """A terminal of 80 columns shows them; only paths stay whole."""
    return all(len(line) < 80 or str(found.report.parent) in line for line in lines)


def rows_of(table):
    return list(csv.DictReader(table.read_text().splitlines()))


@contextmanager
def served(command, place):
    """The server of a command, at a port that is free; its address."""
    pytest.importorskip("uvicorn", reason="needs offramp[serve]")
    words = [sys.executable, "-m", *shlex.split(command), "--port", "0", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=place) as process:
        try:
            url = json.loads(process.stdout.readline())["url"]
            while not ready(url):
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()


def test_a_picture_of_ones_own_may_have_any_size(short, run, tmp_path):
    """Bytes, white on black: the test image, made larger, is the same digit."""
    _, out, _ = short
    with Image.open(out / "example.png") as image:
        assert image.size == (8, 8)
        image.resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "mine.png")
    for name, path in (("small", out / "example.png"), ("large", tmp_path / "mine.png")):
        run("predict", out / "bundle", path, "--out", tmp_path / f"{name}.csv")
    small, large = (rows_of(tmp_path / f"{name}.csv")[0]["label"] for name in ("small", "large"))
    assert small == large


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The demo of services, whose answers are made up."""
    out = tmp_path_factory.mktemp("services") / "run"
    return demo_run.run_demo(out, world=WORLDS["services"], progress=False), out


def test_services_are_promised_and_nothing_runs(recorded, run, monkeypatch, tmp_path):
    found, out = recorded
    monkeypatch.chdir(tmp_path)
    assert found.live is None
    assert found.choice.outcome == "certified"
    assert found.chosen.cost_ratio < 0.5
    assert "Nothing ran: these are recorded answers." in demo.summary(found)
    assert (
        json.loads((out / "run.json").read_text())["command"] == "offramp demo --services --seed 0"
    )
    fit, evaluate, report = found.next
    for command in (evaluate, report, fit):
        told = run(*shlex.split(command)[1:])
        assert told.code == 0, told.err


def test_recorded_answers_of_a_folder_are_read_cheapest_first(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    arrays = {"labels": labels, "meta": np.array(["head", "7,Best,60,3", "9,Free,0.02,3"])}
    for key, share in (("7", 0.95), ("9", 0.7)):
        right = rng.random(900) < share
        arrays[f"pred_{key}"] = np.where(right, labels, (labels + 1) % 3)
        arrays[f"conf_{key}"] = np.where(right, 0.9, 0.5)
    np.savez(tmp_path / "SET.npz", **arrays)
    found = services_world._learn(tmp_path, seed=0, progress=False, tell=lambda _: None)
    assert found.trace.stages == ("Free", "Best")
    assert found.trace.stage_costs().tolist() == pytest.approx([2e-6, 6e-3])
    assert found.cascade is None
    del arrays["conf_9"]
    np.savez(tmp_path / "SET.npz", **arrays)
    with pytest.raises(FileFormatError, match="it lacks conf_9"):
        services_world._learn(tmp_path, seed=0, progress=False, tell=lambda _: None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--services", "--languages"], "One world is shown at a time, got services and languages"),
        (["--data", "cifar", "x"], "did you mean"),
        (["--data", "digits", "x"], "come with the package and take no folder"),
        (["--data", "services", "."], "holds no recorded answers"),
        (["--data", "cifar10", "."], "must hold cifar-10-batches-bin, got .. Fetch it"),
        (["--data", "cifar10", "no"], "got no, which is not there. Fetch it (170 MB) by python"),
    ],
)
def test_a_world_that_cannot_be_shown_is_refused(given, said, run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = run("demo", *given)
    assert found.code == 2
    assert said.lower() in found.err.lower()
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_detectors_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(languages_world, "PACKAGES", {"json": "json", "no_such_one": "no-such-one"})
    with pytest.raises(UnsupportedError, match="pip install no-such-one"):
        languages_world.check_packages()


def test_texts_of_the_package_are_in_ten_languages_and_in_one_each():
    found = languages_world.drawn_texts(0)
    texts = [text for _, text in found]
    assert len(texts) == len(set(texts)) == 200 * len(languages_world.CODES)
    assert {language for language, _ in found} == set(languages_world.CODES)
    assert {len(text.split()) for text in texts} == {1, 2, 3, 4}
    assert found == languages_world.drawn_texts(0)


@pytest.fixture
def stood_in(monkeypatch):
    """Two detectors by rules in the place of the installed ones."""
    monkeypatch.setattr(languages_world, "check_packages", lambda: None)
    detectors = {"quick": functions.quick_language, "lingua": functions.slow_language}
    monkeypatch.setattr(languages_world, "DETECTORS", detectors)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # of fresh processes


def test_languages_run_live_from_texts_to_a_fresh_process(stood_in, tmp_path):
    found = demo_run.run_demo(tmp_path / "run", world=WORLDS["languages"], rounds=1, progress=False)
    assert found.live.predicted == found.chosen.n
    assert found.chosen.candidate.reference == "lingua"
    assert "--allow-import" in found.next[0]
    (text,) = (tmp_path / "run" / "example.txt").read_text().splitlines()
    assert text == (tmp_path / "run" / "test.txt").read_text().splitlines()[0]


def test_the_promise_is_a_certificate_or_nothing(short):
    found, out, _ = short
    trace = load_trace(out / "digits.trace")
    frontier, again = demo_run.promised(trace, seed=3, progress=False)
    assert again.outcome == found.choice.outcome
    assert again.delta == demo_run.DELTA
    assert to_json(again.candidate) == to_json(found.choice.candidate)
    assert again.n == len(trace.subset("calibrate")) == 550
    assert frontier.reference == "large"
    stored = json.loads((out / "chosen.json").read_text())
    assert stored["outcome"] in ("certified", "not certified")


def test_the_summary_says_so_if_nothing_can_be_promised(short):
    found, _, _ = short
    alone = next(p for p in evaluated_singles(found) if p.candidate.label == "large alone")
    why = "because of this " * 12
    refused = replace(
        found.choice, point=alone, guarantee=None, refused=why, sentence=f"Not certified: {why}."
    )
    lines = demo.summary(replace(found, choice=refused))
    assert "promised: nothing. Not certified: because of this" in "\n".join(lines)
    assert fits(lines, found)


def evaluated_singles(found):
    """The networks alone, as points of the demo's frontier."""
    trace = load_trace(found.report.parent / "digits.trace")
    return demo_run.promised(trace, seed=3, progress=False)[0].singles


def test_each_network_costs_four_to_ten_times_the_one_before():
    costs = [flops_of(n) for n in digits_world.NETWORKS]
    steps = [after / before for before, after in itertools.pairwise(costs)]
    assert all(4 <= step <= 10 for step in steps), steps


def flops_of(network):
    net = small_cnn(width=network.width, depth=network.depth).eval()
    cascade = Cascade.from_models({"only": net})
    return measure_flops(cascade, torch.zeros(1, 1, 8, 8)).segment[0]


def test_a_demo_is_replaced_and_anything_else_refused(short, tmp_path):
    _, out, _ = short
    assert demo_run.check_replaceable(out, "offramp demo")
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="not only a run of offramp"):
        demo_run.run_demo(tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_the_whole_demo_succeeds_from_the_shell(run, tmp_path):
    found = run("demo", "--out", tmp_path / "demo")
    assert found.code == 0, found.err
    assert len(found.out.splitlines()) <= 22
    assert (tmp_path / "demo" / "report.html").is_file()
    again = run("demo", "--out", tmp_path / "demo", "--json")
    assert again.code == 0
    result = json.loads(again.out)
    assert result["outcome"] == "certified"
    assert result["test"]["cost_ratio"] < 0.5
    assert result["test"]["accuracy"] > result["singles"]["small"]["accuracy"]


def test_networks_are_trained_where_the_folder_holds_images_alone(monkeypatch, tmp_path):
    """On random images of the right form: they learn nothing, and are recorded."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (160, 3, 32, 32), dtype=torch.uint8, generator=generator)
    made = arrays(images, torch.arange(160) % 10)
    monkeypatch.setattr(cifar10_world, "_official", lambda _: made)
    sizes = {"train": 60, "fit": 30, "calibrate": 40, "test": 30}
    monkeypatch.setattr(cifar10_world, "_SIZES", sizes)
    networks = [replace(n, epochs=1, width=2) for n in cifar10_world._NETWORKS]
    monkeypatch.setattr(cifar10_world, "_NETWORKS", tuple(networks))
    found = cifar10_world._learn(tmp_path, seed=0, progress=False, tell=lambda _: None)
    assert found.trace.stages == ("small", "large")
    assert len(found.trace) == 100  # without those trained on
    assert found.test.ids.tolist() == found.trace.subset("test").ids.tolist()


@pytest.mark.shared
def test_pretrained_networks_are_taken_where_they_lie_there(monkeypatch):
    folder = next((p for p in SHARED if (p / "resnet_weights").is_dir()), None)
    if folder is None:
        pytest.skip("the real data is not beside the repository")
    monkeypatch.setattr(cifar10_world, "_UNSEEN", {"fit": 20, "calibrate": 20, "test": 40})
    found = cifar10_world._learn(folder, seed=0, progress=False, tell=lambda _: None)
    assert found.trace.stages == ("resnet20", "resnet56")
    assert found.trace.accuracy(1) > 0.6  # of images after lossy JPEG
