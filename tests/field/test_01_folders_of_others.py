"""Nothing is replaced but what offramp wrote, holds nothing else, and was asked to be replaced."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from offramp import Cascade, Costs, record
from offramp._core import files, ownership
from offramp._core.errors import InputError
from offramp._core.files import atomic_folder, new_file
from offramp._core.ownership import BUNDLE, ONNX_FOLDER, RUN, TRACE, check_folder
from offramp.bundle import export_onnx, manifest, names, save
from offramp.bundle.onnx import folder as onnx_folder
from offramp.cli import main
from offramp.data import arrays
from offramp.edge import write as edge_write
from offramp.models import ModelSpec, build, make_head, save_weights, small_cnn
from offramp.policy import Candidate
from offramp.project import folder as run_folder
from offramp.project.folder import RunFolder, check_bundle, claim_bundle
from offramp.recording.partial import parts_of
from offramp.runtime import Adaptive
from offramp.trace import files as trace_files
from offramp.trace import load_trace, make_trace, save_trace
from offramp.train import train_heads
from offramp.train.cache import remove_cached

SPEC = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2})


def bundled(path, **options):
    cascade = Cascade.from_models({"a": build(SPEC)}, specs={"a": SPEC})
    save(Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="a")), path, **options)


def traced(path, **options):
    save_trace(make_trace(5), path, **options)


def recorded(path, **options):
    cascade = Cascade.from_models({"a": nn.Linear(4, 3)})
    batch = [(torch.zeros(5, 4), torch.tensor([0, 1, 2, 0, 1]))]
    costs = Costs.simple("usd", [1.0])
    record(cascade, batch, path=path, costs=costs, progress=False, **options)


def exported(path, **options):
    cascade = Cascade.from_models({"a": nn.Linear(4, 3).eval()})
    candidate = Candidate.single(cascade.topology, "a", reference="a")
    export_onnx(
        Adaptive(cascade, candidate), path, example=torch.zeros(1, 4), **options, folder=True
    )


WRITERS = {"bundle": bundled, "trace": traced, "record": recorded, "export": exported}


def held(folder):
    return {str(p.relative_to(folder)): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


@pytest.fixture
def thesis(tmp_path):
    folder = tmp_path / "thesis"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("years")
    (folder / "only_copy.pth").write_text("weeks of training")
    (folder / "manifest.json").write_text('{"name": "an app of somebody", "files": []}')
    return folder


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_folder_of_others_is_refused_and_left_as_it_was(thesis, write, overwrite):
    before = held(thesis)
    with pytest.raises(InputError, match=r"thesis is not empty.*Nothing was changed"):
        write(thesis, overwrite=overwrite)
    assert held(thesis) == before
    assert [path.name for path in thesis.parent.iterdir()] == ["thesis"]


@pytest.mark.parametrize("write", [bundled, traced, recorded])
def test_what_we_wrote_is_replaced_on_request_alone_and_never_with_a_file_of_others(
    tmp_path, write
):
    path = tmp_path / "ours"
    write(path)
    before = held(path)
    with pytest.raises(InputError, match="ours exists already"):
        write(path)
    assert held(path) == before
    write(path, overwrite=True)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'notes\.txt'"):
        write(path, overwrite=True)
    assert (path / "notes.txt").read_text() == "mine"


def test_a_folder_of_one_kind_is_not_replaced_by_one_of_another(tmp_path):
    traced(tmp_path / "t.trace")
    with pytest.raises(InputError, match="not only a bundle of offramp"):
        bundled(tmp_path / "t.trace", overwrite=True)
    assert len(load_trace(tmp_path / "t.trace")) == 5


@pytest.mark.parametrize("where", ["working", "home", "kept"])
def test_what_lies_above_other_things_is_never_replaced(tmp_path, monkeypatch, where):
    path = tmp_path / "b"
    bundled(path)
    keep = []
    match where:
        case "working":
            monkeypatch.chdir(path)
        case "home":
            monkeypatch.setenv("HOME", str(path))
        case "kept":
            keep = [path / "run"]
    with pytest.raises(InputError, match=rf"cannot be written: .*{where if not keep else 'needs'}"):
        check_folder(path, BUNDLE, overwrite=True, keep=keep)
    for above in (tmp_path, Path("/")):
        with pytest.raises(InputError):
            check_folder(above, BUNDLE, overwrite=True, keep=keep)


def test_a_link_is_not_followed_and_not_replaced(tmp_path):
    traced(tmp_path / "v1.trace")
    (tmp_path / "current.trace").symlink_to(tmp_path / "v1.trace")
    with pytest.raises(InputError, match=r"current\.trace is a link"):
        traced(tmp_path / "current.trace", overwrite=True)
    assert (tmp_path / "current.trace").is_symlink()


def test_nothing_is_written_into_a_bundle_or_a_trace(tmp_path):
    bundled(tmp_path / "b")
    traced(tmp_path / "t.trace")
    for place, what in (("b", "a bundle"), ("t.trace", "a trace")):
        with (
            pytest.raises(InputError, match=f"which is {what}, where nothing else belongs"),
            new_file(tmp_path / place / "predictions.csv"),
        ):
            pass


def test_what_comes_while_we_write_is_seen_before_it_is_replaced(tmp_path):
    path = tmp_path / "t.trace"
    traced(path)

    def write():
        with atomic_folder(path, TRACE, overwrite=True) as folder:
            (folder / "trace.json").write_text("{}")
            (path / "late.txt").write_text("mine")

    with pytest.raises(InputError, match=r"holds 'late\.txt'"):
        write()
    assert (path / "late.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["t.trace"]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_what_comes_in_the_last_moment_comes_back(tmp_path, monkeypatch, in_one_step):
    path = tmp_path / "t.trace"
    traced(path)
    if not in_one_step:
        monkeypatch.setattr("offramp._core.temporaries._exchanged", lambda *_: False)
    exchange = files.exchange

    def late(one, other):
        if not (path / "late.txt").exists():
            (path / "late.txt").write_text("mine")
        exchange(one, other)

    monkeypatch.setattr(files, "exchange", late)
    with pytest.raises(InputError, match=r"holds 'late\.txt'"):
        traced(path, overwrite=True)
    assert (path / "late.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["t.trace"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "device"])
def test_a_single_file_replaces_a_plain_file_on_request_and_nothing_else(tmp_path, kind, overwrite):
    path = tmp_path / "w.safetensors"
    match kind:
        case "file":
            path.write_text("old")
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "device":
            os.mkfifo(path)
    if kind == "file" and overwrite:
        save_weights(small_cnn(width=2, depth=2), path, overwrite=True)
        assert path.stat().st_size > 3
        return
    said = {"file": "exists already", "link": "is a link"}.get(kind, "must be a file to write")
    with pytest.raises(InputError, match=said):
        save_weights(small_cnn(width=2, depth=2), path, overwrite=overwrite)
    assert kind != "file" or path.read_text() == "old"


CONFIG = """
[data]
kind = "digits"
splits = { train = 100, fit = 100, calibrate = 50, test = 50 }
[fit]
policy = ["threshold"]
max_drop = 0.5
[output]
dir = "runs/x"
"""
STAGES = """
[[stage]]
name = "a"
model = "small_cnn"
arguments = { width = 2, depth = 2 }
[[stage]]
name = "b"
model = "small_cnn"
arguments = { width = 4, depth = 2 }
"""
NETWORK = """
[network]
model = "small_cnn"
arguments = { width = 2, depth = 2 }
"""
COMMANDS = {
    "fit": (STAGES, ["fit", "t.trace", "--config", "c.toml"]),
    "class_exits": (NETWORK, ["class-exits", "--config", "c.toml", "--class", "0"]),
    "joint": (STAGES, ["train", "joint", "--config", "c.toml"]),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # random weights
@pytest.mark.parametrize("place", ["thesis", ".", "runs", "runs/x"])
@pytest.mark.parametrize(("more", "command"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_refuses_the_place_of_a_bundle_before_it_works(
    thesis, monkeypatch, capsys, more, command, place
):
    monkeypatch.chdir(thesis.parent)
    Path("c.toml").write_text(CONFIG + more)
    traced(Path("t.trace"))
    before = held(thesis.parent)
    for overwrite in ([], ["--overwrite"]):
        assert main([*command, "--bundle", place, *overwrite]) == 2
        assert place in capsys.readouterr().err
    assert held(thesis.parent) == before


def test_a_run_renews_the_bundle_in_its_own_folder_and_no_other(tmp_path):
    run = RunFolder.claim(tmp_path / "run")
    run.remember(seed=0)
    inside, outside = run.path / "bundle", tmp_path / "bundle"
    for path in (inside, outside):
        assert not check_bundle(run, path, overwrite=False)
        claim_bundle(run, path)  # before it is written: a kill in between does no harm
        bundled(path)
    again = RunFolder.open(run.path)
    assert check_bundle(again, inside, overwrite=False)
    with pytest.raises(InputError, match="bundle exists already"):
        check_bundle(again, outside, overwrite=False)
    assert check_bundle(again, outside, overwrite=True)


def test_a_run_does_not_write_over_a_file_that_it_did_not_write(tmp_path):
    run = RunFolder.claim(tmp_path / "run")
    run.remember(seed=0)
    (run.path / "report.html").write_text("mine")
    with pytest.raises(InputError, match=r"report\.html would be replaced"):
        run.remember("report.html")


@pytest.mark.parametrize("resume", [False, True])
def test_rows_are_not_kept_among_files_of_others(tmp_path, resume):
    parts = parts_of(tmp_path / "t.trace")
    parts.mkdir()
    (parts / "logits.bin").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        recorded(tmp_path / "t.trace", resume=resume)
    assert (parts / "logits.bin").read_text() == "mine"


@pytest.mark.parametrize("place", ["notes.txt", "deep/notes.txt"])
def test_to_start_again_never_removes_a_file_of_others(tmp_path, place):
    folder = tmp_path / "features"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "features-0.bin").touch()
    (folder / place).write_text("mine")
    with pytest.raises(InputError, match=r"did not write 'notes\.txt'"):
        remove_cached(folder)
    assert (folder / "deep" / "features-0.bin").exists()
    (folder / place).unlink()
    remove_cached(folder)
    assert list(tmp_path.iterdir()) == []


def test_features_are_not_cached_among_files_of_others(tmp_path):
    images = torch.rand(20, 1, 8, 8)
    net = small_cnn(width=2, depth=2, classes=2).eval()
    head = make_head("gap_linear", (2, 8, 8), classes=2)
    cascade = Cascade.from_network(
        net, ["features.0"], head={"features.0": head}, example=images[:1]
    )
    mine = tmp_path / "cache" / "train" / "features-0.bin"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        train_heads(
            cascade,
            arrays(images, [0, 1] * 10),
            epochs=1,
            seed=0,
            cache=tmp_path / "cache",
            progress=False,
        )
    assert mine.read_text() == "mine"


def test_the_kinds_are_those_that_are_written():
    assert (TRACE.manifest, TRACE.format) == (trace_files.MANIFEST, trace_files.FORMAT)
    assert TRACE.others == {trace_files.ARRAYS}
    assert (BUNDLE.manifest, BUNDLE.format) == (names.MANIFEST, manifest.FORMAT)
    assert (ONNX_FOLDER.manifest, ONNX_FOLDER.format) == (names.MANIFEST, onnx_folder.FORMAT)
    assert ONNX_FOLDER.others == {names.POLICY, onnx_folder.RUNNER, edge_write.SCRIPT}
    assert RUN.manifest == run_folder.MARKER
    assert set(ownership._CLOSED) == {TRACE, BUNDLE, ONNX_FOLDER}


@pytest.mark.slow
def test_a_written_folder_of_onnx_files_is_known_and_replaced(tmp_path):
    exported(tmp_path / "onnx")
    assert ownership.strangers(tmp_path / "onnx", ONNX_FOLDER) == []
    exported(tmp_path / "onnx", overwrite=True)


def test_every_name_in_a_written_folder_is_known(tmp_path):
    bundled(tmp_path / "b")
    run = RunFolder.claim(tmp_path / "run")
    run.write("chosen.json", {})
    for name, kind in (("b", BUNDLE), ("run", RUN)):
        assert ownership.strangers(tmp_path / name, kind) == []
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["format"] == BUNDLE.format
