"""A bundle is read as data: safetensors of its own folder, whatever its manifest asks for."""

import json

import numpy as np
import pytest
import torch

from offramp._core.errors import FileFormatError
from offramp._core.files import sha256
from offramp._core.schema import to_json
from offramp._core.seal import sealed
from offramp.bundle import load, save
from offramp.models import ModelSpec, build, save_weights
from offramp.models.trial import check_spec
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade

SPEC = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2, "classes": 3})


@pytest.fixture
def bundle(tmp_path):
    cascade = Cascade.from_models({"a": build(SPEC)}, specs={"a": SPEC})
    save(Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="a")), tmp_path / "b")
    return tmp_path / "b"


def edit(folder, change):
    """What somebody would do who also corrects the digest."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(sealed(value)))


def listed(folder, name):
    return {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.ckpt", "a.npz"])
def test_weights_that_are_no_safetensors_are_not_even_opened(bundle, name, monkeypatch):
    state = build(SPEC).state_dict()
    if name.endswith("npz"):
        np.savez(bundle / name, **{k: v.numpy() for k, v in state.items()})
    else:
        torch.save(state, bundle / name)
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(np, "load", None)

    def change(m):
        m["stages"][0]["weights"] = name
        m["files"][name] = listed(bundle, name)

    edit(bundle, change)
    with pytest.raises(FileFormatError, match=f"'{name}' are no file of safetensors"):
        load(bundle)


def wrapped(**more):
    return {
        "name": "tapped",
        "arguments": {
            "model": {**to_json(SPEC), **more},
            "points": ["features.0"],
            "taps": [{"name": "x", "reads": ["features.0"]}],
            "shape": [1, 8, 8],
        },
    }


def test_a_network_within_a_network_names_no_file_of_the_machine(bundle, tmp_path):
    secret = tmp_path / "secret.safetensors"
    save_weights(build(SPEC), secret)
    for more in ({"weights": str(secret)}, {"weights": "x.npz", "weights_sha256": "0" * 64}):
        edit(bundle, lambda m, more=more: m["stages"][0].update(model=wrapped(**more)))
        for allow_import in (False, True):
            with pytest.raises(FileFormatError, match="must have no weights of its own"):
                load(bundle, allow_import=allow_import)


def test_the_same_network_without_a_file_of_its_own_is_let_through():
    """So the test above can fail."""
    spec = ModelSpec(**wrapped())
    check_spec(spec, build(spec).state_dict(), "a.safetensors")


def test_networks_within_networks_within_networks_end(bundle):
    def change(m):
        model = wrapped()
        for _k in range(9):
            model = {"name": "tapped", "arguments": {**model["arguments"], "model": model}}
        m["stages"][0]["model"] = model

    edit(bundle, change)
    with pytest.raises(FileFormatError, match="More than 4 networks stand within each other"):
        load(bundle)
