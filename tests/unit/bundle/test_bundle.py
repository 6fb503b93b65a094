import json
import sys

import pytest
import torch
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError, InputError, UnknownNameError, UnsupportedError
from offramp._core.schema import to_json
from offramp._core.seal import sealed
from offramp.bundle import load, read_extra, read_manifest, save
from offramp.bundle.names import check_extra, is_safe_file, weight_files
from offramp.evaluation import fit
from offramp.models import ModelSpec, build
from offramp.policy import Candidate, Constant, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize, Stage
from offramp.testing import random_policy
from offramp.trace.testing import make_trace

WIDTHS = {"small": 2, "middle": 3, "large": 4}
COSTS = Costs.simple("flops", [1.0, 4.0, 16.0])


def spec_of(width, **more):
    return ModelSpec(name="small_cnn", arguments={"width": width, "depth": 2, "classes": 3, **more})


def make_cascade():
    specs = {name: spec_of(width) for name, width in WIDTHS.items()}
    nets = {name: build(spec_of(width, seed=7)) for name, width in WIDTHS.items()}
    return Cascade.from_models(
        nets, specs=specs, transform=Normalize(0.5, 0.1, 2.0), class_names=["cat", "dog", "ox"]
    )


def make_images():
    return torch.randn(33, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 4


@pytest.fixture
def cascade():
    return make_cascade()


@pytest.fixture
def images():
    return make_images()


@pytest.fixture(scope="module")
def candidate():
    """Of random policies the first that uses every stage as an exit."""
    cascade, images = make_cascade(), make_images()
    policies = (
        random_policy(cascade.topology, seed=seed, classes=3, combine="log_linear")
        for seed in range(1000)
    )
    policy = next(p for p in policies if len(Adaptive(cascade, p)(images).stage.unique()) == 3)
    return Candidate(
        policy=policy, method="learned", reference="large", parameters={"cost_weight": 0.1}
    )


@pytest.fixture
def saved(tmp_path, cascade, candidate):
    path = tmp_path / "bundle"
    extra = {"evaluation.json": {"accuracy": 0.9}}
    save(Adaptive(cascade, candidate, costs=COSTS), path, input_shape=(1, 8, 8), extra=extra)
    return path


def same(one, other):
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("log_probs", "labels", "stage", "confidence", "cost", "valid", "nonfinite")
    )


def test_a_loaded_bundle_answers_bit_by_bit_as_what_was_saved(saved, cascade, candidate, images):
    loaded = load(saved)
    before = Adaptive(cascade, candidate, costs=COSTS)(images)
    assert same(loaded(images), before)
    assert len(before.stage.unique()) == 3
    assert same(loaded.reference(images), Adaptive.single(cascade, "large", costs=COSTS)(images))
    assert to_json(loaded.candidate) == to_json(candidate)


def test_the_manifest_says_what_is_in_the_bundle(saved, cascade):
    manifest = read_manifest(saved)
    assert manifest.reference == "large"
    assert manifest.class_names == ("cat", "dog", "ox")
    assert manifest.input_shape == (1, 8, 8)
    assert manifest.topology == cascade.topology
    assert manifest.costs == COSTS
    assert manifest.software["torch"] == torch.__version__
    assert [stage.name for stage in manifest.stages] == ["small", "middle", "large"]
    assert manifest.stages[0].model.arguments["width"] == 2
    assert to_json(manifest.stages[0].transform) == to_json(Normalize(0.5, 0.1, 2.0))
    assert set(manifest.files) | {"manifest.json"} == {file.name for file in saved.iterdir()}
    assert read_extra(saved, "evaluation.json") == {"accuracy": 0.9}
    with pytest.raises(UnknownNameError, match=r"no file 'evaluatio.json'"):
        read_extra(saved, "evaluatio.json")


def test_bundles_of_the_first_format_which_had_no_digest_are_still_read(saved, cascade, images):
    file = saved / "manifest.json"
    value = json.loads(file.read_text())
    assert value["version"] == 4
    assert "networks" not in value
    assert set(value["stages"][0]) == {"name", "model", "transform", "weights"}
    del value["sha256"]
    file.write_text(json.dumps({**value, "version": 1}))
    loaded = load(saved)
    assert torch.equal(
        loaded.reference(images).log_probs, Adaptive.single(cascade, "large")(images).log_probs
    )


def test_only_the_networks_of_the_policy_and_the_fallback_are_written(tmp_path, cascade, images):
    policy = Policy(cascade.topology.chain(["small", "middle"]), {(0,): Node(Constant(False))})
    for reference in ("middle", "large"):
        path = tmp_path / reference
        save(Adaptive(cascade, Candidate(policy=policy, method="x", reference=reference)), path)
        files = {file.name for file in path.glob("*.safetensors")}
        assert files == {"small.safetensors", "middle.safetensors", f"{reference}.safetensors"}
        loaded = load(path)
        assert loaded(images).stage.tolist() == [1] * 33
        assert loaded.reference.policy.topology.root == cascade.topology.index(reference)


def test_a_stage_that_is_not_written_needs_no_spec(tmp_path, cascade):
    cascade.stage("small").spec = None
    candidate = Candidate.single(cascade.topology, "large", reference="large")
    save(Adaptive(cascade, candidate), tmp_path / "b")
    assert load(tmp_path / "b")(torch.zeros(2, 1, 8, 8)).stage.tolist() == [2, 2]


def test_an_operating_point_leaves_its_sentence_and_its_numbers(tmp_path):
    trace = make_trace(900, accuracies=[0.8, 0.9], classes=3, seed=2)
    point = fit(trace, "threshold", progress=False).cheapest(max_drop=0.05, delta=None)
    specs = {name: spec_of(2) for name in trace.stages}
    cascade = Cascade.from_models({name: build(spec) for name, spec in specs.items()}, specs=specs)
    save(Adaptive(cascade, point), tmp_path / "b")
    chosen = read_manifest(tmp_path / "b").choice
    assert chosen.sentence == point.sentence
    assert chosen.label == point.candidate.label
    assert chosen.numbers["max_drop"] == 0.05
    assert chosen.numbers["cost_ratio"] == point.judged.cost_ratio


@pytest.mark.parametrize("fold", [False, True])
def test_a_bundle_may_be_loaded_optimized(saved, images, fold):
    plain, other = load(saved), load(saved, fold=fold, verify=False)
    torch.testing.assert_close(
        other.reference(images).log_probs, plain.reference(images).log_probs, rtol=1e-4, atol=1e-4
    )


# What cannot be bundled.


def test_a_stage_without_spec_is_named_and_told_how_to_give_one(tmp_path, cascade, candidate):
    cascade.stage("middle").spec = None
    with pytest.raises(InputError, match=r"Stage 'middle' has no spec.*specs=\{'middle': Mod"):
        save(Adaptive(cascade, candidate), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_spec_that_builds_another_network_is_found_when_saving(tmp_path, cascade, candidate):
    cascade.stage("middle").spec = spec_of(5)
    with pytest.raises(
        InputError, match=r"spec of stage 'middle' does not build.*of another shape"
    ):
        save(Adaptive(cascade, candidate), tmp_path / "b")
    cascade.stage("middle").spec = ModelSpec(name="small_cnnn")
    with pytest.raises(InputError, match=r"spec of stage 'middle'.*Did you mean 'small_cnn'"):
        save(Adaptive(cascade, candidate), tmp_path / "b")
    cascade.stage("middle").spec = spec_of(3)
    cascade.stage("middle").module.double()
    with pytest.raises(InputError, match=r"'middle' builds another network.*types differ in"):
        save(Adaptive(cascade, candidate), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_spec_may_be_a_record(tmp_path, cascade, candidate, images):
    for stage in cascade:
        stage.spec = to_json(stage.spec)
    save(Adaptive(cascade, candidate), tmp_path / "b")
    assert len(load(tmp_path / "b")(images)) == 33


def test_foreign_transform_is_refused(tmp_path, cascade, candidate):
    cascade.stage("small").transform = nn.ReLU()
    with pytest.raises(InputError, match=r"transform ReLU of stage 'small'.*Normalize"):
        save(Adaptive(cascade, candidate), tmp_path / "b")


def test_an_exit_of_another_network_is_refused(tmp_path):
    cascade = Cascade([Stage("a", nn.Linear(2, 2), head=nn.Linear(2, 2))])
    with pytest.raises(InputError, match="Stage 'a' is an exit of a network that nobody could"):
        save(
            Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="a")),
            tmp_path / "b",
        )


def test_a_policy_or_a_reference_of_other_stages_is_refused(tmp_path, cascade, candidate):
    other = Cascade.from_models({"x": nn.Linear(2, 2)})
    with pytest.raises(InputError, match=r"names \('small', 'middle', 'large'\).*\('x',\)"):
        save(Adaptive(other, candidate), tmp_path / "b")
    wrong = Candidate(policy=candidate.policy, method="x", reference="larg")
    with pytest.raises(UnknownNameError, match="Did you mean 'large'"):
        save(Adaptive(cascade, wrong), tmp_path / "b")


def test_an_existing_bundle_is_kept_unless_it_may_be_replaced(saved, cascade, candidate, images):
    with pytest.raises(InputError, match="exists already"):
        save(Adaptive(cascade, candidate), saved)
    alone = Candidate.single(cascade.topology, "small", reference="large")
    save(Adaptive(cascade, alone), saved, overwrite=True)
    assert load(saved)(images).stage.tolist() == [0] * 33


def test_a_full_disk_leaves_the_old_bundle_as_it_was(saved, cascade, candidate, monkeypatch):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}

    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["offramp.bundle.write"], "write_json", full)
    with pytest.raises(OSError, match="No space"):
        save(Adaptive(cascade, candidate), saved, overwrite=True)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert [file.name for file in saved.parent.iterdir()] == ["bundle"]


# Names.


@pytest.mark.parametrize(
    "names",
    [
        ["../../etc/passwd", "/abs", "C:\\x", "a/b"],
        ["A", "a"],
        ["con", "NUL", "com1"],
        ["naïve", "", ".", "..", ".hidden", "-rf", "x" * 300],
        ["manifest", "policy", "a b", "a_b"],
    ],
)
def test_every_stage_gets_a_safe_file_of_its_own(names):
    files = weight_files(names)
    assert list(files) == names
    assert len({file.lower() for file in files.values()}) == len(names)
    for file in files.values():
        assert is_safe_file(file)
        assert file.endswith(".safetensors")
        assert file.split(".")[0].lower() not in ("con", "nul", "com1")


def test_plain_names_stay_as_they_are():
    assert weight_files(["resnet20", "x-1_b"])["resnet20"] == "resnet20.safetensors"


def test_stages_with_dangerous_names_survive_the_round_trip(tmp_path, images):
    names = ["../up", "CON", "a b/c"]
    specs = {name: spec_of(2) for name in names}
    cascade = Cascade.from_models({name: build(spec) for name, spec in specs.items()}, specs=specs)
    policy = random_policy(cascade.topology, seed=1, classes=3)
    candidate = Candidate(policy=policy, method="x", reference="../up")
    save(Adaptive(cascade, candidate, costs=COSTS), tmp_path / "in" / "b")
    assert [file.name for file in tmp_path.iterdir()] == ["in"]
    loaded = load(tmp_path / "in" / "b")
    assert same(loaded(images), Adaptive(cascade, candidate, costs=COSTS)(images))


@pytest.mark.parametrize("name", ["../x.json", "manifest.json", "policy.json", "x.txt", "/x.json"])
def test_extra_files_have_plain_names(name):
    with pytest.raises(InputError, match=r"extra files must have names such as 'evaluation\.json'"):
        check_extra(name)


# What must not be loaded.


def edit(path, change):
    file = path / "manifest.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(sealed(value)))


@pytest.mark.parametrize("name", ["small.safetensors", "policy.json", "evaluation.json"])
def test_a_changed_truncated_or_missing_file_is_refused_by_name(saved, name):
    file = saved / name
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-2] ^= 1
    for content, message in (
        (bytes(flipped), f"{name} has changed"),
        (whole[:-3], f"{name} is truncated: {len(whole) - 3} bytes instead of {len(whole)}"),
        (whole + b" ", f"{name} is changed"),
        (None, f"{name} is missing"),
    ):
        file.write_bytes(content) if content is not None else file.unlink()
        with pytest.raises(FileFormatError, match=message):
            load(saved)


def test_without_verification_sizes_are_still_compared(saved):
    file = saved / "evaluation.json"
    file.write_bytes(file.read_bytes().replace(b"9", b"8"))
    load(saved, verify=False)
    file.write_bytes(b"{}")
    with pytest.raises(FileFormatError, match=r"evaluation.json is truncated: 2 bytes"):
        load(saved, verify=False)


def test_files_that_are_not_listed_are_not_looked_at(saved, cascade, images):
    for name in ("README.md", ".gitattributes", ".DS_Store", ".nfs000001", "p.csv", "weights.pkl"):
        (saved / name).write_bytes(b"x")
    (saved / "lost+found").mkdir()
    (saved / "strange").symlink_to("nowhere")
    loaded = load(saved)
    assert torch.equal(
        loaded.reference(images).log_probs, Adaptive.single(cascade, "large")(images).log_probs
    )
    with pytest.raises(UnknownNameError, match=r"no file 'weights.pkl'"):
        read_extra(saved, "weights.pkl")


def test_a_newer_version_is_refused_saying_so(saved):
    edit(saved, lambda m: m.update(version=5, something={"new": 1}))
    with pytest.raises(FileFormatError, match=r"newer version \(format 5; .* up to 4\). Update"):
        load(saved)


def test_all_problems_of_a_manifest_are_listed(saved):
    def change(manifest):
        manifest["reference"] = 3
        manifest["stages"][1]["model"]["arguments"] = "none"
        manifest["files"]["policy.json"]["sha256"] = "00"
        manifest["surprise"] = True
        del manifest["topology"]["root"]

    edit(saved, change)
    with pytest.raises(FileFormatError) as caught:
        load(saved)
    message = str(caught.value)
    assert "manifest.json has 5 problems" in message
    for where in (
        "reference:",
        "stages.1.model.arguments:",
        "files.policy.json.sha256:",
        "surprise:",
        "topology.root:",
    ):
        assert where in message


@pytest.mark.parametrize(
    "name",
    ["../outside.json", "/etc/passwd", "..", "a/b.json", "a\\b.json", "manifest.json", "", "x\n"],
)
def test_file_names_that_lead_out_of_the_folder_are_refused(saved, name):
    (saved.parent / "outside.json").write_text("{}")
    edit(saved, lambda m: m["files"].update({name: m["files"]["policy.json"]}))
    with pytest.raises(FileFormatError, match=r"manifest.json contradicts itself: the file name"):
        load(saved)


def test_weights_that_lead_out_of_the_folder_are_refused(saved):
    edit(saved, lambda m: m["stages"][0].update(weights="../small.safetensors"))
    with pytest.raises(FileFormatError, match=r"'../small.safetensors' is not among the files"):
        load(saved)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["small.safetensors", "policy.json"])
def test_what_a_link_leads_to_must_have_the_checksum_that_is_listed(saved, name, verify):
    target = saved.parent / "elsewhere"
    (saved / name).rename(target)
    (saved / name).symlink_to(target)
    load(saved, verify=verify)
    other = bytearray(target.read_bytes())
    other[-2] ^= 1
    target.write_bytes(other)
    with pytest.raises(FileFormatError, match=rf"{name} has changed since"):
        load(saved, verify=verify)
    target.unlink()
    with pytest.raises(FileFormatError, match=rf"{name} is missing"):
        load(saved, verify=verify)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="zip"), "not the manifest of a bundle: its format is 'zip'"),
        (lambda m: m.update(version="1"), "version: Input should be a valid integer"),
        (lambda m: m.update(version=0), "version: Input should be greater than or equal to 1"),
        (lambda m: m.update(reference="tiny"), "the reference 'tiny' is not among the stages"),
        (lambda m: m["stages"].append(m["stages"][0]), "stage 'small' is there twice"),
        (lambda m: m["stages"][0].update(name="x"), "stage 'x' is not in the topology"),
        (lambda m: m["topology"].update(edges=[[1, 0]]), "topology: An edge must lead"),
        (lambda m: m["costs"].update(segment=[-1, 1, 1]), "costs: segment costs"),
        (
            lambda m: m["costs"].update(segment=[1], head=[0], decision=[0]),
            "1 costs for 3 stages",
        ),
        (lambda m: m["stages"].pop(1), "policy.json does not fit the bundle: There is no stage"),
        (lambda m: m["stages"][0]["model"].update(name="nett"), "stage 'small'.* no model 'nett'"),
        (
            lambda m: m["stages"][0]["model"]["arguments"].update(width="x"),
            "stage 'small' of the manifest cannot be built",
        ),
        (
            lambda m: m["stages"][0].update(transform={"kind": "pickle"}),
            r"stages\.0\.transform: kind must be one of .*'normalize'.*, got 'pickle'",
        ),
        (
            lambda m: m["stages"][0].update(weights="large.safetensors"),
            "large.safetensors do not fit SmallCNN",
        ),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(saved, change, message):
    edit(saved, change)
    with pytest.raises(FileFormatError, match=message):
        load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"a": NaN}', "\x00"])
def test_a_manifest_that_is_no_manifest_is_refused(saved, text):
    (saved / "manifest.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"manifest.json"):
        load(saved)


def test_a_folder_without_manifest_and_a_file_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match=r"manifest.json is missing"):
        load(tmp_path)
    with pytest.raises(FileFormatError, match="is not a folder"):
        load(tmp_path / "nothing")


def rewrite(path, name, value):
    """What somebody would do who also corrects the checksums."""
    from offramp._core.files import sha256, write_json

    write_json(path / name, value)
    entry = {"bytes": (path / name).stat().st_size, "sha256": sha256(path / name)}
    edit(path, lambda m: m["files"].update({name: entry}))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.pop("policy"),
        lambda p: p["policy"].update(temperatures=["hot", 1, 1]),
        lambda p: p["policy"].update(nodes=7),
        lambda p: p["policy"]["nodes"][0].update(leave={"kind": "python", "code": "1"}),
        lambda p: p["policy"]["topology"].update(edges=[[2, 1]]),
        lambda p: p.update(policy=None),
        lambda p: p.update(reference="small"),
        lambda p: p["policy"]["topology"].update(names=["a", "b", "c"]),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_the_files_name(saved, candidate, change):
    value = json.loads(json.dumps(to_json(candidate)))
    change(value)
    rewrite(saved, "policy.json", value)
    with pytest.raises(FileFormatError, match=r"policy.json (has|does|uses)"):
        load(saved)


def test_a_bundle_runs_no_code_by_name_unless_that_is_allowed(saved):
    where = saved.parent / "ran"

    def change(manifest):
        manifest["stages"][0]["model"] = {
            "name": "pathlib:Path.touch",
            "arguments": {"self": str(where)},
        }

    edit(saved, change)
    with pytest.raises(UnsupportedError, match="would import and run code by name"):
        load(saved)
    assert not where.exists()


def test_networks_built_by_import_are_loaded_where_that_is_allowed(tmp_path):
    spec = ModelSpec(name="torch.nn:Linear", arguments={"in_features": 4, "out_features": 3})
    cascade = Cascade.from_models({"a": build(spec)}, specs={"a": spec})
    save(
        Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="a"), costs=None),
        tmp_path / "b",
    )
    x = torch.eye(4)
    with pytest.raises(UnsupportedError, match=r"torch\.nn:Linear"):
        load(tmp_path / "b")
    loaded = load(tmp_path / "b", allow_import=True)
    assert torch.equal(loaded.reference(x).log_probs, Adaptive.single(cascade, 0)(x).log_probs)
