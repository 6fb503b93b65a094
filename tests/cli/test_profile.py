import json

import numpy as np
import pytest

from offramp.data import digits


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, images=digits().inputs[:40].numpy())
    return path


def test_a_profile_shows_where_time_goes_against_the_ideal(run, deployed, npz, tmp_path):
    out = tmp_path / "timeline.svg"
    found = run(
        *("profile", deployed / "bundle", npz, "--batch-size", 16, "--rounds", 1),
        *("--out", out),
    )
    assert found.code == 0, found.err
    header = next(line.split() for line in found.out.splitlines() if "visits" in line)
    assert header[:3] == ["visits", "stage", "head"]
    assert header[-1] == "ideal"
    assert "times the ideal" in found.out
    assert "40 examples, 16 at a time" in found.out
    assert out.read_text(encoding="utf-8").startswith("<?xml")


def test_a_profile_as_json_adds_up(run, deployed, npz):
    found = run(
        *("profile", deployed / "bundle", npz, "--batch-size", 8, "--examples", 24),
        *("--rounds", 1, "--no-fold", "--json"),
    )
    assert found.code == 0, found.err
    shown = json.loads(found.out)
    assert (shown["examples"], shown["batch_size"]) == (24, 8)
    assert shown["stages"][0]["visits"] == 24
    assert shown["over_ideal"] == pytest.approx(shown["total_s"] / shown["ideal_s"])
    assert shown["waits"] <= len(shown["stages"])


def test_a_picture_of_an_unknown_kind_is_refused(run, deployed, npz, tmp_path):
    found = run("profile", deployed / "bundle", npz, "--rounds", 1, "--out", tmp_path / "t.bmp")
    assert found.code == 2
    assert "png" in found.err
    assert not (tmp_path / "t.bmp").exists()
