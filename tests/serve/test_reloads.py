"""A model is loaded anew while requests for the old one are still on their way in."""

import http.client
import json

import pytest

from support.served import SECONDS, inputs_of, make_bundle, request_of, running, until

LOAD = "/v2/repository/models/net/load"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    bundle = make_bundle(tmp_path_factory.mktemp("reloads") / "net")
    with running({"net": bundle}) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/net/infer", request_of(inputs_of(2))),
        ("/predict", {"rows": inputs_of(2).tolist()}),
        ("/explain", {"rows": inputs_of(1).tolist()}),
        ("/v2/models/net/feedback", {"id": "nobody", "label": 0}),
    ],
)
def test_a_request_whose_body_comes_in_two_parts_is_answered_by_the_model_it_began_with(
    client, path, body
):
    whole = json.dumps(body).encode()
    held = client.serving.repository.get("net")
    connection = http.client.HTTPConnection(*client.address, timeout=SECONDS)
    connection.putrequest("POST", path)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(whole)))
    connection.endheaders()
    connection.send(whole[:5])
    until(lambda: held._users)
    assert client(LOAD, {})[0] == 200
    assert client.serving.repository.get("net") is not held
    connection.send(whole[5:])
    answer = connection.getresponse()
    said = json.loads(answer.read())
    assert answer.status == 200, said
    connection.close()
    until(lambda: not held._users)
    assert held.executor._closing  # and only now it is let go
