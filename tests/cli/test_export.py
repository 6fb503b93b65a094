"""`offramp export` writes what answers as the bundle does."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from offramp.bundle import load, save
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 17, (33, 1, 8, 8), generator=generator).float()


def test_a_bundle_becomes_one_file(run, deployed, images, tmp_path):
    path = tmp_path / "model.onnx"
    done = run("export", deployed / "bundle", "--single-file", path, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"out": str(path), "bytes": path.stat().st_size}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _, label, stage = session.run(None, {"input": images.numpy()})
    expected = load(deployed / "bundle")(images)
    assert label.tolist() == expected.labels.tolist()
    assert stage.tolist() == expected.stage.tolist()


@pytest.mark.slow
def test_a_bundle_becomes_a_folder_that_runs_alone(run, deployed, images, tmp_path):
    done = run(
        *("export", deployed / "bundle", "--out", tmp_path / "parts"),
        *("--input-type", "uint8", "--shape", "1,8,8"),
    )
    assert done.code == 0, done.err
    assert "small.segment.onnx" in done.out
    np.savez(tmp_path / "inputs.npz", input=images.to(torch.uint8).numpy())
    command = [sys.executable, tmp_path / "parts" / "run.py", "inputs.npz", "answers.npz"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    expected = load(deployed / "bundle")(images)
    with np.load(tmp_path / "answers.npz") as answers:
        assert answers["label"].tolist() == expected.labels.tolist()
        assert answers["stage"].tolist() == expected.stage.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give either --single-file or --out"),
        (["--single-file", "a.onnx", "--out", "a"], "Give either --single-file or --out"),
        (["--single-file", "a.bin"], "path must end in .onnx, got 'a.bin'"),
        (["--out", "a.onnx"], "path must be a folder"),
        (["--single-file", "a.onnx", "--input-type", "float31"], "Did you mean 'float32'?"),
        (["--single-file", "a.onnx", "--shape", "8,x"], "--shape must be whole numbers"),
        (["--single-file", "a.onnx", "--shape", "3,8,8"], "does not run on"),
    ],
)
def test_wrong_options_are_explained(run, deployed, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    done = run("export", deployed / "bundle", *options)
    assert done.code == 2
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept(run, deployed, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("mine")
    done = run("export", deployed / "bundle", "--single-file", path)
    assert (done.code, path.read_text()) == (2, "mine")
    assert "exists already" in done.err


def test_a_network_with_several_inputs_is_exported_like_an_example(run, tmp_path):
    arguments = {"in1_features": 4, "in2_features": 3, "out_features": 2}
    spec = ModelSpec(name="torch.nn:Bilinear", arguments=arguments)
    cascade = Cascade.from_models({"a": build(spec)}, specs={"a": spec})
    alone = Candidate.single(cascade.topology, "a", reference="a")
    save(Adaptive(cascade, alone, costs=None), tmp_path / "b")
    draw = np.random.default_rng(0)
    inputs = {
        "input1": draw.normal(size=(5, 4)).astype(np.float32),
        "input2": draw.normal(size=(5, 3)).astype(np.float32),
    }
    np.savez(tmp_path / "like.npz", **inputs)
    np.savez(tmp_path / "empty.npz", input1=inputs["input1"], input2=inputs["input2"][:0])
    export = ("export", tmp_path / "b", "--allow-import", "--single-file", tmp_path / "m.onnx")
    assert "--like with an npz file" in run(*export).err
    assert "'input2': (0, 3)" in run(*export, "--like", tmp_path / "empty.npz").err
    both = run(*export, "--like", tmp_path / "like.npz", "--shape", "4")
    assert "--shape 4 is one too many" in both.err
    done = run(*export, "--like", tmp_path / "like.npz")
    assert done.code == 0, done.err
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for value in session.get_outputs():
        assert f"{value.name} (batch" in done.out, "the shell names what the file gives"
    _, label, _ = session.run(None, inputs)
    tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
    loaded = load(tmp_path / "b", allow_import=True)
    assert label.tolist() == loaded(tensors).labels.tolist()
