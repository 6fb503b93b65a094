"""What evaluation predicted is what the runtime does (methods.md 6)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from offramp._core.keys import example_keys
from offramp._core.schema import from_json, to_json
from offramp._core.topology import Topology
from offramp.evaluation import fit, replay
from offramp.models import small_cnn
from offramp.policy import Policy
from offramp.recording import record
from offramp.runtime import Adaptive
from offramp.stages import Cascade
from offramp.testing import random_policy, random_topology
from offramp.trace.testing import make_trace
from reference.walk import route_reference
from support.properties import examples

OPTIONS = {
    "random": {},
    "threshold": {"combines": ["last", "log_linear"], "grid": 10},
    "learned": {"combines": ["last", "log_linear"], "cost_weights": [0.0, 0.03, 0.3]},
    "stopping": {"cost_weights": [0.01, 0.1, 0.5], "epochs": 15, "width": 16},
}
BOUNDARY = 1e-4  # kernels change with the batch size; nearer than this a decision may differ


class Recorded(nn.Module):
    """A network that says of example i what the trace recorded of it."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, rows):
        return self.logits[rows[:, 0]]


def cascade_of(trace):
    return Cascade.from_models(
        {name: Recorded(trace.logits[:, k]) for k, name in enumerate(trace.stages)}
    )


def assert_runtime_does_what_replay_said(trace, policy, batch):
    model = Adaptive(cascade_of(trace), policy, costs=trace.costs)
    wanted = replay(trace, policy)
    keys = example_keys(trace.ids)
    twin = route_reference(policy, trace.logits, keys)
    for rows in torch.arange(len(trace)).split(batch):
        answer = model(rows[:, None], ids=trace.ids[rows.numpy()])
        np.testing.assert_array_equal(answer.stage, wanted.last[rows])
        np.testing.assert_array_equal(answer.labels, wanted.labels[rows, 0])
        np.testing.assert_array_equal(answer.cost, wanted.cost[rows])
        assert torch.equal(answer.log_probs, twin.log_probs[rows])
        assert answer.valid.all()
    return wanted


@examples(40)
@given(
    seed=st.integers(0, 2**20),
    stages=st.integers(1, 5),
    classes=st.sampled_from([2, 3, 10]),
    combine=st.sampled_from(["last", "mean", "log_linear"]),
    share=st.sampled_from([0.5, 1.0]),
    batch=st.sampled_from([1, 2, 7, 33]),
)
def test_for_random_policies_on_random_topologies(seed, stages, classes, combine, share, batch):
    part = random_topology(stages, seed=seed, share=share)
    trace = make_trace(
        40, classes=classes, seed=seed, topology=Topology.of([f"stage{k}" for k in range(stages)])
    )
    policy = random_policy(part, seed=seed, classes=classes, combine=combine)
    assert_runtime_does_what_replay_said(trace, policy, batch)


def test_the_random_policies_take_many_ways():
    ways = set()
    for seed in range(12):
        policy = random_policy(random_topology(4, seed=seed, share=1.0), seed=seed, classes=4)
        done = replay(make_trace(200, stages=4, seed=seed), policy)
        ways |= {done.paths[i] for i in done.path}
    assert len(ways) == 8  # all paths of the full DAG over four stages


@pytest.fixture(scope="module")
def trace():
    return make_trace(600, stages=3, classes=5, seed=4)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_for_fitted_policies(trace, name):
    found = fit(trace, name, progress=False, **OPTIONS[name])
    every = [point.candidate for point in found.points]
    chosen = every[:: max(1, len(every) // 8)]
    assert len(chosen) >= 2
    assert any(len(candidate.policy.topology.active) > 1 for candidate in chosen)
    part = trace.take(torch.arange(200))
    left = set()
    for candidate in chosen:
        left |= set(assert_runtime_does_what_replay_said(part, candidate.policy, 64).last.tolist())
    assert left == {0, 1, 2}


def test_ids_that_are_names_give_the_same_random_exits():
    trace = make_trace(60, stages=2, seed=1)
    names = np.array([f"image{i}.png" for i in range(60)])
    object.__setattr__(trace, "ids", names)
    (candidate, *_) = [
        point.candidate
        for point in fit(make_trace(300, stages=2, seed=1), "random", progress=False).points
        if point.candidate.method == "random" and 0 < point.candidate.parameters["rate"] < 1
    ]
    done = assert_runtime_does_what_replay_said(trace, candidate.policy, 16)
    assert set(done.last) == {0, 1}


@pytest.mark.parametrize(
    ("combine", "batch"),
    [
        ("mean", 1),
        ("last", 7),
        ("mean", 64),
        *(  # the other pairs: make test-slow
            pytest.param(combine, batch, marks=pytest.mark.slow)
            for combine, batch in (("last", 1), ("mean", 7), ("last", 64))
        ),
    ],
)
def test_with_real_networks_only_examples_at_a_boundary_may_differ(combine, batch):
    nets = {
        name: small_cnn(width=width, depth=3, classes=4, seed=width).eval()
        for name, width in (("small", 4), ("middle", 8), ("large", 16))
    }
    cascade = Cascade.from_models(nets)
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    trace = record(cascade, [(images, torch.zeros(64, dtype=torch.int64))], progress=False)
    for seed in range(6):
        # `closest` knows the scores of leaving, not those of routing: a chain has no others
        part = trace.topology.chain([0, 1, 2])
        policy = random_policy(part, seed=seed, classes=4, combine=combine, linear=True)
        wanted = replay(trace, policy)
        twin = route_reference(policy, trace.logits, torch.arange(64))
        sure = torch.from_numpy(wanted.closest) > BOUNDARY
        assert sure.float().mean() > 0.9
        model = Adaptive(cascade, policy, costs=trace.costs)
        answers = [model(images[rows], ids=rows) for rows in torch.arange(64).split(batch)]
        stage = torch.cat([answer.stage for answer in answers])
        logits = torch.cat([answer.log_probs for answer in answers])
        assert torch.equal(stage[sure], torch.from_numpy(wanted.last)[sure])
        torch.testing.assert_close(logits[sure], twin.log_probs[sure], rtol=0, atol=1e-4)


def test_a_policy_that_looks_at_the_batch_would_be_caught(trace):
    """The comparison above must be able to fail."""
    part = trace.take(torch.arange(50))
    honest = random_policy(part.topology, seed=3, classes=5)
    wanted = replay(part, honest)

    class Peeking(nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = logits

        def forward(self, rows):
            logits = self.logits[rows[:, 0]]
            return logits - logits.mean(dim=0)

    cascade = Cascade.from_models(
        {name: Peeking(part.logits[:, k]) for k, name in enumerate(part.stages)}
    )
    for stage in cascade:
        stage.keeps_company = True  # or it is refused before it answers
    answer = Adaptive(cascade, honest)(torch.arange(50)[:, None])
    assert not np.array_equal(answer.stage, wanted.last)


def test_a_policy_read_back_from_json_decides_the_same(trace):
    part = trace.take(torch.arange(100))
    for seed in range(5):
        policy = random_policy(part.topology, seed=seed, classes=5, combine="log_linear")
        again = from_json(Policy, to_json(policy))
        assert_runtime_does_what_replay_said(part, again, 32)
        np.testing.assert_array_equal(replay(part, policy).path, replay(part, again).path)
