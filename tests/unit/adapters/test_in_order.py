"""Classes in the order of a cascade, whatever a stage answers with."""

import pytest
import torch
from torch import nn

from offramp._core.errors import InputError
from offramp.adapters import in_order
from offramp.models import InOrder, ModelSpec, build
from offramp.stages import Stage

NAMES, WANTED = ["cat", "dog", "eel"], ["eel", "cat", "dog"]


class Says(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, _):
        return self.answer


ROWS = torch.zeros(4, 1)
LABELS, SURE = torch.tensor([0, 1, 2, 7]), torch.tensor([0.9, 0.8, 0.7, 0.6])


@pytest.mark.parametrize(
    "answer", [(LABELS, SURE), {"labels": LABELS, "confidence": SURE, "prices": SURE.double()}]
)
def test_labels_are_turned_and_what_goes_along_stays(answer):
    stage = Stage("a", Says(answer), outputs="confidence", class_names=NAMES)
    said = in_order(stage, WANTED).run(ROWS)[0]
    assert [WANTED[k] for k in said.ranked[:3, 0].tolist()] == NAMES
    assert said.ranked[3, 0] == 7  # which is no class in either order
    assert torch.equal(said.confidence, SURE)
    if isinstance(answer, dict):
        assert said.prices.tolist() == SURE.double().tolist()


def test_probabilities_and_logits_are_turned():
    values = torch.tensor([[0.1, 0.2, 0.7]] * 4)
    for form in ("logits", "probabilities"):
        stage = Stage("a", Says(values), outputs=form, class_names=NAMES)
        turned = in_order(stage, WANTED).run(ROWS)[0].logits
        assert torch.equal(turned, stage.run(ROWS)[0].logits[:, [2, 0, 1]])


def test_what_has_no_names_takes_them_and_none_are_left_out():
    stage = Stage("a", Says(torch.zeros(4, 3)), classes=3)
    assert in_order(stage, NAMES).class_names == tuple(NAMES)
    assert in_order(in_order(stage, NAMES), []).class_names == ()
    assert in_order(stage, None) is stage
    with pytest.raises(InputError, match="must have 3 entries, got 2"):
        in_order(stage, ["a", "b"])


def test_other_names_and_labels_alone_are_refused():
    stage = Stage("a", Says(torch.zeros(4, 3)), class_names=NAMES)
    with pytest.raises(InputError, match=r"\['eel'\] are missing and \['emu'\] are none of its"):
        in_order(stage, ["cat", "dog", "emu"])
    twice = Stage("a", Says(torch.zeros(4, 3)), class_names=["crane", "crane", "cat"])
    with pytest.raises(InputError, match=r"several classes have one name: \['crane'\]"):
        in_order(twice, ["cat", "crane", "crane"])
    alone = Stage("a", Says(LABELS), outputs="labels", class_names=NAMES)
    with pytest.raises(InputError, match="give class_names to its adapter"):
        in_order(alone, WANTED)


def test_the_order_survives_in_a_spec_and_has_to_be_one():
    spec = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2, "classes": 3})
    stage = Stage("a", build(spec), spec=spec, class_names=NAMES)
    turned = in_order(stage, WANTED)
    again = build(turned.spec)
    again.load_state_dict(turned.module.state_dict())
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(again(images), stage.module(images)[:, [2, 0, 1]])
    with pytest.raises(InputError, match="each of 0 to c - 1 once"):
        InOrder(nn.Identity(), [0, 0, 1])
    with pytest.raises(InputError, match="an entry for each of the 4 classes"):
        InOrder(nn.Identity(), [0, 1, 2])(torch.zeros(1, 4))
