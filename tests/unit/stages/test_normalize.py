"""Normalization against the formula, one pixel at a time."""

import json

import pytest
import torch

from offramp._core.errors import FileFormatError, InputError
from offramp._core.schema import from_json, to_json
from offramp.stages import Normalize, Transform

CIFAR = Normalize(1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_each_channel_is_normalized_by_its_own_numbers():
    x = torch.randint(0, 256, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    x = x.to(torch.uint8)
    result = CIFAR(x)
    assert result.dtype == torch.float32
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        slow = (x[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(result[:, channel].double(), slow, atol=1e-5, rtol=0)


def test_one_number_serves_every_channel_and_any_number_of_axes():
    assert Normalize(2.0, mean=1.0, std=0.5)(torch.ones(2, 7)).tolist() == [[2.0] * 7] * 2


def test_it_survives_json():
    again = from_json(Transform, json.loads(json.dumps(to_json(CIFAR))))
    x = torch.rand(1, 3, 2, 2)
    assert torch.equal(again(x), CIFAR(x))


def test_its_numbers_are_no_weights():
    assert CIFAR.state_dict() == {}
    assert "0.485" in repr(CIFAR)


def test_wrong_numbers_are_refused():
    with pytest.raises(InputError, match=r"std must be greater than 0, got \(0\.0,\)"):
        Normalize(std=0.0)
    with pytest.raises(InputError, match="got 2 and 3"):
        Normalize(mean=[0.0, 0.0], std=[1.0, 1.0, 1.0])
    with pytest.raises(InputError, match=r"shape \(m, 3, \.\.\.\), got \(2, 4, 4, 3\)"):
        CIFAR(torch.zeros(2, 4, 4, 3))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"kind": "augment"},
        {"kind": "normalize", "gamma": 1.0},
        [],
        [{"kind": "normalize", "scale": 1.0}, {"kind": "augment"}],
        {"kind": "normalize", "scale": "x", "mean": [0.0], "std": [1.0]},
        {"kind": "normalize", "scale": 1.0, "mean": [0.0], "std": [-1.0]},
    ],
)
def test_a_description_that_does_not_fit_is_a_format_error(value):
    with pytest.raises(FileFormatError):
        from_json(Transform, value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": 0}, "scale must be other than 0"),
        ({"scale": "1/255"}, "scale must be a number"),
        ({"mean": "gray"}, "mean must be a number"),
        ({"std": ["a"]}, "std must be a number"),
        ({"domain": 1}, "domain must be"),
        ({"scale": 1 / 255, "mean": (123.7, 116.3, 103.5), "std": (58, 57, 57)}, "scaled"),
        ({"scale": 1 / 127.5, "mean": 127.5}, "scaled"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Normalize(**given)
