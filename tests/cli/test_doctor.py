import json

import pytest

from offramp.project import doctor


def test_the_doctor_finds_that_everything_works(run):
    found = run("doctor", "--json")
    assert found.code == 0, found.err
    said = json.loads(found.out)
    assert said["ok"]
    assert {"python", "offramp", "torch"} <= said["versions"].keys()
    assert said["machine"]["threads"]
    assert said["backends"]["eager"] is True
    names = [check["name"] for check in said["checks"]]
    assert names[:4] == ["train", "fit", "forward", "bundle"]
    assert ("onnxruntime" in names) == said["backends"]["onnxruntime"]
    assert sum(check["seconds"] for check in said["checks"]) < 60  # 10 on an idle machine


def test_extras_are_those_of_the_package_with_what_is_missing(monkeypatch):
    monkeypatch.setattr(
        doctor,
        "requires",
        lambda _: [
            "numpy>=1",
            'no-such-package>=1; extra == "gone"',
            'httpx>=0.27; extra == "both"',
            'offramp[gone]; extra == "both"',
            'pytest>=8; extra == "dev"',
        ],
    )
    found = doctor.extras()
    assert found.keys() == {"gone", "both"}
    assert found["gone"] == {"no-such-package": None}
    assert found["both"]["httpx"]


def test_what_fails_is_named_and_ends_with_1(run, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(doctor, "fit", broken)
    monkeypatch.setitem(doctor.BACKENDS, "onnxruntime", doctor.BACKENDS["eager"])
    found = run("doctor")
    assert found.code == 1
    lines = {line.split()[1]: line for line in found.out.splitlines() if "  " in line[:8]}
    assert lines["train"].startswith("works")
    assert "RuntimeError: no such instruction" in lines["fit"]
    assert "what comes before did not work" in lines["forward"]
    assert "Something does not work here." in found.out


@pytest.mark.parametrize("wrong", ["forward", "bundle"])
def test_a_silently_wrong_answer_is_found(wrong, monkeypatch):
    """A runtime that answers otherwise than replay, and a bundle that answers otherwise."""
    target = {"forward": "Adaptive", "bundle": "load"}[wrong]
    real = getattr(doctor, target)

    class Turned:
        def __init__(self, model):
            self.model = model

        def __call__(self, inputs):
            found = self.model(inputs)
            return type("Found", (), {"labels": (found.labels + 1) % 10, "log_probs": None})()

    monkeypatch.setattr(doctor, target, lambda *a, **k: Turned(real(*a, **k)))
    monkeypatch.setattr(doctor, "BACKENDS", {"onnxruntime": doctor.BACKENDS["cuda"]})
    checks = {check.name: check for check in doctor.examined().checks}
    assert not checks[wrong].ok
    assert "answers" in checks[wrong].said
