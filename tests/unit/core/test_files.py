"""Whole files and folders: what fails in the middle changes nothing."""

import errno
import hashlib
import json

import pytest

from offramp._core import temporaries
from offramp._core.errors import FileFormatError, InputError, StorageError
from offramp._core.files import (
    atomic_file,
    atomic_folder,
    read_json,
    sha256,
    write_json,
    write_text,
)
from offramp._core.ownership import TRACE


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail():
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match=r"a\.txt cannot be written: no space is left"):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_nothing_stands_at_the_path_before_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"


def test_a_written_file_can_be_read_by_whoever_may_read_others(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "whole", "x")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def written(path, content, **options):
    """A folder that says of itself that it is a trace."""
    with atomic_folder(path, TRACE, **options) as folder:
        (folder / "trace.json").write_text(json.dumps({"format": "offramp-trace"}))
        (folder / "arrays.safetensors").write_text(content)


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "t.trace"
    written(path, "old")

    def interrupted():
        with atomic_folder(path, TRACE, overwrite=True) as folder:
            (folder / "arrays.safetensors").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (path / "arrays.safetensors").read_text() == "old"
    assert names(tmp_path) == ["t.trace"]


def test_a_folder_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "t.trace"
    for text in ("one", "two"):
        written(path, text, overwrite=text == "two")
    assert (path / "arrays.safetensors").read_text() == "two"
    assert names(tmp_path) == ["t.trace"]
    with pytest.raises(InputError, match=r"t\.trace exists already"):
        written(path, "three")


def test_the_old_folder_comes_back_if_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    path = tmp_path / "t.trace"
    written(path, "old")
    rename = temporaries.Path.rename

    def failing(self, target):
        if target == path and "-old-" not in str(self):
            raise OSError(errno.EIO, "broken disk")
        return rename(self, target)

    monkeypatch.setattr(temporaries, "_exchanged", lambda *_: False)  # as some file systems
    monkeypatch.setattr(temporaries.Path, "rename", failing)
    with pytest.raises(OSError, match="broken disk"):
        written(path, "new", overwrite=True)
    assert (path / "arrays.safetensors").read_text() == "old"
    assert names(tmp_path) == ["t.trace"]


def test_json_with_a_nan_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert names(tmp_path) == []


def test_json_comes_back(tmp_path):
    value = {"name": "größer", "values": [1, 2.5, None]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[1]", "must hold a JSON object, got list"),
        (b"[" * 100_000, "cannot be read as JSON"),
    ],
    ids=["cut", "not text", "list", "too deep"],
)
def test_a_file_that_is_no_json_object_is_named(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"a\.json {message}"):
        read_json(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")


def test_the_checksum_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 100_000)
    assert sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert json.dumps(sha256(path)) == f'"{sha256(path)}"'
