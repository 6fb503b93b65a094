"""Exits in a network that reads a mapping of tokens and a mask."""

import pytest
import torch
from torch import nn

import offramp
from offramp.data import arrays
from offramp.models import LayerShape, make_head
from offramp.stages import Cascade
from offramp.train import train_classifier, train_heads

TOKENS, WIDTH, LENGTH = 12, 16, 6
TOKENS_GIVEN = LayerShape((LENGTH, WIDTH), layout="channels_last")


class Reader(nn.Module):
    """Two layers over the mean of the tokens that the mask leaves."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, 2)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None]
        x = self.first(self.embed(input_ids))
        x = self.second(torch.relu(x))
        return self.last((x * mask).sum(dim=1) / mask.sum(dim=1))


@pytest.fixture(scope="module")
def part():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, TOKENS, (400, LENGTH), generator=generator)
    mask = torch.ones(400, LENGTH, dtype=torch.int64)
    mask[::3, 4:] = 0
    labels = ((ids < TOKENS // 2) * mask).sum(dim=1) * 2 > mask.sum(dim=1)
    return arrays({"input_ids": ids, "attention_mask": mask}, labels.long())


def test_a_text_model_is_trained_cut_and_recorded(part):
    net = Reader()
    with torch.random.fork_rng():
        losses = train_classifier(net, part, epochs=8, seed=0, learning_rate=0.02, progress=False)
    assert losses[-1] < 0.5 * losses[0]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    head = make_head("token_linear", TOKENS_GIVEN, 2, pooling="mean", mask="attention_mask")
    cascade = Cascade.from_network(
        net, ["first"], head={"first": head}, example=part.batch(0, 2).inputs
    )
    found = train_heads(cascade, part, epochs=5, seed=0, batch_size=32, progress=False)
    assert found["first"].accuracy > 0.6
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    trace = offramp.record(cascade, part, progress=False)
    with torch.inference_mode():
        own = net(**part.inputs)
    torch.testing.assert_close(trace.logits[:, 1], own, rtol=0, atol=1e-5)
    assert trace.accuracy(0) > 0.6


def test_the_cache_holds_pooled_tokens(part, tmp_path):
    def cascade():
        net = Reader().eval()
        nn.init.normal_(net.embed.weight, generator=torch.Generator().manual_seed(0))
        for layer in (net.first, net.second, net.last):
            nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
            nn.init.zeros_(layer.bias)
        head = make_head("token_linear", TOKENS_GIVEN, 2, pooling="mean", mask="attention_mask")
        example = part.batch(0, 2).inputs
        return Cascade.from_network(net, ["first"], head={"first": head}, example=example)

    options = {"epochs": 2, "seed": 0, "progress": False}
    wanted = train_heads(cascade(), part, **options)
    assert train_heads(cascade(), part, cache=tmp_path, cache_dtype="float32", **options) == wanted
