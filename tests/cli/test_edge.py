"""`offramp edge`: a split from a bundle and a recording, and the device's answers."""

import json

import numpy as np
import pytest

from offramp.bundle import read_manifest
from offramp.trace import save_trace
from offramp.trace.testing import make_trace
from support.served import inputs_of, make_bundle


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A bundle, a recording of stages of these names, and inputs."""
    place = tmp_path_factory.mktemp("edge_cli")
    bundle = make_bundle(place / "net")
    topology = read_manifest(bundle).topology
    trace = make_trace(n=3000, stages=2, classes=3, seed=0, topology=topology)
    save_trace(trace.split_into({"fit": 0.5, "calibrate": 0.5}, seed=0), place / "t.trace")
    np.savez(place / "x.npz", images=inputs_of(6).numpy())
    return place


def split_words(files, out, link, *more, seconds="small=0.001,large=9"):
    return (
        *("edge", "split", files / "net", files / "t.trace", files / "x.npz", "--out", out),
        *("--link", link, "--device-seconds", seconds, "--max-drop", 0.05, *more),
    )


def test_a_split_runs_on_the_device_alone(run, files, tmp_path):
    out = tmp_path / "split"
    found = run(*split_words(files, out, "1 Mbit/s, 500 ms", "--json"))
    assert found.code == 0, found.err
    told = json.loads(found.out)
    assert told["device"] == ["small"]
    assert told["worth"]
    assert told["seconds"] < min(told["alone"].values())
    found = run("edge", "run", out / "device", files / "x.npz", "--json")
    assert found.code == 0, found.err
    answers = json.loads(found.out)
    assert len(answers["answers"]) == 6
    assert {one["where"] for one in answers["answers"]} == {"device"}
    assert answers["offline"]["at_least"] == told["offline"]["at_least"]
    text = run("edge", "run", out / "device", files / "x.npz")
    assert "small" in text.out
    if answers["counts"]["offline"]:
        assert "right in at least" in " ".join(text.out.split())


def test_where_no_cut_is_cheaper_nothing_is_written(run, files, tmp_path):
    out = tmp_path / "split"
    words = split_words(files, out, "100 Gbit/s, 0 ms")
    slow = [w if w != "small=0.001,large=9" else "small=5,large=9" for w in words]
    found = run(*slow)
    assert found.code == 3
    assert "Use the cloud alone" in found.out
    assert not out.exists()


@pytest.mark.parametrize(
    ("link", "seconds", "more", "named"),
    [
        ("fast", "small=1,large=9", (), "20 Mbit/s, 50 ms"),
        ("0 Mbit/s, 1 ms", "small=1,large=9", (), "bandwidth"),
        ("1 Mbit/s, 500 ms", "small", (), "--device-seconds must be names of stages"),
        ("1 Mbit/s, 500 ms", "small=1,large=9", ("--device", "large"), "a cut of"),
    ],
)
def test_wrong_options_are_named(run, files, tmp_path, link, seconds, more, named):
    words = split_words(files, tmp_path / "s", link, *more, seconds=seconds)
    found = run(*words)
    assert found.code == 2
    assert named in " ".join(found.err.split())


def test_what_was_measured_is_told_and_planned_with(run, files, tmp_path):
    words = split_words(files, tmp_path / "s", "1 Mbit/s, 500 ms", "--json")
    found = run(*words, "--cloud-seconds", "small=0.001,large=0.25", "--call-ms", 40)
    assert found.code == 0, found.err
    told = json.loads(found.out)
    assert told["device_seconds"] == {"small": 0.001, "large": 9.0}
    assert told["cloud_seconds"] == {"small": 0.001, "large": 0.25}
    assert told["call_seconds"] == 0.04
    sent = 4 * 8 * 8 / (1e6 / 8)
    assert told["alone"]["cloud"] == pytest.approx(0.5 + sent + 0.04 + 0.25)
    plain = run(*split_words(files, tmp_path / "t", "1 Mbit/s, 500 ms"), "--call-ms", 40)
    assert "40 ms beside its link" in " ".join(plain.out.split())


@pytest.mark.parametrize(
    "more", [("--gateway-link", "1 Gbit/s, 1 ms"), ("--cloud-url", "https://h")]
)
def test_a_gateway_needs_a_link_and_an_address(run, files, tmp_path, more):
    found = run(*split_words(files, tmp_path / "s", "1 Mbit/s, 500 ms", *more))
    assert found.code == 2
    assert "belong together" in " ".join(found.err.split())


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--device-slower", "nan"), "--device-slower must be"),
        (("--call-ms", -3), "--call-ms must be"),
        (("--gateway-slower", "inf"), "--gateway-slower must be"),
        (
            ("--gateway-link", "1 Gbit/s, 40 ms", "--cloud-url", "nonsense"),
            "url must be an address",
        ),
    ],
)
def test_numbers_outside_their_domain_are_refused_before_anything_is_measured(
    run, files, tmp_path, more, says
):
    found = run(*split_words(files, tmp_path / "s", "1 Mbit/s, 500 ms", *more))
    assert found.code == 2
    assert says in found.err
    assert not (tmp_path / "s").exists()
