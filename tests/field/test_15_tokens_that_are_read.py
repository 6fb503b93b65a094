"""Exits on tokens read what the network reads, the first, the last real one or the mean, and no
padding; the mask comes along to the head."""

import sys
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import offramp
from offramp._core.errors import InputError
from offramp.bundle import load, save
from offramp.data import arrays
from offramp.models import ModelSpec, build, head_arguments, token_linear
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade, attached, cut, cut_points, own_head
from offramp.testing import random_policy
from offramp.train import train_heads

VOCABULARY, LENGTH, WIDTH, CLASSES, PAD = 24, 10, 32, 3, 0
POLICIES = 1000


class Layer(nn.Module):
    """Each token gets the mean of those that it may see: all real ones, or no later ones."""

    def __init__(self, causal):
        super().__init__()
        self.values, self.causal = nn.Linear(WIDTH, WIDTH), causal

    def forward(self, x, real):
        seen = real[:, None, None, :].bool().expand(-1, -1, x.shape[1], -1)
        if self.causal:
            places = torch.ones_like(real).cumsum(dim=1)[:, None]
            seen = seen & (places[:, :, None, :] <= places[:, :, :, None])
        alike, values = torch.zeros_like(x)[:, None], self.values(x)[:, None]
        mixed = scaled_dot_product_attention(alike, alike, values, attn_mask=seen)
        return x + mixed.squeeze(1)


class Text(nn.Module):
    """A transformer of two layers that reads one vector of its tokens in the end.

    Args:
        reads: "first", "last", "mean", or "learned", which is none of these.
        causal: Whether a token sees only those before it.
        masked: Whether it is given a mask; else padding is a token like others.
    """

    def __init__(self, reads="last", causal=True, masked=True):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH, padding_idx=None if masked else PAD)
        self.layers = nn.ModuleList([Layer(causal), Layer(causal)])
        self.last, self.reads, self.masked = nn.Linear(WIDTH, CLASSES), reads, masked

    def forward(self, input_ids, attention_mask=None):
        real = attention_mask if self.masked else (input_ids != PAD).long()
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, real)
        return self.last(self.one(x, real))

    def one(self, x, real):
        if self.reads == "first":
            return x[:, 0]
        if self.reads == "last":
            last = (real * torch.ones_like(real).cumsum(dim=1)).argmax(dim=1)
            return x[torch.arange(x.shape[0]), last]
        if self.reads == "mean":
            return (x * real[:, :, None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
        weights = (x[:, :, 0] + (1 - real) * -1e9).softmax(dim=1)
        return torch.bmm(weights[:, None], x).flatten(1)


def text(**options):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return Text(**options).eval()


def texts(side="right", masked=True, n=600):
    """The class is a word anywhere between a first and a last one that all share; then padding."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % CLASSES
    ids = torch.randint(8, VOCABULARY, (n, LENGTH), generator=g)
    length = torch.randint(4, LENGTH + 1, (n,), generator=g)
    where = 1 + (torch.rand(n, generator=g) * (length - 2)).long()
    ids[:, 0] = ids[torch.arange(n), length - 1] = 1
    ids[torch.arange(n), where] = 2 + labels
    real = torch.arange(LENGTH) < length[:, None]
    ids = torch.where(real, ids, PAD)
    if side == "left":
        ids, real = ids.flip(1), real.flip(1)
    inputs = {"input_ids": ids, **({"attention_mask": real.long()} if masked else {})}
    return arrays(inputs, labels).split_into({"train": 0.7, "test": 0.3}, seed=0)


def exits(net, data, heads=None, **options):
    example = data.batch(0, 4).inputs
    return Cascade.from_network(net, ["layers.0"], head=heads, example=example, **options)


def trained(cascade, data, **options):
    candidates = {"epochs": 10, "seed": 0, "batch_size": 32, "learning_rate": 0.2}
    return train_heads(cascade, data.subset("train"), progress=False, **{**candidates, **options})


def accuracy(cascade, data):
    trained(cascade, data)
    return offramp.record(cascade, data.subset("test"), progress=False).accuracy(0)


def point_of(net, data):
    points = {p.name: p for p in cut_points(net, data.batch(0, 4).inputs)}
    return points["layers.0"].shape


# What the head reads by default.


@pytest.mark.parametrize("side", ["right", "left"])
def test_in_a_causal_network_the_default_head_reads_the_last_real_token_and_the_mean(side):
    data = texts(side)
    cascade = exits(text(), data)
    pool = cascade.stage(0).head.head.pool
    assert (pool.pooling, pool.mask) == ("last_and_mean", "attention_mask")
    assert accuracy(cascade, data) > 0.9


def test_the_first_token_of_a_causal_network_is_warned_about():
    data = texts()
    head = token_linear(WIDTH, CLASSES)
    with pytest.warns(UserWarning, match="'layers.0' reads the first token, which sees nothing"):
        exits(text(), data, {"layers.0": head})


@pytest.mark.parametrize("reads", ["first", "mean"])
def test_a_network_whose_tokens_see_each_other_is_read_as_it_reads_itself(reads):
    data = texts()
    cascade = exits(text(reads=reads, causal=False), data)
    pool = cascade.stage(0).head.head.pool
    assert (pool.pooling, pool.mask) == (reads, None if reads == "first" else "attention_mask")


def test_where_nobody_knows_it_is_the_mean_of_the_real_ones_with_a_warning():
    shape = point_of(text(reads="learned"), texts())
    with pytest.warns(UserWarning, match="Nothing tells which token .* their mean.*'last'"):
        found = head_arguments("token_linear", shape, CLASSES)
    assert (found["pooling"], found["mask"]) == ("mean", "attention_mask")
    said = head_arguments("token_linear", shape, CLASSES, pooling="last")
    assert (said["pooling"], said["mask"]) == ("last", "attention_mask")


def test_of_plain_sizes_nobody_knows_it_either():
    with pytest.warns(UserWarning, match="Nothing tells which token"):
        found = head_arguments("token_linear", (LENGTH, WIDTH), 3, layout="channels_last")
    assert found == {"features": WIDTH, "classes": 3, "pooling": "mean"}


def test_a_head_by_hand_that_takes_padding_for_tokens_is_warned_about():
    for pooling in ("mean", "last"):
        head = token_linear(WIDTH, CLASSES, pooling=pooling)
        with pytest.warns(UserWarning, match="padding for tokens. Give it mask='attention_mask'"):
            exits(text(), texts(), {"layers.0": head})


def test_without_a_mask_the_padding_token_tells():
    data = texts(masked=False)
    cascade = exits(text(masked=False), data)
    arguments = cascade.stage(0).head_spec.arguments
    assert (arguments["pooling"], arguments["mask"]) == ("last_and_mean", "input_ids")
    assert accuracy(cascade, data) > 0.9


class LookedUp(Text):
    """Looks the mask up by place, so that its graph never compares the two lengths."""

    def forward(self, input_ids, attention_mask):
        rows = torch.arange(input_ids.shape[0])[:, None]
        places = torch.arange(input_ids.shape[1])
        return super().forward(input_ids, attention_mask[rows, places])


def test_a_mask_that_is_only_looked_up_is_that_of_the_tokens():
    cascade = exits(LookedUp().eval(), texts())
    pool = cascade.stage(0).head.head.pool
    assert (pool.pooling, pool.mask) == ("last_and_mean", "attention_mask")


def test_a_mask_of_another_name_can_be_said():
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = text()

        def forward(self, ids, real):
            return self.net(ids, real)

    data = texts()
    ids, real = data.inputs["input_ids"], data.inputs["attention_mask"]
    head = token_linear(WIDTH, CLASSES, pooling="last", mask="input_1")
    net = Renamed().eval()
    cascade = Cascade.from_network(
        net, ["net.layers.0"], head={"net.layers.0": head}, example=(ids, real)
    )
    by_name = token_linear(WIDTH, CLASSES, pooling="last", mask="attention_mask")
    other = exits(text(), data, {"layers.0": by_name})
    assert torch.equal(cascade((ids, real))[:, 0], other(data.inputs)[:, 0])


def test_an_input_that_there_is_not_is_refused():
    head = token_linear(WIDTH, CLASSES, pooling="mean", mask="padding_mask")
    with pytest.raises(InputError, match=r"reads the input 'padding_mask', but .*'attention_mask'"):
        exits(text(), texts(), {"layers.0": head})


def test_a_mask_of_another_length_is_refused():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = text()
            self.repeat = nn.LayerNorm(WIDTH)

        def forward(self, input_ids, attention_mask):
            x = self.net.embed(input_ids)
            x = self.repeat(torch.cat([x, x], dim=1))
            return self.net.last(x.mean(dim=1) * attention_mask[:, :1])

    head = token_linear(WIDTH, CLASSES, pooling="mean", mask="attention_mask")
    example, net = texts().batch(0, 4).inputs, Doubled().eval()
    with pytest.raises(InputError, match=r"one place for each .*\(20,\) here, got \(10,\)"):
        Cascade.from_network(net, ["repeat"], head={"repeat": head}, example=example)
    default = Cascade.from_network(net, ["repeat"], example=example).stage(0).head_spec.arguments
    assert "mask" not in default


# The mask on its way.


def test_the_mask_is_carried_behind_everything_to_the_last_cut():
    data = texts()
    batch, at = data.batch(0, 6).inputs, ["layers.0", "layers.1"]
    segments = cut(text(), at, batch, keep=["attention_mask"])
    first = segments[0](**batch)
    second = segments[1](*first)
    assert torch.equal(first[-1], batch["attention_mask"])
    assert torch.equal(second[-1], batch["attention_mask"])
    rows = torch.tensor([4, 1])
    fewer = segments[2](*(part[rows] for part in second))
    torch.testing.assert_close(fewer, text()(**batch)[rows])


def test_features_without_padding_are_cached(tmp_path):
    data, net = texts(), text()
    wanted = trained(exits(net, data), data, epochs=2)
    found = trained(exits(net, data), data, epochs=2, cache=tmp_path, cache_dtype="float32")
    assert found["layers.0"].losses == wanted["layers.0"].losses


@pytest.fixture(scope="module")
def cascade_and_choice():
    """Two exits of which one keeps the mask, and a policy by which examples leave at each stage."""
    module = types.ModuleType("own_texts")
    module.make = text
    sys.modules["own_texts"] = module
    data, spec = texts(), ModelSpec(name="own_texts:make")
    batch = data.batch(0, 40).inputs
    heads = {
        "layers.0": ModelSpec(
            name="token_linear",
            arguments={
                "features": WIDTH,
                "classes": 3,
                "pooling": "last_and_mean",
                "mask": "attention_mask",
            },
        ),
        "layers.1": ModelSpec(
            name="token_linear",
            arguments={
                "features": WIDTH,
                "classes": 3,
                "pooling": "mean",
                "mask": "attention_mask",
            },
        ),
    }
    cascade = Cascade.from_network(build(spec), list(heads), head=heads, example=batch, spec=spec)
    part = cascade.topology.chain([0, 1, 2])
    drawn = (random_policy(part, seed=k, classes=3, linear=True) for k in range(POLICIES))
    policy = next(p for p in drawn if len(Adaptive(cascade, p)(batch).stage.unique()) == 3)
    yield cascade, Candidate(policy=policy, method="x", reference="last"), batch
    del sys.modules["own_texts"]


def test_who_leaves_takes_the_mask_along(cascade_and_choice):
    cascade, choice, batch = cascade_and_choice
    found = Adaptive(cascade, choice)(batch)
    alone = [
        Adaptive(cascade, choice)({k: v[[i]] for k, v in batch.items()}).log_probs for i in range(8)
    ]
    torch.testing.assert_close(found.log_probs[:8], torch.cat(alone), rtol=0, atol=1e-5)


def test_a_bundle_cuts_again_with_the_mask(cascade_and_choice, tmp_path):
    cascade, choice, batch = cascade_and_choice
    save(Adaptive(cascade, choice), tmp_path / "b")
    loaded = load(tmp_path / "b", allow_import=True)
    found, wanted = loaded(batch), Adaptive(cascade, choice)(batch)
    assert torch.equal(found.stage, wanted.stage)
    torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=0, atol=1e-5)


def test_a_bundle_that_does_not_say_what_its_heads_read_is_refused(cascade_and_choice):
    cascade, _, _ = cascade_and_choice
    with pytest.raises(InputError, match=r"reads the inputs \['attention_mask'\]"):
        attached(own_head(cascade.stage(0).head), cascade.stage(0).module)


def test_onnx_answers_as_the_runtime_does(cascade_and_choice, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from offramp.bundle import export_onnx

    cascade, choice, batch = cascade_and_choice
    export_onnx(Adaptive(cascade, choice), tmp_path / "x.onnx", example=batch)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"]
    )
    names = [out.name for out in session.get_outputs()]
    given = {k: v.numpy() for k, v in batch.items()}
    found = dict(zip(names, session.run(None, given), strict=True))
    wanted = Adaptive(cascade, choice)(batch)
    np.testing.assert_allclose(found["log_probs"], wanted.log_probs.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found["stage"], wanted.stage.numpy())


@pytest.mark.slow  # the exported file above has the same heads in ONNX: make test-slow
def test_another_runtime_hands_the_mask_to_the_head(cascade_and_choice, tmp_path):
    pytest.importorskip("onnxruntime")
    from offramp.backends import with_backend

    cascade, choice, batch = cascade_and_choice
    made = with_backend(cascade, "onnxruntime", example=batch)
    wanted = Adaptive(cascade, choice)(batch).log_probs
    torch.testing.assert_close(Adaptive(made, choice)(batch).log_probs, wanted, rtol=0, atol=1e-4)
    save(Adaptive(made, choice), tmp_path / "b")
    loaded = load(tmp_path / "b")(batch).log_probs
    torch.testing.assert_close(loaded, wanted, rtol=0, atol=1e-4)


# Networks of others.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_decoder_of_others_gets_an_exit_that_knows_the_text(kind):
    transformers = pytest.importorskip("transformers")
    data = texts()
    torch.default_generator.manual_seed(0)
    if kind == "llama":
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 48, "num_key_value_heads": 2}
        config = transformers.LlamaConfig(**sizes, vocab_size=VOCABULARY, pad_token_id=PAD)
    else:
        config = transformers.GPT2Config(
            n_embd=32, n_layer=3, n_head=2, vocab_size=VOCABULARY, pad_token_id=PAD
        )
    config.num_labels = CLASSES
    net = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    at = "model.layers.1" if kind == "llama" else "transformer.h.1"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        cascade = Cascade.from_network(net, [at], example=data.batch(0, 4).inputs)
    pool = cascade.stage(0).head.head.pool
    assert (pool.pooling, pool.mask) == ("last_and_mean", "attention_mask")
    assert accuracy(cascade, data) > 0.6
