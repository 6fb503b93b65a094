"""The exported files: what skips, what stands where, what is refused. Real networks with exits."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from offramp._core.errors import InputError, UnsupportedError
from offramp._core.schema import from_json, to_json
from offramp.backends import to_onnx
from offramp.bundle import export_onnx
from offramp.bundle.onnx import graph as graph_module
from offramp.bundle.onnx import parts as parts_module
from offramp.fitting.stopping.network import make_networks, stopping_policy
from offramp.policy import Candidate, Feature, Linear, Node, Policy
from offramp.policy.rules import Random
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize

SHAPE, CLASSES = (3, 8, 8), 4
SCALE = {"scale": 1 / 255, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.2)}


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)


def head(channels):
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(channels, CLASSES)).eval()


@pytest.fixture(scope="module", autouse=True)
def same_networks_every_time():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def cascade():
    layers = {
        "conv1": nn.Conv2d(3, 4, 3, padding=1),
        "norm1": nn.BatchNorm2d(4),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(4, 8, 3),
        "relu2": nn.ReLU(),
        "conv3": nn.Conv2d(8, 16, 3),
        "last": head(16),
    }
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    heads = {"relu1": {"a": head(4), "b": head(4)}, "relu2": head(8)}
    return Cascade.from_network(
        net.eval(),
        list(heads),
        head=heads,
        example=images(2),
        transform=Normalize(**SCALE),
        class_names=["a", "b", "c", "d"],
    )


@pytest.fixture(scope="module")
def policy(cascade):
    """The first exit's second head, then the network's own answer; the exit between is unused."""
    chain = cascade.topology.chain(["relu1/b", "last"])
    with torch.inference_mode():
        sure = cascade(images(64))[:, 1].softmax(dim=1).amax(dim=1)
    rule = Linear.threshold(Feature("max_prob", 1), float(sure.median()) + 1e-6)
    return Policy(chain, {(1,): Node(rule)})


@pytest.fixture(scope="module")
def exported(cascade, policy, tmp_path_factory):
    """The one file and the folder, of parts that are exported once."""
    path, parts = tmp_path_factory.mktemp("exported"), {}

    def once(module, given, *, name, others=()):
        if name not in parts:
            parts[name] = to_onnx(module, given, name=name, others=others)
        return copy.deepcopy(parts[name])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "to_onnx", once)
        candidate = Candidate(policy=policy, method="threshold", reference="last")
        single = export_onnx(Adaptive(cascade, policy), path / "cascade.onnx", example=images(1))
        return single, export_onnx(
            Adaptive(cascade, candidate), path / "cascade", example=images(1), folder=True
        )


@pytest.fixture(scope="module")
def single(exported):
    return exported[0]


@pytest.fixture(scope="module")
def folder(exported):
    return exported[1]


def session(path, profile=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def halves(cascade, policy, n=64):
    """Images that leave at the first exit, and images that go on."""
    x = images(n)
    stage = Adaptive(cascade, policy)(x).stage
    return x[stage == 1], x[stage == 3]


@pytest.mark.parametrize("n", [1, 2, 33, 128])
def test_exits_in_one_file_answer_as_the_runtime_does(cascade, policy, single, n):
    x = images(n, seed=n)
    logits, label, stage = session(single.path).run(None, {"input": x.numpy()})
    expected = Adaptive(cascade, policy)(x)
    np.testing.assert_array_equal(stage, expected.stage.numpy())
    np.testing.assert_array_equal(label, expected.labels.numpy())
    np.testing.assert_allclose(logits, expected.log_probs.numpy(), rtol=1e-4, atol=1e-5)


def test_what_was_written_is_described(single):
    assert single.bytes == single.path.stat().st_size
    assert single.inputs == {"input": ("batch", *SHAPE)}
    assert single.stages == ("relu1/b", "last")
    model = onnx.load(single.path)
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert facts["class_names"] == ["a", "b", "c", "d"]
    assert facts["stages"][1] == "relu1/b"
    outputs = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
               for v in model.graph.output}  # fmt: skip
    assert outputs == {"log_probs": ["batch", CLASSES], "label": ["batch"], "stage": ["batch"]}


def test_weights_of_later_stages_stand_inside_their_branch_alone(cascade, single):
    graph = onnx.load(single.path).graph
    (branch,) = (node for node in graph.node if node.op_type == "If")
    inside = {a.name: a.g for a in branch.attribute}["then_branch"]
    last = dict(cascade.stage("last").module.named_parameters())
    weight = next(w for w in last.values() if w.shape == (CLASSES, 16)).detach().numpy()
    first = next(iter(cascade.stage(0).module.parameters())).detach().numpy()

    def holds(part, values):
        arrays = (onnx.numpy_helper.to_array(held) for held in part.initializer)
        return any(a.shape == values.shape and np.array_equal(a, values) for a in arrays)

    assert holds(inside, weight)
    assert not holds(graph, weight)
    assert not holds(inside, first)
    outer = sum(len(held.raw_data) for held in graph.initializer)
    inner = sum(len(held.raw_data) for held in inside.initializer)
    assert inner > 5 * outer


def executed(path, x, folder):
    """Names of the operations that ran."""
    held = session(path, folder / "profile")
    held.run(None, {"input": x.numpy()})
    events = json.loads(Path(held.end_profiling()).read_text())
    return [e["name"] for e in events if e.get("cat") == "Node"]


def test_a_stage_that_nobody_visits_does_not_run(cascade, policy, single, tmp_path):
    leave, go_on = halves(cascade, policy)
    assert min(len(leave), len(go_on)) > 5
    skipped = executed(single.path, leave, tmp_path)
    assert not any("stage.3.last/" in name for name in skipped)
    assert any("stage.3.last.skipped" in name for name in skipped)
    ran = executed(single.path, torch.cat([leave, go_on[:1]]), tmp_path)
    assert any("stage.3.last/" in name and "onv" in name for name in ran)


def test_the_runner_needs_numpy_and_onnxruntime_alone(cascade, policy, folder, tmp_path):
    x = images(33, seed=33)
    np.savez(tmp_path / "inputs.npz", input=x.numpy())
    moved = shutil.copytree(folder.path, tmp_path / "elsewhere")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import run; run.main(sys.argv[2:]);"
        "assert not {'torch', 'offramp', 'onnx'} & set(sys.modules)"
    )
    names = [str(tmp_path / name) for name in ("inputs.npz", "answers.npz")]
    subprocess.run([sys.executable, "-c", code, str(moved), *names], check=True, timeout=120)
    expected = Adaptive(cascade, policy)(x)
    with np.load(tmp_path / "answers.npz") as found:
        np.testing.assert_array_equal(found["stage"], expected.stage.numpy())
        np.testing.assert_array_equal(found["label"], expected.labels.numpy())
        np.testing.assert_allclose(found["log_probs"], expected.log_probs.numpy(), atol=1e-5)


def test_a_folder_holds_each_part_once_and_the_policy(folder, policy):
    assert sorted(folder.files) == sorted(file.name for file in folder.path.iterdir())
    assert sum(name.endswith(".segment.onnx") for name in folder.files) == 3
    assert sum(name.endswith(".head.onnx") for name in folder.files) == 1
    saved = from_json(Candidate, json.loads((folder.path / "policy.json").read_text()))
    assert to_json(saved.policy) == to_json(policy)
    for file in folder.path.glob("*.onnx"):
        onnx.checker.check_model(str(file), full_check=True)


def test_the_runner_refuses_other_folders(folder, tmp_path):
    other = shutil.copytree(folder.path, tmp_path / "other")
    (other / "manifest.json").write_text('{"format": "offramp-bundle"}')
    made = subprocess.run(
        [sys.executable, str(other / "run.py"), "a.npz", "b.npz"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert made.returncode != 0
    usage = subprocess.run(
        [sys.executable, str(other / "run.py")], capture_output=True, text=True, check=False
    )
    assert "usage: python run.py INPUTS.npz ANSWERS.npz" in usage.stderr


class Tokens(nn.Module):
    """Reads a mapping; gives one."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.out = nn.Linear(5, CLASSES)

    def forward(self, ids, mask):
        held = (self.embed(ids) * mask[..., None]).sum(dim=1)
        return {"logits": self.out(held), "hidden": held}


@pytest.mark.slow
def test_networks_that_take_and_give_mappings_can_be_exported(tmp_path):
    cascade = Cascade.from_models({"small": Tokens().eval(), "large": Tokens().eval()})
    x = {"ids": torch.arange(66).reshape(11, 6) % 11, "mask": torch.ones(11, 6)}
    with torch.inference_mode():
        sure = cascade(x)[:, 0].softmax(dim=1).amax(dim=1).sort().values
    rule = Linear.threshold(Feature("max_prob", 0), float(sure[4:6].mean()))
    policy = Policy(cascade.topology, {(0,): Node(rule)})
    made = export_onnx(Adaptive(cascade, policy), tmp_path / "t.onnx", example=x)
    assert list(made.inputs) == ["ids", "mask"]
    _, label, stage = session(made.path).run(None, {k: v.numpy() for k, v in x.items()})
    expected = Adaptive(cascade, policy)(x)
    assert label.tolist() == expected.labels.tolist()
    assert stage.tolist() == expected.stage.tolist()
    assert set(stage.tolist()) == {0, 1}


def tiny(transform=None, **other):
    models = {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3), **other}
    return Cascade.from_models({k: m.eval() for k, m in models.items()}, transform=transform)


def alone(cascade, stage="a"):
    return Candidate.single(cascade.topology, stage, reference=stage)


def test_a_transform_can_be_left_to_whoever_calls(tmp_path):
    cascade = tiny(Normalize(0.5, mean=0.25))
    x, answers = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), []
    for name, transform in (("whole.onnx", True), ("plain.onnx", False)):
        path = tmp_path / name
        export_onnx(Adaptive(cascade, alone(cascade)), path, example=x, transform=transform)
        given = x if transform else Normalize(0.5, mean=0.25)(x)
        answers.append(session(path).run(["log_probs"], {"input": given.numpy()})[0])
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5, atol=1e-6)
    expected = Adaptive(cascade, alone(cascade))(x).log_probs.numpy()
    np.testing.assert_allclose(answers[0], expected, rtol=1e-5, atol=1e-6)


def test_two_ways_to_prepare_cannot_be_left_out(tmp_path):
    each = {"a": Normalize(0.5), "b": Normalize(0.25)}
    cascade = tiny(each)
    policy = Policy(cascade.topology, {(0,): Node(Linear.threshold(Feature("margin", 0), 0.5))})
    with pytest.raises(InputError, match=r"'a' and 'b' prepare their input.*scale=0\.5"):
        export_onnx(
            Adaptive(cascade, policy),
            tmp_path / "x.onnx",
            example=torch.zeros(1, 4),
            transform=False,
        )


def drawing():
    cascade = tiny()
    network = make_networks(1, classes=3, width=4, seed=0)[0]
    return {
        "random": Policy(cascade.topology, {(0,): Node(Random(0.5, 0, 0))}),
        "sampled": stopping_policy(cascade.topology, [network.rule(0)], seed=3),
    }


@pytest.mark.parametrize("kind", ["random", "sampled"])
def test_policies_that_draw_at_random_are_refused_and_others_named(tmp_path, kind):
    message = "after stage 'a' it draws at random.*Rules that can be exported: constants"
    model = Adaptive(tiny(), drawing()[kind])
    for folder in (False, True):
        path = tmp_path / ("x" if folder else "x.onnx")
        with pytest.raises(UnsupportedError, match=message):
            export_onnx(model, path, example=torch.zeros(1, 4), folder=folder)
        assert list(tmp_path.iterdir()) == []


class Foreign(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)[:, :3]


def test_an_operator_that_onnx_lacks_is_named_with_its_stage(tmp_path):
    cascade = tiny(c=Foreign())
    with pytest.raises(UnsupportedError, match=r"stage 'c' cannot be exported.*bessel_j0"):
        export_onnx(
            Adaptive(cascade, alone(cascade, "c")), tmp_path / "x.onnx", example=torch.zeros(1, 4)
        )
    assert list(tmp_path.iterdir()) == []


def test_what_is_too_large_for_one_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_module, "MOST", 50)
    cascade = tiny()
    with pytest.raises(UnsupportedError, match=r"stage 'a' takes .* GiB.*Export a folder"):
        export_onnx(
            Adaptive(cascade, alone(cascade)), tmp_path / "x.onnx", example=torch.zeros(1, 4)
        )


def test_paths_are_looked_at_before_anything_runs(tmp_path):
    cascade, example = tiny(), torch.zeros(1, 4)
    (tmp_path / "there.onnx").touch()
    with pytest.raises(InputError, match=r"path must end in \.onnx, got 'x\.bin'"):
        export_onnx(Adaptive(cascade, alone(cascade)), tmp_path / "x.bin", example=example)
    with pytest.raises(InputError, match=r"there\.onnx exists already"):
        export_onnx(Adaptive(cascade, alone(cascade)), tmp_path / "there.onnx", example=example)
    with pytest.raises(InputError, match=r"must be a folder, got 'x\.onnx'"):
        export_onnx(
            Adaptive(cascade, alone(cascade)), tmp_path / "x.onnx", example=example, folder=True
        )
    with pytest.raises(InputError, match=r"is not empty.*'there\.onnx'"):
        export_onnx(Adaptive(cascade, alone(cascade)), tmp_path, example=example, folder=True)
    with pytest.raises(InputError, match="at least one example, got 0"):
        export_onnx(Adaptive(cascade, alone(cascade)), tmp_path / "x.onnx", example=example[:0])


def test_a_policy_of_another_cascade_is_refused(tmp_path):
    candidate = alone(tiny())
    with pytest.raises(InputError, match="The policy was made for stages"):
        export_onnx(
            Adaptive(tiny(c=nn.Linear(4, 3)), candidate),
            tmp_path / "x.onnx",
            example=torch.zeros(1, 4),
        )


def test_an_existing_file_is_replaced_where_that_is_said(tmp_path):
    cascade = tiny()
    path, written = tmp_path / "x.onnx", []
    path.write_text("before")
    for _ in range(2):
        export_onnx(
            Adaptive(cascade, alone(cascade)), path, example=torch.zeros(1, 4), overwrite=True
        )
        written.append(path.read_bytes())
    assert written[0] == written[1] != b"before"  # the same bytes whenever it is exported
