import pytest
import torch

from offramp.evaluation import replay
from offramp.models import small_cnn
from offramp.recording import record
from offramp.runtime import Adaptive
from offramp.stages import Cascade, time_side_by_side
from offramp.testing import random_policy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

BOUNDARY = 1e-4
N = 256


@pytest.fixture(autouse=True)
def exact():
    """Convolutions in float32: by default a GPU rounds them to 10 bits, more than a boundary."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(scope="module")
def cascade():
    return Cascade.from_models(
        {
            name: small_cnn(width=width, depth=3, classes=4, seed=width).eval()
            for name, width in (("small", 4), ("middle", 8), ("large", 16))
        }
    )


@pytest.fixture(scope="module")
def images():
    return torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("combine", ["last", "mean", "log_linear"])
def test_cuda_does_what_replay_said_but_for_examples_at_a_boundary(cascade, images, combine):
    labels = torch.zeros(N, dtype=torch.int64)
    trace = record(cascade.to("cpu"), [(images, labels)], progress=False)
    for seed in range(4):
        chain = trace.topology.chain([0, 1, 2])
        policy = random_policy(chain, seed=seed, classes=4, combine=combine, linear=True)
        wanted = replay(trace, policy)
        model = Adaptive(cascade, policy, costs=trace.costs).to("cuda")
        answer = model(images)
        assert answer.log_probs.device.type == "cuda"
        near = torch.from_numpy(wanted.closest) <= BOUNDARY
        assert near.float().mean() < 0.1
        differs = answer.stage.cpu() != torch.from_numpy(wanted.last)
        assert not (differs & ~near).any()


@pytest.mark.parametrize("n", [0, 1, 2, 7, 33])
def test_any_batch_size_on_cuda(cascade, images, n):
    policy = random_policy(cascade.topology, seed=1, classes=4)
    model = Adaptive(cascade, policy, fold=True).to("cuda")
    answer = model(images[:n])
    assert answer.log_probs.shape == (n, 4)
    assert answer.valid.all()


def test_a_chain_waits_for_the_device_once_per_decision(cascade, images):
    policy = random_policy(cascade.topology.chain([0, 1, 2]), seed=2, classes=4)
    model = Adaptive(cascade, policy).to("cuda")
    on_device = images.to("cuda")
    model(on_device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as waits:
            model(on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in waits if "synchroniz" in str(w.message)]) <= 2


def test_timing_waits_for_the_device(cascade, images):
    static = Adaptive.single(cascade, "large").to("cuda")
    on_device = images.to("cuda")
    times = time_side_by_side(
        {"once": lambda: static(on_device), "thrice": lambda: [static(on_device) for _ in "123"]}
    )
    assert times["ratio"] > 1.5
