"""`offramp simulate`: replicas for some traffic, from a bundle and real inputs."""

import json

import numpy as np
import pytest

from offramp.data import digits


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, images=digits().inputs[:200].numpy())
    return path


def test_it_says_how_many_replicas_and_what_a_million_costs(run, deployed, npz):
    bundle = deployed / "bundle"
    found = run("simulate", bundle, npz, "--rps", 2000, "--p99", 500, "--price", 0.5, "--json")
    assert found.code == 0, found.err
    said = json.loads(found.out)
    for name in ("cascade", "reference"):
        each = said[name]
        assert each["stable"]
        assert each["p99_s"] <= 0.5
        assert each["replicas"] == sum(pool["replicas"] for pool in each["pools"])
        assert each["per_million"] == pytest.approx(0.5 * each["replicas"] / 3600 / 2000 * 1e6)
    assert said["cascade"]["pools"][0]["visited"] == 1.0
    shown = run("simulate", bundle, npz, "--rps", 2000, "--p99", 500)
    assert shown.code == 0
    assert "99 of 100 within" in shown.out


def test_given_replicas_that_are_too_few_are_told(run, deployed, npz):
    found = run(
        *("simulate", deployed / "bundle", npz, "--rps", 1e9, "--p99", 1e3),
        *("--replicas", "nobody=1"),
    )
    assert found.code == 2
    assert "none in {'nobody': 1}" in found.err


def test_cores_that_all_share_make_it_slower_and_may_be_too_few(run, deployed, npz):
    given = ("simulate", deployed / "bundle", npz, "--p99", 500, "--front", 1, "--fronts", 8)
    told = json.loads(run(*given, "--rps", 500, "--cores", 64, "--json").out)
    assert told["cascade"]["stable"]
    found = run(*given, "--rps", 5000, "--cores", 2)
    assert found.code == 2
    assert "cores must be more than" in found.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--replicas", "small"), "--replicas must be names of stages"),
        (("--rps", 0), "--rps must be"),
        (("--rps", "nan"), "--rps must be"),
        (("--p99", "inf"), "--p99 must be"),
        (("--price", 0), "--price must be"),
        (("--p99", 1e-6), "p99 must be at least"),
        (("--cores", 0), "--cores"),
    ],
)
def test_wrong_options_are_named(run, deployed, npz, options, says):
    found = run("simulate", deployed / "bundle", npz, *options)
    assert found.code == 2
    assert says in found.err
