"""Gears behind HTTP: asked for, held, and moved along under load; only those with a promise."""

import threading
import time

import pytest
import torch
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.policy import Candidate, Feature, Linear, Node, Policy
from offramp.policy.gears import Gear, Gears
from offramp.policy.promise import Guarantee, Limit
from offramp.runtime import Adaptive
from offramp.serve import model as served_model
from offramp.stages import Cascade
from support.served import SECONDS, request_of, running, same, until

INFER = "/v2/models/net/infer"


class Net(nn.Module):
    """Row by row; takes some milliseconds."""

    def __init__(self, k):
        super().__init__()
        self.k, self.seconds = k, 0.0

    def forward(self, x):
        time.sleep(self.seconds)
        return torch.sin(x * (self.k + 2)) * 4


def promised(drop):
    return Guarantee(
        limits=(Limit(risk="accuracy_drop", at_most=drop),),
        delta=0.1,
        p_value=0.01,
        tested=3,
        n=100,
        split="calibrate",
        fingerprint="0" * 64,
        class_weights=None,
        assumptions=("None.",),
    )


def make():
    topology = Topology.of(["a", "b"])
    cascade = Cascade.from_models({"a": Net(0), "b": Net(1)})
    for stage in cascade:
        stage.keeps_company = True
    node = Node(Linear.threshold(Feature("max_prob", 0), 0.9))
    policy = Policy(topology, {(0,): node})
    two = Candidate(policy=policy, method="threshold", reference="b")
    held = [
        Gear(name=name, candidate=candidate, guarantee=promise, sentence="", cost_ratio=ratio)
        for name, candidate, promise, ratio in (
            ("reference", Candidate.single(topology, "b", reference="b"), None, 1),
            ("careful", two, promised(0.01), 0.7),
            ("fast", Candidate.single(topology, "a", reference="b"), promised(0.05), 0.2),
        )
    ]
    gears = Gears(delta=0.1, held=tuple(held))
    costs = Costs.simple("flops", [1.0, 4.0])
    return Adaptive(cascade, gears["careful"], costs=costs, gears=gears)


@pytest.fixture
def model(monkeypatch):
    found = make()
    monkeypatch.setattr(served_model, "load_resumed", lambda *_, **__: found)
    return found


def rows(n, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


def ask(client, x, **parameters):
    status, _, said = client(INFER, request_of(x, id="a", parameters=parameters))
    assert status == 200, said
    return {one["name"]: one["data"] for one in said["outputs"]}, said["parameters"]


@pytest.mark.parametrize("gear", [None, "reference", "careful", "fast"])
def test_a_request_may_name_its_gear(model, tmp_path, gear):
    x, names = rows(6), [f"a/{k}" for k in range(6)]
    with running({"net": tmp_path}, gears="off") as client:
        outputs, said = ask(client, x, **({} if gear is None else {"gear": gear}))
        wanted = gear or "careful"
        assert same(x, outputs, model.in_gear(wanted), names)
        assert set(outputs["gear"]) == {wanted}
        assert said["gear"] == wanted
        if wanted == "reference":
            assert "promise" not in said
        else:
            drop = {"careful": "1 point", "fast": "5 points"}[wanted]
            promise = f"loses at most {drop} of accuracy against b alone, with probability at lea"
            assert said["promise"].startswith(promise)
        told = client("/v2/models/net")[2]["parameters"]
        assert list(told["gears"]) == ["reference", "careful", "fast"]
        assert told["gear"] == "careful"


def test_a_gear_that_is_none_is_refused_with_the_near_one(model, tmp_path):
    with running({"net": tmp_path}) as client:
        body = request_of(rows(1), parameters={"gear": "fats"})
        status, _, said = client(INFER, body)
    assert status == 400
    assert "gear must be one of ['reference', 'careful', 'fast'], got 'fats'" in said["error"]
    assert "Did you mean 'fast'?" in said["error"]


def test_one_gear_is_held_where_that_is_asked_for(model, tmp_path):
    with running({"net": tmp_path}, gears="fast") as client:
        assert ask(client, rows(2))[1]["gear"] == "fast"
        assert ask(client, rows(2), gear="careful")[1]["gear"] == "careful"


def test_gears_of_a_bundle_without_are_refused(bundle):
    for wanted in ("on", "fast"):
        said = "gears must be 'auto' or 'off' for a bundle without"
        with pytest.raises(InputError, match=said), running({"net": bundle}, gears=wanted):
            pass
    with running({"net": bundle}, gears="auto") as client:
        assert "gears" not in client("/v2/models/net")[2]["parameters"]


def test_under_load_it_moves_to_a_cheaper_gear_and_back_and_never_beyond(model, tmp_path):
    slow = model.cascade.stage("b").module
    with running({"net": tmp_path}, gears="on", deadline=0.2) as client:
        served = client.serving.repository.get("net")
        served.controller._up_after = served.controller._patience = 0.3
        assert served.controller.gear == "careful"
        slow.seconds, found, stop = 0.05, [], threading.Event()

        def load(seed):
            while not stop.is_set():
                body = request_of(rows(64, seed), parameters={"timeout": 60_000_000})
                status, _, said = client(INFER, body)
                assert status == 200, said
                found.append(said["parameters"]["gear"])

        threads = [threading.Thread(target=load, args=(k,), daemon=True) for k in range(12)]
        for thread in threads:
            thread.start()
        until(lambda: "fast" in found)
        stop.set()
        for thread in threads:
            thread.join(SECONDS)
        slow.seconds = 0.0
        until(lambda: served.controller.gear == "careful")
        assert ask(client, rows(2))[1]["gear"] == "careful"
    assert set(found) <= {"careful", "fast"}  # those that are promised
