"""What holds for every test and every example in a docstring."""

import os

# Before torch is imported: two workers with two threads each would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

# A test says how many examples it wants as `@examples(40)`, of tests/support/properties.py, which
# profiles scale: `make test` tries fewer, `make test-slow` many.
hypothesis.settings.register_profile(
    "quick", hypothesis.settings.default, deadline=None, max_examples=50
)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Start torch's default generator anew, before fixtures draw from it: a failure comes again."""
    torch.default_generator.manual_seed(0)
