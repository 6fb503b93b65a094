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
from offramp.bundle import load, read_manifest, save, tune
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.recording import record
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize
from offramp.trace import load_trace, make_trace, save_trace
from offramp.train.cache import _Features
from offramp.train.checkpoint import read_checkpoint, write_checkpoint

SPEC = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2, "classes": 3})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    cascade = Cascade.from_models(
        {"a": build(SPEC)}, specs={"a": SPEC}, transform=Normalize(0.0625)
    )
    path = tmp_path_factory.mktemp("bundle") / "b"
    candidate = Candidate.single(cascade.topology, "a", reference="a")
    save(Adaptive(cascade, candidate, costs=Costs.simple("flops", [5.0])), path)
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
    wanted = read_manifest(bundle)
    places = [(path.read_text().index("0.0625") + 2, 1), *drawn(60)]  # 0.2625: other answers
    found = kept(path, lambda: (load(bundle), read_manifest(bundle))[1], places)
    assert all(each == wanted for each in found)
    assert len(found) < 10  # a space that became another


def test_the_manifest_of_a_tuned_bundle_is_sealed_again(bundle):
    tune(bundle, torch.zeros(1, 1, 8, 8), batch_sizes=[1], rounds=1, candidates=["eager"])
    assert is_sealed(json.loads((bundle / "manifest.json").read_text()))
    load(bundle)


def test_a_manifest_without_its_digest_is_no_manifest_of_this_format(tmp_path, bundle):
    value = json.loads((bundle / "manifest.json").read_text())
    assert sealed(value) == value
    del value["sha256"]
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(FileFormatError, match="its digest is not the one in it"):
        load(tmp_path)


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
    epochs: int


def test_a_checkpoint_with_a_flipped_bit_is_not_resumed(tmp_path):
    """Heads, joint trainings, classifiers and class exits write theirs by this function."""
    path, identity = tmp_path / "c.safetensors", {"of": "x"}
    tensors = {"a": torch.randn(5, 3), "n": torch.tensor(7), "b": torch.randn(4).bfloat16()}
    write_checkpoint(path, tensors, identity, Facts(epochs=3))
    held, facts = read_checkpoint(path, Facts, identity)
    assert facts.epochs == 3
    assert all(torch.equal(held[name], tensors[name]) for name in tensors)
    every = [(place, place % 8) for place in range(len(path.read_bytes()))]
    for held, facts in kept(path, lambda: read_checkpoint(path, Facts, identity), every):
        assert facts == Facts(epochs=3)
        assert all(torch.equal(held[name], tensors[name]) for name in tensors)


def test_a_checkpoint_without_a_digest_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, {"a": torch.ones(4)}, {}, Facts(epochs=1))
    facts = '{"version": 2, "identity": {}, "facts": {"epochs": 1}}'
    save_file(load_file(path), path, metadata={"offramp": facts})
    with pytest.raises(FileFormatError, match="a version that noted no digest"):
        read_checkpoint(path, Facts, {})


def test_cached_features_with_a_flipped_bit_are_not_trained_on(tmp_path):
    identity = {"dtype": "float32"}

    def opened():
        return _Features(tmp_path, identity, ["a", "b"])

    for a, b in ((np.ones((4, 3)), np.zeros((4, 2))), (np.ones((6, 3)), np.ones((6, 2)))):
        features = opened()
        with features.files:
            features.append({"a": a.astype(np.float32), "b": b.astype(np.float32)})
    assert opened().rows == 10
    for name in ("features-0.bin", "features-1.bin", "cache.json"):
        path = tmp_path / name
        whole = path.read_bytes()
        place = -1 if name.endswith("bin") else whole.index(b'"rows"') + 9
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
