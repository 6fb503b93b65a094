"""A bundle answers bit by bit as the runtime it was saved from, also in another process."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from offramp.bundle import load, save
from offramp.evaluation import fit
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.recording import record
from offramp.runtime import Adaptive
from offramp.stages import Cascade
from offramp.testing import random_policy

FIELDS = ("log_probs", "labels", "stage", "confidence", "cost", "valid", "nonfinite")
N = 40

ANSWER = """
import sys, torch
from safetensors.torch import load_file, save_file
from offramp.bundle import load
images = load_file(sys.argv[2])["images"]
answer = load(sys.argv[1])(images)
fields = {name: getattr(answer, name).contiguous() for name in %r}
save_file(fields, sys.argv[3])
"""


def make_cascade():
    specs = {
        name: ModelSpec(name="small_cnn", arguments={"width": width, "depth": 3, "classes": 4})
        for name, width in (("small", 4), ("middle", 8), ("large", 16))
    }
    nets = {name: build(spec) for name, spec in specs.items()}
    return Cascade.from_models(nets, specs=specs)


@pytest.fixture(scope="module")
def images():
    return torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture(scope="module")
def trace(images):
    labels = torch.arange(N) % 4
    return record(make_cascade(), [(images, labels)], progress=False)


def lively_policy(topology, cascade, images, **options):
    """Of random policies the first by which examples leave at every stage."""
    policies = (random_policy(topology, seed=seed, classes=4, **options) for seed in range(1000))
    return next(p for p in policies if len(Adaptive(cascade, p)(images).stage.unique()) == 3)


def assert_same(one, other):
    for name in FIELDS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("combine", ["last", "mean", "log_linear"])
@pytest.mark.parametrize("edges", ["full", "chain"])
def test_for_random_policies(tmp_path, trace, images, combine, edges):
    cascade = make_cascade()
    part = trace.topology if edges == "full" else trace.topology.chain([0, 1, 2])
    policy = lively_policy(part, cascade, images, combine=combine)
    candidate = Candidate(policy=policy, method="random", reference="large")
    save(Adaptive(cascade, candidate, costs=trace.costs), tmp_path / "b")
    model, loaded = Adaptive(cascade, candidate, costs=trace.costs), load(tmp_path / "b")
    for batch in (1, 7, N):
        for rows in torch.arange(N).split(batch):
            assert_same(model(images[rows]), loaded(images[rows]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("random", {}),
        ("threshold", {"grid": 5}),
        ("learned", {"cost_weights": [0.1]}),
        ("stopping", {"cost_weights": [0.1], "epochs": 5, "combines": ["stopping"]}),
    ],
)
def test_for_fitted_policies(tmp_path, trace, images, name, options):
    cascade = make_cascade()
    points = fit(trace, name, progress=False, **options).points
    candidate = points[len(points) // 2].candidate
    save(Adaptive(cascade, candidate, costs=trace.costs), tmp_path / "b")
    assert_same(
        Adaptive(cascade, candidate, costs=trace.costs)(images),
        load(tmp_path / "b")(images),
    )


def test_in_a_fresh_process(tmp_path, trace, images):
    cascade = make_cascade()
    policy = lively_policy(trace.topology, cascade, images, combine="mean")
    candidate = Candidate(policy=policy, method="random", reference="large")
    save(Adaptive(cascade, candidate, costs=trace.costs), tmp_path / "b")
    save_file({"images": images}, tmp_path / "in.safetensors")
    command = [sys.executable, "-c", ANSWER % (FIELDS,), "b", "in.safetensors", "out.safetensors"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found = load_file(tmp_path / "out.safetensors")
    here = Adaptive(cascade, candidate, costs=trace.costs)(images)
    for name in FIELDS:
        assert torch.equal(found[name], getattr(here, name)), name
