"""A full disk is told with the name of what was being written, and nothing is half written."""

import errno
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from offramp import Cascade, Costs, record
from offramp._core import files, growing
from offramp._core.errors import StorageError
from offramp._core.files import write_json
from offramp.cli import errors, main
from offramp.data import arrays
from offramp.models import make_head, save_weights, small_cnn
from offramp.trace import load_trace, make_trace, save_trace
from offramp.train import train_classifier, train_heads


def cached(folder, examples=200, **options):
    """Heads of exits, trained on cached features."""
    images = torch.rand(examples, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net = small_cnn(width=2, depth=2, classes=2).eval()
    head = make_head("gap_linear", (2, 8, 8), classes=2)
    cascade = Cascade.from_network(
        net, ["features.0"], head={"features.0": head}, example=images[:1]
    )
    part = arrays(images, [0, 1] * (examples // 2))
    given = {"epochs": 1, "seed": 0, "progress": False, **options}
    return train_heads(cascade, part, cache=folder, cache_dtype="float32", **given)


def recorded(path):
    cascade = Cascade.from_models({"a": nn.Linear(4, 3)})
    loader = [(torch.ones(2, 4) * k, torch.tensor([0, 1])) for k in range(3)]
    costs = Costs.simple("usd", [1.0])
    return record(cascade, loader, path=path, costs=costs, progress=False)


def trained(path):
    part = arrays(torch.rand(8, 4), [0, 1] * 4)
    return train_classifier(
        nn.Linear(4, 2), part, epochs=1, seed=0, checkpoint=path, progress=False
    )


WRITERS = {
    "json": (lambda path: write_json(path, {"a": 1}), "a.json"),
    "trace": (lambda path: save_trace(make_trace(5), path), "a.trace"),
    "weights": (lambda path: save_weights(nn.Linear(2, 2), path), "a.safetensors"),
    "record": (recorded, "a.trace"),
    "cache": (cached, "cache"),
    "training": (trained, "a.safetensors"),
}


@pytest.mark.parametrize(("write", "name"), WRITERS.values(), ids=WRITERS)
def test_whoever_writes_says_what_could_not_be_written(tmp_path, monkeypatch, write, name):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=rf"{name}.* cannot be written: no space is left"):
            write(tmp_path / name)
    assert not (tmp_path / name).is_file()
    write(tmp_path / name)  # with room made, it goes on


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (ValueError("no"), False),
    ],
    ids=["quota", "wrapped", "broken", "other"],
)
def test_a_full_disk_is_recognized_in_whatever_it_is_wrapped(error, full):
    assert files.is_full(error) is full


def test_no_file_is_written_through_a_mapping(tmp_path, monkeypatch):
    mapped = np.memmap.__new__

    def reading(kind, *arguments, mode="r+", **options):
        assert mode in ("r", "c"), "a full disk would end the process"
        return mapped(kind, *arguments, mode=mode, **options)

    monkeypatch.setattr(np.memmap, "__new__", reading)
    cached(tmp_path / "cache")


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_cached_features_are_those_that_are_computed_and_go_on(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(growing, "CHECKPOINT_S", seconds)
    want = cached(tmp_path / "whole", batch_size=16)
    append = growing.GrowingFiles.append
    seen = []

    def interrupted(self, blocks, facts):
        append(self, blocks, facts)
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(growing.GrowingFiles, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cached(tmp_path / "parts", batch_size=16)
    assert cached(tmp_path / "parts", batch_size=16) == want
    for path in (tmp_path / "whole").rglob("*.bin"):
        other = tmp_path / "parts" / path.relative_to(tmp_path / "whole")
        assert path.read_bytes() == other.read_bytes()


def test_the_shell_says_it_in_one_sentence(tmp_path, monkeypatch, capsys):
    save_trace(make_trace(300, accuracies=[0.8, 0.9]), tmp_path / "t.trace")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(full))
    command = ["fit", tmp_path / "t.trace", "--policy", "random", "--max-drop", "0.5"]
    assert main([*map(str, command), "--out", str(tmp_path / "run")]) == errors.UNEXPECTED
    said = capsys.readouterr().err
    assert "run.json cannot be written: no space is left" in said
    assert "not expected" not in said


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if mount is None or os.geteuid() != 0 or subprocess.run([mount, *options]).returncode:
        pytest.skip("only root may mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_on_a_disk_that_is_really_full_nothing_dies_and_nothing_is_left(small_disk):
    (small_disk / "filler").write_bytes(bytes(200 << 10))
    with pytest.raises(StorageError, match=r"features-0\.bin cannot be written"):
        cached(small_disk / "cache", examples=20_000)  # 160 kB of features
    with pytest.raises(StorageError, match=r"t\.trace cannot be written"):
        save_trace(make_trace(5_000), small_disk / "t.trace")
    with pytest.raises(StorageError, match=r"w\.safetensors cannot be written"):
        save_weights(nn.Linear(300, 300), small_disk / "w.safetensors")
    assert sorted(path.name for path in small_disk.iterdir()) == ["cache", "filler"]
    (small_disk / "filler").unlink()
    save_trace(make_trace(500), small_disk / "t.trace")
    assert len(load_trace(small_disk / "t.trace")) == 500
