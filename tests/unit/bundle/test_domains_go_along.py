"""What a transform reads is known wherever it goes: runtimes, bundles, ONNX files, devices."""

import json

import pytest
import torch

from offramp import Adaptive, Candidate, Cascade, export_onnx
from offramp._core.errors import InputError
from offramp.backends import with_backend
from offramp.bundle import load, save
from offramp.edge import Client, split
from offramp.models import ModelSpec, build
from offramp.policy import Feature, Linear, Node, Policy
from offramp.stages import Normalize

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

SPEC = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2, "classes": 3})
FRACTIONS = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PIXELS = FRACTIONS * 255


@pytest.fixture(scope="module")
def model():
    nets = {"a": build(SPEC), "b": build(SPEC)}
    cascade = Cascade.from_models(
        nets, specs=dict.fromkeys(nets, SPEC), transform=Normalize(1 / 255, 0.5, 0.2)
    )
    policy = Policy(cascade.topology, {(0,): Node(Linear.threshold(Feature("max_prob", 0), 0.4))})
    return Adaptive(cascade, Candidate(policy=policy, method="mine", reference="b"))


def check(run, error=InputError):
    with pytest.raises(error, match=r"numbers in \[0, 255\].*got float32 in \[0"):
        run(FRACTIONS)
    for mask, kind in ((FRACTIONS > 0.5, "bool"), ((FRACTIONS > 0.5).long(), "int64")):
        with pytest.raises(error, match=rf"numbers in \[0, 255\].*got {kind} in \[0, 1\]"):
            run(mask)
    run(PIXELS)


def test_a_stage_in_onnx_runtime_and_its_bundle_know_it(model, tmp_path):
    fast = with_backend(model.cascade, "onnxruntime", example=PIXELS)
    assert [stage.domain for stage in fast] == [(0.0, 255.0)] * 2
    there = Adaptive(fast, Candidate.single(fast.topology, "b", reference="b"))
    save(there, tmp_path / "bundle")
    check(there)
    again = load(tmp_path / "bundle")
    assert again.cascade.stage("b").domain == (0.0, 255.0)
    check(again)


def test_a_folder_of_onnx_files_knows_it(model, tmp_path):
    from offramp._core.onnx_runner import Cascade as Runner

    export_onnx(model, tmp_path / "folder", example=PIXELS, folder=True)
    told = json.loads((tmp_path / "folder" / "manifest.json").read_text())
    assert told["domains"] == [[0.0, 255.0]]
    runner = Runner(tmp_path / "folder")
    check(lambda x: runner(x.numpy()), ValueError)
    runner(torch.zeros(1, 1, 8, 8).numpy())
    export_onnx(model, tmp_path / "bare", example=PIXELS, folder=True, transform=False)
    assert json.loads((tmp_path / "bare" / "manifest.json").read_text())["domains"] == []
    Runner(tmp_path / "bare")(FRACTIONS.numpy())


def test_one_onnx_file_tells_it_in_its_metadata(model, tmp_path):
    import onnx

    export_onnx(model, tmp_path / "one.onnx", example=PIXELS)
    held = {p.key: p.value for p in onnx.load(tmp_path / "one.onnx").metadata_props}
    assert json.loads(held["domains"]) == [[0.0, 255.0]]


def test_a_device_knows_it(model, tmp_path):
    made = split(model, tmp_path / "split", device=["a"], example=PIXELS)
    client = Client(made.path / "device")
    check(lambda x: client(x.numpy()))
