"""Hostile and damaged trace files end in FileFormatError, and in no other way."""

import hashlib
import json
import shutil
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from offramp._core.errors import FileFormatError
from offramp._core.seal import sealed
from offramp.trace import load_trace, make_trace, save_trace
from support.properties import examples

N = 6


@pytest.fixture
def good(tmp_path):
    trace = make_trace(N, classes=3).split_into({"fit": 3, "test": 3}, seed=0)
    save_trace(trace, tmp_path / "t.trace")
    return tmp_path / "t.trace"


def trusting(folder, content):
    """Replace the array file and make the manifest agree with its size, as an attacker would."""
    (folder / "arrays.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(folder, lambda m: m["arrays"].update(bytes=len(content), sha256=digest))


def edit(folder, change):
    path = folder / "trace.json"
    manifest = json.loads(path.read_text())
    changed = change(manifest)
    with suppress(ValueError):  # a number that is not finite
        manifest = sealed(manifest)
    path.write_text(json.dumps(manifest if changed is None else changed))


def refused(folder, match=None, **options):
    with pytest.raises(FileFormatError, match=match):
        load_trace(folder, **options)


def test_a_folder_without_a_manifest_is_no_trace(tmp_path):
    refused(tmp_path, r"trace\.json is missing: .* is not a trace")
    refused(tmp_path / "nowhere", r"trace\.json is missing")


def test_a_missing_array_file_is_named(good):
    (good / "arrays.safetensors").unlink()
    refused(good, r"arrays\.safetensors is missing")


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 100, -1])
def test_a_truncated_array_file_is_named_with_both_sizes(good, cut):
    file = good / "arrays.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:cut])
    left = file.stat().st_size
    refused(good, rf"arrays\.safetensors is truncated or changed: .* {size} bytes and has {left}")


@pytest.mark.parametrize("cut", [0, 1, 50, -3])
def test_a_truncated_manifest_is_named(good, cut):
    path = good / "trace.json"
    path.write_bytes(path.read_bytes()[:cut])
    refused(good, r"trace\.json cannot be read as JSON")


def test_a_changed_value_is_found_by_the_checksum(good):
    file = good / "arrays.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # the last byte of the splits: fit becomes calibrate
    file.write_bytes(content)
    refused(good, r"arrays\.safetensors was changed or damaged")
    assert len(load_trace(good, verify=False)) == N


def test_a_description_of_the_first_format_which_had_no_digest_is_still_read(good):
    path = good / "trace.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    path.write_text(json.dumps({**manifest, "version": 1}))
    assert len(load_trace(good)) == N
    path.write_text(json.dumps(manifest))
    refused(good, r"trace\.json was changed or damaged")


def test_a_newer_version_says_so(good):
    edit(good, lambda m: m.update(version=3, costs="of a new kind"))
    refused(good, "was written by a newer version: its format is 3, this version reads up to 2")


def test_a_file_of_another_kind_says_so(good):
    edit(good, lambda m: m.update(format="something else"))
    refused(good, "must have format 'offramp-trace', got 'something else'")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: [],
        lambda m: m.update(n="6"),
        lambda m: m.update(n=N + 1),
        lambda m: m.update(n=10**40),
        lambda m: m.update(n=-1),
        lambda m: m.update(classes=4),
        lambda m: m.update(classes=1e300),
        lambda m: m.update(class_names="abc"),
        lambda m: m.update(class_names=["a"]),
        lambda m: m.update(lossy=1),
        lambda m: m.update(topology=None),
        lambda m: m["topology"].update(names=["a", "a", "a"]),
        lambda m: m["topology"].update(names=["a"] * 10**5),
        lambda m: m["topology"].update(names=["a"]),
        lambda m: m["topology"].update(edges=[[2, 1]]),
        lambda m: m["topology"].update(edges=[[0, 99]]),
        lambda m: m["topology"].update(edges=[[0]]),
        lambda m: m["topology"].update(sources=[-1, 5, -1]),
        lambda m: m["topology"].update(root=17),
        lambda m: m["topology"].update(root=None),
        lambda m: m["costs"].update(segment=[1.0, -4.0, 16.0]),
        lambda m: m["costs"].update(segment=[1.0]),
        lambda m: m["costs"].update(segment=[1.0, float("nan"), 16.0]),
        lambda m: m["costs"].update(unit=""),
        lambda m: m.update(other_costs=[{}]),
        lambda m: [m.pop("costs"), None][1],
        lambda m: [m.pop("arrays"), None][1],
        lambda m: m["arrays"].update(bytes=-1),
        lambda m: m["arrays"].update(bytes=True),
        lambda m: m["arrays"].update(file="../../../etc/passwd"),
        lambda m: m.update(extra=1),
        lambda m: m.update(version=True),
        lambda m: m.update(version=0.5),
    ],
)
def test_a_manifest_with_a_wrong_value_is_refused(good, change):
    edit(good, change)
    refused(good)


def test_deep_nesting_and_huge_numbers_are_refused(good):
    for text in ("[" * 10**5, '{"version": ' + "9" * 10**5 + "}", "nul", "\ufeff{}", ""):
        (good / "trace.json").write_text(text)
        refused(good)


def test_a_folder_in_place_of_a_file_is_refused(good):
    (good / "arrays.safetensors").unlink()
    (good / "arrays.safetensors").mkdir()
    refused(good)
    (good / "trace.json").unlink()
    (good / "trace.json").mkdir()
    refused(good, r"trace\.json must be a plain file")


def file_of(entries, data):
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        file_of([], b""),
        file_of({}, b""),
        file_of({"labels": entry("I64", [N], 0, 8)}, bytes(8)),
        file_of({"labels": entry("I64", [2**62], 0, 2**63 - 1)}, bytes(8)),
        file_of({"labels": entry("I64", [-1], 0, 8)}, bytes(8)),
        file_of({"labels": entry("I64", [N], 8, 56)}, bytes(56)),
        file_of({"labels": entry("I64", [N], 0, 48), "ids": entry("I64", [N], 0, 48)}, bytes(48)),
        file_of({"labels": entry("F8_E4M3", [48], 0, 48)}, bytes(48)),
        file_of({"labels": entry("NOPE", [48], 0, 48)}, bytes(48)),
        file_of({"labels": {"dtype": "I64"}}, bytes(48)),
        file_of({"../../labels": entry("I64", [N], 0, 48)}, bytes(48)),
    ],
)
def test_an_array_file_whose_header_lies_is_refused(good, content):
    trusting(good, content)
    refused(good, r"arrays\.safetensors|sound trace")


def arrays_with(**changes):
    """A sound array file but for some arrays."""
    whole = {
        "ids": np.arange(N),
        "labels": np.zeros(N, dtype=np.int64),
        "logits": np.zeros((N, 3, 3), dtype=np.float32),
        **changes,
    }
    names = {"int64": "I64", "float32": "F32", "float64": "F64", "uint8": "U8", "int8": "I8"}
    entries, data = {}, b""
    for name, values in whole.items():
        if values is None:
            continue
        start = len(data)
        data += values.tobytes()
        entries[name] = entry(names[str(values.dtype)], list(values.shape), start, len(data))
    return file_of(entries, data)


def test_the_sound_file_of_the_next_test_is_accepted(good):
    trusting(good, arrays_with())
    assert len(load_trace(good)) == N


@pytest.mark.parametrize(
    "changes",
    [
        {"logits": None},
        {"labels": None},
        {"ids": None},
        {"labels": np.full(N, 3)},
        {"labels": np.full(N, -1)},
        {"labels": np.zeros((N, 1), dtype=np.int64)},
        {"labels": np.zeros(N, dtype=np.float32)},
        {"logits": np.zeros((N, 3, 3), dtype=np.float64)},
        {"logits": np.zeros((N, 3, 4), dtype=np.float32)},
        {"logits": np.zeros((N, 9), dtype=np.float32)},
        {"logits": np.full((N, 3, 3), np.nan, dtype=np.float32)},
        {"ids": np.zeros(N, dtype=np.int64)},
        {"ids": np.zeros((N, 4), dtype=np.uint8)},
        {"ids": np.zeros((N, 0), dtype=np.uint8)},
        {"ids": np.zeros((N, 2, 2), dtype=np.uint8)},
        {"split": np.full(N, 9, dtype=np.int8)},
        {"split": np.full(N, -1, dtype=np.int8)},
        {"ranked": np.zeros((N, 3, 1), dtype=np.int64)},
        {"confidence": np.zeros((N, 3), dtype=np.float32)},
        {"logits": None, "ranked": np.zeros((N, 3, 0), dtype=np.int64)},
        {"surprise": np.zeros(N, dtype=np.int64)},
    ],
)
def test_arrays_that_make_no_trace_are_refused(good, changes):
    trusting(good, arrays_with(**changes))
    refused(good, "does not hold a sound trace")


def test_bytes_that_are_no_text_still_give_names(good):
    ids = np.arange(N * 2, dtype=np.uint8).reshape(N, 2) + 0xF0
    trusting(good, arrays_with(ids=ids))
    assert len(load_trace(good).ids) == N


fuzz = examples(60, allow=[HealthCheck.function_scoped_fixture])


@fuzz
@given(content=st.binary(max_size=200))
@example(content=b"")
def test_random_bytes_as_arrays_are_refused(good, content):
    trusting(good, content)
    refused(good)


@fuzz
@given(content=st.binary(max_size=200))
def test_random_bytes_as_manifest_are_refused(good, content):
    (good / "trace.json").write_bytes(content)
    refused(good)


@fuzz
@given(data=st.data())
def test_flipped_bytes_give_a_trace_or_are_refused(good, data):
    shutil.rmtree(good)  # what is damaged is not replaced: it may be somebody's
    save_trace(make_trace(N, classes=3), good)
    for name in ("arrays.safetensors", "trace.json"):
        content = bytearray((good / name).read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        (good / name).write_bytes(content)
    with suppress(FileFormatError):
        assert len(load_trace(good)) == N
