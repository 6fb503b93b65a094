"""Names of files and classes went into predictions.csv as formulas, and into terminals as codes."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

import offramp
from offramp.cli import main
from offramp.cli.output import Output, error, note
from offramp.models import ModelSpec, build
from offramp.stages import Normalize

EVIL = '=HYPERLINK("http:x","y")'
NAMES = ("=1+1.png", "+x.png", "-x.png", "@x.png", "\tx.png", "\rx.png", "\uff1dx.png", "'=x.png")


@pytest.fixture
def bundle(tmp_path):
    spec = ModelSpec(
        name="small_cnn", arguments={"width": 2, "depth": 2, "in_channels": 3, "classes": 2}
    )
    cascade = offramp.Cascade.from_models(
        {"-stage": build(spec)},
        specs={"-stage": spec},
        class_names=[EVIL, "-1"],
        transform=Normalize(1 / 255),
    )
    candidate = offramp.Candidate.single(cascade.topology, "-stage", reference="-stage")
    offramp.save(offramp.Adaptive(cascade, candidate), tmp_path / "bundle", input_shape=(3, 8, 8))
    return tmp_path / "bundle"


def predicted(bundle, inputs, *options):
    out = bundle.parent / "p.csv"
    assert (
        main(["predict", str(bundle), str(inputs), "--out", str(out), "--overwrite", *options]) == 0
    )
    with out.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_no_cell_of_text_begins_like_a_formula_and_all_can_be_undone(bundle, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in (*NAMES, "plain.png", "'quoted.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photos" / name)
    rows = predicted(bundle, tmp_path / "photos")
    cells = {row["id"] for row in rows}
    assert cells == {*(f"'{name}" for name in NAMES), "plain.png", "'quoted.png"}
    for row in rows:
        assert row["stage"] == "'-stage"
        assert row["class_name"] in (f"'{EVIL}", "-1")
        float(row["confidence"])


def test_numbers_stay_numbers(bundle, tmp_path):
    broken = np.zeros((3, 3, 8, 8), np.float32)
    broken[1] = np.nan  # no answer: label -1
    np.savez(tmp_path / "x.npz", images=broken, ids=np.array(["-1", "+2.5", "-x"]))
    rows = predicted(bundle, tmp_path / "x.npz", "--ids", "ids")
    assert [row["id"] for row in rows] == ["-1", "+2.5", "'-x"]
    assert rows[1]["label"] == "-1"
    np.savez(tmp_path / "y.npz", images=broken, ids=np.array([-5, 0, 5]))
    assert [row["id"] for row in predicted(bundle, tmp_path / "y.npz", "--ids", "ids")] == [
        *("-5", "0", "5")
    ]


def test_parquet_is_for_programs_and_keeps_names_as_they_are(bundle, tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((1, 3, 8, 8), np.float32), ids=np.array(["=1"]))
    out = tmp_path / "p.parquet"
    said = main(
        ["predict", str(bundle), str(tmp_path / "x.npz"), "--ids", "ids", "--out", str(out)]
    )
    assert said == 0
    assert parquet.read_table(out).to_pylist()[0]["id"] == "=1"


def test_names_cannot_steer_the_terminal(bundle, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photos" / "0.png")
    (tmp_path / "photos" / "\x1b]0;owned\x07\x9b2J\u202e.png").touch()
    predicted(bundle, tmp_path / "photos")
    said = capsys.readouterr().err
    assert r"\x1b]0;owned\x07\x9b2J\u202e.png" in said
    assert not set(said) & set("\x1b\x07\x9b\u202e")


def test_every_way_to_the_terminal_is_the_same(capsys):
    output = Output(as_json=False)
    for say in (note, error, output.line, output.paragraph):
        say("a\x1b[2Jb")
    output.table(["x"], [["a\x1b[2Jb"]])
    caught = capsys.readouterr()
    assert (caught.out + caught.err).count(r"a\x1b[2Jb") == 5
    output.paragraph("größe µ → 日本")
    assert "größe µ → 日本" in capsys.readouterr().out


def test_json_for_programs_holds_the_name_itself(capsys):
    for name in ("a\x1b\x9b\udce9", "é"):
        Output(as_json=True).result({"name": name})
        said = capsys.readouterr().out
        assert json.loads(said) == {"name": name}
        assert "\x9b" not in said
