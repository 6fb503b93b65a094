"""The protocol's standard client: JSON and binary, sync and async, against every address."""

import asyncio
import gc

import numpy as np
import pytest

from offramp.bundle import load
from support.served import inputs_of

http = pytest.importorskip("tritonclient.http")
aio = pytest.importorskip("tritonclient.http.aio")
utils = pytest.importorskip("tritonclient.utils")

OUTPUTS = ("label", "probabilities", "stage", "cost", "valid")


@pytest.fixture(scope="module")
def model(bundle):
    return load(bundle)


@pytest.fixture(autouse=True)
def collected():
    """Its clients do not like to be collected by another thread than their own."""
    yield
    gc.collect()


@pytest.fixture
def triton(client):
    with http.InferenceServerClient(client.url.removeprefix("http://"), concurrency=8) as found:
        yield found


def given(x, binary, kind=http):
    tensor = kind.InferInput("input", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x.numpy(), binary_data=binary)
    return [tensor]


def equals(result, answer):
    np.testing.assert_allclose(
        result.as_numpy("probabilities"), answer.log_probs.exp().numpy(), rtol=1e-5
    )
    assert result.as_numpy("label").tolist() == answer.labels.tolist()
    stages = [answer.stage_names[k] for k in answer.stage.tolist()]
    assert [as_text(name) for name in result.as_numpy("stage")] == stages
    assert result.as_numpy("cost").tolist() == answer.cost.tolist()
    assert result.as_numpy("valid").tolist() == answer.valid.tolist()
    return True


def as_text(value):
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_answers_in_all_forms(triton, model, binary_in, binary_out):
    x = inputs_of(30, seed=1)
    wanted = None
    if binary_out is not None:
        wanted = [http.InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS]
    result = triton.infer("net", given(x, binary_in), outputs=wanted, request_id="a")
    assert result.get_response()["id"] == "a"
    assert equals(result, model(x, [f"a/{k}" for k in range(30)]))


def test_it_asks_about_everything(triton):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("net")
    assert triton.is_model_ready("net", "1")
    assert triton.get_server_metadata()["name"] == "offramp"
    told = triton.get_model_metadata("net")
    assert told["inputs"][0] == {"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}
    assert triton.get_model_config("net")["max_batch_size"] == 1024
    (entry,) = triton.get_model_repository_index()
    assert (entry["name"], entry["state"]) == ("net", "READY")


def test_classes_come_with_their_names(triton, model):
    x = inputs_of(2)
    wanted = [http.InferRequestedOutput("probabilities", binary_data=True, class_count=1)]
    found = triton.infer("net", given(x, True), outputs=wanted).as_numpy("probabilities")
    answer = model(x)
    assert found.shape == (2, 1)
    for row, label in zip(found[:, 0], answer.labels.tolist(), strict=True):
        assert as_text(row).split(":")[1:] == [str(label), ("cat", "dog", "ox")[label]]


def test_priority_timeout_and_our_own_parameters(triton):
    x = inputs_of(5)
    asked = triton.infer(
        "net", given(x, True), priority=1, timeout=60_000_000, parameters={"max_cost": 1.0}
    )
    assert set(asked.as_numpy("cost").tolist()) == {1.0}


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_packed_requests_are_unpacked(triton, model, packed):
    x = inputs_of(3)
    result = triton.infer(
        "net",
        given(x, True),
        request_id="a",
        request_compression_algorithm=packed,
        response_compression_algorithm="gzip",
    )
    assert equals(result, model(x, [f"a/{k}" for k in range(3)]))


def test_many_at_the_same_time(triton, model):
    each = [inputs_of(1 + k % 5, seed=k) for k in range(24)]
    waiting = [
        triton.async_infer("net", given(x, True), request_id=str(k)) for k, x in enumerate(each)
    ]
    for k, (x, asked) in enumerate(zip(each, waiting, strict=True)):
        names = [str(k)] if len(x) == 1 else [f"{k}/{row}" for row in range(len(x))]
        assert equals(asked.get_result(), model(x, names))


@pytest.mark.parametrize("binary", [True, False])
def test_the_async_client(client, model, binary):
    x = inputs_of(4)

    async def ask():
        found = aio.InferenceServerClient(client.url.removeprefix("http://"))
        try:
            assert await found.is_server_ready()
            assert (await found.get_model_metadata("net"))["name"] == "net"
            return await asyncio.gather(
                *(found.infer("net", given(x, binary), request_id="a") for _ in range(8))
            )
        finally:
            await found.close()

    answer = model(x, [f"a/{k}" for k in range(4)])
    assert all(equals(result, answer) for result in asyncio.run(ask()))


def test_errors_come_as_its_own(triton):
    with pytest.raises(utils.InferenceServerException, match="nett"):
        triton.infer("nett", given(inputs_of(1), True))
    with pytest.raises(utils.InferenceServerException, match=r"must be \[-1, 1, 8, 8\]"):
        triton.infer("net", given(inputs_of(1)[:, :, :4], True))
    with pytest.raises(utils.InferenceServerException, match="priority must be"):
        triton.infer("net", given(inputs_of(1), True), priority=99)
