"""Types of tensors on their way to another server and back: kept, or refused."""

import json

import numpy as np
import pytest
import torch

from offramp._core.errors import InputError, ServiceError
from offramp._core.open_inference import WireTensor, read_message, write_message
from offramp.adapters import Limits, from_http
from offramp.stages import Normalize
from support.openai_server import StandIn

FAST = Limits(attempts=1, longest_wait=0.01)


class Server(StandIn):
    """Answers with `said`, a list of tensors; remembers what it was asked."""

    def __post_init__(self):
        super().__post_init__()
        self.inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        self.outputs = [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
        self.extensions, self.asked, self.said, self.raw = [], [], None, None
        self.metadata = None

    async def _answer(self, headers, body):
        if not body and self.metadata is not None:
            return 200, {}, self.metadata
        if not body:
            told = {"name": "net", "inputs": self.inputs, "outputs": self.outputs}
            return 200, {}, json.dumps({**told, "extensions": self.extensions}).encode()
        lower = {key.lower(): value for key, value in headers.items()}
        length = lower.get("inference-header-content-length")
        told, tensors = read_message(body, length, "inputs")
        self.asked.append((told, tensors))
        if self.raw is not None:
            return 200, {}, self.raw
        n = len(tensors[0].values)
        said = self.said or [logits(n)]
        binary = told.get("parameters", {}).get("binary_data_output", False)
        content, length = write_message({}, "outputs", said, binary=[binary] * len(said))
        return (
            200,
            {} if length is None else {"Inference-Header-Content-Length": str(length)},
            content,
        )


def logits(n, kind="FP32"):
    values = np.arange(3 * n).reshape(n, 3).astype(kind.replace("FP", "f4")[:2].lower())
    return WireTensor(name="logits", datatype=kind, values=values)


def stage_of(server, **others):
    return from_http(server.url.removesuffix("/v1"), model="net", limits=FAST, classes=3, **others)


def ask(stage, x):
    try:
        return stage.run(x)[0].logits
    finally:
        stage.module.close()


def test_tensors_go_in_binary_where_the_server_reads_them_so():
    x = torch.randn(2, 4)
    with Server() as server:
        plain = ask(stage_of(server), x)
        server.extensions = ["binary_tensor_data"]
        stage = stage_of(server)
        assert torch.equal(ask(stage, x), plain)
    (_, (json_x,)), (_, (binary_x,)) = server.asked
    assert "binary_data_size" not in json_x.parameters
    assert binary_x.parameters["binary_data_size"] == 32
    assert np.array_equal(binary_x.values, x.numpy())
    assert stage.module.settings.binary


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("UINT8", torch.tensor([[0.5, 1, 2, 3]])),
        ("UINT8", torch.tensor([[0, 1, 2, 300]])),
        ("UINT8", torch.tensor([[0.0, 1, 2, 3]])),
        ("INT64", torch.tensor([[0.0, 1, 2, 3]])),
        ("FP32", torch.zeros(1, 4, dtype=torch.float64)),
        ("FP32", torch.zeros(1, 4, dtype=torch.int64)),
        ("FP16", torch.zeros(1, 4)),
        ("BOOL", torch.zeros(1, 4)),
    ],
)
def test_what_an_input_cannot_hold_is_refused(kind, values):
    with Server() as server:
        server.inputs[0]["datatype"] = kind
        with pytest.raises(InputError, match=f"'x' of the server must be {kind}, which cannot"):
            ask(stage_of(server), values)
    assert not server.asked


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("UINT8", torch.tensor([[0, 1, 2, 255]])),
        ("INT32", torch.tensor([[0, 1, 2, 3]])),
        ("FP32", torch.zeros(1, 4, dtype=torch.uint8)),
        ("FP64", torch.zeros(1, 4)),
    ],
)
def test_what_an_input_can_hold_goes_as_it_is(kind, values):
    with Server() as server:
        server.inputs[0]["datatype"] = kind
        assert ask(stage_of(server), values).isfinite().all()
    assert server.asked[0][1][0].values.tolist() == values.tolist()


def test_a_transform_converts_where_that_is_meant():
    with Server() as server:
        stage = stage_of(server, transform=Normalize(1 / 255))
        assert ask(stage, torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()


def test_outputs_of_whole_numbers_are_no_logits():
    with Server() as server:
        server.outputs[0]["datatype"] = "INT64"
        for output in (None, "logits"):
            with pytest.raises(InputError, match=r"Whole numbers are no logits|output must name"):
                stage_of(server, output=output)
        server.outputs[0]["datatype"] = "FP32"
        stage = stage_of(server)
        server.said = [WireTensor(name="logits", datatype="INT64", values=np.zeros((2, 3), int))]
        assert ask(stage, torch.zeros(2, 4)).isnan().all()
    assert any("of type INT64" in why for why in stage.module.counts)


def test_probabilities_are_not_taken_for_logits():
    with Server() as server:
        server.outputs[0]["name"] = "probabilities"
        with pytest.raises(InputError, match="form='probabilities'"):
            stage_of(server)
        stage = stage_of(server, form="probabilities")
        values = np.array([[0.5, 0.25, 0.25]], dtype="float32")
        server.said = [WireTensor(name="probabilities", datatype="FP32", values=values)]
        found = ask(stage, torch.zeros(1, 4))
    torch.testing.assert_close(found.exp(), torch.from_numpy(values))


@pytest.mark.parametrize("raw", [b"[" * 100_000, b"{}", b"\xff", b'{"outputs": [{}]}'])
def test_answers_that_are_none_count_as_failures(raw):
    with Server() as server:
        stage = stage_of(server)
        server.raw = raw
        assert ask(stage, torch.zeros(2, 4)).isnan().all()
    assert stage.module.counts["failed"] == 1


@pytest.mark.parametrize("url", [5, None, "", "http://[", "https://a:b", "ftp://a", b"https://a"])
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(InputError, match="url must be an address"):
        from_http(url, model="net")


@pytest.mark.parametrize("transform", [5, "Resize", {"kind": "resize"}])
def test_transforms_that_are_none_are_refused(transform):
    said = r"transform must be a module,? or a li"
    with Server() as server, pytest.raises(InputError, match=said):
        stage_of(server, transform=transform)


def test_metadata_that_are_nested_too_deep_are_refused():
    with Server() as server:
        server.metadata = b"[" * 100_000
        with pytest.raises(ServiceError, match="no JSON object"):
            stage_of(server)
