"""A kill at any moment: the old or the new stands there whole, the same call works, nothing stays.

A child process does the work and ends itself, without any clearing up, before or after the n-th
thing that it does to the file system; n runs from 0 until it gets through.
"""

import json
import os
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from offramp import Cascade, Costs, load, record
from offramp._core import files, temporaries
from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import atomic_file, atomic_folder, write_json
from offramp._core.ownership import TRACE
from offramp._core.seal import sealed
from offramp._core.temporaries import is_temporary, locked, sweep
from offramp.bundle import save, tune
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.project.folder import RunFolder
from offramp.runtime import Adaptive
from offramp.trace import load_trace, make_trace, save_trace

KILLED = 9
SPEC = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2})


def killed_at(moment, work):
    """Whether a child that does the work was ended at that moment."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fork beside threads; the child starts none
        child = os.fork()
    if child == 0:
        seen = 0

        def tick():
            nonlocal seen
            if seen == moment:
                os._exit(KILLED)
            seen += 1

        def watched(call):
            def both(*arguments, **options):
                tick()
                found = call(*arguments, **options)
                tick()
                return found

            return both

        try:
            torch.set_num_threads(1)
            for owner, names in (
                (Path, ("rename", "replace", "mkdir", "unlink", "rmdir")),
                (os, ("open", "fsync")),
                (shutil, ("rmtree",)),
                (temporaries, ("_exchanged", "_flock")),
            ):
                for name in names:
                    setattr(owner, name, watched(getattr(owner, name)))
            work()
        except BaseException:  # noqa: BLE001
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED), f"the work failed by itself: {code}"
    return code == KILLED


@pytest.fixture(params=[5, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
def moments(request):
    """Gives moments at which some work can be ended, after that has happened."""

    def given(work):
        moment = 0
        while killed_at(moment, work):
            yield moment
            moment += request.param
        assert moment > 2

    return given


def leftovers(folder):
    return [p.name for p in folder.rglob("*") if is_temporary(p.name)]


@pytest.fixture(params=["in one step", "in two steps"])
def exchanged(request, monkeypatch):
    if request.param == "in two steps":
        monkeypatch.setattr(temporaries, "_exchanged", lambda *_: False)


@pytest.mark.usefixtures("exchanged")
def test_a_folder_is_the_old_or_the_new_one_for_the_next_reader(tmp_path, moments):
    path = tmp_path / "t.trace"
    save_trace(make_trace(3), path)
    for _ in moments(lambda: save_trace(make_trace(5), path, overwrite=True)):
        assert len(load_trace(path)) in (3, 5)
        save_trace(make_trace(3), path, overwrite=True)
        assert leftovers(tmp_path) == []


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path, moments):
    path = tmp_path / "new" / "t.trace"
    for _ in moments(lambda: save_trace(make_trace(5), path)):
        if path.exists():
            assert len(load_trace(path)) == 5
            shutil.rmtree(path)
        save_trace(make_trace(5), path)
        assert leftovers(tmp_path) == []
        shutil.rmtree(path.parent)


def test_a_file_is_the_old_or_the_new_one(tmp_path, moments):
    path = tmp_path / "a.json"
    write_json(path, {"v": 0})
    for _ in moments(lambda: write_json(path, {"v": 1})):
        assert json.loads(path.read_text())["v"] in (0, 1)
        write_json(path, {"v": 0})
        assert leftovers(tmp_path) == []


def test_a_run_folder_can_be_claimed_again_after_a_kill_at_its_first_file(tmp_path, moments):
    path = tmp_path / "run"

    def work():
        RunFolder.claim(path).write("frontier.json", {"a": 1})

    for _ in moments(work):
        work()
        assert sorted(p.name for p in path.iterdir()) == ["frontier.json", "run.json"]
        shutil.rmtree(path)


def test_a_recording_goes_on_or_is_complete_and_its_parts_are_gone(tmp_path, moments):
    path = tmp_path / "t.trace"
    cascade = Cascade.from_models({"a": nn.Linear(4, 3)})
    loader = [(torch.ones(2, 4) * k, torch.tensor([0, 1])) for k in range(3)]
    costs = Costs.simple("usd", [1.0])
    want = record(cascade, loader, costs=costs, progress=False)

    def work():
        return record(cascade, loader, path=path, costs=costs, progress=False)

    for _ in moments(work):
        if not path.exists() or path.with_name("t.trace.partial").exists():
            work()  # else it was complete, and says so, as below
        np.testing.assert_array_equal(load_trace(path).logits.numpy(), want.logits.numpy())
        sweep(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["t.trace"]
        with pytest.raises(InputError, match="exists already"):
            work()
        shutil.rmtree(path)


def test_parts_of_another_recording_do_not_pass_for_the_trace(tmp_path):
    path = tmp_path / "t.trace"
    loader = [(torch.ones(2, 4), torch.tensor([0, 1]))]
    costs = Costs.simple("usd", [1.0])
    first, other = (Cascade.from_models({"a": nn.Linear(4, 3)}) for _ in range(2))
    record(first, loader, path=path, costs=costs, progress=False)
    parts = path.with_name("t.trace.partial")
    parts.mkdir()
    (parts / "progress.json").write_text("{}")
    for cascade in (first, other):
        with pytest.raises(InputError, match="exists already"):
            record(cascade, loader, path=path, costs=costs, progress=False)


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "b")
    return tmp_path / "b"


def write_bundle(path, **options):
    cascade = Cascade.from_models({"a": build(SPEC)}, specs={"a": SPEC})
    save(Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="a")), path, **options)


def test_the_manifest_of_a_bundle_is_never_half_written_in_it(bundle, tmp_path, moments):
    value = json.loads((bundle / "manifest.json").read_text())
    names = sorted(p.name for p in bundle.iterdir())
    for _ in moments(lambda: write_json(bundle / "manifest.json", value, beside=bundle)):
        assert sorted(p.name for p in bundle.iterdir()) == names
        load(bundle)
        write_json(bundle / "manifest.json", value, beside=bundle)
        assert leftovers(tmp_path) == []


def test_tune_writes_beside_the_bundle(bundle, monkeypatch):
    moved = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda a, b: moved.append(a.parent) or replace(a, b))
    tune(bundle, torch.zeros(1, 1, 8, 8), batch_sizes=[1], rounds=1, candidates=["folded"])
    assert moved == [bundle.parent]
    load(bundle, backend="auto")


def during(work, times):
    """Do something again and again in a thread; tells when it is over."""
    over = threading.Event()

    def run():
        try:
            for _ in range(times):
                work()
        finally:
            over.set()

    threading.Thread(target=run).start()
    return over


@pytest.mark.usefixtures("exchanged")
def test_who_loads_while_a_bundle_is_replaced_or_tuned_sees_one_state(bundle):
    value = json.loads((bundle / "manifest.json").read_text())

    def work():
        write_bundle(bundle, overwrite=True)
        write_json(bundle / "manifest.json", value, beside=bundle)

    value = sealed({**value, "created": "2026-01-01T00:00:00+00:00"})
    over, loads = during(work, 15), 0
    while not over.is_set():
        load(bundle)
        loads += 1
    assert loads > 3


@pytest.mark.usefixtures("exchanged")
def test_who_loads_while_a_trace_is_replaced_sees_one_state(tmp_path):
    path = tmp_path / "t.trace"
    save_trace(make_trace(3), path)
    over, loads = during(lambda: save_trace(make_trace(5), path, overwrite=True), 60), 0
    while not over.is_set():
        assert len(load_trace(path, verify=True)) in (3, 5)
        loads += 1
    assert loads > 10


def test_what_is_really_damaged_is_still_refused(bundle):
    (bundle / "a.safetensors").write_bytes(b"no")
    with pytest.raises(FileFormatError):
        load(bundle)


def test_a_living_writer_is_not_swept(tmp_path):
    with atomic_file(tmp_path / "a") as temporary, locked(tmp_path / "state"):
        temporary.write_text("x")
        sweep(tmp_path)
        write_json(tmp_path / "b.json", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b.json"]


def test_where_nothing_can_be_locked_nothing_is_swept(tmp_path, monkeypatch):
    (tmp_path / ".offramp-0123456789ab").touch()
    monkeypatch.setattr(temporaries, "fcntl", None)
    save_trace(make_trace(3), tmp_path / "t.trace")
    save_trace(make_trace(5), tmp_path / "t.trace", overwrite=True)
    with locked(tmp_path / "state"):
        pass
    assert leftovers(tmp_path) == [".offramp-0123456789ab"]


def test_only_names_of_ours_are_swept(tmp_path):
    names = [".offramp-mine", ".offramp", ".offramp-0123456789ab.txt", ".a.json.x1y2z3"]
    for name in names:
        (tmp_path / name).write_text("mine")
    write_json(tmp_path / "a.json", {})
    assert {p.name for p in tmp_path.iterdir()} == {*names, "a.json"}


def test_a_kill_in_two_steps_is_made_up_for_by_a_reader(tmp_path, monkeypatch):
    path = tmp_path / "t.trace"
    save_trace(make_trace(3), path)
    path.rename(temporaries._aside(path))  # what the first of the two steps does
    assert len(load_trace(path)) == 3
    path.rename(temporaries._aside(path))
    with atomic_folder(path, TRACE, overwrite=True) as folder:
        assert path.is_dir()  # the writer brings it back first
        (folder / "trace.json").write_text("{}")
    assert files.is_empty(path) is False
    assert leftovers(tmp_path) == []
