"""Copies in .ipynb_checkpoints, @eaDir and __MACOSX were taken as examples, and answered."""

import csv

import numpy as np
import pytest
from PIL import Image

import offramp
from offramp.cli import main
from offramp.data import image_folder
from offramp.data.listing import is_hidden, pictures_in
from offramp.models import ModelSpec, build
from offramp.stages import Normalize

HIDDEN = [".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", "$RECYCLE.BIN", "#recycle"]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    for name in ("cat", "dog"):
        for k in range(2):
            picture(tmp_path / name / f"{k}.png")
        picture(tmp_path / name / "deep" / "2.png")
        for hidden in HIDDEN:
            picture(tmp_path / name / hidden / "copy.png")
            picture(tmp_path / name / hidden / "deeper" / "copy.png")
        picture(tmp_path / name / "._0.png")  # a Mac's notes about 0.png
        (tmp_path / name / "Thumbs.db").touch()
        (tmp_path / name / ".DS_Store").touch()
    for hidden in HIDDEN:
        picture(tmp_path / hidden / "0.png")
    return tmp_path


SEEN = [f"{name}/{k}" for name in ("cat", "dog") for k in ("0.png", "1.png", "deep/2.png")]


def test_no_image_below_a_hidden_folder_is_an_example(root):
    found = image_folder(root, size=8)
    assert found.ids.tolist() == SEEN
    assert found.class_names == ("cat", "dog")


def test_predict_answers_the_same_files(root, tmp_path_factory):
    spec = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2, "in_channels": 3})
    cascade = offramp.Cascade.from_models(
        {"a": build(spec)}, specs={"a": spec}, transform=Normalize(1 / 255)
    )
    home = tmp_path_factory.mktemp("home")
    candidate = offramp.Candidate.single(cascade.topology, "a", reference="a")
    offramp.save(offramp.Adaptive(cascade, candidate), home / "bundle", input_shape=(3, 8, 8))
    assert main(["predict", str(home / "bundle"), str(root), "--out", str(home / "p.csv")]) == 0
    with (home / "p.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == SEEN


def test_hidden_folders_above_the_one_that_was_named_do_not_count(tmp_path):
    picture(tmp_path / ".cache" / "photos" / "cat" / "0.png")
    picture(tmp_path / ".cache" / "photos" / "dog" / "0.png")
    assert len(image_folder(tmp_path / ".cache" / "photos", size=8)) == 2
    assert len(pictures_in(tmp_path / ".cache").files) == 2


def test_a_folder_that_is_named_like_one_of_them_in_part_is_seen():
    assert not any(map(is_hidden, ("eaDir", "macosx", "my.checkpoints", "recycle", "lost")))
