"""Stages that prepare one raw input in different ways answer alike wherever the cascade runs."""

import asyncio
from io import BytesIO

import numpy as np
import pytest
import torch

from offramp._core.errors import InputError
from offramp.backends import with_backend
from offramp.bundle import export_onnx, load, save
from offramp.evaluation import fit, replay
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.recording import record
from offramp.runtime import Adaptive, Executor
from offramp.runtime.inflight import enter
from offramp.stages import Cascade, Decode, Normalize, Pad, Resize
from support.texts import masked_mean

N = 24
NORMALIZE = Normalize(1 / 255, 0.5, 0.25)


def images():
    """Bytes of one size; uint8 `(n, 3, 20, 26)`."""
    seeded = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (N, 3, 5, 7), generator=seeded, dtype=torch.uint8)
    wide = torch.nn.functional.interpolate(small.float(), (20, 26), mode="bilinear")
    return wide.round().to(torch.uint8)


def files(batch):
    image = pytest.importorskip("PIL.Image")
    found = []
    for one in batch:
        file = BytesIO()
        image.fromarray(one.permute(1, 2, 0).numpy()).save(file, "PNG")
        found.append(file.getvalue())
    return found


def two_resolutions(*first):
    specs = {
        name: ModelSpec(name="small_cnn", arguments=arguments)
        for name, arguments in {
            "small": {"width": 4, "depth": 2, "classes": 3, "in_channels": 3, "seed": 0},
            "large": {"width": 8, "depth": 3, "classes": 3, "in_channels": 3, "seed": 1},
        }.items()
    }
    transform = {
        "small": [*first, Resize(12, crop_pct=0.875), NORMALIZE],
        "large": [*first, Resize((16, 16), interpolation="bicubic"), NORMALIZE],
    }
    nets = {name: build(spec) for name, spec in specs.items()}
    for net in nets.values():
        for parameter in net.parameters():
            parameter.data *= 3  # so that examples differ
    return Cascade.from_models(nets, transform=transform, specs=specs)


def texts():
    seeded = np.random.default_rng(0)
    lengths = seeded.integers(1, 12, N)
    return [{"input_ids": seeded.integers(1, 50, k).tolist()} for k in lengths]


def two_tokenizations():
    """Two ways to pad: another id of padding, and a limit."""
    specs = {
        name: ModelSpec(name="support.texts:masked_mean", arguments={"seed": seed, "width": width})
        for name, seed, width in (("small", 0, 4), ("large", 1, 16))
    }
    nets = {name: masked_mean(**spec.arguments) for name, spec in specs.items()}
    transform = {"small": Pad(0, length=6), "large": Pad(49, multiple=4, side="left")}
    return Cascade.from_models(nets, transform=transform, specs=specs)


CASES = {
    "two resolutions": (two_resolutions, images),
    "two resolutions of files": (lambda: two_resolutions(Decode()), lambda: files(images())),
    "two tokenizations": (two_tokenizations, texts),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Cascade, raw input, trace, and of the fitted candidates one by which both stages answer."""
    make, raw = CASES[request.param]
    cascade, rows = make(), raw()
    labels = cascade(rows)[:, 1].argmax(1)
    labels[::5] = 0
    trace = record(cascade, [(rows[:7], labels[:7]), (rows[7:], labels[7:])], progress=False)
    for point in fit(trace, "threshold", grid=20, progress=False).points:
        if 4 < (replay(trace, point.candidate.policy).last == 0).sum() < N - 4:
            return cascade, rows, trace, point.candidate
    raise AssertionError("the networks are to be such that some examples leave at each stage")


def part_of(rows, index):
    return rows[index] if isinstance(rows, torch.Tensor) else [rows[k] for k in index]


def assert_alike(answer, candidate, trace, index):
    done, policy = replay(trace, candidate.policy), candidate.policy
    assert answer.stage.tolist() == done.last[index.numpy()].tolist()
    assert answer.labels.tolist() == done.labels[index.numpy(), 0].tolist()
    if policy.combine == "last":
        scaled = trace.logits[index, answer.stage] / policy.temperatures[answer.stage][:, None]
        assert torch.allclose(answer.log_probs, scaled.log_softmax(1), atol=1e-4)


def test_the_runtime_does_what_replay_said(case):
    cascade, rows, trace, candidate = case
    model = Adaptive(cascade, candidate)
    for size in (1, 5, N):
        for index in torch.arange(N).split(size):
            assert_alike(model(part_of(rows, index)), candidate, trace, index)


def test_a_stream_and_many_callers_get_the_same(case):
    cascade, rows, trace, candidate = case
    model = Adaptive(cascade, candidate)
    parts = [part_of(rows, index) for index in torch.arange(N).split(5)]
    seen = []
    for ids, answer in model.stream(parts, batch_size=4):
        assert_alike(answer, candidate, trace, torch.tensor(ids))
        seen += ids.tolist()
    assert sorted(seen) == list(range(N))

    async def ask():
        with Executor(model, batch_size=8) as executor:
            return await asyncio.gather(*map(executor.submit, parts))

    for index, answer in zip(torch.arange(N).split(5), asyncio.run(ask()), strict=True):
        assert_alike(answer, candidate, trace, index)


def test_requests_of_other_lengths_share_a_batch():
    cascade, rows = two_tokenizations(), texts()
    model = Adaptive.single(cascade, "large")
    model(rows)
    sizes = []
    cascade.stage("large").module.register_forward_pre_hook(
        lambda module, args, named: sizes.append(len(named["input_ids"])), with_kwargs=True
    )
    for _ in model.stream([[row] for row in rows], batch_size=N):
        pass
    assert sizes[0] == 1  # the first stage takes requests as they come, one by one in a stream
    del sizes[:]
    batcher = model.batcher(batch_size=N)
    for k, row in enumerate(rows):
        flight = enter(model.program, model.program.take_in([row]), torch.tensor([k]))
        batcher.put(flight, np.array([k]), 0.0)
    job = batcher.next_job(0.0, flush=True)
    with torch.inference_mode():
        batcher.tell(job, job.run(), 0.0)
    assert sizes == [N]
    (done,) = batcher.finished()
    assert torch.allclose(done.answer.log_probs, model(rows).log_probs, atol=1e-5)


def test_a_bundle_answers_alike(case, tmp_path):
    cascade, rows, trace, candidate = case
    save(Adaptive(cascade, candidate), tmp_path / "b")
    wanted = Adaptive(cascade, candidate)(rows)
    found = load(tmp_path / "b", allow_import=True)(rows)
    assert torch.equal(found.log_probs, wanted.log_probs)
    assert torch.equal(found.stage, wanted.stage)
    assert_alike(found, candidate, trace, torch.arange(N))


def test_one_file_of_onnx_answers_alike(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    cascade, rows = two_resolutions(), images()
    median = cascade(rows).detach()[:, 0].softmax(1).max(1).values.median()
    candidate = candidate_at(cascade, float(median))
    export_onnx(Adaptive(cascade, candidate), tmp_path / "c.onnx", example=rows[:2])
    session = runtime.InferenceSession(tmp_path / "c.onnx")
    for index in (torch.arange(N), torch.tensor([3])):
        wanted = Adaptive(cascade, candidate)(rows[index])
        found = dict(
            zip(
                [value.name for value in session.get_outputs()],
                session.run(None, {"input": rows[index].numpy()}),
                strict=True,
            )
        )
        assert found["stage"].tolist() == wanted.stage.tolist()
        assert np.allclose(found["log_probs"], wanted.log_probs, atol=1e-4)


def test_what_no_onnx_file_takes_is_refused_with_the_way_out(tmp_path):
    files_in, made = two_resolutions(Decode()), two_tokenizations()
    for cascade, example, message in (
        (files_in, files(images()[:2]), "example must be tensors, got a list of bytes"),
        (files_in, images()[:2], r"Stage 'small' cannot be exported with its transform: Decode"),
        (made, texts()[:2], "example must be tensors, got a list of dict"),
    ):
        model = Adaptive(cascade, candidate_at(cascade, 0.5))
        with pytest.raises(InputError, match=f"{message}.*transform=False"):
            export_onnx(model, tmp_path / "c.onnx", example=example)
    with pytest.raises(InputError, match="prepare their input in different ways"):
        export_onnx(
            Adaptive(two_resolutions(), candidate_at(two_resolutions(), 0.5)),
            tmp_path / "c.onnx",
            example=images()[:2],
            transform=False,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", list(CASES)[:2], indirect=True)
def test_another_backend_answers_alike(case):
    pytest.importorskip("onnxruntime")
    cascade, rows, trace, candidate = case
    fast = with_backend(cascade, {"large": "onnxruntime"}, example=rows[:2])
    assert_alike(Adaptive(fast, candidate)(rows), candidate, trace, torch.arange(N))


def candidate_at(cascade, threshold):
    from offramp.policy import Feature, Linear, Node, Policy

    rule = Node(Linear.threshold(Feature("max_prob", 0), threshold))
    policy = Policy(cascade.topology, {(0,): rule})
    return Candidate(policy=policy, method="threshold", reference="large")
