"""A device needs numpy and onnxruntime: nothing else that offramp needs may be imported there."""

import json
import subprocess
import sys

import numpy as np

from support.served import inputs_of

CODE = """
import json, sys

class Refused:
    allowed = {"numpy", "onnxruntime", "offramp"}

    def find_spec(self, name, *_):
        first = name.partition(".")[0]
        known = first in sys.stdlib_module_names or first in self.allowed
        # What onnxruntime tries for itself is there in no bare environment.
        if not known and first in FORBIDDEN:
            raise ImportError(f"{first} is not on a device")

FORBIDDEN = {"torch", "pydantic", "scipy", "jaxtyping", "safetensors", "httpx", "tenacity", "typer",
             "rich", "matplotlib", "PIL", "onnx", "pooch", "jinja2", "starlette"}
sys.meta_path.insert(0, Refused())
import numpy as np
from offramp.edge import Client, Settings

folder, inputs, url = sys.argv[1:]
client = Client(folder, Settings(url=url, timeout=30.0), threads=1)
client.check()
told = client(np.load(inputs))
client.close()
print(json.dumps([told.label.tolist(), told.where, bool(told.offline.any())]))
"""


def test_it_answers_with_the_cloud(made, cloud, model, tmp_path):
    x = inputs_of(20)
    np.save(tmp_path / "x.npy", x.numpy())
    words = [sys.executable, "-c", CODE, made.path / "device", tmp_path / "x.npy", cloud.url]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    label, where, offline = json.loads(done.stdout)
    want = model(x)
    assert label == want.labels.tolist()
    assert [w == "cloud" for w in where] == (want.stage == 1).tolist()
    assert not offline
