import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from offramp._core.errors import InputError
from offramp.bundle import load
from offramp.data import digits
from offramp.project.inputs import InputReader
from offramp.tuning.compare import compare


@pytest.fixture(scope="module")
def images():
    return digits().inputs[:40]


@pytest.fixture
def npz(tmp_path, images):
    path = tmp_path / "images.npz"
    np.savez(path, images=images.numpy(), names=np.array([f"no{k}" for k in range(40)]))
    return path


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path, images):
    """Digits as grey images of 8 x 8 in class folders, one of them broken."""
    root = tmp_path / "photos"
    for k in range(6):
        (root / f"class{k % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[k, 0].numpy()).save(root / f"class{k % 2}" / f"{k}.png")
    whole = (root / "class0" / "0.png").read_bytes()
    (root / "class1" / "broken.png").write_bytes(whole[: len(whole) // 2])
    (root / "notes.txt").touch()
    return root


def test_predictions_are_those_of_the_runtime(run, deployed, npz, images, tmp_path):
    out = tmp_path / "p.csv"
    found = run(
        *("predict", deployed / "bundle", npz, "--ids", "names", "--out", out),
        *("--batch-size", 7, "--json"),
    )
    assert found.code == 0, found.err
    answer = load(deployed / "bundle")(images)
    rows = rows_of(out)
    assert list(rows[0]) == ["id", "label", "class_name", "confidence", "stage", "cost"]
    assert [row["id"] for row in rows] == [f"no{k}" for k in range(40)]
    assert [int(row["label"]) for row in rows] == answer.labels.tolist()
    assert [row["class_name"] for row in rows] == [str(k) for k in answer.labels.tolist()]
    names = [answer.stage_names[k] for k in answer.stage.tolist()]
    assert [row["stage"] for row in rows] == names
    assert [float(row["cost"]) for row in rows] == answer.cost.tolist()
    said = json.loads(found.out)
    assert said["n"] == 40
    assert said["exits"] == {name: names.count(name) for name in set(names)}
    assert said["mean_cost"] == pytest.approx(float(answer.cost.mean()))


def test_parquet_holds_the_same_rows(run, deployed, npz, tmp_path):
    for name in ("p.csv", "p.parquet"):
        done = run("predict", deployed / "bundle", npz, "--out", tmp_path / name)
        assert done.code == 0
        assert f"40 answers in {tmp_path / name}" in done.out
    table = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert [{k: str(v) for k, v in row.items()} for row in table] == [
        {k: str(float(v)) if k in ("confidence", "cost") else v for k, v in row.items()}
        for row in rows_of(tmp_path / "p.csv")
    ]


def test_a_folder_is_read_in_depth_and_broken_images_are_named(run, deployed, folder, tmp_path):
    out = tmp_path / "p.csv"
    found = run("predict", deployed / "bundle", folder, "--out", out, "--json")
    assert found.code == 0, found.err
    assert [row["id"] for row in rows_of(out)] == [
        *(f"class0/{k}.png" for k in (0, 2, 4)),
        *(f"class1/{k}.png" for k in (1, 3, 5)),
    ]
    assert json.loads(found.out)["skipped"] == ["class1/broken.png"]
    assert "skipped 1 images that cannot be decoded: class1/broken.png" in found.err


def test_images_are_cut_as_the_configuration_said(deployed, folder, images):
    reader = InputReader.of(
        deployed / "bundle", [folder / "class0" / "2.png"], array="images", ids=None
    )
    reader.image_options = {"resize": 8}
    ((names, batch),) = reader.batches(10)
    assert names == ["2.png"]
    assert torch.equal(batch[0], images[2])


def test_several_inputs_are_told_apart_by_name(deployed, folder, npz, images):
    reader = InputReader.of(deployed / "bundle", [folder / "class0", npz], array="images", ids=None)
    parts = list(reader.batches(32))
    names = [name for part, _ in parts for name in part]
    assert names[0] == (folder / "class0" / "0.png").as_posix()
    assert names[3:5] == [f"{npz.as_posix()}[0]", f"{npz.as_posix()}[1]"]
    assert [len(batch) for _, batch in parts] == [3, 32, 8]
    assert torch.equal(torch.cat([batch for _, batch in parts[1:]]), images)


@pytest.mark.parametrize("axes", ["nhwc", "nhw", "float64"])
def test_arrays_may_have_other_axes_that_fit(deployed, tmp_path, images, axes):
    given = {
        "nhwc": images.permute(0, 2, 3, 1),
        "nhw": images[:, 0],
        "float64": images.double(),
    }[axes]
    np.savez(tmp_path / "x.npz", images=given.numpy())
    reader = InputReader.of(deployed / "bundle", [tmp_path / "x.npz"], array="images", ids=None)
    ((ids, batch),) = reader.batches(100)
    assert ids == list(range(40))
    assert torch.equal(batch.float(), images.float())


def test_wrong_inputs_are_named(run, deployed, npz, folder, tmp_path):
    bundle = deployed / "bundle"
    np.savez(tmp_path / "wide.npz", images=np.zeros((2, 1, 9, 9), np.uint8), ids=np.arange(3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.pdf").touch()
    (tmp_path / "broken.png").write_bytes(b"no image")
    out = ("--out", tmp_path / "p.csv")
    for arguments, said in (
        ((tmp_path / "wide.npz", *out), "must have shape (n, 1, 8, 8), got (2, 1, 9, 9)"),
        ((npz, "--array", "image", *out), "no array 'image'"),
        ((tmp_path / "no.npz", *out), "no such input"),
        ((tmp_path / "notes.pdf", *out), "neither an image"),
        ((tmp_path / "empty", *out), "holds no images"),
        ((tmp_path / "broken.png", *out), "none of which can be decoded"),
        ((npz, "--out", tmp_path / "p.xlsx"), ".csv or .parquet, got 'p.xlsx'"),
    ):
        found = run("predict", bundle, *arguments)
        assert found.code == 2, said
        assert said in found.err.replace("\n", " ")
    assert not (tmp_path / "p.csv").exists()
    found = run("predict", tmp_path / "empty", npz, *out)
    assert found.code == 2
    assert "manifest.json is missing" in found.err


def test_bench_compares_with_the_fallback(run, deployed, npz, tmp_path):
    found = run(
        *("bench", deployed / "bundle", npz, "--batch-sizes", "1,16", "--rounds", 3),
        *("--out", tmp_path / "timing.json"),
    )
    assert found.code == 0, found.err
    assert "large alone" in found.out
    saved = json.loads((tmp_path / "timing.json").read_text())
    assert [row["batch_size"] for row in saved["timing"]] == [1, 16]
    assert all(row["static_s"] > 0 and row["adaptive_s"] > 0 for row in saved["timing"])
    assert saved["inputs"] == [str(npz)]
    page = run("report", deployed / "run", "--timing", tmp_path / "timing.json")
    assert page.code == 0, page.err
    shown = json.loads((deployed / "run" / "report.json").read_text())
    assert shown["timing"] == saved["timing"]


@pytest.fixture
def reading_files(tmp_path, folder):
    """A bundle whose transforms decode and resize, as those of networks of two resolutions do."""
    from offramp import Adaptive, Candidate, Cascade, ModelSpec, save
    from offramp.models import build
    from offramp.stages import Decode, Normalize, Resize

    spec = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2})
    steps = {
        name: [Decode("L"), Resize((k, k)), Normalize(1 / 255)] for name, k in (("a", 8), ("b", 9))
    }
    networks = {name: build(spec) for name in steps}
    cascade = Cascade.from_models(networks, transform=steps, specs=dict.fromkeys(steps, spec))
    model = Adaptive(cascade, Candidate.single(cascade.topology, "b", reference="b"))
    save(model, tmp_path / "bundle", extra={"images.json": {"orient": True, "decode": False}})
    return model


def test_a_bundle_that_decodes_gets_the_bytes_of_files(run, reading_files, folder, tmp_path):
    files = sorted(folder.glob("*/[0-9].png"))
    answer = reading_files([file.read_bytes() for file in files])
    found = run("predict", tmp_path / "bundle", folder, "--out", tmp_path / "p.csv", "--json")
    assert found.code == 0, found.err
    rows = rows_of(tmp_path / "p.csv")
    assert [int(row["label"]) for row in rows] == answer.labels.tolist()
    assert "class1/broken.png" in found.err
    for verb, more in (
        ("bench", ["--batch-sizes", "1,4", "--rounds", 1]),
        ("profile", ["--examples", 4, "--batch-size", 2, "--rounds", 1]),
    ):
        found = run(verb, tmp_path / "bundle", folder, *more, "--json")
        assert found.code == 0, found.err
    found = run("predict", tmp_path / "bundle", folder, "--no-orient", "--out", tmp_path / "q.csv")
    assert "no-orient must be left out: the bundle decodes images itself" in found.err


def test_bench_without_inputs_says_what_that_is_worth(run, deployed):
    found = run("bench", deployed / "bundle", "--batch-sizes", "2", "--rounds", 1, "--json")
    assert found.code == 0
    assert "Random inputs" in found.err
    assert json.loads(found.out)["inputs"] == "noise"
    assert run("bench", deployed / "bundle", "--batch-sizes", "1,x").code == 2


def test_each_model_answers_the_same_batches_in_each_round(images):
    seen = {"adaptive": [], "static": []}

    def model(name):
        return lambda batch: seen[name].append(batch)

    rows = compare(
        model("adaptive"), model("static"), images[:5], batch_sizes=[2, 8], rounds=1, progress=False
    )
    assert [len(b) for b in seen["adaptive"][:2]] == [2, 2]
    assert len(seen["adaptive"][-1]) == 8
    assert torch.equal(seen["adaptive"][-1][5:], images[:3])
    for mine, other in zip(seen["adaptive"], seen["static"], strict=True):
        assert torch.equal(mine, other)
    assert rows[0]["rounds"] == 1
    with pytest.raises(InputError, match="at least one example"):
        compare(model("adaptive"), model("static"), images[:0], batch_sizes=[1], rounds=1)
