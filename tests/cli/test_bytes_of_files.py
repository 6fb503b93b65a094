"""A cascade that decodes images itself is fed from the shell: files go in as bytes."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.bundle import load
from offramp.models import ModelSpec, build, save_weights
from offramp.project.build import dataset_of
from offramp.project.config.config import load_config

CONFIG = """
[data]
kind = "folder"
path = "photos"
options = { order = "sorted" }
splits = { fit = 12, calibrate = 12, test = 12 }

[[stage]]
name = "small"
model = "small_cnn"
arguments = { width = 2, depth = 2, classes = 2 }
weights = "small.safetensors"
transform = [{ kind = "decode", mode = "L" }, { kind = "resize", size = [8, 8] }]

[[stage]]
name = "large"
model = "small_cnn"
arguments = { width = 4, depth = 3, classes = 2 }
weights = "large.safetensors"
transform = [{ kind = "decode", mode = "L" }, { kind = "resize", size = [12, 12] }]

[fit]
policy = "threshold"
combines = ["last"]
max_drop = 0.5
delta = "none"

[output]
dir = "run"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Images of several sizes in two folders, two untrained networks, and a configuration."""
    root = tmp_path_factory.mktemp("decoded")
    draw = np.random.default_rng(0)
    for k in range(36):
        path = root / "photos" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (10 + k % 5, 14, 3)
        Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).save(path)
    for name, width, depth in (("small", 2, 2), ("large", 4, 3)):
        sizes = {"width": width, "depth": depth, "classes": 2}
        net = build(ModelSpec(name="small_cnn", arguments=sizes))
        save_weights(net, root / f"{name}.safetensors")
    (root / "run.toml").write_text(CONFIG)
    return root


@pytest.fixture
def bundle(project, run):
    """The bundle that `record` and `fit` make of them."""
    path = project / "bundle"
    if not path.exists():
        assert run("record", "--config", project / "run.toml").code == 0
        run("fit", "--config", project / "run.toml", "--bundle", path)
        assert path.exists()  # whichever is chosen: the networks have learned nothing
    return path


def test_a_folder_gives_bytes_where_networks_decode_them(project):
    found = dataset_of(load_config(project / "run.toml"))
    assert isinstance(found[0][0], bytes)
    plain = CONFIG.replace('{ kind = "decode", mode = "L" }, ', "")
    (project / "plain.toml").write_text(plain)
    decoded = dataset_of(load_config(project / "plain.toml"))
    assert isinstance(decoded[0][0], torch.Tensor)


def test_predict_hands_over_the_bytes_and_names_what_cannot_be_decoded(
    run, project, bundle, tmp_path
):
    folder = tmp_path / "new"
    folder.mkdir()
    whole = (project / "photos" / "a" / "0.png").read_bytes()
    (folder / "0.png").write_bytes(whole)
    (folder / "1.png").write_bytes((project / "photos" / "b" / "1.png").read_bytes())
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "p.csv"
    found = run("predict", bundle, folder, "--out", out, "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["skipped"] == ["broken.png"]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    want = load(bundle)([(folder / name).read_bytes() for name in ("0.png", "1.png")])
    assert [row["id"] for row in rows] == ["0.png", "1.png"]
    assert [int(row["label"]) for row in rows] == want.labels.tolist()
    assert [float(row["confidence"]) for row in rows] == pytest.approx(want.confidence.tolist())


def test_networks_that_only_scale_get_the_bytes_that_they_were_recorded_on(run, project, tmp_path):
    config = CONFIG.replace('{ kind = "decode", mode = "L" }, ', "")
    config = config.replace('order = "sorted"', 'order = "sorted", decode = false')
    config = config.replace("classes = 2", "classes = 2, in_channels = 3").replace(
        '"run"', '"run3"'
    )
    for name, width, depth in (("small", 2, 2), ("large", 4, 3)):
        sizes = {"width": width, "depth": depth, "classes": 2, "in_channels": 3}
        net = build(ModelSpec(name="small_cnn", arguments=sizes))
        save_weights(net, project / f"{name}3.safetensors")
        config = config.replace(f"{name}.safetensors", f"{name}3.safetensors")
    (project / "scaled.toml").write_text(config)
    assert run("record", "--config", project / "scaled.toml").code == 0
    run("fit", "--config", project / "scaled.toml", "--bundle", project / "scaled")
    out = tmp_path / "p.csv"
    found = run("predict", project / "scaled", project / "photos" / "a", "--out", out)
    assert found.code == 0, found.err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    want = load(project / "scaled")(
        [(project / "photos" / "a" / r["id"]).read_bytes() for r in rows]
    )
    assert [int(row["label"]) for row in rows] == want.labels.tolist()
    assert [float(row["confidence"]) for row in rows] == pytest.approx(want.confidence.tolist())


def test_arrays_of_pixels_go_in_as_rows(run, bundle, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (5, 10, 14, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images)
    out = tmp_path / "p.csv"
    found = run("predict", bundle, tmp_path / "x.npz", "--out", out, "--batch-size", 2)
    assert found.code == 0, found.err
    with out.open(newline="") as file:
        labels = [int(row["label"]) for row in csv.DictReader(file)]
    assert labels == load(bundle)(list(images)).labels.tolist()


def test_bench_times_files_and_says_what_it_cannot_make_up(run, project, bundle):
    photos = project / "photos"
    options = ("--batch-sizes", "1,8", "--rounds", 1, "--json")
    found = run("bench", bundle, photos, *options)
    assert found.code == 0, found.err
    assert [row["batch_size"] for row in json.loads(found.out)["timing"]] == [1, 8]
    assert "give inputs" in run("bench", bundle, *options).err


def test_how_images_are_turned_is_said_by_the_transform(run, project, bundle, tmp_path):
    found = run(
        *("predict", bundle, project / "photos", "--no-orient", "--out", tmp_path / "p.csv")
    )
    assert found.code == 2
    assert "the bundle decodes images itself" in found.err
