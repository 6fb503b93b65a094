"""onnxruntime-web answers with a device's folder what the client in Python answers, in Node."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from offramp._core.errors import InputError
from offramp.edge import Client, split
from offramp.stages.transforms import Normalize
from support import edged
from support.served import cascade_of, inputs_of, model_of

HERE = Path(__file__).parent
NODE = shutil.which("node")
FOUND = os.environ.get("NODE_PATH") or str(HERE.parents[1] / "node_modules")
pytestmark = pytest.mark.skipif(
    NODE is None or not Path(FOUND, "onnxruntime-web").is_dir(),
    reason="needs node, and onnxruntime-web under NODE_PATH (npm install onnxruntime-web)",
)


def in_node(folder, x, tmp_path):
    """What the folder answers there, or why not."""
    values = x.numpy()
    given = {"shape": list(values.shape), "data": values.ravel().tolist()}
    (tmp_path / "x.json").write_text(json.dumps(given))
    words = [str(NODE), HERE / "in_node.mjs", folder, tmp_path / "x.json"]
    env = {**os.environ, "NODE_PATH": FOUND}
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=env)


def check_same(folder, x, tmp_path):
    done = in_node(folder, x, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    want = Client(folder)(x.numpy())
    assert told["label"] == want.label.tolist()
    assert told["stage"] == list(want.stage)
    assert told["away"] == want.offline.tolist()
    chances = np.array(told["probabilities"], dtype=np.float64)
    np.testing.assert_allclose(chances, want.probabilities, atol=2e-5)
    assert 0 < want.offline.sum() < len(x)


def test_whole_networks(made, tmp_path):
    check_same(made.path / "device", inputs_of(40), tmp_path)


def test_exits_of_one_network(tmp_path):
    cascade = edged.exits()
    model = edged.model_of(cascade, edged.on_labels(cascade.topology))
    device = ["layer1.0", "layer2.0"]
    with edged.exported_once():
        split(model, tmp_path / "s", device=device, send="float32", example=edged.images(1))
    check_same(tmp_path / "s" / "device", edged.images(40), tmp_path)


def test_a_changed_file_is_refused(made, tmp_path):
    shutil.copytree(made.path / "device", tmp_path / "device")
    changed = next((tmp_path / "device").glob("*.segment.onnx"))
    changed.write_bytes(changed.read_bytes()[:-1] + b"?")
    done = in_node(tmp_path / "device", inputs_of(2), tmp_path)
    assert done.returncode != 0
    assert f"{changed.name} has changed" in done.stderr


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """The device's folder of a model that reads numbers from 0 to 255."""
    model = model_of(cascade_of(Normalize(mean=[0.4], std=[0.3], scale=1 / 255)))
    path = tmp_path_factory.mktemp("pixels") / "s"
    split(model, path, device=["small"], example=255 * inputs_of(1).sigmoid())
    return path / "device"


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x - 0.5,
        lambda x: x * 1000,
        lambda x: x * 3 + 0.1,
        lambda x: x * 255 - 300,
        lambda x: (x * 3).round(),
        lambda x: x * 0,
        lambda x: x * 255,
    ],
)
def test_numbers_that_the_stages_do_not_read_are_refused_as_in_python(pixels, change, tmp_path):
    x = change(inputs_of(12).sigmoid())
    done = in_node(pixels, x, tmp_path)
    try:
        said, want = "", Client(pixels)(x.numpy())
    except InputError as error:
        said, want = str(error), None
    assert (done.returncode == 0) == (want is not None), done.stderr[-2000:]
    assert said in done.stderr
    if want is not None:
        assert json.loads(done.stdout)["label"] == want.label.tolist()
