import pytest
import torch
from torch import nn

from offramp._core import device as module
from offramp._core.device import check_device
from offramp._core.errors import InputError
from offramp.stages import Cascade, measure_seconds


def test_a_device_comes_back_as_an_object():
    assert check_device("cpu") == check_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:x"])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(InputError, match=r"torch knows, such as 'cpu', 'cuda' or 'cuda:1', got"):
        check_device(device)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=r"got 'cuda': torch .* finds no GPU. Take 'cpu'"):
        check_device("cuda")
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 2)
    assert check_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match=r"got 'cuda:2': torch finds 2 GPUs, numbered from 0"):
        check_device("cuda:2")


def test_kinds_that_torch_names_and_this_machine_does_not_have_are_refused():
    for name in ("meta", "hpu"):  # without numbers; of a maker whose package is not here
        with pytest.raises(InputError, match=f"device must be on this machine .* got '{name}'"):
            check_device(name)


def test_nothing_has_been_moved_by_then(monkeypatch):
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 0)
    cascade = Cascade.from_models({"a": nn.Linear(4, 3)})
    with pytest.raises(InputError, match="device must be on this machine"):
        measure_seconds(cascade, torch.zeros(1, 4), device="cuda")
