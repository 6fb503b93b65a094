"""The RUN wing alone is what a deployed process loads (docs/adr/0033)."""

import subprocess
import sys

import pytest

LEARN = (
    *("data", "trace", "recording", "fitting", "risk", "evaluation"),
    *("tuning", "train", "report", "project", "cli"),
)
FOREIGN = ("sklearn", "matplotlib", "scipy", "pandas", "pyarrow", "onnx", "typer", "jinja2")


@pytest.fixture(scope="module")
def loaded():
    """What a fresh process has loaded: first for a deployed model, then for evaluation as well."""
    code = "import sys, offramp.bundle, offramp.runtime; print(*sys.modules)\n"
    code += "import offramp.evaluation; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [line.split() for line in done.stdout.splitlines()]


def test_a_deployed_process_loads_no_module_of_learn(loaded):
    layers = {name.split(".")[1] for name in loaded[0] if name.startswith("offramp.")}
    assert layers.isdisjoint(LEARN)


def test_a_deployed_process_loads_no_package_that_only_learning_needs(loaded):
    assert {name.split(".")[0] for name in loaded[0]}.isdisjoint(FOREIGN)


def test_the_same_question_about_a_module_of_learn_finds_it(loaded):
    assert "offramp.trace" not in loaded[0]
    assert "offramp.trace" in loaded[1]
