"""The Open Inference Protocol, asked by hand."""

import pytest
import torch

from offramp.bundle import load
from support.served import inputs_of, request_of, same

INFER = "/v2/models/net/infer"


@pytest.fixture(scope="module")
def model(bundle):
    return load(bundle)


def test_health_and_metadata_are_told(client):
    assert client("/v2/health/live")[::2] == (200, {"live": True})
    assert client("/v2/health/ready")[0] == 200
    status, _, told = client("/v2")
    assert status == 200
    assert told["name"] == "offramp"
    assert "binary_tensor_data" in told["extensions"]
    assert client("/v2/models")[2] == {"models": ["net"]}
    assert client("/v2/models/net/ready")[::2] == (200, {"name": "net", "ready": True})


def test_the_metadata_of_a_model_say_what_it_reads_and_answers(client):
    for path in ("/v2/models/net", "/v2/models/net/versions/1"):
        _, _, told = client(path)
        assert told["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
        outputs = {one["name"]: (one["datatype"], one["shape"]) for one in told["outputs"]}
        assert outputs["label"] == ("INT64", [-1])
        assert outputs["probabilities"] == ("FP32", [-1, 3])
        assert set(outputs) >= {"stage", "path", "cost", "gear", "reason", "valid", "confidence"}
        assert told["parameters"]["class_names"] == ["cat", "dog", "ox"]
        assert told["parameters"]["reference"] == "large"
    assert client("/v2/models/net/config")[2]["max_batch_size"] == 1024


def test_answers_are_those_of_the_model(client, model):
    x = inputs_of(200)
    outputs = client.infer(x, id="r")
    assert same(x, outputs, model, [f"r/{k}" for k in range(200)])
    assert set(outputs["stage"]) == {"small", "large"}
    assert set(outputs["path"]) == {"small", "small>large"}
    assert outputs["class_name"] == [("cat", "dog", "ox")[k] for k in outputs["label"]]
    assert outputs["valid"] == [True] * 200


def test_the_id_is_given_back_and_made_where_there_is_none(client):
    x = inputs_of(1)
    assert client(INFER, request_of(x, id="mine"))[2]["id"] == "mine"
    first, second = (client(INFER, request_of(x))[2]["id"] for _ in range(2))
    assert first != second


def test_only_outputs_that_are_wanted_come(client):
    body = request_of(inputs_of(2), outputs=[{"name": "label"}])
    assert [one["name"] for one in client(INFER, body)[2]["outputs"]] == ["label"]
    classes = {"name": "probabilities", "parameters": {"classification": 2}}
    (said,) = client(INFER, request_of(inputs_of(2), outputs=[classes]))[2]["outputs"]
    assert (said["datatype"], said["shape"]) == ("BYTES", [2, 2])
    value, index, name = said["data"][0].split(":")
    assert 0 <= float(value) <= 1
    assert name == ("cat", "dog", "ox")[int(index)]


def test_a_budget_and_a_deadline_are_said_in_the_answer(client):
    x = inputs_of(40)
    said = client.infer(x, parameters={"max_cost": 1.5})
    assert set(said["cost"]) == {1.0}
    assert "budget" in said["reason"]
    said = client.infer(x, parameters={"timeout": 60_000_000, "priority": 1})
    assert set(said["cost"]) == {1.0, 5.0}


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"parameters": {"priority": 10}}, 400, "priority must be a whole number in"),
        ({"parameters": {"priority": "1"}}, 400, "priority must be"),
        ({"parameters": {"timeout": -1}}, 400, "timeout must be a whole number of microseconds"),
        ({"parameters": {"timeout": 1.5}}, 400, "timeout must be"),
        ({"parameters": {"timeout": 1}}, 408, "time"),
        ({"parameters": {"max_cost": -1}}, 400, "max_cost must be a number"),
        ({"parameters": {"max_cost": 0.5}}, 400, "at least what the first stage costs, 1, got 0.5"),
        ({"parameters": {"gear": 5}}, 400, "gear must be the name"),
        ({"parameters": 5}, 400, "parameters must be an object"),
        ({"id": 5}, 400, "id must be a text"),
        ({"outputs": [{"name": "labels"}]}, 400, "outputs must be among"),
        ({"outputs": "label"}, 400, "outputs must be a list"),
        ({"outputs": [5]}, 400, "outputs[0] must be an object"),
        ({"outputs": [{"name": "label", "parameters": {"classification": 1}}]}, 400, "classific"),
        ({"inputs": []}, 400, "inputs must be a list of at least one"),
    ],
)
def test_what_a_request_must_not_say(client, change, status, said):
    found = client(INFER, {**request_of(inputs_of(1)), **change})
    assert found[0] == status
    assert said in found[2]["error"]


@pytest.mark.parametrize(
    ("x", "change", "said"),
    [
        (torch.zeros(1, 1, 8, 9), {}, "must be [-1, 1, 8, 8] (FP32, examples first), got [1, 1, 8"),
        (torch.zeros(64), {}, "must be [-1, 1, 8, 8]"),
        (torch.zeros(0, 1, 8, 8), {}, "at least one example"),
        (torch.zeros(1, 1, 8, 8), {"datatype": "FP64"}, "datatype must be FP32, got FP64"),
    ],
)
def test_inputs_of_another_form_are_refused(client, x, change, said):
    body = request_of(x)
    body["inputs"][0] |= change
    status, _, answer = client(INFER, body)
    assert status == 400
    assert said in answer["error"]


@pytest.mark.parametrize(
    ("path", "body", "method", "status", "said"),
    [
        ("/v2/models/nett", None, None, 404, "net"),
        ("/v2/models/net/versions/2", None, None, 404, "has no version '2'; it has '1'"),
        ("/v2/models/nett/infer", b"{}", None, 404, "net"),
        ("/v2/models/..%2f..%2fetc/infer", b"{}", None, 404, ""),
        ("/v2/models/net%00/infer", b"{}", None, 404, ""),
        ("/v2/repository/models/..%2f..%2fetc/load", b"{}", None, 404, ""),
        ("/nowhere", None, None, 404, "There is nothing at '/nowhere'"),
        (INFER, None, "GET", 405, "is not there for GET"),
        (INFER, None, "DELETE", 405, "is not there for DELETE"),
        (INFER, b"{", None, 400, "must be JSON"),
    ],
)
def test_addresses_that_are_none(client, path, body, method, status, said):
    found = client(path, body, method)
    assert found[0] == status
    assert said in found[2]["error"]


def test_a_body_of_another_type_is_refused(client):
    found = client(INFER, b"<a/>", headers={"Content-Type": "text/xml"})
    assert found[0] == 415
    assert "Content-Type must be application/json, got 'text/xml'" in found[2]["error"]


def test_the_raw_body_of_one_example_is_a_request(client, model):
    x = inputs_of(1)
    headers = {"Inference-Header-Content-Length": "0"}
    status, headers, said = client(INFER, x.numpy().tobytes(), headers=headers)
    assert status == 200
    length = int(headers["inference-header-content-length"])
    assert b'"model_name":"net"' in said[:length]
    status, _, said = client(INFER, b"abc", headers={"Inference-Header-Content-Length": "0"})
    assert (status, "must have 256 bytes" in said["error"]) == (400, True)
