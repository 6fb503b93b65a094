"""Texts of other lengths than the example's: answered as the network does, in every runtime."""

import importlib.util

import pytest
import torch
from torch import nn

import offramp
from offramp._core.errors import InputError
from offramp.backends import with_backend
from offramp.bundle import export_onnx
from offramp.models import ModelSpec
from offramp.policy import Candidate, Feature, Linear, Node, Policy
from offramp.runtime import Adaptive

WORDS, PLACES, WIDTH = 50, 32, 16
HEAD = ModelSpec(
    name="token_linear",
    arguments={"features": 3 * WIDTH, "classes": 4, "pooling": "mean", "mask": "mask"},
)


class Reader(nn.Module):
    """Embeds, attends where the mask allows it, and pools by the mask."""

    def __init__(self):
        super().__init__()
        self.e, self.p = nn.Embedding(WORDS, WIDTH), nn.Embedding(PLACES, WIDTH)
        self.q, self.m = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.f = nn.Linear(WIDTH, 4)

    def forward(self, ids, mask):
        x = self.e(ids) + self.p(torch.arange(ids.shape[1], device=ids.device))
        q, k, v = self.q(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / 4 - 1e9 * (1 - mask[:, None].to(x.dtype))
        x = torch.tanh(self.m(scores.softmax(-1) @ v)) + x
        return self.f((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def texts(n, t):
    generator = torch.Generator().manual_seed(t)
    mask = torch.ones(n, t, dtype=torch.long)
    mask[1:, t - t // 4 :] = 0
    return {"ids": torch.randint(1, WORDS, (n, t), generator=generator), "mask": mask}


LENGTHS = (1, 8, 12, 20, PLACES)


@pytest.fixture(scope="module")
def net():
    generator, net = torch.Generator().manual_seed(0), Reader().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
    return net


@pytest.fixture(scope="module")
def cascade(net):
    return offramp.Cascade.from_network(net, ["q"], head={"q": HEAD}, example=texts(1, 12))


@pytest.fixture(scope="module")
def half(cascade):
    """About half of the texts leave early."""
    with torch.no_grad():
        sure = cascade(texts(40, 12))[:, 0].softmax(1).amax(1)
    between = float(sure.sort().values[19:21].mean())  # of two texts: rounding decides nothing
    rule = Linear.threshold(Feature("max_prob", 0), between)
    policy = Policy(cascade.topology, {(0,): Node(rule)})
    return Candidate(policy=policy, method="learned", reference="last")


def to_the_end(cascade):
    last = cascade.topology.names[-1]
    return offramp.Adaptive(cascade, Candidate.single(cascade.topology, last, reference=last))


@pytest.mark.parametrize("length", LENGTHS)
def test_exits_answer_as_the_network_at_every_length(net, cascade, length):
    x = texts(5, length)
    with torch.no_grad():
        want = net(**x).log_softmax(1)
    assert torch.allclose(to_the_end(cascade)(x).log_probs, want, atol=1e-5)


def test_batches_of_two_lengths_are_recorded(net, cascade):
    batches = [(texts(4, t), torch.zeros(4, dtype=torch.long)) for t in (12, 8)]
    trace = offramp.record(cascade, batches, progress=False)
    assert len(trace) == 8


def test_a_length_that_the_network_does_not_have_is_refused(cascade):
    with pytest.raises((InputError, IndexError)):
        to_the_end(cascade)(texts(3, PLACES + 1))


def test_inputs_must_have_the_same_length(cascade):
    mixed = {"ids": texts(3, 12)["ids"], "mask": texts(3, 8)["mask"]}
    with pytest.raises(InputError, match=r"(?i)axis 1 of 'ids' and axis 1 of 'mask' must"):
        to_the_end(cascade)(mixed)


SLOW = pytest.mark.slow  # several exports each: make test-slow


@pytest.mark.parametrize(
    ("backend", "fuse"),
    [
        ("onnxruntime", ()),
        pytest.param("onnxruntime", ("q",), marks=SLOW),
        pytest.param("openvino", (), marks=SLOW),
        pytest.param("openvino", ("q",), marks=SLOW),
    ],
)
def test_other_runtimes_take_every_length(net, cascade, backend, fuse):
    pytest.importorskip(backend)
    fast = to_the_end(with_backend(cascade, backend, example=texts(1, 12), head_in_segment=fuse))
    for length in LENGTHS:
        x = texts(5, length)
        with torch.no_grad():
            assert torch.allclose(fast(x).log_probs, net(**x).log_softmax(1), atol=1e-4)


def test_a_whole_network_takes_every_length_in_another_runtime(net):
    pytest.importorskip("onnxruntime")
    cascade = offramp.Cascade.from_models({"net": net})
    fast = with_backend(cascade, "onnxruntime", example=texts(1, 12))
    for length in LENGTHS:
        x = texts(5, length)
        with torch.no_grad():
            assert torch.allclose(fast(x)[:, 0], net(**x), atol=1e-4)


def test_a_network_of_one_length_is_refused_at_others_in_another_runtime():
    pytest.importorskip("onnxruntime")
    net = nn.Sequential(nn.Embedding(WORDS, 4), nn.Flatten(), nn.Linear(48, 3)).eval()
    cascade = offramp.Cascade.from_models({"net": net})
    ids = texts(2, 12)["ids"]
    fast = with_backend(cascade, "onnxruntime", example=ids)
    assert torch.allclose(fast(ids), cascade(ids), atol=1e-4)
    with pytest.raises(InputError, match=r"was made for a tensor \(m, 12\)"):
        fast(texts(2, 8)["ids"])


@SLOW
def test_exported_files_answer_as_the_runtime_at_every_length(cascade, half, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    made = export_onnx(Adaptive(cascade, half), tmp_path / "a.onnx", example=texts(1, 12))
    assert [shape[0] for shape in made.inputs.values()] == ["batch", "batch"]
    export_onnx(Adaptive(cascade, half), tmp_path / "f", example=texts(1, 12), folder=True)
    session = ort.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    spec = importlib.util.spec_from_file_location("runner_of_texts", tmp_path / "f" / "run.py")
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    folder, model = runner.Cascade(tmp_path / "f"), offramp.Adaptive(cascade, half)
    for length in LENGTHS:
        x = texts(30, length)
        want = model(x)
        feed = {name: tensor.numpy() for name, tensor in x.items()}
        logits, label, stage = session.run(["log_probs", "label", "stage"], feed)
        assert torch.allclose(torch.from_numpy(logits), want.log_probs, atol=1e-4)
        assert label.tolist() == want.labels.tolist()
        assert len(set(stage.tolist())) == 2 or length != 12
        assert folder(feed).label.tolist() == want.labels.tolist()


def test_a_bundle_of_another_runtime_takes_every_length(net, cascade, tmp_path):
    pytest.importorskip("onnxruntime")
    fast = with_backend(cascade, "onnxruntime", example=texts(1, 12))
    candidate = Candidate.single(fast.topology, "last", reference="last")
    offramp.save(offramp.Adaptive(fast, candidate), tmp_path / "b")
    model = offramp.load(tmp_path / "b")
    for length in LENGTHS:
        x = texts(5, length)
        with torch.no_grad():
            assert torch.allclose(model(x).log_probs, net(**x).log_softmax(1), atol=1e-4)


@pytest.mark.slow
def test_bert_cut_at_twelve_runs_at_other_lengths():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        num_labels=4,
    )
    net = transformers.AutoModelForSequenceClassification.from_config(config).eval()

    def batch(n, t):
        mask = torch.ones(n, t, dtype=torch.long)
        mask[1:, t - t // 4 :] = 0
        return {"input_ids": torch.randint(5, 100, (n, t)), "attention_mask": mask}

    at = "bert.encoder.layer.0"
    head = ModelSpec(name="token_linear", arguments={"features": 32, "classes": 4})
    cascade = offramp.Cascade.from_network(net, [at], head={at: head}, example=batch(1, 12))
    for each in (cascade, with_backend(cascade, "onnxruntime", example=batch(1, 12))):
        for length in (12, 8, 20, 64):
            x = batch(3, length)
            with torch.no_grad():
                want = net(**x).logits.log_softmax(1)
            assert torch.allclose(to_the_end(each)(x).log_probs, want, atol=1e-4)
    with pytest.raises(InputError, match="at most 64"):
        to_the_end(cascade)(batch(3, 65))
