"""Models and processes: a fork works or is refused with a reason, and so is pickling."""

import os
import pickle
import subprocess
import sys

import pytest
import torch

from offramp._core.errors import UnsupportedError
from offramp.backends import ov, with_backend
from offramp.models import ModelSpec, build
from offramp.runtime import Adaptive
from offramp.stages import Cascade
from offramp.testing import random_policy

SPEC = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2, "classes": 3})
X = torch.rand(4, 1, 8, 8)

FORKING = """
import os, sys, torch
torch.set_num_threads(2)
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade
spec = ModelSpec(name="small_cnn", arguments={"width": 8, "depth": 3})
def answer():
    cascade = Cascade.from_models({"a": build(spec)})
    x = torch.rand(256, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="a"))(x).log_probs
before = answer()
large = torch.rand(1000, 1000)
(large @ large).relu()
child = os.fork()
if child == 0:
    same = torch.allclose(answer(), before, atol=1e-5)
    (large @ large).relu()
    os._exit(0 if same and torch.get_num_threads() == 1 else 3)
assert torch.get_num_threads() == 2
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_of_a_process_whose_torch_has_two_threads_answers():
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", FORKING], env=environment, timeout=120, check=False
    )
    assert done.returncode == 0


def test_openvino_that_another_process_started_is_not_waited_for(monkeypatch):
    pytest.importorskip("openvino")
    ov._core()
    monkeypatch.setattr(ov.os, "getpid", lambda: -1)  # what a child would see
    cascade = Cascade.from_models({"a": build(SPEC)})
    with pytest.raises(UnsupportedError, match=r"was started in the process .*'spawn'"):
        with_backend(cascade, "openvino", example=X)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_models_of_other_runtimes_say_why_they_cannot_be_pickled(backend):
    pytest.importorskip(backend)
    cascade = with_backend(Cascade.from_models({"a": build(SPEC)}), backend, example=X)
    model = Adaptive(cascade, random_policy(cascade.topology, seed=0, classes=3))
    for value in (cascade, model):
        with pytest.raises(UnsupportedError, match=r"cannot be pickled.*load\(path\) there"):
            pickle.dumps(value)


def test_models_in_pytorch_cross_a_process_boundary():
    cascade = Cascade.from_models({"a": build(SPEC)})
    model = Adaptive(cascade, random_policy(cascade.topology, seed=0, classes=3))
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(X).log_probs, model(X).log_probs)
