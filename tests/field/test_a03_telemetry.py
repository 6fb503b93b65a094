"""Whoever runs a classifier is not told about: no host is looked up, nothing is left in HOME."""

import os
import shutil
import subprocess
import sys

import pytest

from offramp._core.errors import MissingExtraError
from offramp._core.optional import imported

SCRIPT = """
import socket, sys
asked = []
def refuse(*given, **named):
    asked.append(given)
    raise OSError("no network")
socket.getaddrinfo = socket.create_connection = refuse
import torch
from offramp.models import ModelSpec, build
from offramp.backends import with_backend
from offramp.stages import Cascade
net = build(ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2}))
x = torch.rand(4, 1, 8, 8)
for backend in sys.argv[1:]:
    cascade = with_backend(Cascade.from_models({"a": net}), backend, example=x, calibration=x)
    cascade(x)
assert not asked, asked
assert sys.modules.get("openvino_telemetry") is None
import offramp._core.onnx_runner  # the runner of exported folders
"""


def fresh(home):
    """The environment of somebody at home: no CI, which silences some."""
    home.mkdir()
    silent = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    kept = {k: v for k, v in os.environ.items() if k not in silent and "PYTEST" not in k}
    return {**kept, "HOME": str(home), "OMP_NUM_THREADS": "1"}


def ran(command, home):
    done = subprocess.run(command, env=fresh(home), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [str(path) for path in home.rglob("*") if path.is_file()]


def test_onnxruntime_openvino_and_the_runner_run_without_leaving_or_sending_anything(tmp_path):
    command = [sys.executable, "-c", SCRIPT, "onnxruntime", "openvino"]
    assert ran(command, tmp_path / "home") == []


def test_a_package_that_sends_if_it_can_is_told_that_it_cannot(tmp_path, monkeypatch):
    (tmp_path / "eager_to_tell.py").write_text(
        "try:\n    import openvino_telemetry\n    sends = True\n"
        "except ImportError:\n    sends = False\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    theirs = type(sys)("openvino_telemetry")  # of a user who uses it
    monkeypatch.setitem(sys.modules, "openvino_telemetry", theirs)
    assert imported("eager_to_tell", "none").sends is False
    assert sys.modules["openvino_telemetry"] is theirs
    with pytest.raises(MissingExtraError, match=r"offramp\[none\]"):
        imported("not_there_at_all", "none")


def test_a_wish_of_the_user_is_left_as_it_is(tmp_path):
    script = (
        "import os; from offramp._core.optional import imported; imported('wave', 'none');"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '0'"
    )
    command = [sys.executable, "-c", script]
    environment = {**fresh(tmp_path / "home"), "ORT_DISABLE_TELEMETRY": "0"}
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "backend", ["onnxruntime", "onnxruntime-int8", "openvino", "openvino-int8"]
)
def test_no_socket_leaves_this_machine(tmp_path, backend):
    log = tmp_path / "calls"
    traced = ["strace", "-f", "-e", "trace=connect,sendto", "-o", str(log)]
    assert ran([*traced, sys.executable, "-c", SCRIPT, backend], tmp_path / "home") == []
    assert [line for line in log.read_text().splitlines() if "AF_INET" in line] == []
