"""Temperatures and pooling weights: both maximize a likelihood."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from offramp._core.topology import Topology
from offramp.fitting.pooling import fit_pooling
from offramp.fitting.temperature import fit_temperatures, negative_log_likelihood
from offramp.trace.testing import make_trace


def nll(log_probs, labels):
    return -float(log_probs[torch.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("seed", range(3))
def test_temperatures_are_where_a_line_search_finds_them(seed):
    part = make_trace(n=500, stages=3, seed=seed)
    labels = part.labels.numpy()
    for k, temperature in enumerate(fit_temperatures(part)):
        scores = part.output(k).scores().double().numpy()
        slow = minimize_scalar(
            lambda log_t, s=scores: negative_log_likelihood(s, labels, float(np.exp(-log_t))),
            bounds=(-3, 3),
            method="bounded",
            options={"xatol": 1e-8},
        )
        assert temperature == pytest.approx(float(np.exp(slow.x)), rel=1e-3)


def test_scaling_the_logits_scales_the_temperature():
    part = make_trace(n=500, stages=1, seed=0)
    (before,) = fit_temperatures(part)
    assert part.logits is not None
    part.logits.mul_(3)
    (after,) = fit_temperatures(part)
    assert after == pytest.approx(3 * before, rel=1e-3)


def test_a_stage_without_errors_keeps_a_finite_temperature():
    part = make_trace(n=50, stages=1, classes=3, seed=0)
    assert part.logits is not None
    part.logits[:, 0] = 5 * torch.nn.functional.one_hot(part.labels, 3).float()
    (temperature,) = fit_temperatures(part)
    assert 0.05 <= temperature < 1


def test_pooling_is_at_least_as_likely_as_any_stage_alone_and_as_the_mean_of_logs():
    part = make_trace(n=800, stages=3, seed=1)
    temperatures = fit_temperatures(part)
    topology = Topology.of(part.stages)
    weights = fit_pooling(part, topology, temperatures)
    each = [
        (part.output(k).scores() / t).log_softmax(1).double() for k, t in enumerate(temperatures)
    ]
    for path, found in weights.items():
        assert min(found) >= 0

        def pooled(w, path=path):
            total = sum(a * each[k] for a, k in zip(w, path, strict=True))
            return nll(total.log_softmax(1), part.labels)

        ours = pooled(found)
        for i in range(len(path)):
            alone = [float(i == j) for j in range(len(path))]
            assert ours <= pooled(alone) + 1e-6 or len(path) == 1
        assert ours <= pooled([1 / len(path)] * len(path)) + 1e-6
        rng = np.random.default_rng(0)
        nearby = [np.maximum(0, np.array(found) + rng.normal(size=len(path)) / 20) for _ in "abcd"]
        assert len(path) == 1 or all(ours <= pooled(w) + 1e-7 for w in nearby)


def test_labels_with_confidence_are_scaled_too():
    part = make_trace(n=400, stages=2, seed=3, kind="labels")
    assert all(t > 0 for t in fit_temperatures(part))
