"""Stages that come ready into a cascade, and the names of their classes."""

import pytest
import torch
from torch import nn

from offramp import Cascade, Stage
from offramp._core.errors import InputError


def ready(names=("cat", "dog", "owl"), **options):
    return Stage("any", nn.Linear(4, 3), class_names=names, **options)


def test_a_stage_gets_the_name_under_which_it_is_given():
    cascade = Cascade.from_models({"small": nn.Linear(4, 3), "large": ready()})
    assert cascade.topology.names == ("small", "large")
    assert cascade.class_names == ("cat", "dog", "owl")
    assert cascade(torch.zeros(2, 4)).shape == (2, 2, 3)


def test_it_keeps_its_own_transform():
    half = nn.Hardtanh(0, 0.5)
    cascade = Cascade.from_models(
        {"a": nn.Linear(4, 3), "b": ready(transform=half)}, transform=None
    )
    assert cascade.stage("b").transform is half
    with pytest.raises(InputError, match="transform must not name"):
        Cascade.from_models({"b": ready()}, transform={"b": half})


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("dog", "cat", "owl"), "class 0 is 'dog' there and 'cat' here"),
        (("cat", "dog", "fox"), "owl"),
    ],
)
def test_classes_in_another_order_are_refused(names, what):
    with pytest.raises(InputError, match=what):
        Cascade.from_models({"a": ready(), "b": ready(names)})
