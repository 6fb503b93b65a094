"""The synthetic trace behaves as real networks do."""

import numpy as np
import pytest
import torch

from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.trace import make_trace


def test_accuracies_are_those_asked_for():
    trace = make_trace(20_000, accuracies=[0.55, 0.8, 0.95], classes=10, seed=5)
    found = [trace.accuracy(k) for k in range(3)]
    np.testing.assert_allclose(found, [0.55, 0.8, 0.95], atol=0.015)


def test_stages_err_together_and_the_surer_is_righter():
    trace = make_trace(20_000, accuracies=[0.7, 0.9], seed=2)
    cheap, expensive = trace.wrong(0), trace.wrong(1)
    assert cheap[expensive].mean() > 2 * cheap.mean()
    sure = trace.output(0).scores().softmax(dim=1).max(dim=1).values.numpy()
    surest = sure > np.median(sure)
    assert cheap[surest].mean() < 0.4 * cheap[~surest].mean()


def test_both_kinds_hold_the_same_predictions():
    logits, labels = (make_trace(300, classes=7, seed=9, kind=k) for k in ("logits", "labels"))
    for stage in range(3):
        assert torch.equal(logits.output(stage).top(5), labels.output(stage).top(5))
        best = logits.output(stage).scores().softmax(dim=1).max(dim=1).values
        torch.testing.assert_close(labels.output(stage).confidence, best)


def test_the_seed_decides_everything():
    one, two, other = (make_trace(10, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.logits, two.logits)
    assert torch.equal(one.labels, two.labels)
    assert not torch.equal(one.logits, other.logits)


def test_a_topology_of_the_callers_is_used():
    topology = Topology.of(["a", "b"], edges="chain")
    assert make_trace(10, topology=topology).topology is topology


def test_arguments_are_checked():
    with pytest.raises(InputError, match="n must be an integer of at least 1, got 0"):
        make_trace(0)
    with pytest.raises(InputError, match="classes must be at least 2, got 1"):
        make_trace(5, classes=1)
    with pytest.raises(InputError, match=r"accuracies must be in \(0, 1\), got 90"):
        make_trace(5, accuracies=[90])
    with pytest.raises(InputError, match=r"one entry per stage \(1\), got 2"):
        make_trace(5, accuracies=[0.5, 0.6], topology=Topology.of(["a"]))
