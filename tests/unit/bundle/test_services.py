"""Bundles with services: they hold settings and no key, and call nobody who is not allowed."""

import pytest
import torch

from offramp import Adaptive, Candidate, Cascade, Policy, load, save
from offramp._core.errors import FileFormatError, InputError, UnsupportedError
from offramp._core.files import read_json, write_json
from offramp._core.seal import sealed
from offramp.adapters import Limits, from_openai
from offramp.adapters.http import http_stage
from offramp.adapters.http_settings import HttpSettings
from offramp.models import ModelSpec, build
from offramp.policy import Feature, Linear, Node
from support.openai_server import StandIn

PLAIN = "http:" + "//example.org/v1"  # no key is sent there
LABELS = ("good", "bad")
KEY = "sk-very-secret-7131"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("TINY_KEY", KEY)
    with StandIn(key=KEY) as running:
        yield running


def stage_of(server, **others):
    return from_openai(
        server.url,
        model="m",
        labels=LABELS,
        prompt="{row}",
        key_env="TINY_KEY",
        prices={"input": 1.0, "output": 2.0},
        limits=Limits(concurrency=3),
        **others,
    )


@pytest.fixture
def bundle(server, tmp_path):
    stages = {"a": stage_of(server), "b": stage_of(server, on_error="refuse", daily_cap=3.0)}
    cascade = Cascade.from_models(stages, class_names=LABELS)
    node = Node(Linear.threshold(Feature("max_prob", 0), 0.95))
    policy = Policy(cascade.topology, {(0,): node})
    candidate = Candidate(policy=policy, method="mine", reference="b")
    model = Adaptive(cascade, candidate)
    save(model, tmp_path / "bundle")
    assert not server.attempts  # nobody was called
    answer = model(["good", "rain"])
    for stage in cascade:
        stage.module.close()
    return tmp_path / "bundle", answer


def test_it_must_be_said_that_a_host_may_be_called(bundle, server):
    path, _ = bundle
    for allowed in (False, [], ["api.example.org"], "127.0.0.12", "x127.0.0.1", ""):
        with pytest.raises(UnsupportedError, match=r"127\.0\.0\.1.*the key in TINY_KEY"):
            load(path, allow_network=allowed)


@pytest.mark.parametrize("allowed", [None, 5, [5], ["127.0.0.1", None], b"127.0.0.1"])
def test_what_is_no_host_is_refused(bundle, allowed):
    with pytest.raises(InputError, match="allow_network must be True, False, or the hosts"):
        load(bundle[0], allow_network=allowed)


@pytest.mark.parametrize("allowed", [True, ["127.0.0.1"], "127.0.0.1", {"127.0.0.1": 1}])
def test_what_was_loaded_answers_as_what_was_saved(bundle, server, allowed):
    path, before = bundle
    asked = len(server.attempts)
    model = load(path, allow_network=allowed)
    assert len(server.attempts) == asked
    answer = model(["good", "rain"])
    for stage in model.cascade.stages.values():
        stage.module.close()
    assert answer.labels.tolist() == before.labels.tolist()
    settings = model.cascade.stage(1).module.settings
    assert (settings.on_error, settings.daily_cap, settings.limits.concurrency) == (
        "refuse",
        3.0,
        3,
    )


def test_no_key_is_in_a_bundle(bundle):
    path, _ = bundle
    assert not any(KEY.encode() in file.read_bytes() for file in path.iterdir())
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "policy.json"]


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "file:///etc/passwd"},
        {"url": PLAIN},
        {"labels": ["one"]},
        {"limits": {"concurrency": 0}},
        {"answer": "free"},
        {"more": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(bundle, changes):
    path, _ = bundle
    manifest = read_json(path / "manifest.json")
    manifest["stages"][0]["openai"] |= changes
    del manifest["sha256"]
    write_json(path / "manifest.json", sealed(manifest))
    with pytest.raises(FileFormatError):
        load(path, allow_network=True)


def test_a_network_here_and_a_model_there(tmp_path):
    settings = HttpSettings(
        url="http://127.0.0.1:9",
        model="far",
        inputs=(("x", "FP32"),),
        outputs=("y",),
        form="logits",
        classes=10,
        limits=Limits(attempts=1, breaker_failures=1),
    )
    spec = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2})
    stages = {"here": build(spec).eval(), "far": http_stage(settings)}
    cascade = Cascade.from_models(stages, specs={"here": spec})
    candidate = Candidate.single(cascade.topology, "here", reference="far")
    save(Adaptive(cascade, candidate), tmp_path / "bundle")
    with pytest.raises(UnsupportedError, match=r"'far'.*no key"):
        load(tmp_path / "bundle")
    model = load(tmp_path / "bundle", allow_network=True)
    x = torch.zeros(2, 1, 8, 8)
    assert model(x).valid.all()
    alone = model.reference(x)
    model.cascade.stage(1).module.close()
    assert alone.reasons == ["failed", "failed"]
