from contextlib import contextmanager

import pytest
import torch

from offramp._core.errors import InputError
from offramp.train.state import Numbers, check_finite, generator_for, seed_layers
from support.pretended import pretended


def finite(number):
    return check_finite(number, "loss", 0, {"learning_rate": 0.1})


def test_on_the_host_a_bad_number_is_refused_at_once():
    losses = Numbers(finite)
    losses.add(torch.tensor(1.5))
    with pytest.raises(InputError, match=r"loss became nan in epoch 1, with learning_rate=0\.1"):
        losses.add(torch.tensor(torch.nan))
    assert Numbers(finite).all() == []


def test_a_device_is_asked_for_many_numbers_at_once_and_for_the_rest_at_the_end():
    with pretended() as waits:
        losses = Numbers(finite)
        for k in range(70):
            losses.add(torch.full((), float(k), device="meta"))
        assert waits["tolist"] == 2
        assert losses.all() == [float(k) for k in range(70)]
        assert waits.total() == 3
        broken = Numbers(finite)
        broken.add(torch.full((), torch.inf, device="meta"))
        with pytest.raises(InputError, match="became inf"):
            broken.all()


def test_layers_are_seeded_on_the_device_that_they_are_on(monkeypatch):
    seen = []

    @contextmanager
    def there(device):
        seen.append(str(device))
        yield
        seen.append("out")

    monkeypatch.setattr(torch.cuda, "device", there)
    monkeypatch.setattr(torch.cuda, "manual_seed", seen.append)
    with torch.random.fork_rng(devices=[]):
        seed_layers(7, torch.device("cuda:1"))
        assert torch.initial_seed() == 7
    assert seen == ["cuda:1", 7, "out"]


def test_a_generator_is_on_the_device_that_is_asked_for():
    assert generator_for(0, "order").device.type == "cpu"
    with pretended():
        assert generator_for(0, "augment", device="meta").device.type == "meta"
