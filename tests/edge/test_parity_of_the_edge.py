"""A device and its cloud answer what the one model answers, for every kind of policy."""

import functools
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from offramp.bundle import load
from offramp.edge import Client, Settings, split
from offramp.edge.resume import load_resumed
from offramp.runtime import Adaptive
from support import edged
from support.served import running

N = 33
CASES = {
    "labels, raw": (edged.exits, edged.on_labels, ["layer1.0", "layer2.0"], "raw"),
    "labels, carry": (edged.exits, edged.on_labels, ["layer1.0", "layer2.0"], "float32"),
    "an exit that is not used": (edged.exits, edged.skipping, ["layer1.0", "layer2.0"], "float32"),
    "stopping": (edged.exits, edged.stopping, ["layer1.0"], "float32"),
    "mean": (edged.exits, edged.random_of("mean", 20), ["layer1.0", "layer2.0"], "float32"),
    "networks, mean": (edged.networks, edged.random_of("mean", 125), ["a", "b"], "raw"),
    "networks, log_linear": (edged.networks, edged.random_of("log_linear", 3), ["a"], "raw"),
}
SLOW = ("stopping", "mean", "networks, log_linear")  # each has parts of its own to export
NAMES = [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES]


@pytest.fixture(scope="module")
def split_models(tmp_path_factory):
    """Each case: the model, and the folder of its parts."""
    place, made = tmp_path_factory.mktemp("edge"), {}
    cascades = {make: make() for make in (edged.exits, edged.networks)}
    policies = functools.cache(lambda make, policy: policy(cascades[make].topology))

    def split_model(name):
        if name not in made:
            make, policy, device, send = CASES[name]
            model = edged.model_of(cascades[make], policies(make, policy))
            folder = place / f"m{len(made)}"
            split(model, folder, device=device, send=send, example=edged.images(1))
            made[name] = (model, folder)
        return made[name]

    with edged.exported_once():
        yield split_model


@contextmanager
def both(folder):
    """The client of a split whose cloud runs."""
    with running({"cloud": folder / "cloud"}) as server:
        client = Client(folder / "device", Settings(url=server.url, timeout=30))
        try:
            yield client
        finally:
            client.close()


@pytest.mark.parametrize("name", NAMES)
def test_together_they_answer_what_the_model_answers(split_models, name):
    model, folder = split_models(name)
    with both(folder) as client:
        client.check()
        check_same(client, model, CASES[name][2])


def check_same(client, model, device):
    for n, seed in ((N, 0), (1, 1), (2, 2)):
        x = edged.images(n, seed)
        told, want = client(x.numpy()), model(x)
        near = _near_a_boundary(model, x)
        keep = np.flatnonzero(~near)
        assert len(keep) > n // 2
        chances = want.log_probs.exp().numpy()
        np.testing.assert_allclose(told.probabilities[keep], chances[keep], atol=2e-5)
        stages = [want.stage_names[k] for k in want.stage.tolist()]
        for k in keep:
            assert told.label[k] == want.labels[k]
            assert told.stage[k] == stages[k]
            assert told.reason[k] == want.reasons[k]
            assert (told.where[k] == "device") == (stages[k] in device)
        assert not told.offline.any()
    assert client.counts["device"], "nobody left on the device"
    assert client.counts["cloud"], "nobody went on to the cloud"


@pytest.mark.parametrize("name", NAMES)
def test_alone_the_device_answers_by_the_last_stage_that_it_ran(split_models, name):
    model, folder = split_models(name)
    x, client = edged.images(N), Client(folder / "device")
    told, want = client(x.numpy()), model(x)
    assert len(told) == N
    assert set(told.where) == {"device"}
    assert set(told.stage) <= {*CASES[name][2]}
    assert (told.label >= 0).all()
    assert told.offline.any()
    sent = np.array([s == "no cloud is given" for s in told.reason])
    assert (sent == told.offline).all()
    same = ~told.offline & ~_near_a_boundary(model, x)
    assert (told.label[same] == want.labels.numpy()[same]).all()


def test_what_is_not_finite_goes_on_as_it_does_in_the_runtime(split_models):
    model, folder = split_models("networks, mean")
    x = edged.images(8)
    x[3] = torch.nan
    with both(folder) as client:
        told, want = client(x.numpy()), model(x)
    assert told.label.tolist() == want.labels.tolist()
    assert told.label[3] == -1


def _near_a_boundary(model: Adaptive, x: torch.Tensor) -> np.ndarray:
    """Whose way depends on the last bits: other kernels may take another one."""
    answers = [model(x * factor).stage for factor in (1.0, 1 + 1e-5, 1 - 1e-5)]
    return ((answers[0] != answers[1]) | (answers[0] != answers[2])).numpy()


def test_a_network_cut_in_two_is_whole_in_the_cloud_and_a_server_keeps_its_own_part(split_models):
    model, folder = split_models("labels, carry")
    x = edged.images(N)
    whole = load(folder / "cloud")
    assert torch.equal(whole(x).path, model(x).path)
    torch.testing.assert_close(whole(x).log_probs, model(x).log_probs)
    served = load_resumed(folder / "cloud")
    sizes = {s.name: sum(p.numel() for p in s.parameters()) for s in model.cascade}
    held = {s.name: sum(p.numel() for p in s.parameters()) for s in served.cascade}
    device = CASES["labels, carry"][2]
    assert held == {name: 0 if name in device else size for name, size in sizes.items()}
