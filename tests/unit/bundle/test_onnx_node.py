"""One exported file runs in Node as it does in Python, by onnxruntime-web (WebAssembly)."""

import json
import shutil
import subprocess

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from offramp.bundle import export_onnx
from offramp.policy import Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize

SCRIPT = """
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(new Uint8Array(readFileSync("cascade.onnx")));
const given = JSON.parse(readFileSync("inputs.json", "utf8"));
const answers = [];
for (const { data, shape } of given) {
  const input = new ort.Tensor("float32", Float32Array.from(data), shape);
  const { label, stage } = await session.run({ input });
  answers.push([Array.from(label.data, Number), Array.from(stage.data, Number)]);
}
console.log(JSON.stringify(answers));
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A folder with onnxruntime-web from npm, and the script."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not on PATH")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    (folder / "run.js").write_text(SCRIPT)
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web"]
    try:
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("npm install onnxruntime-web takes longer than two minutes")
    if done.returncode != 0:
        pytest.skip(f"npm cannot install onnxruntime-web: {done.stderr.strip()[-200:]}")
    yield folder
    shutil.rmtree(folder / "node_modules")  # some 150 MB


def convolutional(width):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(width)
        net = nn.Sequential(
            nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5),
        ).eval()  # fmt: skip
    with torch.no_grad():
        net[-1].weight *= 10  # so that few probabilities lie near a threshold
    return net


def test_node_answers_as_python_does(node):
    models = {"small": convolutional(3), "large": convolutional(8)}
    cascade = Cascade.from_models(models, transform=Normalize(0.5, mean=0.1, std=0.4))
    batches = [torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(n))
               for n in (1, 2, 33, 128)]  # fmt: skip
    with torch.inference_mode():
        logits = cascade(torch.cat(batches))[:, 0]
    sure = logits.softmax(dim=1).amax(dim=1).median()
    rule = Linear.threshold(Feature("max_prob", 0), float(sure))
    policy = Policy(cascade.topology, {(0,): Node(rule)}, combine="mean")
    path = node / "cascade.onnx"
    export_onnx(Adaptive(cascade, policy), path, example=batches[0])
    given = [{"data": x.flatten().tolist(), "shape": list(x.shape)} for x in batches]
    (node / "inputs.json").write_text(json.dumps(given))
    done = subprocess.run(
        ["node", "run.js"], cwd=node, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for x, (label, stage) in zip(batches, json.loads(done.stdout), strict=True):
        _, expected_label, expected_stage = session.run(None, {"input": x.numpy()})
        near = np.abs(logits_near(cascade, x) - float(sure)) < 1e-4
        assert near.sum() <= max(1, 0.05 * len(x))
        np.testing.assert_array_equal(np.array(label)[~near], expected_label[~near])
        np.testing.assert_array_equal(np.array(stage)[~near], expected_stage[~near])
    assert len(set(stage)) == 2


def logits_near(cascade, x):
    """The largest probability of the first stage, which is compared with the threshold."""
    with torch.inference_mode():
        return cascade(x)[:, 0].softmax(dim=1).amax(dim=1).numpy()
