"""The RUN wing alone is what a deployed process loads (docs/adr/0033)."""

import subprocess
import sys

import pytest

LEARN = (
    *("data", "trace", "recording", "fitting", "risk", "evaluation"),
    *("tuning", "train", "drawing", "report", "project", "cli"),
)
FOREIGN = ("sklearn", "matplotlib", "scipy", "pandas", "pyarrow", "onnx", "typer", "jinja2")
WEB = ("starlette", "uvicorn", "multipart", "python_multipart", "prometheus_client", "httpx")


@pytest.fixture(scope="module")
def loaded():
    """What a fresh process has loaded: for a deployed model, for a server, and for evaluation."""
    code = "import sys, offramp.bundle, offramp.runtime; print(*sys.modules)\n"
    code += "import offramp.serve.run; print(*sys.modules)\n"
    code += "import offramp.evaluation; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize("process", [0, 1], ids=["a model", "a server"])
def test_a_deployed_process_loads_no_module_of_learn(loaded, process):
    layers = {name.split(".")[1] for name in loaded[process] if name.startswith("offramp.")}
    assert layers.isdisjoint(LEARN)


@pytest.mark.parametrize("process", [0, 1], ids=["a model", "a server"])
def test_a_deployed_process_loads_no_package_that_only_learning_needs(loaded, process):
    assert {name.split(".")[0] for name in loaded[process]}.isdisjoint(FOREIGN)


def test_only_a_server_loads_what_serving_needs(loaded):
    assert {name.split(".")[0] for name in loaded[0]}.isdisjoint(WEB)
    assert "starlette" in loaded[1]


def test_the_same_question_about_a_module_of_learn_finds_it(loaded):
    assert "offramp.trace" not in loaded[1]
    assert "offramp.trace" in loaded[2]
