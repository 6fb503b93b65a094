"""Models to a hub and back over HTTP, through the client's own cache of links."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.hub_server import TOKEN, running_hub

pytest.importorskip("huggingface_hub")

PROGRAM = """
import json, sys
from pathlib import Path
import torch
import offramp
from offramp import hub
from offramp._core.errors import FileFormatError, InputError
from offramp.models import ModelSpec, build

token, folder = sys.argv[1:]
specs = {f"s{k}": ModelSpec(name="small_cnn", arguments={"width": 2 + k, "depth": 2, "classes": 4})
         for k in range(2)}
cascade = offramp.Cascade.from_models({n: build(s) for n, s in specs.items()}, specs=specs)
choice = offramp.Candidate.single(cascade.topology, "s1", reference="s1")
model, x = offramp.Adaptive(cascade, choice), torch.randn(6, 1, 8, 8)
there = hub.HubModel(model, tested_on="300 made-up examples.", title="Demo")
told = {}
try:
    there.push_to_hub("owner/net", token="wrong")
except Exception as error:
    told["refused"] = type(error).__name__
there.push_to_hub("owner/net", token=token)
there.save_pretrained(folder + "/saved", push_to_hub=True, repo_id="owner/second", token=token)
again = hub.HubModel.from_pretrained("owner/net")
told["same"] = torch.equal(again(x).labels, model(x).labels)
cached = hub.HubModel.from_pretrained("owner/net", local_files_only=True)
told["cached"] = torch.equal(cached(x).labels, model(x).labels)
told["title"] = again._title
second = hub.HubModel.from_pretrained("owner/second", cache_dir=folder + "/other")
told["second"] = torch.equal(second(x).labels, model(x).labels)
try:
    hub.HubModel.from_pretrained("owner/none")
except InputError as error:
    told["none"] = str(error)
(snapshot,) = Path(folder, "home", "hub", "models--owner--net", "snapshots").iterdir()
told["links"] = sorted(file.name for file in snapshot.iterdir() if file.is_symlink())
told["loaded"] = list(offramp.load(snapshot).stage_names)
blob = next(file for file in snapshot.iterdir() if file.suffix == ".safetensors").resolve()
blob.chmod(0o644)
blob.write_bytes(blob.read_bytes()[:-1] + b"x")
try:
    hub.HubModel.from_pretrained("owner/net", local_files_only=True)
except FileFormatError as error:
    told["damaged"] = str(error)
print(json.dumps(told))
"""


def test_a_model_goes_to_a_hub_and_comes_back_through_the_cache(tmp_path):
    (tmp_path / "home").mkdir()
    with running_hub() as there:
        environment = {
            **os.environ,
            "HF_ENDPOINT": there.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
            environment.pop(name, None)
        command = [sys.executable, "-c", PROGRAM, TOKEN, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (done.stderr[-3000:], there.strange)
        told = json.loads(done.stdout.splitlines()[-1])
        files = there.files("owner/net", "main")
    assert [told[name] for name in ("same", "cached", "second")] == [True] * 3
    assert "HTTP" in told["refused"] or "NotFound" in told["refused"]
    assert told["title"] == "Demo"
    assert "cannot be read as a model of the hub" in told["none"]
    assert told["loaded"] == ["s0", "s1"]
    assert {".gitattributes", "README.md", "manifest.json", "config.json"} <= set(files)
    assert set(told["links"]) == set(files)
    assert "has changed" in told["damaged"] or "digest" in told["damaged"]
    assert b"300 made-up examples" in files["README.md"][0]
    assert not any(TOKEN.encode() in content for content, _ in files.values())
    assert any(large for name, (_, large) in files.items() if name.endswith(".safetensors"))
    assert sorted(file.name for file in Path(tmp_path, "saved").iterdir()) == sorted(
        name for name in files if name != ".gitattributes"
    )
