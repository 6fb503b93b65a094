"""Carries made smaller for a link: what arrives is what the plan has recorded."""

import numpy as np
import pytest

from offramp.edge import Client, Settings, split
from offramp.runtime import Adaptive
from offramp.tuning import rounded
from support import edged
from support.faulty import proxied
from support.served import running

DEVICE = ["layer1.0", "layer2.0"]
NEAR = {"float16": 1e-4, "int8": 5e-3}  # a last bit of the device may turn one level into the next


@pytest.fixture(scope="module")
def cascade():
    return edged.exits()


@pytest.mark.parametrize("send", NEAR)
def test_what_arrives_is_what_was_recorded(cascade, send, tmp_path):
    model = edged.model_of(cascade, edged.on_labels(cascade.topology))
    recorded = Adaptive(rounded(cascade, DEVICE, send), model.candidate, costs=model.costs)
    with edged.exported_once():
        made = split(model, tmp_path / "s", device=DEVICE, send=send, example=edged.images(1))
    x = edged.images(64)
    want, exact = recorded(x), model(x)
    link = {"latency": 0.002, "bandwidth": 1e6}
    with (
        running({"cloud": made.path / "cloud"}) as server,
        proxied(server.url, **link) as proxy,
    ):
        client = Client(made.path / "device", Settings(url=proxy.url, timeout=30.0))
        told = client(x.numpy())
        client.close()
        sent = proxy.bytes_up
    away = np.array([where == "cloud" for where in told.where])
    assert 8 < away.sum() < 60
    assert not told.offline.any()
    assert sent > away.sum() * made.bytes
    both = away & (want.stage == exact.stage).numpy()
    chances = want.log_probs.exp().numpy()
    error = np.abs(told.probabilities - chances)[both].max(axis=1)
    assert np.median(error) < NEAR[send] / 5
    assert error.max() < NEAR[send]
    apart = np.abs(told.probabilities - exact.log_probs.exp().numpy())[both].max(axis=1)
    assert np.median(error) < np.median(apart) / 2
    assert (told.label == want.labels.numpy())[both].mean() > 0.95
    np.testing.assert_allclose(told.probabilities[~away], chances[~away], atol=2e-5)


def test_what_is_sent_is_as_small_as_the_plan_says(cascade, tmp_path):
    policy = edged.on_labels(cascade.topology)
    made = {}
    with edged.exported_once():
        for send in ("float32", "float16", "int8"):
            model = edged.model_of(cascade, policy)
            made[send] = split(
                model, tmp_path / send, device=DEVICE, send=send, example=edged.images(1)
            ).bytes
    logits = 4 * edged.CLASSES * len(DEVICE)
    whole = made["float32"] - logits
    assert made["float16"] == logits + whole / 2
    assert made["int8"] == logits + whole / 4 + 4
