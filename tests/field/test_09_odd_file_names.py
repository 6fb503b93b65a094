"""One file name that is no UTF-8 ended fit, report and predict at the end of their work."""

import csv
import json
import os
import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

import offramp
from offramp._core.files import read_json, write_json
from offramp._core.naming import printable, utf8_name
from offramp.cli import main
from offramp.data import image_folder
from offramp.models import ModelSpec, build, save_weights
from offramp.stages import Normalize
from offramp.trace import load_trace

SPEC = ModelSpec(
    name="small_cnn", arguments={"width": 2, "depth": 2, "in_channels": 3, "classes": 2}
)
CONFIG = """
[data]
kind = "folder"
path = "photos"
options = { size = 16, resize = 16 }
splits = { fit = 16, test = 8 }
[[stage]]
name = "a"
model = "small_cnn"
arguments = { width = 2, depth = 2, in_channels = 3, classes = 2 }
transform = { kind = "normalize", scale = 0.004 }
[[stage]]
name = "b"
model = "small_cnn"
arguments = { width = 4, depth = 2, in_channels = 3, classes = 2 }
transform = { kind = "normalize", scale = 0.004 }
[fit]
policy = "random"
max_cost = 0.9
[output]
dir = "run"
"""


@pytest.fixture
def project(tmp_path):
    """Twenty-four images in two classes; one image and one class with an old camera's name."""
    odd = os.fsdecode(b"caf\xe9")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    for k, image in enumerate(pixels):
        name = odd if k == 4 else f"{k:02}"
        folder = tmp_path / "photos" / ("cat", odd)[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "x.png")
        (folder / "x.png").rename(folder / f"{name}.png")
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path


def original(name):
    """The bytes of a file's name, from what offramp wrote."""
    if not re.search(r"\\x[89a-f][0-9a-f]|\\ud[89a-f][0-9a-f]{2}", name):
        return name
    plain = re.compile(r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4})")
    return plain.sub(
        lambda m: (
            "\\" if m[1] == "\\" else chr(int(m[1][1:], 16) + (0xDC00 if m[1][0] == "x" else 0))
        ),
        name,
    )


PIECES = st.sampled_from(["\udce9", "\udcff", "\ud800", "\\", "\\xe9", "x", "e9", "é", "u", "dce9"])


@given(st.one_of(st.lists(PIECES).map("".join), st.text(string.printable)))
def test_every_name_can_be_written_and_found_again(name):
    said = utf8_name(name)
    said.encode()
    half = any(0xD800 <= ord(c) <= 0xDFFF and not 0xDC80 <= ord(c) <= 0xDCFF for c in name)
    if not half:  # halves of pairs come from Windows, where no byte stands beside them
        assert original(said) == name


def test_ordinary_names_stay_as_they_are():
    for name in ("café.png", "a\\b.png", "100%.png", "caf%E9.png", "日本.png"):
        assert utf8_name(name) == name
    assert utf8_name(os.fsdecode(b"caf\xe9/\xff.png")) == "caf\\xe9/\\xff.png"


def test_ids_and_classes_are_text_and_the_images_are_found(project):
    found = image_folder(project / "photos", size=16)
    assert found.class_names == ("caf\\xe9", "cat")
    assert "cat/caf\\xe9.png" in found.ids.tolist()
    assert found.batch(0, 24).inputs.shape == (24, 3, 16, 16)
    json.dumps([*found.ids.tolist(), *found.class_names]).encode()


def deployed(folder):
    cascade = offramp.Cascade.from_models(
        {"a": build(SPEC)}, specs={"a": SPEC}, transform=Normalize(1 / 255)
    )
    candidate = offramp.Candidate.single(cascade.topology, "a", reference="a")
    offramp.save(offramp.Adaptive(cascade, candidate), folder / "bundle", input_shape=(3, 16, 16))
    return folder / "bundle"


def test_predict_has_a_row_for_each_image_in_both_tables(project):
    bundle = deployed(project)
    for name in ("p.csv", "p.parquet"):
        said = main(["predict", str(bundle), str(project / "photos"), "--out", str(project / name)])
        assert said == 0
    with (project / "p.csv").open(newline="", encoding="utf-8") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    assert len(ids) == 24
    assert "cat/caf\\xe9.png" in ids
    assert "caf\\xe9/01.png" in ids
    table = parquet.read_table(project / "p.parquet").to_pylist()
    assert [row["id"] for row in table] == ids


@pytest.mark.slow
def test_record_fit_report_and_predict_know_it_by_one_name(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    for name, width in (("a", 2), ("b", 4)):
        spec = ModelSpec(name="small_cnn", arguments={**SPEC.arguments, "width": width})
        save_weights(build(spec), project / f"{name}.safetensors")
    text = CONFIG
    for name in ("a", "b"):
        text = text.replace(f'name = "{name}"', f'name = "{name}"\nweights = "{name}.safetensors"')
    (project / "run.toml").write_text(text)
    assert main(["record", "--config", "run.toml", "--out", "x.trace"]) == 0
    assert "cat/caf\\xe9.png" in load_trace(project / "x.trace").ids.tolist()
    done = main(["fit", "x.trace", "--config", "run.toml", "--bundle", "bundle"])
    assert done in (0, 3)
    assert main(["report", "run", "--config", "run.toml"]) == 0, capsys.readouterr().err
    assert main(["predict", "bundle", "photos"]) == 0
    with (project / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["id"] for row in rows) == sorted(load_trace(project / "x.trace").ids.tolist())
    assert {row["class_name"] for row in rows} <= {"cat", "caf\\xe9"}


def test_a_skipped_image_with_such_a_name_is_told_in_words_and_json(project, capfd):
    os.close(os.open(os.fsencode(project / "photos" / "cat") + b"/br\xf6ken.png", os.O_CREAT))
    given = [str(path) for path in (deployed(project), project / "photos", project / "p.csv")]
    assert main(["predict", *given[:2], "--out", given[2], "--json"]) == 0
    said = capfd.readouterr()  # through real files, in UTF-8
    assert json.loads(said.out)["skipped"] == ["cat/br\\xf6ken.png"]
    assert r"cat/br\xf6ken.png" in said.err


def test_json_files_and_messages_hold_odd_paths(tmp_path, capsys):
    odd = os.fsdecode(b"run\xe9")
    write_json(tmp_path / "x.json", {"command": odd})
    assert read_json(tmp_path / "x.json") == {"command": odd}
    assert printable(odd) == "run\\xe9"
    assert main(["record", "--config", odd, "--out", "x"]) == 2
    assert "run\\xe9" in capsys.readouterr().err
