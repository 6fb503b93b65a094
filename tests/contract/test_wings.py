"""The RUN wing alone is what a deployed process loads (docs/adr/0033)."""

import subprocess
import sys

import pytest

LEARN = (
    *("data", "trace", "recording", "fitting", "risk", "evaluation"),
    *("tuning", "train", "report", "project", "cli"),
)
FOREIGN = ("sklearn", "matplotlib", "scipy", "pandas", "pyarrow", "onnx", "typer", "jinja2")


def loaded_by(imports):
    code = f"import sys, {imports}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def modules():
    return loaded_by("offramp.bundle, offramp.runtime")


def test_a_deployed_process_loads_no_module_of_learn(modules):
    layers = {name.split(".")[1] for name in modules if name.startswith("offramp.")}
    assert layers.isdisjoint(LEARN)


def test_a_deployed_process_loads_no_package_that_only_learning_needs(modules):
    assert {name.split(".")[0] for name in modules}.isdisjoint(FOREIGN)


def test_the_same_question_about_a_module_of_learn_finds_it():
    assert "offramp.trace" in loaded_by("offramp.evaluation")
