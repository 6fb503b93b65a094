"""Class names that are none, and networks that do not answer for every example."""

import numpy as np
import pytest
import torch
from torch import nn

import offramp
from offramp._core.errors import InputError
from offramp.trace import from_losses

LINEAR = {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}


class Few(nn.Module):
    def forward(self, x):
        return x[1:, :3]


@pytest.mark.parametrize("names", [None, 3, "abc", [1, 2, 3]])
def test_class_names_are_texts_in_a_list(names):
    with pytest.raises(InputError, match="class_names must be"):
        offramp.Cascade.from_models(LINEAR, class_names=names)
    with pytest.raises(InputError, match="class_names must be"):
        offramp.Cascade(list(offramp.Cascade.from_models(LINEAR)), class_names=names)
    with pytest.raises(InputError, match="class_names must be"):
        offramp.Cascade.from_network(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(),
            exits=1,
            head="vector_linear",
            example=torch.zeros(1, 4),
            class_names=names,
        )


@pytest.mark.parametrize("which", ["a", "b"])
def test_a_network_that_leaves_out_examples_is_named(which):
    cascade = offramp.Cascade.from_models({**LINEAR, which: Few()})
    with pytest.raises(InputError, match=rf"Stage '{which}' must answer for each of the 5"):
        cascade(torch.zeros(5, 4))


@pytest.mark.parametrize("unit", [3, "", [], b"usd"])
def test_a_unit_is_a_text(unit):
    losses = np.zeros((5, 2))
    with pytest.raises(InputError, match="unit must be a text"):
        from_losses(losses, costs=losses, confidences=losses, unit=unit)
    with pytest.raises(InputError, match="unit must be a name"):
        offramp.Costs.simple(unit, [1.0, 2.0])
