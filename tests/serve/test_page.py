"""The page: what it asks is answered, and a browser shows it."""

import json
import shutil
import subprocess

import pytest

import offramp
from support.served import NAMES, inputs_of, make_bundle, running

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


JSON = {"content-type": "application/json"}


def rows(x):
    return {"rows": x.tolist()}


def test_what_is_explained_is_what_is_answered(bundle, client):
    model, x = offramp.load(bundle), inputs_of(8, seed=5)
    for one in x.split(1):
        status, _, told = client("/explain", rows(one), headers=JSON)
        assert status == 200
        _, _, said = client("/predict", rows(one), headers=JSON)
        (answer,) = said["answers"]
        assert told["class"] == answer["class_name"] == NAMES[told["label"]]
        assert told["confidence"] == pytest.approx(answer["confidence"])
        assert [visit["stage"] for visit in told["visits"]] == answer["path"]
        assert (told["cost"], told["reason"]) == (answer["cost"], answer["reason"])
        assert told["reference_cost"] == 4.0
        last = told["visits"][-1]
        assert last["goes_to"] is None
        assert last["top"][0]["class"] == told["class"]
        assert last["stage"] == model.stage_names[int(model(one).stage[0])]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (rows(inputs_of(2)), "One example can be explained at a time, got 2."),
        ({"rows": [[1.0]]}, "The shape of 'input' must be"),
        ({"rows": inputs_of(1).tolist(), "gear": "fast"}, "gear must be one of"),
    ],
)
def test_what_cannot_be_explained_is_refused(client, body, error):
    status, _, told = client("/explain", body, headers=JSON)
    assert status == 400
    assert error in told["error"]


def test_what_is_explained_counts_nowhere(client):
    _, _, before = client("/v2/models/net/stats")
    client("/explain", rows(inputs_of(1)), headers=JSON)
    _, _, after = client("/v2/models/net/stats")
    assert after["examples"] == before["examples"]


def test_the_page_asks_nobody_else_and_needs_no_token(tmp_path):
    bundle = make_bundle(tmp_path / "net")
    with running({"net": bundle}, token="secret") as client:
        status, headers, page = client("/")
        assert status == 200
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert b"https://" not in page
        status, _, _ = client("/explain", rows(inputs_of(1)), headers=JSON)
        assert status == 401


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_browser_shows_the_models_and_what_goes_on(client, tmp_path):
    client("/predict", rows(inputs_of(20)), headers=JSON)
    command = [BROWSER, "--headless", "--no-sandbox", f"--user-data-dir={tmp_path}"]
    shown = subprocess.run(
        [*command, "--virtual-time-budget=4000", "--dump-dom", f"{client.url}/"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert '<option value="net">' in shown
    assert ">small" in shown
    assert ">large" in shown
    _, _, stats = client("/v2/models/net/stats")
    assert stats["examples"] >= 20
    assert json.dumps(stats)  # all of it is JSON
    assert "examples answered" in shown
