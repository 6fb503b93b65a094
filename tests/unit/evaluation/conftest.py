"""A trace of named classes and its frontier, for the tests of promises."""

from dataclasses import replace

import pytest
import torch

from offramp.evaluation import fit
from offramp.trace import make_trace

NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="session")
def named_trace():
    made = make_trace(6000, stages=3, classes=4, seed=5)
    named = replace(made, class_names=NAMES)
    return named.split_into({"fit": 2500, "calibrate": 2500, "test": 1000}, seed=0)


@pytest.fixture(scope="session")
def named_parts(named_trace):
    return named_trace.subset("fit"), named_trace.subset("calibrate")


@pytest.fixture(scope="session")
def promising(named_trace):
    return fit(named_trace, "threshold", combines=["last"], confidences=["margin"], progress=False)


@pytest.fixture(scope="session")
def unlabeled(named_trace, promising):
    """The frontier on examples whose labels are made up."""
    part = named_trace.subset("calibrate")
    bare = replace(part, labels=torch.zeros_like(part.labels))
    return promising.calibrated_on(bare, fit=named_trace.subset("fit"), labeled=False)
