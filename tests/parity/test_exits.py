"""Replay, runtime and bundle agree on exits inside a network (methods.md 6)."""

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from offramp.bundle import load, save
from offramp.evaluation import fit, replay
from offramp.models import ModelSpec, build, head_arguments
from offramp.policy import Candidate
from offramp.recording import record
from offramp.runtime import Adaptive
from offramp.stages import Cascade
from offramp.testing import random_policy
from reference.walk import route_reference

NET = ModelSpec(name="resnet8", arguments={"width": 0.25})
SHAPES = {"layer1.0": (4, 8, 8), "layer2.0.conv1": (8, 8, 8), "layer3.0": (16, 8, 8)}
KINDS = {"gap": ("gap_linear", {}), "conv": ("conv_head", {"filters": 4})}
N = 34  # a batch of 33 and one of 1
SIZES = [0, 1, 2, 7, 33]
FIELDS = ("log_probs", "labels", "stage", "confidence", "cost", "valid", "nonfinite")
BOUNDARY = 1e-4  # kernels change with the batch size; nearer than this a decision may differ
F = "layer2.0.conv1/conv"  # in the middle; two points have exits that no policy below uses

#: What policies use: some exits only, of alternative heads at most one; the reference need not be
# among them.
PARTS = {
    "last": ["layer1.0", "layer2.0.conv1/gap", "last"],
    "mean": ["layer1.0", "layer2.0.conv1/conv", "layer3.0/conv", "last"],
    "log_linear": ["layer2.0.conv1/gap", "layer3.0/gap"],
}


def make_cascade(images):
    heads = {
        point: {
            label: ModelSpec(name=kind, arguments=head_arguments(kind, shape, 10, **options))
            for label, (kind, options) in KINDS.items()
        }
        for point, shape in SHAPES.items()
    }
    heads["layer1.0"] = heads["layer1.0"]["gap"]
    cascade = Cascade.from_network(build(NET), list(SHAPES), head=heads, example=images, spec=NET)
    generator = torch.Generator().manual_seed(0)
    for part in cascade.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator) * 0.1)
            part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
    for stage in list(cascade)[:-1]:  # answers of different sureness, so that some leave
        for layer in stage.head.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.data *= 6
    return cascade


@pytest.fixture(scope="module")
def images():
    return torch.randn(N, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2


@pytest.fixture(scope="module")
def cascade(images):
    return make_cascade(images)


@pytest.fixture(scope="module")
def trace(cascade, images):
    return record(cascade, [(images, torch.arange(N) % 10)], progress=False)


@pytest.fixture(scope="module", params=PARTS)
def candidate(request, cascade, trace, images):
    """Of random policies the first by which examples leave at every stage."""
    part = trace.topology.chain(PARTS[request.param])
    policies = (
        random_policy(part, seed=seed, classes=10, combine=request.param, linear=True)
        for seed in range(1000)
    )
    wanted = len(part.active)
    policy = next(p for p in policies if len(set(replay(trace, p).last)) == wanted)
    return Candidate(policy=policy, method="random", reference=F)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, cascade, trace, candidate):
    path = tmp_path_factory.mktemp("parity") / "bundle"
    save(Adaptive(cascade, candidate, costs=trace.costs), path)
    return path


def batches(size):
    """The first few of a size; 0 stands for an empty batch."""
    return torch.arange(N).split(size)[:5] if size else [torch.arange(0)]


def assert_same(one, other):
    for name in FIELDS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def assert_as_replay_said(model, trace, policy, images, *, sizes, atol):
    wanted = replay(trace, policy)
    twin = route_reference(policy, trace.logits, torch.arange(N))
    sure = torch.from_numpy(wanted.closest) > BOUNDARY
    assert sure.float().mean() > 0.9
    for size in sizes:
        answers = [model(images[rows], ids=rows) for rows in torch.arange(N).split(size)]
        stage = torch.cat([answer.stage for answer in answers])
        cost = torch.cat([answer.cost for answer in answers])
        logits = torch.cat([answer.log_probs for answer in answers])
        assert torch.equal(stage[sure], torch.from_numpy(wanted.last)[sure])
        np.testing.assert_array_equal(cost[sure], wanted.cost[sure])
        torch.testing.assert_close(logits[sure], twin.log_probs[sure], rtol=0, atol=atol)


def test_the_runtime_does_what_replay_said(cascade, trace, candidate, images):
    model = Adaptive(cascade, candidate, costs=trace.costs)
    assert_as_replay_said(model, trace, candidate.policy, images, sizes=SIZES[1:], atol=1e-4)


def test_a_bundle_answers_bit_by_bit_as_the_runtime(bundle, cascade, trace, candidate, images):
    model, loaded = Adaptive(cascade, candidate, costs=trace.costs), load(bundle)
    reference = Adaptive.single(cascade, F, costs=trace.costs)
    for size in SIZES:
        for rows in batches(size):
            assert_same(model(images[rows]), loaded(images[rows]))
            assert_same(reference(images[rows]), loaded.reference(images[rows]))


def test_optimized_they_agree_as_well(bundle, cascade, trace, candidate, images, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # folding passes stand-ins
    model = Adaptive(cascade, candidate, costs=trace.costs, fold=True)
    loaded = load(bundle, fold=True)
    norms = [
        sum(isinstance(m, nn.BatchNorm2d) for m in part.modules()) for part in (model, cascade)
    ]
    assert norms[0] < norms[1] / 2
    for size in SIZES:
        for rows in batches(size):
            assert_same(model(images[rows]), loaded(images[rows]))
    fast = loaded
    assert_as_replay_said(fast, trace, candidate.policy, images, sizes=SIZES[1:], atol=1e-3)


def test_a_policy_that_was_fitted_goes_the_same_way(tmp_path, cascade, trace, images):
    points = fit(trace, "learned", cost_weights=[0.03, 0.3], progress=False).points
    candidate = next(p.candidate for p in points if len(p.candidate.policy.topology.active) > 1)
    save(Adaptive(cascade, candidate, costs=trace.costs), tmp_path / "b")
    model = Adaptive(cascade, candidate, costs=trace.costs)
    assert_same(model(images), load(tmp_path / "b")(images))
    assert_as_replay_said(model, trace, candidate.policy, images, sizes=[7], atol=1e-4)
