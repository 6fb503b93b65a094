"""A bit that flips on the disk is found, whichever file it stands in, before anything uses it."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError, OfframpError
from offramp._core.seal import is_sealed, sealed
from offramp.bundle import load_bundle, save_bundle, tune
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.recording import record
from offramp.stages import Cascade, Normalize
from offramp.trace import load_trace, make_trace, save_trace
from offramp.train.cache import _Files
from offramp.train.checkpoint import read_file, write_file
from offramp.train.class_exits.checkpoint import read_state, write_state

SPEC = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2, "classes": 3})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    cascade = Cascade.from_models(
        {"a": build(SPEC)}, specs={"a": SPEC}, transform=Normalize(0.0625)
    )
    path = tmp_path_factory.mktemp("bundle") / "b"
    candidate = Candidate.single(cascade.topology, "a", reference="a")
    save_bundle(path, cascade, candidate, costs=Costs.simple("flops", [5.0]))
    return path


def flipped(content, place, bit):
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


def kept(path, load, places):
    """Flip one bit after the other; return what was loaded nevertheless."""
    whole, found = path.read_bytes(), []
    for place, bit in places:
        path.write_bytes(flipped(whole, place % len(whole), bit))
        try:
            found.append(load())
        except OfframpError:
            continue
        finally:
            path.write_bytes(whole)
    return found


def drawn(count):
    rng = np.random.default_rng(0)
    return [(int(rng.integers(2**31)), int(rng.integers(8))) for _k in range(count)]


def test_a_manifest_with_a_flipped_bit_is_refused_or_says_the_same(bundle):
    path = bundle / "manifest.json"
    wanted = load_bundle(bundle).manifest
    places = [(path.read_text().index("0.0625") + 2, 1), *drawn(60)]  # 0.2625: other answers
    found = kept(path, lambda: load_bundle(bundle).manifest, places)
    assert all(each == wanted for each in found)
    assert len(found) < 10  # a space that became another


def test_the_manifest_of_a_tuned_bundle_is_sealed_again(bundle):
    tune(bundle, torch.zeros(1, 1, 8, 8), batch_sizes=[1], rounds=1, candidates=["eager"])
    assert is_sealed(json.loads((bundle / "manifest.json").read_text()))
    load_bundle(bundle)


def test_a_manifest_without_its_digest_is_no_manifest_of_this_format(tmp_path, bundle):
    value = json.loads((bundle / "manifest.json").read_text())
    assert sealed(value) == value
    del value["sha256"]
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(FileFormatError, match="its digest is not the one in it"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("file", ["arrays.safetensors", "trace.json"])
def test_a_trace_with_a_flipped_bit_is_refused_by_everyone_who_does_not_ask_otherwise(
    tmp_path, file
):
    trace = make_trace(50, classes=3)
    save_trace(trace, tmp_path / "t")

    def load():
        found = load_trace(tmp_path / "t")
        return found.logits.clone(), found.labels.clone(), found.ids.tolist(), found.costs

    path = tmp_path / "t" / file
    for logits, labels, ids, costs in kept(path, load, drawn(100)):
        assert torch.equal(logits, trace.logits)
        assert torch.equal(labels, trace.labels)
        assert (ids, costs) == (trace.ids.tolist(), trace.costs)


@dataclass(frozen=True)
class Facts:
    identity: dict[str, str]
    epochs: int


def test_a_checkpoint_with_a_flipped_bit_is_not_resumed(tmp_path):
    """Heads, joint trainings and classifiers write theirs by this function."""
    path, identity = tmp_path / "c.safetensors", {"of": "x"}
    tensors = {"a": torch.randn(5, 3), "n": torch.tensor(7), "b": torch.randn(4).bfloat16()}
    write_file(path, tensors, Facts(identity=identity, epochs=3))
    facts, held = read_file(path, Facts, identity)
    assert facts.epochs == 3
    assert all(torch.equal(held[name], tensors[name]) for name in tensors)
    every = [(place, place % 8) for place in range(len(path.read_bytes()))]
    for facts, held in kept(path, lambda: read_file(path, Facts, identity), every):
        assert facts == Facts(identity=identity, epochs=3)
        assert all(torch.equal(held[name], tensors[name]) for name in tensors)


def test_a_checkpoint_of_branches_with_a_flipped_bit_is_not_resumed(tmp_path):
    path = tmp_path / "branches.safetensors"
    write_state(path, {"a": torch.ones(4)}, {"of": "x"}, 2)
    assert read_state(path, {"of": "x"})[1] == 2
    path.write_bytes(flipped(path.read_bytes(), -1, 0))
    with pytest.raises(FileFormatError, match=r"was damaged, .* Delete it to train"):
        read_state(path, {"of": "x"})


def test_a_checkpoint_without_a_digest_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    write_file(path, {"a": torch.ones(4)}, Facts(identity={}, epochs=1))
    save_file(load_file(path), path, metadata={"offramp": '{"identity": {}, "epochs": 1}'})
    with pytest.raises(FileFormatError, match="a version that noted no digest"):
        read_file(path, Facts, {})


def test_cached_features_with_a_flipped_bit_are_not_trained_on(tmp_path):
    identity = {"dtype": "float32"}

    def opened():
        return _Files(tmp_path, identity, n=10)

    with opened() as files:
        files.append({"a": np.ones((4, 3), np.float32), "b": np.zeros((4, 2), np.float32)})
    with opened() as going_on:
        going_on.append({"a": np.ones((6, 3), np.float32), "b": np.ones((6, 2), np.float32)})
    assert opened().rows == 10
    for name in ("features-0.npy", "features-1.npy", "cache.json"):
        path = tmp_path / name
        whole = path.read_bytes()
        place = -1 if name.endswith("npy") else whole.index(b'"rows"') + 9
        path.write_bytes(flipped(whole, place, 0))
        with pytest.raises(FileFormatError, match=r"damaged|Delete the folder"):
            opened()
        path.write_bytes(whole)
    assert opened().read("a").sum() == 30


def network(seed):
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)))
    return layer.eval()


class Stops:
    """Three batches, then an error."""

    def __iter__(self):
        x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
        yield from ((part, torch.arange(4) % 3) for part in x.split(4))
        raise OSError("the disk of the images is gone")


@pytest.mark.parametrize("name", ["logits.bin", "labels.bin", "ids.bin", "progress.json"])
def test_a_partial_recording_with_a_flipped_bit_does_not_go_on(tmp_path, name):
    cascade = Cascade.from_models({"a": network(1), "b": network(2)})
    options = {"path": tmp_path / "t", "costs": Costs.simple("usd", [1.0, 2.0]), "progress": False}
    for _k in range(2):  # twice: the second goes on where the first stopped
        with pytest.raises(OSError, match="is gone"):
            record(cascade, Stops(), **options)
    path = tmp_path / "t.partial" / name
    whole = path.read_bytes()
    place = 5 if name.endswith("bin") else whole.index(b'"rows"') + 9
    path.write_bytes(flipped(whole, place, 0))
    with pytest.raises(FileFormatError, match=r"was damaged: .* Pass resume=False"):
        record(cascade, Stops(), **options)
