"""Interrupted recordings go on, and nothing half-written replaces a good trace."""

import errno
import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from offramp._core import growing
from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError, InputError
from offramp.data import arrays
from offramp.recording import partial, record
from offramp.stages import Cascade
from offramp.trace import load_trace

N, C = 23, 3
COSTS = Costs.simple("usd", [1.0, 4.0])
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 4, generator=GENERATOR)
Y = torch.arange(N) % C


def network(seed):
    layer = nn.Linear(4, C)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(C, 4, generator=generator))
        layer.bias.zero_()
    return layer


def cascade(large=2):
    return Cascade.from_models({"small": network(1), "large": network(large)})


def batches(size=5, *, ids=None, x=X, y=Y):
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        yield (x[part], y[part]) if ids is None else (x[part], y[part], ids[part])


def go(loader, model=None, **options):
    return record(model or cascade(), loader, **{"costs": COSTS, "progress": False, **options})


def equal(one, two):
    assert torch.equal(one.logits, two.logits)
    assert torch.equal(one.labels, two.labels)
    assert one.ids.tolist() == two.ids.tolist()
    assert (one.split is None) == (two.split is None)
    assert one.split is None or torch.equal(one.split.long(), two.split.long())
    assert (one.topology, one.costs, one.classes) == (two.topology, two.costs, two.classes)


@dataclass
class Interrupted:
    """A loader that fails after some batches."""

    after: int
    error: BaseException
    size: int = 5
    ids: list | None = None

    def __iter__(self):
        for number, batch in enumerate(batches(self.size, ids=self.ids)):
            if number == self.after:
                raise self.error
            yield batch


def counting(model):
    """Count the examples that each stage sees."""
    seen = []
    for stage in model:
        stage.keeps_company = True  # so that nothing runs to find it out
    model.stage(0).module.register_forward_hook(lambda m, given, out: seen.append(len(out)))
    return seen


@pytest.mark.parametrize("ids", [None, [f"größe\n{k}" for k in range(N)]])
@pytest.mark.parametrize("size", [5, 4, 100])
def test_an_interrupted_recording_goes_on_where_it_stopped(tmp_path, ids, size):
    path = tmp_path / "t.trace"
    with pytest.raises(KeyboardInterrupt):
        go(Interrupted(3, KeyboardInterrupt(), ids=ids), path=path)
    assert (tmp_path / "t.trace.partial").is_dir()
    model = cascade()
    seen = counting(model)
    trace = go(list(batches(size, ids=ids)), model, path=path)
    assert sum(seen) == N - 15
    torch.testing.assert_close(trace.logits, go(batches(ids=ids)).logits)
    assert trace.ids.tolist() == (ids or list(range(N)))
    assert [p.name for p in tmp_path.iterdir()] == ["t.trace"]


def interrupted(path, **options):
    with pytest.raises(KeyboardInterrupt):
        go(Interrupted(3, KeyboardInterrupt()), path=path, **options)


def test_another_order_is_refused(tmp_path):
    path = tmp_path / "t.trace"
    interrupted(path)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    with pytest.raises(InputError, match="Does the loader shuffle"):
        go(batches(x=X[order], y=Y[order]), path=path)
    with pytest.raises(InputError, match=r"gave 10 examples, but 15 were recorded"):
        go(batches(x=X[:10], y=Y[:10]), path=path)
    with pytest.raises(InputError, match="Does the loader shuffle"):
        go(batches(ids=[f"e{k}" for k in range(N)]), path=path)
    equal(go(batches(), path=path), go(batches()))  # the right order still goes on


def test_other_weights_or_another_dtype_are_refused_or_begun_again(tmp_path):
    path = tmp_path / "t.trace"
    interrupted(path)
    with pytest.raises(InputError, match="begun with other weights; repeat the call"):
        go(batches(), cascade(large=3), path=path)
    with pytest.raises(InputError, match="begun with other dtype"):
        go(batches(), path=path, dtype="float16")
    equal(go(batches(), cascade(large=3), path=path, resume=False), go(batches(), cascade(large=3)))


def test_other_inputs_of_a_data_set_are_refused(tmp_path):
    path = tmp_path / "t.trace"
    names = ("a", "b", "c")
    broken = Cascade.from_models({"small": network(1), "large": FailsOnce(after=2)})
    for stage in broken:
        stage.keeps_company = True  # so that nothing runs to find it out
    with pytest.raises(OSError, match="loose cable"):
        go(arrays(X, Y, class_names=names), broken, path=path, batch_size=5)
    with pytest.raises(InputError, match="begun with other examples"):
        go(arrays(X + 1, Y, class_names=names), broken, path=path, batch_size=5)
    trace = go(arrays(X, Y, class_names=names), broken, path=path, batch_size=5)
    torch.testing.assert_close(trace.logits, go(batches()).logits)


class FailsOnce(nn.Module):
    """Works, but for one call."""

    def __init__(self, after):
        super().__init__()
        self.layer, self.calls, self.after = network(2), 0, after

    def forward(self, x):
        self.calls += 1
        if self.calls == self.after:
            raise OSError(errno.EIO, "loose cable")
        return self.layer(x)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "logits.bin").write_bytes(b""), "logits.bin is missing or trunc"),
        (lambda folder: (folder / "ids.bin").unlink(), "ids.bin is missing or truncated"),
        (lambda folder: (folder / "progress.json").write_text("{}"), "progress.json cannot be rea"),
    ],
)
def test_a_damaged_partial_recording_is_named_and_can_be_begun_again(tmp_path, damage, message):
    path = tmp_path / "t.trace"
    interrupted(path)
    damage(tmp_path / "t.trace.partial")
    with pytest.raises(FileFormatError, match=message):
        go(batches(), path=path)
    equal(go(batches(), path=path, resume=False), go(batches()))


def test_bytes_behind_the_last_checkpoint_are_cut_off(tmp_path):
    path = tmp_path / "t.trace"
    interrupted(path)
    for name in ("logits", "labels", "ids"):
        with (tmp_path / "t.trace.partial" / f"{name}.bin").open("ab") as file:
            file.write(b"half a row")
    equal(go(batches(), path=path), go(batches()))


def test_what_was_recorded_is_read_once_to_go_on(tmp_path, monkeypatch):
    interrupted(tmp_path / "t.trace")
    read, digest = [], growing._digest
    monkeypatch.setattr(growing, "_digest", lambda path, n: read.append(path) or digest(path, n))
    equal(go(batches(), path=tmp_path / "t.trace"), go(batches()))
    assert sorted(path.name for path in read) == ["ids.bin", "labels.bin", "logits.bin"]


KILLED = """
    import os, torch
    from torch import nn
    from offramp._core.costs import Costs
    from offramp._core import growing
    from offramp.recording import record
    from offramp.stages import Cascade

    growing.CHECKPOINT_S = 0.0

    def network(seed):
        layer = nn.Linear(4, 3)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)))
            layer.bias.zero_()
        return layer

    def loader():
        x = torch.randn(23, 4, generator=torch.Generator().manual_seed(0))
        for number, start in enumerate(range(0, 23, 5)):
            if number == 3:
                os._exit(9)
            yield x[start:start + 5], torch.arange(23)[start:start + 5] % 3

    model = Cascade.from_models({"small": network(1), "large": network(2)})
    record(model, loader(), path=PATH, costs=Costs.simple("usd", [1.0, 4.0]))
"""


def test_a_killed_recording_goes_on_and_equals_one_that_was_not(tmp_path):
    path = tmp_path / "t.trace"
    script = textwrap.dedent(KILLED).replace("PATH", repr(str(path)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 9, done.stderr.decode()
    assert not path.exists()
    progress = json.loads((tmp_path / "t.trace.partial" / "progress.json").read_text())
    assert progress["facts"]["rows"] == 15
    model = cascade()
    seen = counting(model)
    equal(go(batches(), model, path=path), go(batches()))
    assert seen == [5, 3]


def test_an_existing_trace_is_replaced_only_on_request_and_only_at_the_end(tmp_path):
    path = tmp_path / "t.trace"
    first = go(batches(), path=path)
    model = cascade(large=3)
    seen = counting(model)
    with pytest.raises(InputError, match=r"t\.trace exists already"):
        go(batches(), model, path=path)
    assert seen == []
    interrupted(path, overwrite=True)
    equal(load_trace(path, verify=True), first)
    go(batches(x=X[:20], y=Y[:20]), path=path, overwrite=True)
    assert len(load_trace(path)) == 20


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_at_the_end_leaves_the_old_trace_and_what_was_recorded(tmp_path, monkeypatch):
    path = tmp_path / "t.trace"
    first = go(batches(x=X[:20], y=Y[:20]), path=path)
    with monkeypatch.context() as patched:
        patched.setattr(partial, "write_arrays", full)
        with pytest.raises(OSError, match="No space left"):
            go(batches(), path=path, overwrite=True)
    equal(load_trace(path, verify=True), first)
    model = cascade()
    seen = counting(model)
    equal(go(batches(), model, path=path, overwrite=True), go(batches()))
    assert seen == []
    assert [p.name for p in tmp_path.iterdir()] == ["t.trace"]


class FullDisk:
    """A file whose disk is full after some writes."""

    def __init__(self, file, left):
        self.file, self.left = file, left

    def write(self, block):
        self.left -= 1
        if self.left < 0:
            self.file.write(block[: len(block) // 2])
            full()
        return self.file.write(block)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("name", ["logits.bin", "labels.bin", "ids.bin"])
def test_a_full_disk_in_the_middle_keeps_the_whole_rows(tmp_path, monkeypatch, name):
    path = tmp_path / "t.trace"
    enter = growing.GrowingFiles.__enter__

    def limited(files):
        enter(files)
        files._open[name] = FullDisk(files._open[name], left=3)
        return files

    with monkeypatch.context() as patched:
        patched.setattr(growing.GrowingFiles, "__enter__", limited)
        with pytest.raises(OSError, match="No space left"):
            go(batches(), path=path)
    assert not path.exists()
    model = cascade()
    seen = counting(model)
    equal(go(batches(), model, path=path), go(batches()))
    assert seen == [5, 3]
