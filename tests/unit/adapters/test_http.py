"""A model on another server as a stage of a cascade."""

import json

import pytest
import torch
from torch import nn

from offramp._core.errors import InputError, ServiceError
from offramp.adapters import Limits, from_http
from offramp.policy import Constant, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade
from support.openai_server import StandIn

FAST = Limits(attempts=2, longest_wait=0.01)
TOLD = {
    "name": "net",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [
        {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "labels", "datatype": "INT64", "shape": [-1]},
        {"name": "confidence", "datatype": "FP32", "shape": [-1]},
    ],
    "parameters": {"class_names": ["a", "b", "c"]},
}


class Server(StandIn):
    """Runs a network; `change` spoils its answers."""

    def __post_init__(self):
        super().__post_init__()
        self.net, self.told, self.change = nn.Linear(4, 3).eval(), TOLD, lambda said: said
        self.sizes = []

    async def _answer(self, headers, body):
        if not body:
            return 200, {}, json.dumps(self.told).encode()
        if self.fixed is not None:
            return self.fixed
        asked = json.loads(body)["inputs"][0]
        x = torch.tensor(asked["data"]).reshape(asked["shape"])
        self.sizes.append(len(x))
        logits = self.net(x).detach()
        sure, labels = logits.softmax(1).max(1)
        parts = {
            "logits": (logits, "FP32"),
            "labels": (labels, "INT64"),
            "confidence": (sure, "FP32"),
        }
        said = {
            "outputs": [
                {"name": k, "shape": list(v.shape), "datatype": kind, "data": v.flatten().tolist()}
                for k, (v, kind) in parts.items()
            ]
        }
        return 200, {}, json.dumps(self.change(said)).encode()


def stage_of(server, **others):
    return from_http(server.url.removesuffix("/v1"), model="net", limits=FAST, **others)


def said(stage, x):
    try:
        return stage.run(x)[0]
    finally:
        stage.module.close()


def test_the_logits_are_those_of_the_network():
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    with Server() as server:
        stage = stage_of(server, max_batch=4)
        found = said(stage, x)
    torch.testing.assert_close(found.logits, server.net(x))
    assert sorted(server.sizes) == [2, 4, 4]
    assert (stage.name, stage.class_names) == ("net", ("a", "b", "c"))


def test_labels_with_confidences_are_read():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with Server() as server:
        found = said(stage_of(server, form="confidence"), x)
    assert found.ranked[:, 0].tolist() == server.net(x).argmax(dim=1).tolist()


@pytest.mark.parametrize("form", ["logits", "confidence"])
def test_classes_come_in_the_order_that_is_asked_for(form):
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    with Server() as server:
        plain = said(stage_of(server, form=form), x)
        stage = stage_of(server, form=form, class_names=["c", "a", "b"])
        turned = said(stage, x)
    assert stage.class_names == ("c", "a", "b")
    names = [[stage.class_names[k] for k in turned.top(1)[:, 0]], ["abc"[k] for k in plain.top(1)]]
    assert names[0] == names[1]
    if form == "logits":
        assert torch.equal(turned.logits, plain.logits[:, [2, 0, 1]])


def test_labels_that_name_no_class_stay_outside_in_another_order():
    def change(said):
        said["outputs"][1]["data"] = [0, 2, -1, 3]
        return said

    with Server() as server:
        server.change = change
        stage = stage_of(server, form="confidence", class_names=["c", "a", "b"])
        found = said(stage, torch.zeros(4, 4))
    labels = found.ranked[:, 0].tolist()
    assert labels == [1, 0, labels[2], 3]
    assert labels[2] < 0


@pytest.mark.parametrize(
    ("arguments", "told", "error"),
    [
        ({"class_names": ["a", "b", "d"]}, {}, r"\['c'\] are missing and \['d'\] are none"),
        ({"class_names": ["a", "b"]}, {}, "2 by the argument class_names, 3 by"),
        ({"classes": 7}, {}, "7 by the argument classes"),
        ({"classes": 7}, {"parameters": {}}, "7 by the argument classes, 3 by the width"),
        ({}, {"parameters": {"labels": list("abcd")}}, "4 by the class names in the metadata"),
        ({"classes": "3"}, {}, "classes must be an integer"),
        ({"classes": 0}, {}, "classes must be an integer"),
        ({"class_names": "abc"}, {}, "class_names must be a list"),
        ({"class_names": 5}, {}, "class_names must be a list"),
        ({"class_names": [1, 2, 3]}, {}, "class_names must be text"),
    ],
)
def test_classes_that_contradict_the_server_are_refused(arguments, told, error):
    with Server() as server:
        server.told = {**TOLD, **told}
        with pytest.raises(InputError, match=error):
            stage_of(server, **arguments)


def test_names_are_taken_in_the_order_of_a_server_that_tells_none():
    with Server() as server:
        server.told = {**TOLD, "parameters": {}}
        stage = stage_of(server, class_names=["c", "b", "a"])
        found = said(stage, torch.ones(1, 4))
    torch.testing.assert_close(found.logits, server.net(torch.ones(1, 4)))
    assert stage.class_names == ("c", "b", "a")


def fewer_rows(said):
    for output in said["outputs"]:
        output["data"] = output["data"][: -output["shape"][-1] if len(output["shape"]) == 2 else -1]
        output["shape"][0] -= 1
    return said


@pytest.mark.parametrize("change", [fewer_rows, lambda said: {}, lambda said: {"outputs": [1]}])
def test_answers_that_do_not_fit_are_none(change):
    with Server() as server:
        server.change = change
        stage = stage_of(server)
        found = said(stage, torch.zeros(2, 4))
    assert found.logits.isnan().all()
    assert stage.module.counts["failed"] == 1


def test_the_next_stage_answers_where_the_server_has_failed():
    with Server() as server:
        stage = stage_of(server)
        server.fixed = (500, {}, b"")
        cascade = Cascade.from_models({"far": stage, "here": nn.Linear(4, 3)})
        policy = Policy(cascade.topology, {(0,): Node(Constant(True))})  # who is answered stays
        answer = Adaptive(cascade, policy)(torch.zeros(2, 4))
        alone = Adaptive.single(cascade, "far")(torch.zeros(2, 4))
        stage.module.close()
    assert answer.valid.all()
    assert answer.stage.tolist() == [1, 1]
    assert alone.reasons == ["failed", "failed"]
    assert not alone.valid.any()


def test_metadata_that_do_not_tell_are_refused():
    with Server() as server:
        server.told = {**TOLD, "outputs": [{"name": "y", "shape": [-1, 2, 2]}]}
        with pytest.raises(InputError, match="output must name"):
            stage_of(server)
        server.told = {"error": "no"}
        with pytest.raises(InputError, match="outputs"):
            stage_of(server)
    with pytest.raises(ServiceError, match="no connection"):
        stage_of(server)
