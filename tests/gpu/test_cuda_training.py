"""Training, recording and bundles on a GPU. Where tensors lie is tested on any machine
(tests/parity/test_devices.py); here kernels, streams and memory are real."""

import warnings

import pytest
import torch

import offramp
from offramp._core.batch import to_device
from offramp.data import CropAndFlip, arrays
from offramp.models import ModelSpec, build, cifar_preresnet
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize
from offramp.testing import random_policy
from offramp.train import train_classifier, train_heads, train_joint
from offramp.train.class_exits import Recipe, sweep_branches
from offramp.train.state import seed_layers
from offramp.tuning import measure_times

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

N = 512


@pytest.fixture(scope="module")
def part():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % 4
    shown = torch.rand(N, 3, 16, 16, generator=generator) * 100 + 38 * labels[:, None, None, None]
    return arrays(shown.to(torch.uint8), labels)


def normalize():
    return Normalize(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))


def network(width=0.5):
    net = cifar_preresnet(8, width=width, classes=4)
    return net.eval().to(memory_format=torch.channels_last)


def waits_of(run):
    """How often the host waited for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in seen)


def train(part, batch_size, *, bfloat16=True, epochs=1, net=None):
    net = net or network()
    return train_classifier(
        net,
        part,
        epochs=epochs,
        seed=0,
        batch_size=batch_size,
        transform=normalize(),
        augment=CropAndFlip(padding=2),
        bfloat16=bfloat16,
        device="cuda",
        progress=False,
    )


def test_a_copy_keeps_what_was_there_when_it_was_asked_for():
    source = torch.ones(2**22)
    torch.randn(4000, 4000, device="cuda") @ torch.randn(4000, 4000, device="cuda")  # it is busy
    there = to_device(source, "cuda")
    source.zero_()
    assert there.min() == 1
    pinned = torch.ones(2**22).pin_memory()
    there = to_device(pinned, "cuda")
    pinned.zero_()
    assert there.min() == 1


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_classifier_learns_on_the_gpu(part, bfloat16):
    net = network()
    losses = train(part, 64, bfloat16=bfloat16, epochs=8, net=net)
    assert losses[-1] < 0.5 * losses[0]
    with torch.inference_mode():
        right = net(normalize()(part.inputs.cuda())).argmax(1).cpu() == part.labels
    assert right.float().mean() > 0.7
    assert net.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_steps_of_a_training_do_not_wait_for_the_gpu(part):
    train(part, 64)
    few, many = (waits_of(lambda size=size: train(part, size)) for size in (128, 32))
    assert many <= few + 2  # 4 steps and 16


@pytest.mark.parametrize(
    "options", [{}, {"estimator": "reinforce", "rollouts": "visited", "answers": "best"}], ids=str
)
def test_a_cascade_is_trained_jointly_and_answers_as_it_was_recorded(part, options, tmp_path):
    specs = {
        f"w{w}": ModelSpec(name="preresnet8", arguments={"width": w, "classes": 4})
        for w in (0.25, 0.5)
    }
    nets = {name: build(spec).eval() for name, spec in specs.items()}
    cascade = Cascade.from_models(nets, specs=specs, edges="full", transform=normalize())
    trained = train_joint(
        cascade,
        part,
        cost_weight=0.1,
        epochs=2,
        seed=0,
        batch_size=64,
        augment=CropAndFlip(padding=2),
        bfloat16=True,
        device="cuda",
        progress=False,
        **options,
    )
    trace = offramp.record(cascade, part, device="cuda", progress=False)
    model = Adaptive(cascade, trained.candidate(), costs=trace.costs)
    answer = model(part.inputs)
    assert answer.log_probs.is_cuda
    offramp.save(model, tmp_path / "b")
    again = offramp.load(tmp_path / "b")
    assert (again(part.inputs).labels == answer.labels.cpu()).float().mean() > 0.97
    assert (again.to("cuda")(part.inputs).labels == answer.labels).float().mean() > 0.97


def test_heads_and_branches_of_single_classes_are_trained(part, tmp_path):
    net = network()
    train(part, 64, epochs=4, net=net)
    splits = part.split_into({"train": 256, "fit": 128, "test": 128}, seed=0, stratified=True)
    sweep = sweep_branches(
        net,
        splits,
        tmp_path / "sweep",
        recipe=Recipe(epochs=2),
        sampled=3,
        transform=normalize(),
        device="cuda",
        progress=False,
    )
    assert sweep.data("fit").evidence.shape[0] == 128
    assert sweep.branches("seconds", batch_size=16, rounds=2)
    net.cpu()
    exits = Cascade.from_network(
        net, ["layer1.0"], head="gap_linear", example=part.inputs[:2], transform=normalize()
    )
    found = train_heads(
        exits,
        part,
        epochs=2,
        seed=0,
        cache=tmp_path / "cache",
        device="cuda",
        bfloat16=True,
        progress=False,
    )
    assert len(found["layer1.0"].losses) == 2


def test_a_network_that_was_cut_on_the_gpu_is_saved(part, tmp_path):
    spec = ModelSpec(name="preresnet8", arguments={"width": 0.5, "classes": 4})
    exits = Cascade.from_network(
        build(spec).eval().cuda(),
        ["layer1.0"],
        head="gap_linear",
        example=part.inputs[:2],
        transform=normalize(),
        spec=spec,
    ).to("cuda")
    policy = random_policy(exits.topology, seed=0, classes=4)
    last = exits.topology.names[-1]
    model = Adaptive(exits, Candidate(policy=policy, method="random", reference=last))
    answer = model(part.inputs)
    offramp.save(model, tmp_path / "b")
    again = offramp.load(tmp_path / "b")(part.inputs)
    assert (again.labels == answer.labels.cpu()).float().mean() > 0.97


def test_dropout_draws_the_same_numbers_for_the_same_seed():
    x = torch.ones(4096, device="cuda")
    with torch.random.fork_rng():
        drawn = []
        for _ in range(2):
            seed_layers(3, torch.device("cuda"))
            drawn.append(torch.nn.functional.dropout(x))
    assert torch.equal(*drawn)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_second_gpu_is_seeded_waited_for_and_timed(part):
    there = torch.device("cuda:1")
    with torch.random.fork_rng():
        before = torch.cuda.get_rng_state(0)
        seed_layers(3, there)
        assert torch.equal(torch.cuda.get_rng_state(0), before)
    cascade = Cascade.from_models({"a": network(), "b": network(1.0)}, transform=normalize())
    times = measure_times(cascade.to(there), part.inputs[:8], batch_sizes=[1, 256], rounds=3)
    assert times.seconds(1, 256) > 0
    policy = random_policy(cascade.topology, seed=0, classes=4)
    choice = Candidate(policy=policy, method="random", reference="b")
    assert Adaptive(cascade, choice)(part.inputs).labels.device == there
