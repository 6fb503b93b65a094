"""What holds for every test and every example in a docstring."""

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Start torch's default generator anew, before fixtures draw from it: a failure comes again."""
    torch.default_generator.manual_seed(0)
