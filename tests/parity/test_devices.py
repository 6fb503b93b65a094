"""Everything that takes a device puts its tensors there, and rarely waits for it.

The device is pretended (`support.pretended`): numbers are the CPU's, so results must be equal. What
only a real one can show is in tests/gpu.
"""

from collections import Counter
from functools import partial

import pytest
import torch

from offramp import record
from offramp._core.batch import to_device
from offramp._core.errors import InputError
from offramp.backends import with_backend
from offramp.backends.table import Backend, Kept
from offramp.data import CropAndFlip, arrays
from offramp.models import cifar_preresnet
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize, measure_flops
from offramp.testing import random_policy
from offramp.train import train_classifier, train_heads, train_joint
from offramp.train.class_exits.evidence import predictions
from offramp.tuning import measure_times, profile
from support.pretended import OnDevice, pretended

IMAGES = torch.randint(
    0, 256, (48, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
PART = arrays(IMAGES, [k % 4 for k in range(48)])


def normalize():
    return Normalize(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))


@pytest.fixture
def cascade():
    nets = {f"w{w}": cifar_preresnet(8, width=w / 16, classes=4).eval() for w in (2, 4)}
    return Cascade.from_models(nets, edges="full", transform=normalize())


def on_both(run):
    """What `run` gives for each device, and how often the host waited for the pretended one."""
    plain = run("cpu")
    with pretended() as waits:
        return plain, run("meta"), waits


def equal(found, plain):
    host = found.host if isinstance(found, OnDevice) else found
    torch.testing.assert_close(host, plain.detach(), rtol=1e-4, atol=1e-5)


def test_the_device_can_tell_that_two_are_mixed_and_that_somebody_waits():
    with pretended() as waits:
        there = torch.arange(3.0).to("meta")
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.arange(3.0)
        with pytest.raises(RuntimeError, match="not supported"):
            there.numpy()
        assert (there * 2).tolist() == [0, 2, 4]
        assert float(there[1]) == 1
        assert there[there > 1].cpu().tolist() == [2]
    assert waits["to the device"] == 1
    assert waits["tolist"] == 1
    assert waits["index"] == 1
    assert waits["to the host"] == 1


def test_a_copy_of_memory_that_is_not_pinned_does_not_wait(monkeypatch):
    with pretended() as waits:
        assert to_device({"a": torch.ones(2)}, "meta")["a"].device.type == "meta"
        assert not waits
        monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: True)  # its owner may write
        to_device(torch.ones(2), "meta")
        assert waits["to the device"] == 1


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_images_are_changed_where_they_are(where):
    change = CropAndFlip(padding=2)
    wanted = change(IMAGES, torch.Generator().manual_seed(3))
    with pretended() as waits:
        generator = torch.Generator(device=where).manual_seed(3)
        there = to_device(IMAGES, "meta")
        equal(change(there, generator), wanted)
    assert not waits or where == "cpu"


def steps_alike(run, of_steps):
    """Whether the host waits as often for many steps as for few."""
    waits = []
    for batch_size in of_steps:
        with pretended() as seen:
            run("meta", batch_size)
        waits.append(Counter(seen))
    return waits[0] == waits[1]


def trained(device, batch_size=8, transform=None, distill_from=None):
    net = cifar_preresnet(8, width=0.125, classes=4)
    losses = train_classifier(
        net,
        PART,
        epochs=1,
        seed=0,
        batch_size=batch_size,
        transform=transform or normalize(),
        augment=CropAndFlip(padding=1),
        distill_from=distill_from,
        device=device,
        progress=False,
    )
    return losses, net.linear.weight.detach()


@pytest.mark.parametrize("teacher", [None, cifar_preresnet(8, width=0.25, classes=4, seed=1)])
def test_a_classifier_trains_on_a_device_without_waiting_for_its_steps(teacher):
    run = partial(trained, distill_from=teacher)
    (losses, weights), (found, there), _ = on_both(run)
    assert found == pytest.approx(losses, rel=1e-4)
    equal(there, weights)
    assert steps_alike(run, (16, 4))


@pytest.mark.parametrize(
    "options",
    [  # one variant of the family here
        {"estimator": "reinforce", "answers": "combined"},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"estimator": "exact", "answers": "drawn"}, marks=pytest.mark.slow),
        pytest.param({"frozen": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_cascade_trains_on_a_device(options):
    def run(device, batch_size=16):
        nets = {f"w{w}": cifar_preresnet(8, width=w / 16, classes=4).eval() for w in (2, 4)}
        together = Cascade.from_models(nets, edges="full", transform=normalize())
        found = train_joint(
            together,
            PART,
            cost_weight=0.1,
            epochs=2,
            seed=0,
            warm_up=1,
            batch_size=batch_size,
            learning_rate=0.02,
            augment=None if "frozen" in options else CropAndFlip(padding=1),
            device=device,
            progress=False,
            **options,
        )
        return found.history[-1].loss, found.state["stages.1.module.linear.weight"]

    (loss, weights), (found, there), _ = on_both(run)
    assert found == pytest.approx(loss, rel=1e-3)
    equal(there, weights)
    assert "frozen" in options or steps_alike(run, (20, 10))  # those logits are kept


def test_rollouts_that_run_survivors_only_train_on_a_device():
    nets = {f"w{w}": cifar_preresnet(8, width=w / 16, classes=4).eval() for w in (2, 4)}
    with pretended():
        train_joint(
            Cascade.from_models(nets, edges="full", transform=normalize()),
            PART,
            cost_weight=0.1,
            epochs=1,
            seed=0,
            estimator="reinforce",
            rollouts="visited",
            device="meta",
            progress=False,
        )


@pytest.mark.parametrize("cached", [True, pytest.param(False, marks=pytest.mark.slow)])  # a variant
def test_heads_train_on_a_device(cached, tmp_path):
    net = cifar_preresnet(8, width=0.25, classes=4).eval()
    at = ["layer1.0", "layer2.0"]

    def run(device, batch_size=8):
        exits = Cascade.from_network(
            net.cpu(), at, head="gap_linear", example=IMAGES[:2], transform=normalize()
        )
        found = train_heads(
            exits,
            PART,
            epochs=1,
            seed=0,
            validation=0.25,
            batch_size=batch_size,
            cache=tmp_path / f"{device}{batch_size}" if cached else None,
            device=device,
            progress=False,
        )
        net.cpu()
        return found["layer1.0"].losses

    plain, found, _ = on_both(run)
    assert found == pytest.approx(plain, rel=1e-3)


def test_a_recording_and_a_model_answer_on_a_device_as_on_the_host(cascade):
    plain, found, _ = on_both(lambda device: record(cascade, PART, device=device, progress=False))
    equal(found.logits, plain.logits)
    cascade.to("cpu")
    for seed, combine in enumerate(("last", "mean", "log_linear")):
        policy = random_policy(cascade.topology, seed=seed, classes=4, combine=combine)
        model = Adaptive(cascade, policy, costs=plain.costs)
        wanted = model(IMAGES)
        with pretended() as waits:
            there = model.to("meta")
            waits.clear()
            answer = there(IMAGES)
            assert waits.total() - waits["tolist"] == 0
            assert waits["tolist"] <= len(cascade) - 1  # once for each stage with a decision
            assert answer.stage.tolist() == wanted.stage.tolist()
            equal(answer.log_probs, wanted.log_probs)
            for rows in (IMAGES[:0], IMAGES[:1], IMAGES[5:7]):
                assert len(there(rows).labels.tolist()) == len(rows)
            streamed = list(there.stream([IMAGES[:7], IMAGES[7:9]]))
            assert sum(len(ids) for ids, _ in streamed) == 9
            there.to("cpu")


def test_examples_that_lie_on_the_device_are_recorded(cascade):
    labels = torch.tensor([k % 4 for k in range(48)])
    with pretended():
        there = IMAGES.to("meta"), labels.to("meta")
        assert len(record(cascade, [there], device="meta", progress=False)) == 48
        assert len(record(cascade, arrays(*there), device="meta", progress=False)) == 48


def test_costs_times_and_profiles_of_a_cascade_on_a_device(cascade):
    plain = measure_flops(cascade, IMAGES[:1])
    policy = random_policy(cascade.topology, seed=0, classes=4)
    with pretended():
        cascade.to("meta")
        assert measure_flops(cascade, IMAGES[:1]).segment == plain.segment
        assert measure_times(cascade, IMAGES, batch_sizes=[1, 4], rounds=1, progress=False)
        assert profile(Adaptive(cascade, policy), IMAGES, batch_size=16, rounds=1).total_s > 0


def test_a_transform_is_shared_by_networks_on_two_devices():
    net, shared = cifar_preresnet(8, width=0.25, classes=4).eval(), normalize()
    wanted = predictions(net, PART, transform=shared)
    trained("cpu", transform=shared)
    with pretended():
        trained("meta", transform=shared)
        assert shared.mean.device.type == "cpu"  # it was copied
        there = predictions(net.to("meta"), PART, transform=shared)
        Cascade.from_models({"net": net}, transform=shared).to("meta")
        assert shared.mean.device.type == "meta"
        assert predictions(net.cpu(), PART, transform=shared).tolist() == wanted.tolist()
    assert there.tolist() == wanted.tolist()


def test_an_augmentation_that_draws_on_the_host_is_told_what_to_do():
    def change(images, generator):
        return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images, images.flip(3))

    net = cifar_preresnet(8, width=0.125, classes=4)
    with pretended(), pytest.raises(InputError, match=r"on meta, but raised RuntimeError"):
        train_classifier(net, PART, epochs=1, seed=0, augment=change, device="meta", progress=False)


def test_a_cascade_on_a_device_is_folded_there(cascade):
    wanted = cascade(IMAGES)
    with pretended():
        made = with_backend(cascade.to("meta"), "folded", example=IMAGES[:2])
        found = made(to_device(IMAGES, "meta"))
        cascade.to("cpu")
    torch.testing.assert_close(found.host, wanted, rtol=1e-3, atol=1e-4)


def test_a_runtime_of_the_host_is_given_what_lies_on_the_host(cascade, monkeypatch):
    tasks = []

    def build(task):
        tasks.append(task)
        return task.module

    host = Backend(build=build, is_there=lambda: True, whole=True, kept=Kept((), open=pytest.fail))
    monkeypatch.setattr("offramp.backends.build.backend_of", lambda name: host)
    wanted = cascade(IMAGES)
    with pretended():
        made = with_backend(cascade.to("meta"), "onnxruntime", example=IMAGES[:2])
        assert {task.inputs.device.type for task in tasks} == {"cpu"}
        assert cascade.stage(0).module.conv1.weight.is_meta
        torch.testing.assert_close(made(IMAGES), wanted, rtol=1e-4, atol=1e-5)
        cascade.to("cpu")
