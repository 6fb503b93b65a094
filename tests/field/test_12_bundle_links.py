"""Bundles as they come: links of a hub's cache or a config map, and files that others put there."""

import os

import pytest
import torch

from offramp._core.errors import FileFormatError
from offramp.bundle import load, read_manifest, save, tune
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade

SPEC = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2, "classes": 3})
X = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cascade():
    net = ModelSpec(name="small_cnn", arguments={**SPEC.arguments, "seed": 5})
    return Cascade.from_models({"a": build(net)}, specs={"a": SPEC})


@pytest.fixture
def bundle(tmp_path, cascade):
    path = tmp_path / "bundle"
    save(Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="a")), path)
    return path


def answers(folder, **options):
    return load(folder, **options).reference(X).log_probs


@pytest.mark.parametrize("verify", [True, False])
def test_a_hub_cache_whose_files_are_links_to_blobs_loads(bundle, cascade, verify):
    snapshot, blobs = bundle.parent / "snapshots" / "0a1b", bundle.parent / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for k, file in enumerate(sorted(bundle.iterdir())):
        file.rename(blobs / str(k))
        (snapshot / file.name).symlink_to(f"../../blobs/{k}")
    assert torch.equal(answers(snapshot, verify=verify), Adaptive.single(cascade, "a")(X).log_probs)


def test_a_config_map_whose_files_are_links_into_a_linked_folder_loads(bundle, cascade):
    data = bundle / "..2026_11_28"
    data.mkdir()
    for file in [file for file in bundle.iterdir() if file.is_file()]:
        file.rename(data / file.name)
        (bundle / file.name).symlink_to(f"..data/{file.name}")
    (bundle / "..data").symlink_to(data.name)
    for verify in (True, False):
        assert torch.equal(
            answers(bundle, verify=verify), Adaptive.single(cascade, "a")(X).log_probs
        )


def test_files_of_others_are_neither_read_nor_refused(bundle, cascade):
    for name in ("README.md", ".gitattributes", ".DS_Store", ".nfs0001", "p.csv", "x.safetensors"):
        (bundle / name).write_bytes(b"\xff")
    for name in ("lost+found", ".cache"):
        (bundle / name).mkdir()
    os.mkfifo(bundle / "pipe")  # reading it would wait for ever
    assert torch.equal(answers(bundle), Adaptive.single(cascade, "a")(X).log_probs)
    tune(bundle, X, batch_sizes=[1], rounds=1, candidates=["eager"])  # another door
    assert read_manifest(bundle).backends is not None


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["a.safetensors", "policy.json"])
def test_a_link_that_leaves_the_bundle_must_lead_to_what_is_listed(bundle, name, verify):
    elsewhere = bundle.parent / "elsewhere"
    content = (bundle / name).read_bytes()
    (bundle / name).unlink()
    (bundle / name).symlink_to(elsewhere)
    with pytest.raises(FileFormatError, match=f"{name} is missing"):
        load(bundle, verify=verify)
    elsewhere.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(FileFormatError, match=f"{name} has changed"):
        load(bundle, verify=verify)
    elsewhere.write_bytes(content)
    load(bundle, verify=verify)


def test_a_listed_file_that_is_missing_is_still_refused(bundle):
    (bundle / "a.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"a\.safetensors is missing"):
        load(bundle)
