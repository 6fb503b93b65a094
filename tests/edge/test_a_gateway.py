"""A device, a gateway and a cloud answer what the one model answers; without the cloud, two do."""

import json

import numpy as np
import pytest
import torch

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp.edge import Client, Settings, split
from offramp.edge.resume import EDGE, load_resumed
from offramp.models.absent import Absent
from offramp.runtime import Adaptive
from offramp.serve.run import Running
from offramp.serve.settings import Settings as Serving
from offramp.stages import Stage
from support import edged
from support.served import running

N = 48


@pytest.fixture(scope="module")
def model():
    cascade = edged.networks()
    return edged.model_of(cascade, edged.random_of("mean", 125)(cascade.topology))


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    """A split in three, and its gateway and cloud, which can be stopped."""
    path = tmp_path_factory.mktemp("three")
    places = Costs(
        unit="flops", segment=model.costs.segment, head=(0.0,) * 3, decision=(0.0,) * 3,
        places=(0, 1, 2), links=(1.0, 1.0),
    )  # fmt: skip
    placed = Adaptive(model.cascade, model.candidate, costs=places)
    with edged.exported_once():
        early = split(placed, path / "a", cloud_url="http://127.0.0.1:9", example=edged.images(1))
        cloud = Running({"cloud": early.path / "cloud"}, Serving(port=0))
        made = split(placed, path / "b", cloud_url=cloud.url, example=edged.images(1))
    assert early.id == made.id
    with running({"gateway": made.path / "gateway"}, allow_network=("127.0.0.1",)) as gateway:
        yield made, gateway, cloud
    cloud.stop()


def near(model, x):
    """Whose way depends on the last bits."""
    ways = [model(x * factor).stage for factor in (1.0, 1 + 1e-5, 1 - 1e-5)]
    return ((ways[0] != ways[1]) | (ways[0] != ways[2])).numpy()


def test_three_places_answer_what_the_model_answers_and_two_without_the_last(served, model):
    made, gateway, cloud = served
    assert (made.device, made.gateway, made.cloud) == (("a",), ("b",), ("c",))
    x = edged.images(N)
    want, keep = model(x), ~near(model, x)
    names = np.array([want.stage_names[k] for k in want.stage.tolist()])
    assert set(names) == {"a", "b", "c"}
    settings = Settings(url=gateway.url, model="gateway", timeout=30.0)
    client = Client(made.path / "device", settings)
    client.check()
    behind = Client(made.path / "device", Settings(url=cloud.url, timeout=30.0))
    with pytest.raises(InputError, match="where there is a gateway, ask that"):
        behind.check()
    behind.close()
    told = client(x.numpy())
    assert not told.offline.any()
    assert (np.array(told.stage) == names)[keep].all()
    assert (told.label == want.labels.numpy())[keep].all()
    chances = want.log_probs.exp().numpy()
    np.testing.assert_allclose(told.probabilities[keep], chances[keep], atol=2e-5)

    cloud.stop()
    told = client(x.numpy())
    client.close()
    silent = Stage("c", Absent(edged.CLASSES), classes=edged.CLASSES)
    stages = [stage if stage.name != "c" else silent for stage in model.cascade]
    alone = Adaptive(model.cascade.with_stages(stages), model.candidate)(x)
    away = (names == "c") & keep
    assert (told.label >= 0).all()
    assert (told.label == alone.labels.numpy())[keep].all()
    np.testing.assert_allclose(
        told.probabilities[keep], alone.log_probs.exp().numpy()[keep], atol=2e-5
    )
    assert {told.reason[k] for k in np.flatnonzero(away)} == {"failed"}
    assert "failed" not in {told.reason[k] for k in np.flatnonzero(~away & keep)}


def test_a_cloud_of_another_split_behind_a_gateway_is_named(model, tmp_path, caplog):
    places = {"device": ["a"], "gateway": ["b"], "example": edged.images(1)}
    other = edged.networks()
    with torch.no_grad():
        next(other.stage("c").parameters()).add_(1.0)
    with edged.exported_once():
        foreign = split(
            Adaptive(other, model.candidate),
            tmp_path / "a",
            cloud_url="http://127.0.0.1:9",
            **places,
        )
        with running({"cloud": foreign.path / "cloud"}) as cloud:
            mine = split(model, tmp_path / "b", cloud_url=cloud.url, **places)
            assert mine.id != foreign.id
            gateway = load_resumed(mine.path / "gateway", allow_network=("127.0.0.1",))
            asked = gateway.cascade.stages["c"].module
            for _ in range(2):
                assert asked(edged.images(2)).isnan().all()
    (said,) = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert f"input.{mine.id}" in said
    assert f"input.{foreign.id}" in said


def test_the_gateway_holds_its_own_network_alone(served):
    made, *_ = served
    sizes = {
        place: {f.name: f.stat().st_size for f in (made.path / place).glob("*.safetensors")}
        for place in ("gateway", "cloud")
    }
    assert set(sizes["cloud"]) == {"c.safetensors"}
    assert set(sizes["gateway"]) == {"a.safetensors", "b.safetensors"}
    assert sizes["gateway"]["a.safetensors"] < 200
    told = json.loads((made.path / "gateway" / EDGE).read_text())
    assert told["id"] == made.id
    assert told["offline"] == {}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"gateway": ["b"]}, "cloud_url"),
        ({"gateway": ["b"], "send": "float32", "cloud_url": "https://h"}, "send must be 'raw'"),
        ({"gateway": ["b", "c"], "cloud_url": "https://h"}, "device"),
        ({"gateway": "b", "cloud_url": "https://h"}, "the text"),
        ({"gateway": ["b"], "cloud_url": "https://h", "transform": False}, "transform must"),
    ],
)
def test_gateways_that_cannot_be_are_refused(model, tmp_path, given, named):
    with pytest.raises(InputError, match=named):
        split(model, tmp_path / "s", device=["a"], example=edged.images(1), **given)
