"""What holds for every test and every example in a docstring."""

import gc
import importlib.util
import os
import sys
import types

# Before torch is imported: two workers with two threads each would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

#: Modules that cannot be imported without an optional package that `dev` does not bring.
collect_ignore = [] if importlib.util.find_spec("mlflow") else ["src/offramp/mlflow.py"]

# torchvision registers operators there that a build for another torch does not have: PyPI's beside
# a torch for the CPU. What is tested of it, and of timm and transformers, needs none of them.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("none"))

gc.set_threshold(50_000, 20, 20)  # looking for garbage at every 700 objects is a tenth of the time

# A test says how many examples it wants as `@examples(40)`, of tests/support/properties.py, which
# profiles scale: `make test` tries half of them, `make test-slow` ten times as many. Nothing is
# asked of the time that one takes: machines are busy.
for _name, _examples in (("quick", 50), ("thorough", 1000)):
    hypothesis.settings.register_profile(
        _name,
        hypothesis.settings.default,
        deadline=None,
        max_examples=_examples,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
hypothesis.settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Start torch's default generator anew, before fixtures draw from it: a failure comes again."""
    torch.default_generator.manual_seed(0)
