"""What a transform reads is known wherever it goes: runtimes, bundles, ONNX files, devices."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from offramp import Adaptive, Candidate, Cascade, edge, export_onnx
from offramp._core.errors import InputError
from offramp.backends import with_backend
from offramp.bundle import load, save
from offramp.edge import Client, split
from offramp.models import ModelSpec, build
from offramp.policy import Feature, Linear, Node, Policy
from offramp.stages import Normalize
from offramp.stages.transforms.domain import Look

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


def beside(numbers, odd):
    held = numbers.clone()
    held[0] = odd
    return held


WHOLE = torch.ones(3, 1, 8, 8, dtype=torch.int64)
GIVEN = {
    "fractions": FRACTIONS,
    "fractions beside NaN": beside(FRACTIONS, math.nan),
    "fractions beside infinity": beside(FRACTIONS, math.inf),
    "pixels": PIXELS,
    "pixels beside NaN": beside(PIXELS, math.nan),
    "NaN alone": torch.full((3, 1, 8, 8), math.nan),
    "nothing but 0": torch.zeros(3, 1, 8, 8),
    "a mask": FRACTIONS > 0.5,
    "a mask of bytes": (FRACTIONS > 0.5).to(torch.uint8),
    "bytes": PIXELS.to(torch.uint8),
    "a picture of 1": WHOLE,
    "a table of 1": WHOLE[:, 0, 0],
    "a table of 3": WHOLE[:, 0, 0] * 3,
    "a table of fractions": FRACTIONS[:, 0, 0],
    "whole pixels": PIXELS.long(),
    "dark pixels": (FRACTIONS * 3).round(),
    "far too large": PIXELS * 100,
}


DOMAINS = [(0, 1), (0, 10), (0, 255), (0, 4095), (-128, 127)]


def seen_by(see, seen):
    """Whether numbers were refused, and whether they told enough."""
    try:
        see()
    except (InputError, ValueError):
        return [True, bool(seen)]
    return [False, bool(seen)]


def as_stages_look(given, domain):
    look = Look("stage 'a'", domain)
    return seen_by(lambda: look(None, given), look._seen)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_what_runs_without_torch_looks_as_stages_do(domain, given):
    from offramp._core.onnx_runner import Cascade as Runner

    runner = object.__new__(Runner)
    runner.manifest, runner._seen = {"domains": [list(domain)]}, set()
    found = seen_by(lambda: runner.look(given.numpy()), runner._seen)
    refused, told = as_stages_look(given, domain)
    assert found[0] == refused
    assert refused or found[1] == told


LOOK = """
import { readFileSync } from "node:fs";
const { Device } = await import(process.argv[1]);
const kinds = { float32: Float32Array, uint8: Uint8Array, bool: Uint8Array, int64: BigInt64Array };
const number = { int64: BigInt };
const told = JSON.parse(readFileSync(0, "utf-8")).map(({ type, dims, data, domain }) => {
  const held = { manifest: { domains: [domain] }, _seen: new Set() };
  const values = kinds[type].from(data, number[type] ?? Number);
  try {
    Device.prototype._look.call(held, { type, dims, data: values });
  } catch {
    return [true, held._seen.size > 0];
  }
  return [false, held._seen.size > 0];
});
console.log(JSON.stringify(told));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_what_runs_in_a_browser_looks_as_stages_do():
    cases = [(name, given, domain) for name, given in GIVEN.items() for domain in DOMAINS]
    sent = [
        {
            "type": str(given.dtype).removeprefix("torch."),
            "dims": list(given.shape),
            "data": [str(x) if isinstance(x, float) else int(x) for x in given.flatten().tolist()],
            "domain": list(domain),
        }
        for _, given, domain in cases
    ]
    text = json.dumps(sent).replace('"inf"', '"Infinity"')
    there = Path(edge.__file__).with_name("device.mjs").as_uri()
    words = [str(shutil.which("node")), "--input-type=module", "-e", LOOK, there]
    done = subprocess.run(
        words, input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for (name, given, domain), (refused, told) in zip(cases, json.loads(done.stdout), strict=True):
        want = as_stages_look(given, domain)
        assert refused == want[0], (name, domain)
        assert refused or told == want[1], (name, domain)


def test_one_onnx_file_tells_it_in_its_metadata(model, tmp_path):
    import onnx

    export_onnx(model, tmp_path / "one.onnx", example=PIXELS)
    held = {p.key: p.value for p in onnx.load(tmp_path / "one.onnx").metadata_props}
    assert json.loads(held["domains"]) == [[0.0, 255.0]]


def test_a_device_knows_it(model, tmp_path):
    made = split(model, tmp_path / "split", device=["a"], example=PIXELS)
    client = Client(made.path / "device")
    check(lambda x: client(x.numpy()))
