"""Bundles and backends: what is measured, what is quantized, what is refused."""

import functools
import json
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import offramp
from offramp._core.errors import (
    FileFormatError,
    InputError,
    MissingExtraError,
    UnknownNameError,
)
from offramp._core.files import sha256
from offramp._core.schema import to_json
from offramp._core.seal import sealed
from offramp.backends import BackendTable, Compiled, TensorSpec, with_backend
from offramp.bundle import load, read_manifest, save, tune
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize, given_costs
from offramp.testing import random_policy
from offramp.tuning import quantize

WIDTHS = {"small": 2, "large": 4}
NET = ModelSpec(name="resnet8", arguments={"width": 0.25})


def images(n=12, channels=1, size=8):
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def make_cascade():
    specs = {
        name: ModelSpec(name="small_cnn", arguments={"width": width, "depth": 2, "classes": 3})
        for name, width in WIDTHS.items()
    }
    nets = {name: build(spec) for name, spec in specs.items()}
    return Cascade.from_models(nets, specs=specs, transform=Normalize(1 / 255, 0.5, 0.1))


def candidate_of(cascade, batch):
    """A policy that sends some examples each way."""
    policies = (random_policy(cascade.topology, seed=seed, classes=3) for seed in range(1000))
    wanted = len(cascade)
    policy = next(p for p in policies if len(Adaptive(cascade, p)(batch).stage.unique()) == wanted)
    return Candidate(policy=policy, method="learned", reference=cascade.topology.names[-1])


def table(*stages, **seconds):
    return BackendTable(
        batch_sizes=(1,),
        seconds={name: {k: (v,) for k, v in seconds.items()} for name in stages},
        inputs=TensorSpec.of(images()),
    )


@pytest.fixture(scope="module")
def cascade():
    return make_cascade()


@pytest.fixture(scope="module")
def candidate(cascade):
    return candidate_of(cascade, images())


@pytest.fixture(scope="module")
def measured(tmp_path_factory, cascade, candidate):
    """A bundle with measurements by which ONNX Runtime is fastest."""
    path = tmp_path_factory.mktemp("measured") / "bundle"
    backends = table("small", "large", eager=2.0, onnxruntime=1.0)
    save(Adaptive(cascade, candidate), path, backends=backends)
    return path


def runs_in(bundle):
    return [
        stage.module.backend if isinstance(stage.module, Compiled) else "torch"
        for stage in bundle.stages.values()
    ]


def close(one, other):
    torch.testing.assert_close(one.log_probs, other.log_probs, rtol=1e-3, atol=1e-3)
    return torch.equal(one.stage, other.stage)


def test_measurements_come_back_and_auto_takes_the_fastest(measured, cascade, candidate):
    bundle = load(measured, backend="auto")
    assert read_manifest(measured).version == 4
    assert read_manifest(measured).backends == table("small", "large", eager=2.0, onnxruntime=1.0)
    assert runs_in(bundle) == ["onnxruntime", "onnxruntime"]
    assert close(bundle(images()), Adaptive(cascade, candidate)(images()))
    assert runs_in(load(measured)) == ["torch", "torch"]


def test_one_backend_for_all_or_for_each_by_name(measured):
    assert runs_in(load(measured, backend="onnxruntime")) == ["onnxruntime"] * 2
    assert runs_in(load(measured, backend={"large": "onnxruntime"})) == [
        "torch",
        "onnxruntime",
    ]


def test_a_bundle_without_measurements_needs_the_name_of_a_backend(tmp_path, cascade, candidate):
    save(Adaptive(cascade, candidate), tmp_path / "b", input_shape=(1, 8, 8))
    assert read_manifest(tmp_path / "b").version == 4
    with pytest.raises(InputError, match="'auto' needs measurements, and this bundle has none"):
        load(tmp_path / "b", backend="auto")
    bundle = load(tmp_path / "b", backend="onnxruntime")
    for batch in (images(), images().float()):  # the type is not known, so any will do
        assert close(bundle(batch), Adaptive(cascade, candidate)(batch))


def test_somebody_has_to_say_what_the_input_looks_like(tmp_path, cascade, candidate):
    save(Adaptive(cascade, candidate), tmp_path / "b")
    with pytest.raises(InputError, match=r"Pass example=\.\.\."):
        load(tmp_path / "b", backend="onnxruntime")
    bundle = load(tmp_path / "b", backend={"small": "onnxruntime"}, example=images(1))
    with pytest.raises(InputError, match=r"'small' was made for .* of uint8"):
        bundle(images().float())


@pytest.mark.parametrize(
    ("backend", "error", "match"),
    [
        ("onnxruntime-int8", InputError, "'onnxruntime-int8' changes what stage 'small' answers"),
        ("onnx", UnknownNameError, "no backend 'onnx'"),
        ({"middle": "eager"}, UnknownNameError, "no stage 'middle'"),
        ({"small": "openvino-bf16"}, InputError, "use offramp.tuning.quantize|fitted on other"),
    ],
)
def test_a_backend_that_does_not_fit_is_refused(measured, backend, error, match):
    with pytest.raises(error, match=match):
        load(measured, backend=backend)


def test_a_backend_that_is_not_installed_names_its_extra(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"offramp\[onnx\]"):
        load(measured, backend="onnxruntime")


def test_measurements_of_other_stages_are_refused(tmp_path, cascade, candidate):
    with pytest.raises(UnknownNameError, match="no stage 'smal'"):
        save(Adaptive(cascade, candidate), tmp_path / "b", backends=table("smal", eager=1.0))


@pytest.mark.parametrize(
    "candidates",
    [["folded", "onnxruntime"], pytest.param(None, marks=pytest.mark.slow)],  # make test-slow
    ids=["some", "all"],
)
def test_a_bundle_is_tuned_where_it_is(tmp_path, cascade, candidate, candidates):
    save(Adaptive(cascade, candidate), tmp_path / "b", input_shape=(1, 8, 8))
    plain = load(tmp_path / "b")
    table = tune(tmp_path / "b", images(1), candidates=candidates, batch_sizes=[1, 2], rounds=1)
    tuned = load(tmp_path / "b", backend="auto")
    assert read_manifest(tmp_path / "b").backends == table
    assert set(table.seconds) == {"small", "large"}
    assert {"eager", "onnxruntime"} <= set(table.seconds["small"])
    assert close(tuned(images()), plain(images()))
    again = tune(tmp_path / "b", images(1), candidates=["folded"], batch_sizes=[4], rounds=1)
    found = read_manifest(tmp_path / "b").backends
    assert found == again
    assert set(found.seconds["large"]) == {"eager", "folded"}
    assert found.batch_sizes == (4,)


def test_tuning_loses_nothing_where_it_fails(tmp_path, cascade, candidate):
    save(Adaptive(cascade, candidate), tmp_path / "b")
    before = {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}
    with pytest.raises(UnknownNameError, match="no backend 'onnx'"):
        tune(tmp_path / "b", images(1), candidates=["onnx"])
    with pytest.raises(InputError, match="example must hold at least one example, got 0"):
        tune(tmp_path / "b", images(0))
    (tmp_path / "b" / "large.safetensors").write_bytes(b"")
    with pytest.raises(FileFormatError, match=r"large.safetensors is truncated"):
        tune(tmp_path / "b", images(1))
    (tmp_path / "b" / "large.safetensors").write_bytes(before["large.safetensors"])
    assert {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()} == before


def test_only_what_runs_in_pytorch_is_tuned(tmp_path, cascade, candidate):
    made = with_backend(cascade, {"large": "onnxruntime"}, example=images(1))
    save(Adaptive(made, candidate), tmp_path / "b")
    table = tune(tmp_path / "b", images(1), candidates=["folded"], batch_sizes=[1], rounds=1)
    assert set(table.seconds) == {"small"}
    bundle = load(tmp_path / "b", backend="auto")
    assert runs_in(bundle)[1] == "onnxruntime"
    made = with_backend(cascade, "onnxruntime", example=images(1))
    save(Adaptive(made, candidate), tmp_path / "c")
    with pytest.raises(InputError, match="each has its backend already"):
        tune(tmp_path / "c", images(1))


def data(n=400):
    """Batches with ids whose labels the networks know in part."""
    batch = images(n)
    with torch.no_grad():
        each = make_cascade()(batch).argmax(2)
    return [(batch, torch.where(torch.arange(n) % 3 == 0, each[:, 0], each[:, 1]))]


@pytest.fixture(scope="module")
def int8(cascade):
    costs = given_costs(["small@int8", "large"], "usd", {"small@int8": 0.1, "large": 1.0})
    return quantize(
        cascade,
        data(),
        calibration=images(32),
        stages=["small"],
        costs=costs,
        policy="threshold",
        reference="large",
        combines=["last"],
        progress=False,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory, int8):
    """A bundle with one stage in int8 and one in PyTorch."""
    path = tmp_path_factory.mktemp("int8") / "bundle"
    save(Adaptive(int8.cascade, candidate_of(int8.cascade, images())), path)
    return path


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "bundle")


def test_a_quantized_cascade_is_recorded_and_fitted_on_its_own_answers(int8, cascade):
    assert int8.cascade.topology.names == int8.trace.stages == ("small@int8", "large")
    assert int8.trace.costs.unit == "usd"
    with torch.no_grad():
        own = int8.cascade(images(400)).numpy()
        other = cascade(images(400)).numpy()
    np.testing.assert_allclose(int8.trace.logits, own, rtol=1e-3, atol=1e-3)
    assert not np.allclose(int8.trace.logits[:, 0], other[:, 0], rtol=1e-3, atol=1e-3)
    model = Adaptive(int8.cascade, int8.frontier.points[0].candidate)
    assert model(images()).stage_names == ("small@int8", "large")


def test_a_policy_of_the_float32_cascade_is_refused(int8, candidate):
    with pytest.raises(InputError, match=r"made for stages with names \('small', 'large'\), but"):
        Adaptive(int8.cascade, candidate)


def test_only_what_changes_answers_is_quantized(cascade):
    with pytest.raises(InputError, match=r"must be one that changes answers.*got 'onnxruntime'"):
        quantize(cascade, data(), calibration=images(2), backend="onnxruntime")
    with pytest.raises(InputError, match="calibration must hold at least one example"):
        quantize(cascade, data(), calibration=images(0))


def test_a_bundle_with_int8_answers_as_it_did(saved, int8):
    bundle, manifest = load(saved), read_manifest(saved)
    assert sorted(manifest.files) == [
        "large.safetensors",
        "policy.json",
        "small_int8-" + manifest.stages[0].runs.files[0][11:],
        manifest.stages[0].runs.answers,
    ]
    want = Adaptive(int8.cascade, bundle.candidate)(images())
    found = bundle(images())
    assert torch.equal(found.log_probs, want.log_probs)
    assert len(found.stage.unique()) == 2
    faster = load(saved, backend="folded")
    assert runs_in(faster) == ["onnxruntime-int8", "torch"]
    assert close(faster(images()), want)
    with pytest.raises(InputError, match="'small@int8' is held in the backend"):
        load(saved, backend={"small@int8": "folded"})


def onnx_file(folder):
    return next(folder.glob("*.onnx"))


def test_a_model_that_was_exchanged_is_found_by_its_checksum(copied):
    path = onnx_file(copied)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"{path.name} has changed since the bundle was"):
        load(copied)


def relisted(folder):
    """Whoever exchanges a file may exchange its checksum, and the manifest's, as well."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        path = folder / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_a_model_that_is_none_is_refused(copied, content):
    onnx_file(copied).write_bytes(content)
    relisted(copied)
    with pytest.raises(FileFormatError, match=r"The model of .*small_int8"):
        load(copied)


def test_a_machine_on_which_the_model_answers_otherwise_is_told(copied):
    path = next(copied.glob("*.onnx.safetensors"))
    noted = load_file(path)
    save_file({name: value + 1 for name, value in noted.items()}, path)
    relisted(copied)
    with pytest.raises(FileFormatError, match=r"answers otherwise than where .* by up to 1\b"):
        load(copied)
    load(copied, verify=False)
    save_file({"out.7": next(iter(noted.values()))}, path)
    relisted(copied)
    with pytest.raises(FileFormatError, match=r"must hold 'out.0' of shape \(2, 3\)"):
        load(copied)


def edited(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(sealed(manifest)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(version=2), "format 2 holds neither stages in another runtime nor"),
        (lambda m: m["stages"][0]["runs"].update(files=["../x.onnx"]), "'../x.onnx' is not among"),
        (lambda m: m["stages"][0]["runs"].update(answers="y"), "'y' is not among the files"),
        (lambda m: m["stages"][0]["runs"]["inputs"].update(dtypes=["int8"]), "does not run"),
        (lambda m: m["stages"][0]["runs"]["outputs"].update(shapes=[[4]]), r"must give a tensor"),
        (lambda m: m["stages"][0]["runs"]["outputs"].update(kind="list"), "Input should be"),
        (lambda m: m["topology"].update(sources=[-1, 0]), "the topology gives a source"),
        (
            lambda m: m.update(backends=to_json(table("x", eager=1.0))),
            "measured for 'x', which is not in the topology",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(copied, change, match):
    edited(copied, change)
    with pytest.raises(FileFormatError, match=match):
        load(copied)


def test_a_table_without_times_is_refused(copied):
    bad = {**to_json(table("large", eager=1.0)), "seconds": {"large": {"eager": [-1.0]}}}
    edited(copied, lambda m: m.update(backends=bad))
    with pytest.raises(FileFormatError, match=r"backends: .* got \(-1.0,\) for stage 'large'"):
        load(copied)


class Head(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.dense = nn.Linear(channels, 10)

    def forward(self, maps):
        return self.dense(maps.mean((2, 3)))


@pytest.fixture(scope="module")
def exits():
    """Three segments; the carry after the second is a tuple."""
    spec = {
        name: ModelSpec(name="gap_linear", arguments={"channels": c, "classes": 10})
        for name, c in (("layer1.0", 4), ("layer2.0.conv1", 8))
    }
    x = images(1, 3, 16)
    norm = Normalize(1 / 255, 0.5, 0.1)
    return Cascade.from_network(
        build(NET), list(spec), head=spec, example=x, transform=norm, spec=NET
    )


@pytest.fixture(scope="module")
def from_on(exits):
    """The exits in int8 from one of them on, made once."""

    @functools.cache
    def make(first):
        names, x = exits.topology.names, images(20, 3, 16)
        chosen = dict.fromkeys(names[names.index(first) :], "onnxruntime-int8")
        return with_backend(exits, chosen, example=x, calibration=x)

    return make


def test_exits_behind_a_transform_of_bytes_need_no_example(tmp_path, exits):
    x, policy = images(20, 3, 16), random_policy(exits.topology, seed=1, classes=10)
    last = exits.topology.names[-1]
    chosen = Candidate(policy=policy, method="learned", reference=last)
    save(Adaptive(exits, chosen), tmp_path / "b")
    assert close(load(tmp_path / "b", backend="folded")(x), Adaptive(exits, policy)(x))


@pytest.mark.parametrize(  # behind one in PyTorch: make test-slow
    "first", ["layer1.0", pytest.param("layer2.0.conv1", marks=pytest.mark.slow)]
)
def test_exits_are_kept_in_int8_from_one_of_them_on(tmp_path, from_on, first):
    x, made = images(20, 3, 16), from_on(first)
    last = made.topology.names[-1]
    policy = random_policy(made.topology, seed=1, classes=10)
    save(Adaptive(made, Candidate(policy=policy, method="learned", reference=last)), tmp_path / "b")
    bundle = load(tmp_path / "b")
    assert torch.equal(bundle(x).log_probs, Adaptive(made, policy)(x).log_probs)
    faster = load(tmp_path / "b", backend="folded")
    assert close(faster(x), bundle(x))


def test_what_continues_int8_in_pytorch_cannot_be_saved(tmp_path, exits):
    x = images(20, 3, 16)
    made = with_backend(exits, {"layer1.0": "onnxruntime-int8"}, example=x, calibration=x)
    candidate = Candidate.single(made.topology, "last@int8", reference="last@int8")
    with pytest.raises(InputError, match=r"continues 'layer1.0@int8', which does not; a bundle"):
        save(Adaptive(made, candidate), tmp_path / "b")


def test_a_carry_cannot_pass_for_an_answer(tmp_path, from_on):
    made = from_on("layer1.0")
    never = Candidate.single(made.topology, "last@int8", reference="last@int8")
    save(Adaptive(made, never), tmp_path / "b")
    first = Candidate.single(made.topology, "layer1.0@int8", reference="last@int8")
    (tmp_path / "b" / "policy.json").write_text(json.dumps(to_json(first)))
    relisted(tmp_path / "b")
    with pytest.raises(FileFormatError, match=r"uses the exit 'layer1.0@int8', but .* no head"):
        load(tmp_path / "b")


def test_quantizing_measures_seconds_where_no_costs_are_given(cascade):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that networks so small hardly differ in cost
        found = quantize(cascade, data(90), calibration=images(8), policy="random", progress=False)
    assert found.trace.costs.unit == "seconds"
    assert offramp.Cascade is type(found.cascade)
