"""Trace files: what is saved comes back, mapped and checked."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp.trace import arrays as arrays_module
from offramp.trace import load_trace, make_trace, save_trace
from offramp.trace.arrays import ArraySource, open_arrays, write_arrays

MAPS = Path("/proc/self/maps")


def rich(kind="logits", n=50):
    """A trace with every field filled."""
    trace = make_trace(n, classes=3, kind=kind, seed=1).split_into(
        {"fit": n // 2, "test": n // 2}, seed=0
    )
    return replace(
        trace,
        ids=np.array([f"bilder/größe {k}.jpg" for k in range(len(trace))]),
        class_names=("cat", "dog", "größer"),
        other_costs=(Costs.simple("usd", [0.1, 0.2, 0.3], note="price list"),),
        seen_in_training=True,
    )


def same(one, two):
    for name in ("labels", "logits", "ranked", "confidence", "split"):
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert torch.equal(a.double(), b.double()), name
    assert one.ids.tolist() == two.ids.tolist()
    for name in ("topology", "costs", "other_costs", "classes", "class_names", "seen_in_training"):
        assert getattr(one, name) == getattr(two, name), name


@pytest.mark.parametrize("kind", ["logits", "labels"])
def test_every_field_comes_back(tmp_path, kind):
    trace = rich(kind)
    save_trace(trace, tmp_path / "t.trace")
    again = load_trace(tmp_path / "t.trace", verify=True)
    same(trace, again)
    assert not again.lossy


def test_a_plain_trace_comes_back(tmp_path):
    trace = make_trace(7)
    save_trace(trace, tmp_path / "t.trace")
    same(trace, load_trace(tmp_path / "t.trace"))


def test_rankings_without_confidences_come_back(tmp_path):
    trace = replace(make_trace(7, kind="labels"), confidence=None)
    save_trace(trace, tmp_path / "t.trace")
    same(trace, load_trace(tmp_path / "t.trace"))


def test_names_that_are_not_unicode_come_back(tmp_path):
    trace = replace(make_trace(2), ids=np.array(["caf\udce9.jpg", ""]))
    save_trace(trace, tmp_path / "t.trace")
    assert load_trace(tmp_path / "t.trace").ids.tolist() == ["caf\udce9.jpg", ""]


def test_ids_of_another_kind_are_refused():
    with pytest.raises(InputError, match="integers or text, got an array of float64"):
        replace(make_trace(2), ids=np.array([0.5, 1.5]))


def test_float16_halves_the_file_and_is_marked_lossy_for_good(tmp_path):
    trace = make_trace(2000, classes=10)
    save_trace(trace, tmp_path / "full.trace")
    save_trace(trace, tmp_path / "half.trace", dtype="float16")
    half = load_trace(tmp_path / "half.trace")
    assert half.lossy
    assert half.logits.dtype == torch.float16
    assert half.output(0).logits.dtype == torch.float32
    torch.testing.assert_close(half.logits.float(), trace.logits, rtol=1e-3, atol=1e-3)
    sizes = [
        (tmp_path / f"{n}.trace" / "arrays.safetensors").stat().st_size for n in ("full", "half")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    save_trace(half, tmp_path / "again.trace", dtype="float32")
    assert load_trace(tmp_path / "again.trace").lossy
    save_trace(half, tmp_path / "kept.trace")
    assert load_trace(tmp_path / "kept.trace").logits.dtype == torch.float16


def test_a_logit_too_large_for_float16_is_refused_and_nothing_is_left(tmp_path):
    trace = make_trace(5)
    trace.logits[3, 0, 0] = 70000.0
    with pytest.raises(InputError, match=r"within ±65504 .* got 70000\.0"):
        save_trace(trace, tmp_path / "t.trace", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_a_trace_is_replaced_only_on_request(tmp_path):
    save_trace(make_trace(5), tmp_path / "t.trace")
    with pytest.raises(InputError, match="exists already"):
        save_trace(make_trace(6), tmp_path / "t.trace")
    assert len(load_trace(tmp_path / "t.trace")) == 5
    save_trace(make_trace(6), tmp_path / "t.trace", overwrite=True)
    assert len(load_trace(tmp_path / "t.trace")) == 6


def test_a_full_disk_leaves_the_old_trace(tmp_path, monkeypatch):
    save_trace(make_trace(5), tmp_path / "t.trace")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(arrays_module.np, "ascontiguousarray", full)
    with pytest.raises(OSError, match="No space"):
        save_trace(make_trace(6), tmp_path / "t.trace", overwrite=True)
    monkeypatch.undo()
    assert len(load_trace(tmp_path / "t.trace", verify=True)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["t.trace"]


@pytest.mark.skipif(not MAPS.exists(), reason="this system does not list mapped files")
def test_a_loaded_trace_is_mapped_and_changing_it_leaves_the_file(tmp_path):
    save_trace(make_trace(2000, classes=10), tmp_path / "t.trace")
    file = tmp_path / "t.trace" / "arrays.safetensors"
    before = file.read_bytes()
    trace = load_trace(tmp_path / "t.trace")
    address = trace.logits.data_ptr()
    lines = [line.split() for line in MAPS.read_text().splitlines() if str(file) in line]
    spans = [tuple(int(part, 16) for part in line[0].split("-")) for line in lines]
    assert any(start <= address < stop for start, stop in spans)
    trace.logits.zero_()
    assert file.read_bytes() == before


def test_the_manifest_is_plain_json_that_names_no_path(tmp_path):
    save_trace(rich(), tmp_path / "t.trace")
    manifest = json.loads((tmp_path / "t.trace" / "trace.json").read_text())
    assert manifest["version"] == 2
    assert manifest["n"] == 50
    assert manifest["costs"]["unit"] == "flops"
    assert str(tmp_path) not in json.dumps(manifest)


def test_arrays_written_in_parts_are_read_by_the_safetensors_package(tmp_path):
    rng = np.random.default_rng(0)
    whole = {
        "bytes": rng.integers(0, 255, (5, 3)).astype(np.uint8),
        "half": rng.standard_normal((5, 1, 2)).astype(np.float16),
        "wide": rng.integers(0, 9, 5),
        "single": rng.standard_normal((5, 2)).astype(np.float32),
    }
    sources = [
        ArraySource(name=k, dtype=str(v.dtype), shape=v.shape, parts=[v[:2], v[2:2], v[2:]])
        for k, v in whole.items()
    ]
    written = write_arrays(tmp_path / "a.safetensors", sources)
    found = load_file(tmp_path / "a.safetensors")
    assert set(found) == set(whole)
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name].numpy(), values)
        assert open_arrays(tmp_path / "a.safetensors")[name].data_ptr() % values.itemsize == 0
    assert written.nbytes == (tmp_path / "a.safetensors").stat().st_size


def test_parts_that_do_not_add_up_are_refused(tmp_path):
    source = ArraySource(name="x", dtype="int64", shape=(3,), parts=[np.arange(2)])
    with pytest.raises(InputError, match=r"'x' must add up to 24 bytes .* got 16"):
        write_arrays(tmp_path / "a.safetensors", [source])
