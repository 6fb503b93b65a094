import csv
import json
import shutil

import numpy as np
import pytest
import torch

from offramp.bundle import read_manifest
from offramp.data import digits


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, images=digits().inputs[:20].numpy())
    return path


@pytest.fixture
def bundle(deployed, tmp_path):
    return shutil.copytree(deployed / "bundle", tmp_path / "bundle")


def test_what_was_measured_stays_in_the_bundle_and_auto_takes_it(run, bundle, npz, tmp_path):
    found = run("predict", bundle, npz, "--backend", "auto")
    assert found.code == 2
    assert "`offramp tune`" in found.err
    backends = ("--backends", "onnxruntime,folded")
    tuned = run("tune", bundle, npz, "--batch-sizes", "1,8", "--rounds", 1, *backends)
    assert tuned.code == 0, tuned.err
    assert "batch of 8" in tuned.out
    assert "fastest" in tuned.out
    table = read_manifest(bundle).backends
    assert table.batch_sizes == (1, 8)
    rows = {}
    for backend in (None, "auto", "onnxruntime", "folded"):
        chosen = () if backend is None else ("--backend", backend)
        out = tmp_path / f"{backend}.csv"
        done = run("predict", bundle, npz, "--out", out, *chosen)
        assert done.code == 0, done.err
        with out.open(newline="") as file:
            rows[backend] = [(r["label"], r["stage"]) for r in csv.DictReader(file)]
    assert rows["auto"] == rows["onnxruntime"] == rows["folded"] == rows[None]


def test_tuning_as_json(run, bundle, npz):
    found = run("tune", bundle, npz, "--backends", "onnxruntime", "--rounds", 1, "--json")
    assert found.code == 0, found.err
    said = json.loads(found.out)
    assert set(said["best"]) == set(said["seconds"])
    assert all(set(each) == {"eager", "onnxruntime"} for each in said["seconds"].values())


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_bench_and_profile_say_what_ran(run, bundle, npz):
    chosen = ("--backend", "onnxruntime", "--threads", 1, "--rounds", 1)
    timed = run("bench", bundle, npz, "--batch-sizes", "1", *chosen)
    assert timed.code == 0, timed.err
    assert "onnxruntime, 1 CPU thread, 1 rounds" in timed.out
    found = run("profile", bundle, npz, *chosen)
    assert found.code == 0, found.err


def test_a_backend_that_does_not_exist_or_answers_otherwise_is_refused(run, bundle, npz):
    found = run("bench", bundle, npz, "--backend", "onnx")
    assert found.code == 2
    assert "There is no backend 'onnx'" in found.err
    found = run("predict", bundle, npz, "--backend", "onnxruntime-int8")
    assert found.code == 2
    assert "offramp.tuning.quantize" in found.err
