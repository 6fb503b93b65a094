"""What is known of a model while it is served: metrics, audits, late labels, alarms, gears held."""

import pytest
import torch
from torch import nn

from offramp._core.costs import Costs
from offramp.policy import Candidate
from offramp.policy.promise import Guarantee, Limit
from offramp.runtime import Adaptive
from offramp.serve import model as served_model
from offramp.stages import Cascade
from support.served import inputs_of, make_bundle, request_of, running, until

INFER = "/v2/models/net/infer"


class Shifted(nn.Module):
    """Says the class that the first number names, or the next one."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return nn.functional.one_hot((x[:, 0].long() + self.by) % 3, 3).float() * 9


class Choice:
    """A choice with a promise that does not hold: the cheap stage is always wrong."""

    sentence, numbers = "Chosen.", {}

    def __init__(self, topology):
        self.candidate = Candidate.single(topology, "cheap", reference="dear")
        self.guarantee = Guarantee(
            limits=(Limit(risk="disagreement", at_most=0.05),),
            delta=0.1,
            p_value=0.01,
            tested=1,
            n=100,
            split="calibrate",
            fingerprint="0" * 64,
            class_weights=None,
            assumptions=("None.",),
        )


@pytest.fixture
def broken(monkeypatch):
    cascade = Cascade.from_models(
        {"cheap": Shifted(1), "dear": Shifted(0)}, class_names=("cat", "dog", "ox")
    )
    for stage in cascade:
        stage.keeps_company = True
    costs = Costs.simple("flops", [1.0, 4.0])
    model = Adaptive(cascade, Choice(cascade.topology), costs=costs)
    monkeypatch.setattr(served_model, "load_resumed", lambda *_, **__: model)
    return model


def figures(client, token=None):
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    status, headers, text = client("/metrics", headers=headers)
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def rows(n):
    return torch.arange(n * 3).reshape(n, 3).float() % 3


@pytest.mark.parametrize(("on_alarm", "label"), [("reference", 0), ("keep", 1)])
def test_a_broken_promise_raises_an_alarm_and_the_reference_answers(
    broken, tmp_path, on_alarm, label
):
    with running({"net": tmp_path}, audit=1.0, on_alarm=on_alarm) as client:
        assert client("/v2/models/net/stats")[2]["alarms"] == []

        def raised():
            client.infer(rows(20))
            return client("/v2/models/net/stats")[2]["alarms"]

        until(raised)
        assert client.infer(rows(1))["label"] == [label]
        stats = client("/v2/models/net/stats")[2]
        assert stats["audits"]["differ"] == stats["audits"]["compared"] > 0
        held = figures(client)
        assert held['offramp_alarm{kind="promise",model="net"}'] == 1.0
        capital = 'offramp_audit_capital{gear="model",model="net",risk="disagreement <= 0.05"}'
        assert any(name.startswith("offramp_audit_capital{") for name in held), capital


def test_late_labels_count_by_the_ids_of_answers(broken, tmp_path):
    with running({"net": tmp_path}, audit=1.0) as client:
        client(INFER, request_of(rows(2), id="mine"))
        until(lambda: client("/v2/models/net/stats")[2]["audits"]["compared"] == 2)
        path = "/v2/models/net/feedback"
        assert client(path, {"ids": ["mine/0", "mine/1"], "labels": ["cat", 2]})[0] == 200
        assert client(path, {"id": "other", "label": 0})[2] == {"counted": 0, "unknown": 1}
        for body, said in (
            ({"id": "mine/0"}, "must have the fields"),
            ({"id": 5, "label": 0}, "ids must be texts"),
            ({"id": "a", "label": 1.5}, "labels must be names or numbers"),
            ({"id": "a", "label": "cow"}, "cow"),
            ({"id": "a", "label": 7}, "labels must be names of classes or integers"),
            ({"ids": ["a"], "labels": []}, "labels must be one for each id"),
            ({"ids": 5, "labels": []}, "must be lists"),
            ([], "must be a JSON object"),
        ):
            status, _, answer = client(path, body)
            assert (status, said in answer["error"]) == (400, True), answer


def test_what_is_counted(bundle):
    with running({"net": bundle}, token="secret", max_rows=8) as client:
        bearer = {"Authorization": "Bearer secret"}
        assert client("/metrics")[0] == 401
        for n in (3, 4):
            assert client(INFER, request_of(inputs_of(n)), headers=bearer)[0] == 200
        assert client(INFER, request_of(inputs_of(9)), headers=bearer)[0] == 413
        assert client(INFER, b"{", headers=bearer)[0] == 400
        assert client("/predict", b"{", headers=bearer)[0] == 400
        assert client("/v2/models/nett/infer", b"{", headers=bearer)[0] == 404
        held = figures(client, "secret")
    examples = [v for k, v in held.items() if k.startswith("offramp_examples_total{")]
    assert sum(examples) == 7
    assert held['offramp_refused_total{model="net",why="invalid"}'] == 3
    assert held['offramp_request_duration_seconds_count{model="net"}'] == 2
    assert held['offramp_stage_batch_size_count{model="net",stage="small"}'] >= 2
    assert held['offramp_queue_examples{model="net",stage="small"}'] == 0
    assert held['offramp_cost_total{model="net",unit="flops"}'] >= 7
    assert not any("nett" in name for name in held)


def test_what_was_watched_survives_a_restart_and_a_swap(broken, tmp_path):
    watch = tmp_path / "watch"
    watch.mkdir()
    with running({"net": tmp_path}, audit=1.0, watch=watch) as client:
        client(INFER, request_of(rows(10)))
        until(lambda: client("/v2/models/net/stats")[2]["audits"]["compared"] == 10)
        before = client("/v2/models/net/stats")[2]["promises"]
        assert client("/v2/repository/models/net/load", b"")[0] == 200
        assert client("/v2/models/net/stats")[2]["promises"] == before
    with running({"net": tmp_path}, audit=1.0, watch=watch) as client:
        assert client("/v2/models/net/stats")[2]["promises"] == before


def test_a_model_without_gears_cannot_hold_one(client):
    status, _, said = client("/v2/models/net/gear", {"gear": "fast"})
    assert (status, "has no gears" in said["error"]) == (400, True)


# ---- coming and going


def test_a_model_is_replaced_unloaded_and_loaded_while_requests_come(tmp_path):
    path = make_bundle(tmp_path / "net")
    with running({"net": path, "other": path}) as client:
        found, asked = [], 0
        for verb in ("load", "unload", "load", "load"):
            status, _, said = client(f"/v2/repository/models/net/{verb}", b"")
            assert status == 200, said
            for _ in range(3):
                found.append(client(INFER, request_of(inputs_of(2)))[0])
                asked += 1
            assert client("/v2/models/other/infer", request_of(inputs_of(2)))[0] == 200
        assert found == [200] * 3 + [503] * 3 + [200] * 6
        assert client("/v2/models/net")[2]["versions"] == ["4"]
        index = client("/v2/repository/index", b"")[2]
        assert [(one["name"], one["state"]) for one in index] == [
            ("net", "READY"),
            ("other", "READY"),
        ]
        status, _, said = client("/v2/repository/models/nett/load", b"")
        assert (status, "net" in said["error"]) == (404, True)
        assert client("/v2/repository/models/net/unload", b"")[0] == 200
        (gone, _) = client("/v2/repository/index", b"")[2]
        assert (gone["state"], gone["reason"]) == ("UNAVAILABLE", "it was unloaded")
        assert client("/v2/models/net/ready")[0] == 503
        assert not any('model="net"' in name for name in figures(client))
