"""Bundles of stages in ONNX Runtime and OpenVINO: what was made is what comes back."""

import functools
import importlib
import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from offramp._core.errors import FileFormatError, InputError
from offramp._core.seal import sealed
from offramp.backends import BACKENDS, Compiled, restored, with_backend
from offramp.bundle import export_onnx, load, read_manifest, save
from offramp.models import ModelSpec, gap_linear
from offramp.policy import Candidate, Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize, fuse
from offramp.testing import random_policy

KEPT = {"onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8", "openvino-bf16"}
POINTS = ("first", "second", "third")  # after the second the carry is a tuple


class Net(nn.Module):
    """Convolutions, one of them beside a connection that skips it."""

    def __init__(self):
        super().__init__()
        sizes = {"first": (3, 4), "second": (4, 4), "third": (4, 4)}
        for name, size in sizes.items():
            setattr(self, name, nn.Conv2d(*size, 3, padding=1))
        self.dense = nn.Linear(4, 10)

    def forward(self, x):
        x = self.first(x).relu()
        x = x + self.third(self.second(x).relu()).relu()
        return self.dense(x.mean((2, 3)))


def images(n=24):
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def exits():
    """Four segments and their heads, none with a spec."""
    heads = {at: gap_linear(4, 10) for at in POINTS}
    norm = Normalize(1 / 255, 0.5, 0.1)
    return Cascade.from_network(
        Net().eval(), list(POINTS), head=heads, example=images(2), transform=norm
    )


@pytest.fixture(scope="module")
def in_backend(exits):
    """The exits in a backend, some stages in one piece, made once."""

    @functools.cache
    def made(backend, head_in_segment, block, asked):
        joined = fuse(exits, [block], asked=asked) if block else exits
        given = {"example": images(2), "calibration": images()}
        return with_backend(joined, backend, head_in_segment=head_in_segment, threads=1, **given)

    # One way to ask, or it is made twice.
    def make(backend, head_in_segment=(), block=(), asked=None):
        return made(backend, head_in_segment, block, asked)

    return make


def candidate_of(cascade):
    """A policy by which somebody leaves at most stages."""
    policies = (random_policy(cascade.topology, seed=seed, classes=10) for seed in range(1000))
    policy = next(
        p for p in policies if len(Adaptive(cascade, p)(images()).stage.unique()) >= len(POINTS)
    )
    return Candidate(policy=policy, method="learned", reference=cascade.topology.names[-1])


def check_comes_back(folder, cascade, candidate):
    """The loaded bundle answers as the cascade did, batch and one by one; the reference too."""
    save(Adaptive(cascade, candidate), folder)
    bundle = load(folder)
    for batch in (images(), images()[:1], images()[:0]):
        want, found = Adaptive(cascade, candidate)(batch), bundle(batch)
        assert torch.equal(found.log_probs, want.log_probs)
        assert torch.equal(found.stage, want.stage)
    fallback = Adaptive.single(cascade, candidate.reference)
    assert torch.equal(bundle.reference(images()).log_probs, fallback(images()).log_probs)
    return bundle


SLOW = pytest.mark.slow  # another variant of what `make test` runs: make test-slow


@pytest.mark.parametrize(
    ("backend", "heads_in", "block"),
    [
        ("onnxruntime", (), ()),
        ("openvino", (), ()),
        ("onnxruntime", POINTS, POINTS[:2]),
        ("onnxruntime-int8", (), POINTS[1:]),
        pytest.param("openvino", POINTS, (*POINTS[1:], "last"), marks=SLOW),
        pytest.param("openvino-int8", POINTS, POINTS[:2], marks=SLOW),
        pytest.param("openvino-int8", (), (*POINTS, "last"), marks=SLOW),
    ],
)
def test_a_cascade_in_another_runtime_comes_back(tmp_path, in_backend, backend, heads_in, block):
    made = in_backend(backend, heads_in, block)
    bundle = check_comes_back(tmp_path / "b", made, candidate_of(made))
    assert read_manifest(tmp_path / "b").version == 4
    held = [stage.module for stage in bundle.stages.values()]
    assert {module.backend for module in held if isinstance(module, Compiled)} == {backend}


def test_several_backends_and_pytorch_in_one_bundle(tmp_path):
    nets = {name: nn.Linear(4, 3) for name in "abc"}
    x = torch.rand(9, 4)
    sizes = {"in_features": 4, "out_features": 3}
    specs = {"c": ModelSpec(name="torch.nn:Linear", arguments=sizes)}
    cascade = Cascade.from_models(nets, specs=specs)
    backends = {"a": "openvino-int8", "b": "onnxruntime"}
    made = with_backend(cascade, backends, example=x, calibration=x)
    policy = random_policy(made.topology, seed=0, classes=3)
    candidate = Candidate(policy=policy, method="learned", reference="c")
    save(Adaptive(made, candidate), tmp_path / "b")
    bundle = load(tmp_path / "b", allow_import=True)
    torch.testing.assert_close(bundle(x).log_probs, Adaptive(made, policy)(x).log_probs)


def test_one_thread_where_one_is_asked_for(tmp_path, in_backend):
    made = in_backend("onnxruntime")
    candidate = candidate_of(made)
    save(Adaptive(made, candidate), tmp_path / "b")
    found = load(tmp_path / "b", threads=1)(images())
    torch.testing.assert_close(found.log_probs, Adaptive(made, candidate)(images()).log_probs)
    with pytest.raises(InputError, match="threads must be"):
        load(tmp_path / "b", threads=0)


def test_pieces_in_pytorch_are_refused(tmp_path, exits):
    joined = fuse(exits, [POINTS])
    candidate = candidate_of(joined)
    with pytest.raises(InputError, match=r"in one piece with others in PyTorch.*with_backend"):
        save(Adaptive(joined, candidate), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_f_has_to_have_been_asked(tmp_path, in_backend):
    made = in_backend("onnxruntime", (), POINTS, POINTS[:2])
    candidate = Candidate.single(made.topology, POINTS[0], reference=POINTS[2])
    with pytest.raises(InputError, match=r"'third' was joined .* asked=\[\.\.\.\]"):
        save(Adaptive(made, candidate), tmp_path / "b")


@pytest.fixture
def joined_bundle(tmp_path, in_backend):
    made = in_backend("onnxruntime", POINTS, POINTS[:2])
    save(Adaptive(made, candidate_of(made)), tmp_path / "b")
    return tmp_path / "b"


def edited(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["stages"])
    path.write_text(json.dumps(sealed(manifest)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s[0]["part"].update(column=7), "'first' does not run on what it is given"),
        (lambda s: s[0]["part"].update(column=-1), "column must be at least 0, got -1"),
        (lambda s: s[0]["part"].update(ran=True), "cannot have this part in a piece"),
        (lambda s: s[0]["part"].update(kind="code"), "part.*kind"),
        (lambda s: s[0]["runs"].update(backend="folded"), "must be one of .*got 'folded'"),
        (lambda s: s[0]["runs"].update(backend="openvino"), r"files \['.xml', '.bin'\], got 1"),
        (lambda s: s[0].update(runs=None), "'first' has no segment, and ran with none"),
        (lambda s: s[3].update(runs=None), "'last' has no segment, and ran with none"),
        (lambda s: s[3].update(runs=None, part={"ran": True}), "'last' was joined"),
        (lambda s: s[3].update(part={"column": 0}), "cannot have this part in a piece"),
    ],
)
def test_a_manifest_whose_parts_do_not_fit_is_refused(joined_bundle, change, match):
    edited(joined_bundle, change)
    with pytest.raises(FileFormatError, match=match):
        load(joined_bundle)


@pytest.mark.parametrize("content", [b"", b"<net", b"<net></net>"])
def test_files_of_openvino_that_are_no_model_are_refused(in_backend, content):
    made = in_backend("openvino").stage(0).module
    operations, weights = made.files()
    for files in ((content, weights), (operations, weights[:9])):
        with pytest.raises(FileFormatError, match="The model of x "):
            restored("openvino", files, inputs=made.inputs, outputs=made.outputs, name="x")


def test_these_backends_are_all_that_keep_files():
    assert {name for name, each in BACKENDS.items() if each.kept} == KEPT


def a_third_leaves(cascade):
    """At each exit about a third of all images, by a threshold that none of them is near."""
    with torch.no_grad():
        sure = cascade(images()).softmax(2).amax(2)  # (n, s)
    nodes = {}
    for k in range(len(POINTS)):
        values = sure[:, k].sort().values
        value = float(values[15:17].mean())
        nodes[tuple(range(k + 1))] = Node(Linear.threshold(Feature("max_prob", k), value))
    return Policy(cascade.topology, nodes)


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("onnxruntime-int8", marks=SLOW)])
def test_what_runs_in_onnx_runtime_is_exported_as_it_is(tmp_path, in_backend, backend):
    made = in_backend(backend)
    policy = a_third_leaves(made)
    export_onnx(Adaptive(made, policy), tmp_path / "a.onnx", example=images(1))
    session = onnxruntime.InferenceSession(
        (tmp_path / "a.onnx").read_bytes(), providers=["CPUExecutionProvider"]
    )
    export_onnx(Adaptive(made, policy), tmp_path / "a", example=images(1), folder=True)
    sys.path.insert(0, str(tmp_path / "a"))
    try:
        module = importlib.import_module("run")
    finally:
        sys.path.pop(0)
        sys.modules.pop("run", None)
    for n in (1, 24):
        batch = images()[:n]
        want = Adaptive(made, policy)(batch)
        logits, label, stage = session.run(None, {"input": batch.numpy()})
        np.testing.assert_allclose(logits, want.log_probs, atol=1e-4)
        assert stage.tolist() == want.stage.tolist()
        assert label.tolist() == want.labels.tolist()
        answer = module.Cascade(tmp_path / "a")(batch.numpy())
        assert answer.stage.tolist() == want.stage.tolist()


@pytest.mark.parametrize(
    ("backend", "heads_in", "block"),
    [("openvino", (), ()), ("onnxruntime", POINTS, POINTS[:2])],
)
def test_other_runtimes_and_pieces_are_not_exported(tmp_path, in_backend, backend, heads_in, block):
    made = in_backend(backend, heads_in, block)
    policy = random_policy(made.topology, seed=0, classes=10)
    with pytest.raises(InputError, match=r"'first' runs in another runtime, or in one piece"):
        export_onnx(Adaptive(made, policy), tmp_path / "a.onnx", example=images(1))


def test_a_transform_that_is_part_of_a_model_cannot_be_left_out(tmp_path, in_backend):
    made = in_backend("onnxruntime")
    policy = random_policy(made.topology, seed=0, classes=10)
    with pytest.raises(InputError, match="its transform must be part of it"):
        export_onnx(
            Adaptive(made, policy), tmp_path / "a", example=images(1), transform=False, folder=True
        )
