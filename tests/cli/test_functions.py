"""Texts through functions from the shell: a configuration, record, fit, predict."""

import csv
import json

import pytest
from tests.support.functions import label_of

from offramp._core.errors import FileFormatError, UnknownNameError
from offramp.data import load_dataset, texts
from offramp.data.texts import read_texts

CONFIG = """
[data]
kind = "texts"
path = "data.csv"
options = { text = "said", label = "length" }
splits = { fit = 150, calibrate = 150, test = 100 }

[[stage]]
name = "rough"
function = "lengths:rough"
outputs = "confidence"

[[stage]]
name = "exact"
function = "lengths:exact"
outputs = "confidence"

[cost]
unit = "us"
given = { rough = 1.0, exact = 40.0 }

[fit]
policy = "threshold"
combines = ["last"]
max_drop = 0.05
delta = "none"

[output]
dir = "run"
"""


@pytest.fixture
def texts_here(tmp_path, monkeypatch):
    rows = ["x" * (1 + k % 50) for k in range(400)]
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["said", "length"])
        writer.writerows((row, label_of(row)) for row in rows)
    (tmp_path / "lengths.py").write_text("from tests.support.functions import exact, rough\n")
    (tmp_path / "run.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return rows


def test_from_a_configuration_to_predictions(run, texts_here, tmp_path):
    recorded = run("record", "--config", "run.toml", "--json")
    assert recorded.code == 0, recorded.err
    assert json.loads(recorded.out)["stages"][1]["accuracy"] == 1.0
    fitted = run("fit", "--config", "run.toml", "--bundle", "run/bundle", "--json")
    assert fitted.code == 0, fitted.err
    (tmp_path / "new.txt").write_text("x\n" + "x" * 15 + "\r\n\n" + "x" * 44 + "\n")
    refused = run("predict", "run/bundle", "new.txt")
    assert refused.code != 0
    assert "not allowed" in refused.err
    found = run("predict", "run/bundle", "new.txt", "--allow-import", "--batch-size", 3)
    assert found.code == 0, found.err
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["class_name"] for row in rows][:2] == ["short", "middle"]
    assert rows[1]["stage"] == "exact"
    assert rows[1]["confidence"] == "1.0"
    more = ("--allow-import", "--column", "said", "--out", "all.parquet")
    assert run("predict", "run/bundle", "data.csv", *more).code == 0
    wrong = run("predict", "run/bundle", "data.csv", "--allow-import", "--overwrite")
    assert "column of data.csv" in wrong.err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('function = "lengths:rough"', "", "stage[0].model: is missing; or function"),
        ('function = "lengths:rough"', 'function = "lengths"', "stage[0].function"),
        (
            'function = "lengths:rough"',
            'function = "lengths:rough"\nmodel = "resnet20"',
            "stage[0].model: does not belong to a stage with function",
        ),
        ('outputs = "confidence"', 'outputs = "sure"', "stage[0].outputs"),
        ('unit = "us"\ngiven = { rough = 1.0, exact = 40.0 }', "", "cannot be counted"),
        ('"lengths:rough"', '"lengths:tough"', "no callable 'tough'"),
    ],
)
def test_what_is_wrong_in_a_configuration_is_said(run, texts_here, tmp_path, old, new, message):
    (tmp_path / "run.toml").write_text(CONFIG.replace(old, new, 1))
    found = run("record", "--config", "run.toml")
    assert found.code != 0
    assert message in found.err


def test_texts_are_read_from_tables_and_lines(tmp_path):
    table = tmp_path / "a.tsv"
    table.write_text('text\tlabel\tpart\tname\n"quoted\tb\tfit\tu\nplain\ta\tfit\tv\n')
    found = texts(table, split="part", id="name")
    assert found.inputs == ['"quoted', "plain"]
    assert found.class_names == ("a", "b")
    assert found.labels.tolist() == [1, 0]
    assert found.ids.tolist() == ["u", "v"]
    numbers = tmp_path / "b.csv"
    numbers.write_text('text,label\n"a, b",2\nc,0\n')
    assert load_dataset("texts", numbers).labels.tolist() == [2, 0]
    with pytest.raises(UnknownNameError, match="column of"):
        texts(numbers, label="lable")
    (tmp_path / "short.csv").write_text("text,label\na\n")
    with pytest.raises(FileFormatError, match="line 2: the row has 1 fields, and the header 2"):
        texts(tmp_path / "short.csv")
    with pytest.raises(FileFormatError, match="is missing"):
        read_texts(tmp_path / "none.csv")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(FileFormatError, match="cannot be read as text in UTF-8"):
        read_texts(tmp_path / "latin.txt")
    (tmp_path / "lines.txt").write_text("one\n\nthree")
    assert read_texts(tmp_path / "lines.txt") == ["one", "", "three"]
