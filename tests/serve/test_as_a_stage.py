"""A server of ours is a stage of a cascade elsewhere."""

import torch

from offramp.adapters import from_http
from offramp.bundle import load
from support.served import inputs_of


def test_its_answers_are_those_of_the_bundle(client, bundle):
    x = inputs_of(20)
    stage = from_http(client.url, model="net", form="probabilities")
    assert stage.module.settings.binary
    assert stage.class_names == ("cat", "dog", "ox")
    try:
        found = stage.run(x)[0].logits
    finally:
        stage.module.close()
    torch.testing.assert_close(found, load(bundle)(x).log_probs)
