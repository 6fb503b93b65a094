import copy
import sys
import warnings

import numpy as np
import pytest
import torch
from onnxruntime.quantization import quantize_dynamic
from torch import nn

import offramp
from offramp._core.errors import (
    FileFormatError,
    InputError,
    MissingExtraError,
    UnknownNameError,
    UnsupportedError,
)
from offramp._core.schema import from_json, to_json
from offramp.backends import (
    BACKENDS,
    TensorSpec,
    backend_of,
    exact_backends,
    restored,
    with_backend,
)
from offramp.backends.cuda import BUCKETS, bucket_of
from offramp.backends.ort import Session, open_onnx
from offramp.evaluation import replay
from offramp.models import small_cnn
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize, given_costs, measure_flops, measure_seconds

LOSSY = [name for name in BACKENDS if not backend_of(name).exact]
EXACT = ["eager", "folded", "onnxruntime", "openvino"]
NORMALIZE = Normalize(1 / 16, mean=[0.3], std=[0.4])


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 17, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)


def network(width, seed):
    net = small_cnn(width=width, depth=2).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():  # spread, as of a trained network
        if value.is_floating_point() and "running_var" not in name:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.4)
    return net


@pytest.fixture(scope="module")
def cascade():
    nets = {"small": network(2, 0), "large": network(4, 1)}
    return Cascade.from_models(nets, transform=NORMALIZE)


class Head(nn.Module):
    def __init__(self, channels, seed):
        super().__init__()
        self.dense = nn.Linear(channels, 3)
        generator = torch.Generator().manual_seed(seed)
        self.dense.weight.data = torch.randn(3, channels, generator=generator)

    def forward(self, maps):
        return self.dense(maps.mean((2, 3)))


class Residual(nn.Module):
    """Cut within it, two tensors have to be carried."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.dense = nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x).relu()
        x = x + self.third(self.second(x).relu())
        return self.dense(x.relu().mean((2, 3)))


@pytest.fixture(scope="module")
def exits():
    """Alternative heads after "first"; after "second" the carry is a tuple."""
    net = Residual().eval()
    generator = torch.Generator().manual_seed(3)
    for value in net.parameters():
        value.data = torch.randn(value.shape, generator=generator) * 0.5
    heads = {"first": {"p": Head(4, 0), "q": Head(4, 1)}, "second": Head(4, 2)}
    example = NORMALIZE(images(1))
    return Cascade.from_network(net, ["first", "second"], head=heads, example=example)


@pytest.mark.parametrize("backend", EXACT)
def test_an_exact_backend_gives_the_answers_of_pytorch_at_any_batch_size(cascade, backend):
    made = with_backend(cascade, backend, example=images(1))
    assert made.topology == cascade.topology
    assert all(stage.spec is old.spec for stage, old in zip(made, cascade, strict=True))
    for n in (1, 2, 33):
        batch = images(n, seed=n)
        torch.testing.assert_close(made(batch), cascade(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_results_of_one_call_are_not_changed_by_the_next(cascade, backend):
    made = with_backend(cascade, {"small": backend}, example=images(1)).stage("small")
    with torch.inference_mode():
        first = made.segment(images(3))
        kept = first.clone()
        second = made.segment(images(3, seed=1))
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)
    del first
    assert made.segment(images(0)).shape == (0, 10)


SLOW = pytest.mark.slow  # another variant of what `make test` runs: make test-slow


@pytest.fixture(
    scope="module",
    params=[n if n == "onnxruntime-int8" else pytest.param(n, marks=SLOW) for n in LOSSY],
)
def lossy(request, cascade):
    try:
        return with_backend(
            cascade, request.param, example=images(1), calibration=images(64, seed=7)
        )
    except UnsupportedError as error:
        pytest.skip(str(error))


def test_a_lossy_backend_is_near_and_says_so_in_the_names(cascade, lossy):
    suffixes = {name.partition("@")[2] for name in lossy.topology.names}
    assert suffixes <= {"int8", "bf16", "openvino-int8"}
    assert len(suffixes) == 1
    batch = images(64, seed=2)
    have, want = lossy(batch), cascade(batch)
    assert 0 < (have - want).abs().max() < 0.1 * want.abs().max()


def test_an_answer_does_not_depend_on_the_rest_of_the_batch(lossy):
    ordinary, wild = images(4, seed=3), torch.full((4, 1, 8, 8), 255, dtype=torch.uint8)
    together = lossy(torch.cat([ordinary, wild]))[:4]
    alone = torch.cat([lossy(ordinary[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_scales_of_each_batch_would_fail_that_test(tmp_path):
    from offramp.backends import to_onnx

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    source, result = tmp_path / "float32.onnx", tmp_path / "dynamic.onnx"
    source.write_bytes(to_onnx(net, torch.rand(1, 1, 8, 8), name="x").SerializeToString())
    quantize_dynamic(source, result)
    session = Session(result.read_bytes(), 1)
    ordinary, wild = images(4, seed=3).float() / 16, torch.full((4, 1, 8, 8), 100.0)
    together = session([torch.cat([ordinary, wild])])[0][:4]
    assert not torch.allclose(together, session([ordinary])[0], rtol=1e-5, atol=1e-5)


def test_a_model_that_reads_other_names_is_refused_before_it_runs():
    from offramp.backends import to_onnx

    model = to_onnx(nn.Linear(3, 2).eval(), torch.rand(2, 3), name="x")
    model.graph.input[0].name = "pixels"
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == "in.0" else name for name in node.input]
    outputs = TensorSpec.of(torch.rand(2, 2))
    with pytest.raises(FileFormatError, match=r"in\.0.*pixels"):
        open_onnx([model.SerializeToString()], outputs, "stage 'x'", 1)


def labeled(n=600):
    """Images with labels that one of the networks knows."""
    batch = images(n, seed=5)
    with torch.no_grad():
        known = [network(*each)(NORMALIZE(batch)).argmax(1) for each in ((2, 0), (4, 1))]
    return [(batch, torch.where(torch.arange(n) % 3 == 0, *known))]


def test_a_policy_of_the_float32_answers_is_refused_and_one_of_its_own_replays(cascade, lossy):
    costs = given_costs(cascade, "usd", {"small": 0.1, "large": 1.0})
    before = offramp.record(cascade, labeled(), costs=costs, progress=False)
    candidate = (
        offramp.fit(before, "threshold", combines=["last"], progress=False).points[0].candidate
    )
    with pytest.raises(InputError, match=r"made for stages with names \('small', 'large'\), but"):
        Adaptive(lossy, candidate)

    costs = given_costs(lossy, "usd", dict(zip(lossy.topology.names, (0.1, 1.0), strict=True)))
    trace = offramp.record(lossy, labeled(), costs=costs, progress=False)
    frontier = offramp.fit(trace, "threshold", combines=["last"], progress=False)
    replays = [(p.candidate, replay(trace, p.candidate.policy)) for p in frontier.points]
    candidate, expected = min(replays, key=lambda found: abs(found[1].last.mean() - 0.5))
    answer = Adaptive(lossy, candidate)(labeled()[0][0])
    assert len(set(expected.last.tolist())) > 1
    far = expected.closest > 1e-4  # a kernel for 600 rows may round otherwise than one for 256
    assert far.mean() > 0.95
    np.testing.assert_array_equal(answer.stage.numpy()[far], expected.last[far])


def test_each_stage_may_have_its_own_backend_and_the_others_keep_theirs(cascade):
    made = with_backend(
        cascade,
        {"small": "onnxruntime-int8"},
        example=images(1),
        calibration=images(32),
    )
    assert made.topology.names == ("small@int8", "large")
    assert made.topology.edges == cascade.topology.edges
    assert made.stage("large").module is cascade.stage("large").module
    assert torch.equal(made(images(3))[:, 1], cascade(images(3))[:, 1])


def test_stages_that_continue_a_quantized_one_get_another_name_too(exits):
    x = NORMALIZE(images(40))
    made = with_backend(exits, {"second": "onnxruntime-int8"}, example=x[:1], calibration=x)
    assert made.topology.names == ("first/p", "first/q", "second@int8", "last@int8")
    assert made.topology.sources == exits.topology.sources
    assert torch.equal(made(x)[:, :2], exits(x)[:, :2])
    assert made.stage("second@int8").spec is None


@pytest.mark.parametrize("backend", ["folded", "onnxruntime", pytest.param("openvino", marks=SLOW)])
def test_exits_with_alternative_heads_and_several_tensors_in_a_carry(exits, backend):
    x = NORMALIZE(images(5))
    made = with_backend(exits, backend, example=x[:1])
    torch.testing.assert_close(made(x), exits(x), rtol=1e-4, atol=1e-4)
    assert made.topology == exits.topology


@pytest.mark.parametrize(
    "fuse", [pytest.param(("first/q",), marks=SLOW), ("first/p", "first/q", "second")]
)
def test_heads_in_one_piece_with_their_segments_answer_the_same(exits, fuse):
    x = NORMALIZE(images(5))
    made = with_backend(exits, "onnxruntime", example=x[:1], head_in_segment=fuse)
    torch.testing.assert_close(made(x), exits(x), rtol=1e-4, atol=1e-4)
    for name in fuse:
        stage = made.stage(name)
        assert stage.head is None
        assert stage.part.column is not None
    chain = exits.topology.chain(["first/q", "second", "last"])
    policy = Candidate.single(exits.topology, "last", reference="last").policy
    assert chain.names == policy.topology.names
    answer = Adaptive.single(made, "last")(x)
    torch.testing.assert_close(
        answer.log_probs, exits(x)[:, 3].log_softmax(1), rtol=1e-4, atol=1e-4
    )


def test_a_fused_group_may_be_continued_in_pytorch_and_in_openvino(exits):
    x = NORMALIZE(images(5))
    backends = {"first/p": "onnxruntime", "first/q": "onnxruntime", "last": "openvino"}
    made = with_backend(exits, backends, example=x[:1], head_in_segment=["first/p"])
    torch.testing.assert_close(made(x), exits(x), rtol=1e-4, atol=1e-4)


def test_a_mapping_goes_in_by_name():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(4, 3)

        def forward(self, left, right):
            return {"logits": self.dense(left - 2 * right)}

    cascade = Cascade.from_models({"a": Sum().eval()})
    batch = {"right": torch.rand(5, 4), "left": torch.rand(5, 4)}
    made = with_backend(cascade, "onnxruntime", example=batch)
    for given in (batch, dict(reversed(batch.items()))):
        torch.testing.assert_close(made(given), cascade(given))
    with pytest.raises(InputError, match=r"'right' \(m, 4\) of float32.*got \['left'\]"):
        made({"left": torch.rand(5, 4)})


def test_backends_are_known_by_name(cascade):
    with pytest.raises(UnknownNameError, match=r"no backend 'onnxruntim'\. Did you mean 'onnxrunt"):
        with_backend(cascade, "onnxruntim", example=images(1))
    with pytest.raises(UnknownNameError, match="no stage 'smal'"):
        with_backend(cascade, {"smal": "eager"}, example=images(1))
    with pytest.raises(UnknownNameError, match="no stage 'x'"):
        with_backend(cascade, "eager", example=images(1), head_in_segment=["x"])
    with pytest.raises(InputError, match="head_in_segment must be a collection of names, got"):
        with_backend(cascade, "eager", example=images(1), head_in_segment="small")
    assert set(EXACT) <= set(exact_backends())


def test_a_group_has_one_backend(exits):
    with pytest.raises(InputError, match="'first/p' has 'onnxruntime', 'first/q' 'eager'"):
        with_backend(exits, {"first/p": "onnxruntime"}, example=NORMALIZE(images(1)))


@pytest.mark.parametrize(
    ("calibration", "match"),
    [
        (None, "needs a calibration batch for stage 'small'.* Got None"),
        (images(0), "calibration must hold at least one example"),
        (images(3).float(), r"\(m, 1, 8, 8\) of uint8, got a tensor \(m, 1, 8, 8\) of float32"),
    ],
)
@pytest.mark.parametrize("backend", ["onnxruntime-int8", pytest.param("openvino-int8", marks=SLOW)])
def test_int8_needs_examples_to_calibrate_on(cascade, backend, calibration, match):
    with pytest.raises(InputError, match=match):
        with_backend(cascade, {"small": backend}, example=images(1), calibration=calibration)


def test_there_must_be_an_example_and_threads(cascade):
    with pytest.raises(InputError, match="example must hold at least one example, got 0"):
        with_backend(cascade, "onnxruntime", example=images(0))
    with pytest.raises(InputError, match="threads must be an integer of at least 1, got 0"):
        with_backend(cascade, "onnxruntime", example=images(1), threads=0)


@pytest.fixture(scope="module")
def small(cascade):
    return with_backend(cascade, {"small": "onnxruntime"}, example=images(1))


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        (images(2).float(), r"got \(2, 1, 8, 8\) of float32"),
        (torch.zeros(2, 1, 9, 8, dtype=torch.uint8), r"got \(2, 1, 9, 8\) of uint8"),
        (torch.zeros(2, 8, dtype=torch.uint8), r"got \(2, 8\) of uint8"),
    ],
)
def test_a_batch_of_another_shape_or_type_is_an_error_that_names_both(small, batch, found):
    match = r"Stage 'small' was made for a tensor \(m, 1, 8, 8\) of uint8 by .*" + found
    with pytest.raises(InputError, match=match):
        Adaptive.single(small, "small")(batch)


def test_operations_cannot_be_counted_but_seconds_can(small):
    with pytest.raises(UnsupportedError, match="operations of stage 'small' cannot be counted"):
        measure_flops(small, images(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that networks so small hardly differ in cost
        seconds = measure_seconds(small, images(1), batch_sizes=[1], rounds=1)[1]
    assert min(seconds.segment) > 0


def test_what_is_compiled_is_not_copied_and_not_compiled_again(small):
    module = small.stage("small").module
    assert copy.deepcopy(module) is module
    assert not list(module.parameters())
    with pytest.raises(InputError, match="'small' runs in 'onnxruntime' already"):
        with_backend(small, "openvino", example=images(1))
    again = with_backend(small, "eager", example=images(1))
    assert again.stage("small").module is module


def test_recordings_of_different_models_can_be_told_apart():
    plain, x = Cascade.from_models({"a": nn.Linear(4, 3)}), torch.rand(9, 4)

    def digest(calibration):
        made = with_backend(plain, "onnxruntime-int8", example=x, calibration=calibration)
        return made.stage(0).module.state_dict()["_digest"]

    assert torch.equal(digest(x), digest(x))
    assert not torch.equal(digest(x), digest(x / 2))


@pytest.mark.parametrize(
    ("package", "backend", "extra"),
    [
        ("onnxruntime", "onnxruntime", "onnx"),
        ("onnxruntime", "onnxruntime-int8", "onnx"),
        ("onnx", "openvino", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("openvino", "openvino-int8", "openvino"),
        ("nncf", "openvino-int8", "openvino"),
    ],
)
def test_a_backend_that_is_not_installed_names_its_extra(
    cascade, package, backend, extra, monkeypatch
):
    from offramp.backends import ov

    monkeypatch.setitem(sys.modules, package, None)
    ov._started.cache_clear()
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed.*\[{extra}\]"):
        with_backend(cascade, {"small": backend}, example=images(1), calibration=images(2))


def test_a_stage_that_cannot_be_exported_is_named_with_the_operator():
    class Svd(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    cascade = Cascade.from_models({"odd": Svd().eval()})
    match = "stage 'odd' cannot be exported to ONNX: it has no operator for 'aten._linalg_svd'"
    with pytest.raises(UnsupportedError, match=match):
        with_backend(cascade, "onnxruntime", example=torch.rand(1, 4, 4))


def test_a_backend_that_answers_otherwise_is_refused(monkeypatch):
    from offramp.backends import ort

    class Wrong(nn.Module):
        def forward(self, x):
            return x + 0.01

    real = ort.to_onnx
    monkeypatch.setattr(ort, "to_onnx", lambda module, x, name, others: real(Wrong(), x, name=name))
    cascade = Cascade.from_models({"a": nn.Identity()})
    with pytest.raises(UnsupportedError, match="stage 'a' answers otherwise in 'onnxruntime'"):
        with_backend(cascade, "onnxruntime", example=torch.rand(1, 4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("backend", ["cuda", "cuda-graph"])
def test_without_a_gpu_cuda_says_so(cascade, backend):
    with pytest.raises(UnsupportedError, match=r"stage 'small' cannot run on CUDA.*finds no GPU"):
        with_backend(cascade, backend, example=images(1))


def test_batches_for_graphs_are_padded_by_half_at_most():
    for n in range(1, max(BUCKETS) + 1):
        assert n <= bucket_of(n) < 2 * n or bucket_of(n) == n
    assert bucket_of(max(BUCKETS) + 1) is None


def test_a_form_is_checked_and_survives_being_stored():
    form = TensorSpec.of(
        {"a": torch.zeros(2, 3), "b": torch.zeros(2, dtype=torch.int64), "c": None}
    )
    assert from_json(TensorSpec, to_json(form)) == form
    assert form.described() == "a mapping 'a' (m, 3) of float32, 'b' (m) of int64"
    with pytest.raises(FileFormatError, match="as a tensor spec: "):
        from_json(TensorSpec, {**to_json(form), "dtypes": ["float32", "save"]})
    with pytest.raises(FileFormatError, match="as a tensor spec: "):
        from_json(TensorSpec, {**to_json(form), "kind": "list"})
    with pytest.raises(FileFormatError, match="as a tensor spec: "):
        from_json(TensorSpec, {**to_json(form), "names": ["a"]})


def test_a_model_that_is_none_or_another_is_refused():
    form, other = TensorSpec.of(torch.zeros(1, 4)), TensorSpec.of(torch.zeros(1, 3))
    net = with_backend(
        Cascade.from_models({"a": nn.Linear(4, 3)}),
        "onnxruntime-int8",
        example=torch.rand(1, 4),
        calibration=torch.rand(9, 4),
    )
    (content,) = net.stage(0).module.files()
    again = restored("onnxruntime-int8", [content], inputs=form, outputs=other, name="x")
    assert torch.equal(again(torch.ones(2, 4)), net(torch.ones(2, 4))[:, 0])
    for model, inputs, outputs in (
        (b"nonsense", form, other),
        (content[:-100], form, other),
        (content, form, form),
        (content, other, other),
    ):
        with pytest.raises(FileFormatError, match="The model of x "):
            restored("onnxruntime-int8", [model], inputs=inputs, outputs=outputs, name="x")


def test_a_model_that_refers_to_other_files_is_refused():
    import onnx
    from onnx.external_data_helper import set_external_data

    from offramp.backends import to_onnx

    model = to_onnx(nn.Linear(4, 3), torch.rand(1, 4), name="x")
    set_external_data(model.graph.initializer[0], location="secret.bin")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    form, other = TensorSpec.of(torch.zeros(1, 4)), TensorSpec.of(torch.zeros(1, 3))
    with pytest.raises(FileFormatError, match="refers to other files"):
        restored("onnxruntime", [model.SerializeToString()], inputs=form, outputs=other, name="x")


@pytest.mark.slow
def test_torch_compile_agrees_and_does_not_compile_again_while_serving():
    from torch._dynamo.utils import counters

    nets = {
        name: nn.Sequential(
            nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 3)
        )
        for name, width in (("a", 2), ("b", 3), ("c", 4))
    }
    cascade = Cascade.from_models(nets, transform=NORMALIZE)  # nine versions; torch stops at eight
    made = with_backend(cascade, "compile", example=images(1))
    before = counters["stats"]["unique_graphs"]
    for n in (1, 2, 15, 16, 33):
        for mode in (torch.inference_mode, torch.no_grad):
            with mode():
                batch = images(n)
                torch.testing.assert_close(made(batch), cascade(batch), rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == before
