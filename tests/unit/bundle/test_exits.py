"""Bundles of networks that are cut: what is written, what comes back, what is refused."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import fx, nn

from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError, InputError, UnsupportedError
from offramp._core.files import sha256
from offramp._core.schema import to_json
from offramp._core.seal import sealed
from offramp.bundle import load, read_manifest, save
from offramp.models import ModelSpec, build, head_arguments
from offramp.policy import Candidate, Constant, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize, SegmentSpec, Stage, own_head
from offramp.testing import random_policy

AT = ["layer1.0", "layer2.0.conv1", "layer3.0"]  # the second carries a shortcut as well
NET = ModelSpec(name="resnet8", arguments={"width": 0.25})
CONV, GAP = f"{AT[1]}/conv", f"{AT[1]}/gap"
COSTS = Costs(unit="flops", segment=(4, 4, 4, 4, 2), head=(1, 1, 2, 1, 0), decision=(0,) * 5)


def head_spec(kind, channels, **options):
    return ModelSpec(name=kind, arguments=head_arguments(kind, (channels, 8, 8), 10, **options))


def lively(module, seed=0):
    """Weights as no spec makes them, with batch-norm statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator) * 0.1)
            part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1 + 0.1 * torch.rand(p.shape, generator=generator))
    return module.eval()


def make_images():
    return torch.rand(33, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 255


def make_cascade(**changes):
    given = {
        "head": {
            AT[0]: head_spec("gap_linear", 4),
            AT[1]: {
                "gap": head_spec("gap_linear", 8),
                "conv": head_spec("conv_head", 8, filters=4),
            },
            AT[2]: head_spec("pool_mlp", 16, hidden=8),
        },
        "example": make_images(),
        "transform": Normalize(1 / 255, 0.5, 0.1),
        "spec": NET,
    }
    cascade = Cascade.from_network(build(NET), AT, **(given | changes))
    return lively(cascade)


def respecified(cascade, model):
    """The same cascade, told otherwise how its network is built."""
    copied = copy.deepcopy(cascade)
    cut = None if model is None else replace(copied.stage(0).spec.cut, model=model)
    for stage in copied:
        stage.spec = None if cut is None else SegmentSpec(cut=cut, index=stage.spec.index)
    return copied


def never_leave(cascade, names, reference):
    """Visits all of some exits; the last of them answers."""
    part = cascade.topology.chain(names)
    nodes = {path: Node(Constant(False)) for path in part.paths() if part.children(path[-1])}
    return Candidate(policy=Policy(part, nodes), method="x", reference=reference)


@pytest.fixture(scope="module")
def cascade():
    return make_cascade()


@pytest.fixture(scope="module")
def images():
    return make_images()


@pytest.fixture(scope="module")
def candidate(cascade, images):
    """Of random policies the first by which examples leave at each of three exits."""
    part = cascade.topology.chain([AT[0], CONV, "last"])
    policies = (random_policy(part, seed=k, classes=10, combine="log_linear") for k in range(1000))
    policy = next(p for p in policies if len(Adaptive(cascade, p)(images).stage.unique()) == 3)
    return Candidate(policy=policy, method="learned", reference="last")


@pytest.fixture(scope="module")
def written(tmp_path_factory, cascade, candidate):
    path = tmp_path_factory.mktemp("exits") / "bundle"
    save(Adaptive(cascade, candidate, costs=COSTS), path)
    return path


@pytest.fixture
def saved(tmp_path, written):
    return shutil.copytree(written, tmp_path / "bundle")


def same(one, other):
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("log_probs", "labels", "stage", "confidence", "cost", "valid", "nonfinite")
    )


# What comes back.


def test_a_loaded_bundle_answers_bit_by_bit_as_what_was_saved(written, cascade, candidate, images):
    loaded = load(written)
    before = Adaptive(cascade, candidate, costs=COSTS)(images)
    assert same(loaded(images), before)
    assert len(before.stage.unique()) == 3
    assert same(loaded.reference(images), Adaptive.single(cascade, "last", costs=COSTS)(images))


def test_the_network_is_written_once_and_only_the_heads_that_are_used(written):
    manifest = read_manifest(written)
    assert manifest.version == 4
    (network,) = manifest.networks
    assert network.at == tuple(AT)
    assert network.model.name == "resnet8"
    heads = {entry.name: entry.head for entry in manifest.stages}
    assert list(heads) == [AT[0], GAP, CONV, AT[2], "last"]  # segments run without their heads
    assert [name for name, head in heads.items() if head is not None] == [AT[0], CONV]
    files = {"manifest.json", "policy.json", network.weights, network.example.file}
    files |= {head.weights for head in heads.values() if head is not None}
    assert {file.name for file in written.iterdir()} == files
    assert set(load_file(written / network.weights)) == set(build(NET).state_dict())


def test_the_example_is_made_up(written, images):
    held = load_file(written / "example.0.safetensors")
    assert held["input.0"].shape == (1, 3, 16, 16)
    assert torch.equal(held["input.0"].flatten()[:3], torch.tensor([1.0, 2.0, 3.0]).sin())
    assert held["logits"].shape == (1, 3, 10)


def test_a_loaded_bundle_holds_no_head_that_is_not_used(written, cascade):
    model = load(written)
    heads = {k: stage.head is not None for k, stage in model.stages.items()}
    assert heads == {"0": True, "2": True, "3": False, "4": False}
    net = sum(p.numel() for p in build(NET).parameters())
    used = sum(p.numel() for name in (AT[0], CONV) for p in cascade.stage(name).head.parameters())
    assert sum(p.numel() for p in model.parameters()) == net + used


def test_the_stages_of_a_loaded_bundle_know_how_to_be_built_again(written, cascade):
    loaded = load(written)
    for k, stage in loaded.stages.items():
        assert stage.spec.index == cascade.stage(int(k)).spec.index
        assert stage.spec.cut.model == NET
    assert loaded.stages["2"].head_spec == cascade.stage(CONV).head_spec


def test_f_may_be_an_exit_in_the_middle(tmp_path, cascade, images):
    candidate = never_leave(cascade, [AT[0], CONV], CONV)
    save(Adaptive(cascade, candidate, costs=COSTS), tmp_path / "b")
    loaded = load(tmp_path / "b")
    assert same(loaded(images), Adaptive(cascade, candidate, costs=COSTS)(images))
    assert same(loaded.reference(images), Adaptive.single(cascade, CONV, costs=COSTS)(images))
    names = [entry.name for entry in read_manifest(tmp_path / "b").stages]
    assert names == [AT[0], CONV]  # what lies deeper never runs


def test_a_policy_may_go_on_from_another_head_than_the_source(tmp_path, cascade, images):
    """The segment after a group continues its first head, by name; any head will have run it."""
    candidate = never_leave(cascade, [CONV, AT[2]], AT[0])
    save(Adaptive(cascade, candidate), tmp_path / "b")
    expected = Adaptive(cascade, candidate)(images)
    assert torch.equal(load(tmp_path / "b")(images).log_probs, expected.log_probs)


def test_f_may_use_exits_that_the_policy_does_not(tmp_path, cascade, images):
    candidate = Candidate.single(cascade.topology, AT[0], reference=GAP)
    save(Adaptive(cascade, candidate), tmp_path / "b")
    loaded = load(tmp_path / "b")
    assert loaded(images).stage.tolist() == [0] * 33
    expected = Adaptive.single(cascade, GAP)(images)
    assert torch.equal(loaded.reference(images).log_probs, expected.log_probs)


def test_a_bundle_may_be_loaded_optimized(written, images, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # folding passes stand-ins
    plain, fast = load(written), load(written, fold=True, verify=False)
    graphs = [m.graph for m in fast.modules() if isinstance(m, fx.GraphModule)]
    norms = [n for g in graphs for n in g.find_nodes(op="call_function", target=torch.batch_norm)]
    assert len(norms) == 1  # the cut after layer2.0.conv1 parts a batch-norm from its convolution
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    torch.testing.assert_close(
        fast.reference(images).log_probs, plain.reference(images).log_probs, rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow  # five cuts; one network is cut everywhere above: make test-slow
def test_exits_of_two_networks_and_a_whole_one_go_together(tmp_path, images):
    """A cascade of stages put together by hand: a small network, then exits of two larger ones."""
    nets = {"first": NET, "second": ModelSpec(name="resnet14", arguments={"width": 0.25})}
    stages, edges = [Stage("small", build(NET), transform=Normalize(0.01), spec=NET)], []
    for name, spec in nets.items():
        exits = Cascade.from_network(
            build(spec),
            ["layer1.0"],
            head={"layer1.0": {name: head_spec("gap_linear", 4)}},
            example=images[:1],
            transform=Normalize(1 / 255),
            last=f"last_{name}",
            spec=spec,
        )
        for stage in exits:
            stage.group = name if stage.source is None else stage.group
            edges.append((stages[-1].name, stage.name))
            stages.append(stage)
    cascade = lively(Cascade(stages, edges=edges))
    candidate = never_leave(cascade, cascade.topology.names, "last_first")
    save(Adaptive(cascade, candidate), tmp_path / "b")
    loaded = load(tmp_path / "b")
    assert [network.model.name for network in read_manifest(tmp_path / "b").networks] == [
        "resnet8",
        "resnet14",
    ]
    expected = Adaptive(cascade, candidate)(images)
    assert torch.equal(loaded(images).log_probs, expected.log_probs)
    expected = Adaptive.single(cascade, "last_first")(images)
    assert torch.equal(loaded.reference(images).log_probs, expected.log_probs)


MODULE = """
import torch
from torch import nn

class Reader(nn.Module):
    def __init__(self, types=1):
        super().__init__()
        self.words, self.types = nn.Embedding(20, 8), nn.Embedding(types, 8)
        self.register_buffer("order", torch.arange(6).float(), persistent=False)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, ids, mask, kinds):
        x = self.words(ids) + self.types(kinds) + self.order[:, None]
        x = torch.relu(self.one(x))
        total = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {"logits": self.two(total)}

class Head(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(8, classes)

    def forward(self, x):
        return self.linear(x.mean(1))
"""


@pytest.fixture
def reader(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield (
        ModelSpec(name="own_networks:Reader"),
        ModelSpec(name="own_networks:Head", arguments={"classes": 5}),
    )
    sys.modules.pop("own_networks", None)


def test_a_network_and_a_head_of_ones_own_that_read_a_mapping_of_whole_numbers(tmp_path, reader):
    """Zeros would not do: a mask of zeros divides by 0, and a token type of 1 does not exist."""
    net, head = reader
    ids = torch.randint(0, 20, (7, 6), generator=torch.Generator().manual_seed(0))
    batch = {"ids": ids, "mask": (ids > 3).long(), "kinds": torch.zeros_like(ids)}
    batch["mask"][:, 0] = 1
    cascade = Cascade.from_network(build(net), ["one"], head={"one": head}, example=batch, spec=net)
    candidate = never_leave(cascade, ["one", "last"], "last")
    save(Adaptive(cascade, candidate), tmp_path / "b")
    with pytest.raises(UnsupportedError, match="would import and run code by name"):
        load(tmp_path / "b")
    loaded = load(tmp_path / "b", allow_import=True)
    assert torch.equal(loaded(batch).log_probs, Adaptive(cascade, candidate)(batch).log_probs)
    held = load_file(tmp_path / "b" / "example.0.safetensors")
    assert torch.equal(held["input.0"], ids[:1])
    assert held["logits"].isfinite().all()


def test_code_that_computes_something_else_by_now_is_noticed(tmp_path, reader, monkeypatch):
    net, head = reader
    example = {"ids": torch.ones(1, 6).long(), "mask": torch.ones(1, 6), "kinds": torch.zeros(1, 6)}
    example["kinds"] = example["kinds"].long()
    cascade = Cascade.from_network(
        build(net), ["one"], head={"one": head}, example=example, spec=net
    )
    save(Adaptive(cascade, never_leave(cascade, ["one"], "last")), tmp_path / "b")
    module = sys.modules["own_networks"]
    monkeypatch.setattr(module.torch, "relu", torch.sigmoid)
    with pytest.raises(FileFormatError, match=r"example\.0.*\['one', 'last'\] answer otherwise"):
        load(tmp_path / "b", allow_import=True)
    load(tmp_path / "b", allow_import=True, verify=False)


BERT = """
import sys, types
# torchvision registers operations here that a build without its C++ part does not have.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("none"))
from transformers import BertConfig, BertForSequenceClassification

def bert(**candidates):
    return BertForSequenceClassification(BertConfig(**candidates))
"""

ANSWER = """
import sys, torch
from safetensors.torch import load_file, save_file
from offramp.bundle import load
sys.path.insert(0, sys.argv[1])
loaded = load(sys.argv[2], allow_import=True)
answer = loaded(load_file(sys.argv[3]))
save_file({"log_probs": answer.log_probs, "stage": answer.stage}, sys.argv[4])
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the package warns of its own future
def test_a_hugging_face_classifier_in_a_fresh_process(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "own_bert.py").write_text(BERT)
    monkeypatch.syspath_prepend(tmp_path)
    sizes = {"vocab_size": 50, "num_hidden_layers": 4, "num_attention_heads": 2, "num_labels": 3}
    sizes |= {"hidden_size": 32, "intermediate_size": 48, "type_vocab_size": 1}
    spec = ModelSpec(name="own_bert:bert", arguments=sizes)
    ids = torch.randint(1, 50, (7, 12), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": (torch.arange(12) < 5 + torch.arange(7)[:, None])}
    batch = {name: tensor.long() for name, tensor in batch.items()}
    heads = {
        f"bert.encoder.layer.{k}": ModelSpec(
            name="token_linear",
            arguments=head_arguments(
                "token_linear", (12, 32), 3, layout="channels_last", pooling="first", seed=k
            ),
        )
        for k in (0, 2)
    }
    cascade = Cascade.from_network(build(spec), list(heads), head=heads, example=batch, spec=spec)
    part = cascade.topology.chain([0, 1, 2])
    policies = (random_policy(part, seed=k, classes=3, linear=True) for k in range(1000))
    policy = next(p for p in policies if len(Adaptive(cascade, p)(batch).stage.unique()) > 1)
    save(Adaptive(cascade, Candidate(policy=policy, method="x", reference="last")), tmp_path / "b")
    save_file(batch, tmp_path / "in.safetensors")
    here = [tmp_path, tmp_path / "b", tmp_path / "in.safetensors", tmp_path / "out.safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, *map(str, here)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found, wanted = load_file(here[-1]), Adaptive(cascade, policy)(batch)
    assert torch.equal(found["stage"], wanted.stage)
    torch.testing.assert_close(found["log_probs"], wanted.log_probs, rtol=0, atol=1e-5)


@pytest.mark.slow  # tests/parity/test_bundle_equals_runtime.py does so quickly: make test-slow
def test_exits_answer_the_same_in_a_fresh_process(tmp_path, written, cascade, candidate, images):
    save_file({"x": images}, tmp_path / "in.safetensors")
    program = ANSWER.replace("load_file(sys.argv[3])", 'load_file(sys.argv[3])["x"]')
    command = [sys.executable, "-c", program, str(tmp_path), str(written), "in.safetensors", "out"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found, wanted = load_file(tmp_path / "out"), Adaptive(cascade, candidate)(images)
    assert torch.equal(found["stage"], wanted.stage)
    assert torch.equal(found["log_probs"], wanted.log_probs)


# What cannot be bundled.


def refused(tmp_path, cascade, candidate, message, kind=InputError):
    with pytest.raises(kind, match=message):
        save(Adaptive(cascade, candidate), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_network_without_spec_is_told_how_to_give_one(tmp_path, cascade, candidate):
    refused(
        tmp_path,
        respecified(cascade, None),
        candidate,
        r"Stage 'layer1\.0' is an exit of a network that .*from_network\(\.\.\., spec=ModelSpec",
    )


def test_a_head_without_spec_is_told_how_to_give_one(tmp_path, cascade, candidate):
    other = copy.deepcopy(cascade)
    other.stage(CONV).head_spec = None
    other.stage(GAP).head_spec = None  # not used, so not asked for
    refused(
        tmp_path,
        other,
        candidate,
        r"head of stage 'layer2\.0\.conv1/conv' has no spec.*stage\('layer2\.0\.conv1/conv'\)"
        r"\.head_spec; any importable",
    )
    other.stage(CONV).head_spec = cascade.stage(CONV).head_spec
    save(Adaptive(other, candidate), tmp_path / "b")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (head_spec("gap_linear", 8), "head of stage .* does not build its network: .* do not fit"),
        (head_spec("conv_head", 8, filters=5), "does not build its network: .* of another shape"),
        (ModelSpec(name="conv_heat"), "Did you mean 'conv_head'"),
    ],
)
def test_a_spec_that_builds_another_head_is_found_when_saving(
    tmp_path, cascade, candidate, wrong, message
):
    other = copy.deepcopy(cascade)
    other.stage(CONV).head_spec = wrong
    refused(tmp_path, other, candidate, message)


@pytest.mark.parametrize(
    "wrong",
    [
        ModelSpec(name="resnet14", arguments={"width": 0.25}),
        ModelSpec(name="resnet8", arguments={"width": 0.5}),
        ModelSpec(name="small_cnn", arguments={"in_channels": 3}),
    ],
)
def test_a_spec_that_builds_another_network_is_found_when_saving(
    tmp_path, cascade, candidate, wrong
):
    message = f"The spec '{wrong.name}' of Cascade.from_network does not build the network"
    refused(tmp_path, respecified(cascade, wrong), candidate, message)


def test_a_network_of_another_type_is_found_when_saving(tmp_path, cascade, candidate):
    other = copy.deepcopy(cascade)
    other.stage(0).module.double()
    refused(tmp_path, other, candidate, "do not run on an example")


def test_a_network_with_other_operations_and_the_same_weights_is_found(tmp_path, candidate):
    net = build(NET)
    net.layer1[0].conv1.padding_mode = "reflect"
    assert net.layer1[0].conv1(torch.zeros(1, 4, 8, 8)).shape == (1, 4, 8, 8)
    cascade = Cascade.from_network(
        net,
        AT,
        head=dict(zip(AT, (head_spec("gap_linear", 4 * 2**k) for k in range(3)), strict=True)),
        example=make_images(),
        spec=NET,
    )
    refused(
        tmp_path,
        lively(cascade),
        never_leave(cascade, AT, "last"),
        "does not build the network|answer otherwise|operations differ",
    )


def test_a_constant_that_is_not_in_the_weights_is_found(tmp_path, reader):
    net, head = reader
    changed = build(net)
    changed.order += 1
    example = {"ids": torch.ones(1, 6).long(), "mask": torch.ones(1, 6).long()}
    example["kinds"] = torch.zeros(1, 6).long()
    cascade = Cascade.from_network(changed, ["one"], head={"one": head}, example=example, spec=net)
    refused(
        tmp_path,
        cascade,
        never_leave(cascade, ["one", "last"], "last"),
        r"answer otherwise|values differ in 'order'",
    )


def test_a_head_that_does_not_fit_is_found_when_saving(tmp_path, cascade, candidate):
    other = copy.deepcopy(cascade)
    other.stage(AT[0]).head_spec = head_spec("gap_linear", 5)
    other.stage(AT[0]).head = build(other.stage(AT[0]).head_spec)
    refused(tmp_path, other, candidate, r"stages \['layer1\.0', .*do not run on an example")


# What must not be loaded.


def edit(path, change):
    file = path / "manifest.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(sealed(value)))


def rewrite(path, name, tensors):
    """What somebody would do who also corrects the checksums."""
    save_file(tensors, path / name)
    entry = {"bytes": (path / name).stat().st_size, "sha256": sha256(path / name)}
    edit(path, lambda m: m["files"].update({name: entry}))


FILES = ["network.0.safetensors", "example.0.safetensors", "layer1_0-*.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_truncated_or_missing_file_is_refused_by_name(saved, name):
    (file,) = saved.glob(name)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-2] ^= 1
    for content, message in (
        (bytes(flipped), f"{file.name} has changed"),
        (whole[:-3], f"{file.name} is truncated"),
        (None, f"{file.name} is missing"),
    ):
        file.write_bytes(content) if content is not None else file.unlink()
        with pytest.raises(FileFormatError, match=message):
            load(saved)


def stage(m, name):
    return next(entry for entry in m["stages"] if entry["name"] == name)


def test_all_problems_of_fields_are_listed_by_their_place(saved):
    def change(m):
        stage(m, CONV)["segment"]["index"] = -1
        stage(m, AT[0])["head"]["model"]["arguments"] = 7
        stage(m, GAP)["head"] = {"weights": "x"}
        stage(m, "last")["model"] = {}
        m["networks"][0]["at"] = []
        m["networks"][0]["example"]["kind"] = "pickle"

    edit(saved, change)
    with pytest.raises(FileFormatError) as caught:
        load(saved)
    for where in (
        "stages.2.segment.index:",
        "stages.0.head.model.arguments:",
        "stages.1.head.model:",
        "stages.4.model:",
        "networks.0.at:",
        "networks.0.example.kind:",
    ):
        assert where in str(caught.value), where


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=1), "format 1 holds no networks that are cut"),
        (lambda m: m.update(networks=[]), r"'layer1\.0' is of network 0, but there are 0"),
        (lambda m: m["networks"].append(m["networks"][0]), r"networks\.1 belongs to no stage"),
        (
            lambda m: stage(m, "last")["segment"].update(index=4),
            "'last' is segment 4, but 3 cuts make the segments 0 to 3",
        ),
        (
            lambda m: stage(m, "last")["segment"].update(index=2),
            "'last' is segment 2 of network 0, so its source must be a stage of segment 1",
        ),
        (
            lambda m: stage(m, GAP)["segment"].update(index=0),
            r"the topology gives a source.*group 'layer2\.0\.conv1' are not of one segment",
        ),
        (lambda m: m["stages"].pop(1), r"'layer2\.0\.conv1/conv'|source must be a stage of"),
        (
            lambda m: stage(m, CONV).update(transform=to_json(Normalize())),
            r"conv' continues another one and has a transform",
        ),
        (
            lambda m: stage(m, AT[0])["head"].update(weights="../head.safetensors"),
            r"'\.\./head\.safetensors' is not among the files",
        ),
        (
            lambda m: m["networks"][0].update(weights="/etc/passwd"),
            "'/etc/passwd' is not among the files",
        ),
        (
            lambda m: m["networks"][0]["example"].update(file="x"),
            "'x' is not among the files",
        ),
        (
            lambda m: m["networks"][0]["example"].update(names=["x"]),
            r"networks\.0\.example\.names must name the inputs of a mapping, got \['x'\]",
        ),
        (
            lambda m: m["networks"][0]["example"].update(kind="mapping", names=["x", "y"]),
            r"example\.0\.safetensors holds 1 inputs, which do not make a mapping of \['x', 'y'\]",
        ),
        (
            lambda m: m["networks"][0]["example"].update(kind="mapping", names=["image"]),
            r"networks\.0\.at .* cannot be cut",
        ),
        (
            lambda m: m["networks"][0].update(at=["layer1.0", "../layer2", "layer3.0"]),
            r"networks\.0\.at .* cannot be cut: The network has no layer '\.\./layer2'",
        ),
        (
            lambda m: m["networks"][0].update(at=AT[::-1]),
            r"networks\.0\.at .* in the order in which they run",
        ),
        (
            lambda m: m["networks"][0].update(at=["conv1", *AT[1:]]),
            r"stages \['layer1\.0', .* answer otherwise",
        ),
        (
            lambda m: m["networks"][0].update(at=["layer1.0", "layer2.0", "linear"]),
            r"networks\.0\.at .* ends the network",
        ),
        (
            lambda m: m["networks"][0]["model"].update(name="resnet7"),
            r"networks\.0\.model cannot be built: .*depth",
        ),
        (
            lambda m: m["networks"][0]["model"]["arguments"].update(width="wide"),
            r"networks\.0\.model cannot be built",
        ),
        (
            lambda m: m["networks"][0]["model"].update(name="small_cnn", arguments={}),
            r"network\.0\.safetensors do not fit SmallCNN",
        ),
        (
            lambda m: stage(m, CONV)["head"]["model"].update(name="conv_hat"),
            r"stage 'layer2\.0\.conv1/conv' .*field head cannot be built: .*'conv_head'",
        ),
        (
            lambda m: stage(m, CONV)["head"]["model"]["arguments"].update(channels=9),
            r"layer2_0_conv1_conv-\w+\.safetensors do not fit",
        ),
        (
            lambda m: stage(m, CONV).update(head=stage(m, AT[0])["head"]),
            r"stages \['layer1\.0', 'layer2.* do not run on example\.0",
        ),
        (
            lambda m: stage(m, CONV).update(head=None),
            r"policy\.json uses the exit 'layer2\.0\.conv1/conv', but the bundle has no head",
        ),
        (lambda m: m.update(reference=GAP), r"policy\.json has the reference 'last'"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(saved, change, message):
    edit(saved, change)
    with pytest.raises(FileFormatError, match=message):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("input.0"), "must hold one example as input.0"),
        (lambda t: t.update(other=torch.zeros(1)), "must hold one example as input.0"),
        (lambda t: t.update({"input.1": torch.zeros(1, 2)}), "holds 2 inputs, .* a tensor"),
        (lambda t: t.update({"input.0": torch.zeros(0, 3, 16, 16)}), r"\(0, 3, 16, 16\)"),
        (lambda t: t.update({"input.0": torch.zeros(())}), "must hold one example"),
        (lambda t: t.update({"input.0": torch.zeros(1, 4, 16, 16)}), "cannot be cut"),
        (lambda t: t.pop("logits"), r"must hold 'logits' of shape \(1, 3, 10\)"),
        (lambda t: t.update(logits=torch.zeros(1, 2, 10)), r"shape \(1, 3, 10\), the answers of"),
        (lambda t: t["logits"].add_(0.01), "answer otherwise .* by up to 0.01"),
    ],
)
def test_an_example_that_makes_no_sense_is_refused(saved, change, message):
    name = "example.0.safetensors"
    tensors = load_file(saved / name)
    change(tensors)
    rewrite(saved, name, tensors)
    with pytest.raises(FileFormatError, match=message) as caught:
        load(saved)
    assert name in str(caught.value) or "networks.0.at" in str(caught.value)


def test_an_example_that_is_no_safetensors_file_is_refused(saved):
    file = saved / "example.0.safetensors"
    file.write_bytes(b"\x00" * file.stat().st_size)
    with pytest.raises(FileFormatError, match=r"example\.0\.safetensors cannot be read"):
        load(saved, verify=False)


def test_weights_that_were_exchanged_are_noticed_by_the_answers(saved, cascade):
    """The checksums fit, the shapes fit; the numbers are another network's."""
    net = build(NET)
    rewrite(saved, "network.0.safetensors", dict(net.state_dict()))
    with pytest.raises(FileFormatError, match="answer otherwise"):
        load(saved)


@pytest.mark.parametrize("where", ["network", "head"])
def test_a_bundle_runs_no_code_by_name_unless_that_is_allowed(saved, where):
    ran = saved.parent / "ran"
    evil = {"name": "pathlib:Path.touch", "arguments": {"self": str(ran)}}

    def change(m):
        if where == "network":
            m["networks"][0]["model"] = evil
        else:
            stage(m, CONV)["head"]["model"] = evil

    edit(saved, change)
    with pytest.raises(UnsupportedError, match="would import and run code by name"):
        load(saved)
    assert not ran.exists()


def test_the_heads_that_are_loaded_are_those_that_were_trained(written, cascade):
    loaded = load(written).stages["2"].head
    wanted = own_head(cascade.stage(CONV).head).state_dict()
    for name, value in own_head(loaded).state_dict().items():
        assert torch.equal(value, wanted[name])
