"""Classes in the order of a cascade, whatever a stage answers with."""

import numpy as np
import pandas as pd
import pytest
import torch
from tests.support import functions
from torch import nn

import offramp
from offramp._core.batch import RowList
from offramp._core.errors import InputError
from offramp.adapters import from_function, in_order
from offramp.models import InOrder, ModelSpec, build
from offramp.policy import Candidate
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


def test_other_names_and_services_are_refused():
    stage = Stage("a", Says(torch.zeros(4, 3)), class_names=NAMES)
    with pytest.raises(InputError, match=r"\['eel'\] are missing and \['emu'\] are none of its"):
        in_order(stage, ["cat", "dog", "emu"])
    twice = Stage("a", Says(torch.zeros(4, 3)), class_names=["crane", "crane", "cat"])
    with pytest.raises(InputError, match=r"several classes have one name: \['crane'\]"):
        in_order(twice, ["cat", "crane", "crane"])
    service = Says((LABELS, SURE))
    service.on_error = "next"
    asked = Stage("a", service, outputs="confidence", class_names=NAMES)
    for stage in (asked, Stage("a", Says(SURE), outputs="features", class_names=NAMES)):
        with pytest.raises(InputError, match="give class_names to its adapter"):
            in_order(stage, WANTED)
    for wrong, names in ((nn.Linear(2, 3), NAMES), (stage, 5), (stage, "abc"), (stage, [1, 2, 3])):
        with pytest.raises(InputError, match=r"stage must be a Stage|class_names must be"):
            in_order(wrong, names)


@pytest.mark.parametrize("answer", [LABELS, (LABELS, SURE), torch.eye(3)[[0, 1, 2, 0]]])
def test_labels_alone_are_turned(answer):
    stage = Stage("a", Says(answer), outputs="labels", class_names=NAMES)
    said = in_order(stage, WANTED).run(ROWS)[0].ranked[:3, 0]
    assert [WANTED[k] for k in said.tolist()] == NAMES


SCORES = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9], [0.5, 0.25, 0.25]]
#: What functions return, by the form of it, with its classes in the order of `NAMES`.
SAID = {
    "logits": [SCORES, np.array(SCORES), torch.tensor(SCORES), pd.DataFrame(SCORES)],
    "probabilities": [SCORES, pd.DataFrame(SCORES, columns=NAMES)],
    "confidence": [
        ([0, "dog", 2.0, None], [0.9, 0.8, 0.7, 0.0]),
        (np.array([0, 1, 2, -1]), np.array([0.9, 0.8, 0.7, 0.0])),
        {"labels": pd.Series(["cat", "dog", "eel", None]), "confidence": [0.9, 0.8, 0.7, 0.0]},
        {"labels": pd.Series([0, 1, 2, pd.NA], dtype="Int64"), "confidence": [0.9, 0.8, 0.7, 0.0]},
    ],
    "labels": [
        [0, 1, 2, 7],
        [0, 1],
        ("cat", "dog", "eel", "emu"),
        np.array(["cat", "dog", "eel", "emu"]),
        torch.tensor([[0, 1], [1, 2], [2, 0], [7, 0]]),
        [[0, 1], [1, 2], [2, 0], [7, 0]],
    ],
}


@pytest.mark.parametrize(("form", "said"), [(f, said) for f in SAID for said in SAID[f]])
def test_functions_are_turned_whatever_they_return(form, said):
    stage = from_function(lambda rows: said, outputs=form, class_names=NAMES)
    plain, turned = (one.run(RowList("abcd"))[0] for one in (stage, in_order(stage, WANTED)))
    if plain.logits is not None:
        assert torch.equal(turned.logits, plain.logits[:, [2, 0, 1]])
        return
    for before, after in zip(plain.ranked.flatten(), turned.ranked.flatten(), strict=True):
        inside = 0 <= before < 3
        assert WANTED[after] == NAMES[before] if inside else after == before
    if form == "confidence":
        assert torch.equal(turned.confidence, plain.confidence)


def test_a_function_in_order_stays_strict_and_goes_into_a_bundle(tmp_path):
    stage = from_function(functions.exact, outputs="confidence", class_names=functions.NAMES)
    turned = in_order(stage, functions.NAMES[::-1])
    cascade = offramp.Cascade.from_models({"a": turned, "b": turned})
    model = offramp.Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="b"))
    rows = ["x" * k for k in (1, 30, 60)]
    offramp.save(model, tmp_path / "bundle")
    again = offramp.load(tmp_path / "bundle", allow_import=True)
    assert again(rows).labels.tolist() == model(rows).labels.tolist()
    strict = from_function(lambda rows: [7], outputs="labels", class_names=NAMES, strict=True)
    with pytest.raises(InputError, match="Stage '<lambda>' gives the label 7"):
        in_order(strict, WANTED).run(RowList("a"))


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
