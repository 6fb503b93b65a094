"""A model that was loaded is a model like any other: it is saved again, and exported."""

import json

import pytest
import torch

from offramp import Adaptive, Candidate, Cascade, Costs, ModelSpec, export_onnx, load, save
from offramp._core.errors import InputError
from offramp._core.schema import to_json
from offramp.bundle import StoredChoice, read_manifest
from offramp.evaluation import fit
from offramp.models import build
from offramp.policy import Constant, Node, Policy
from offramp.stages import HeldStages, Normalize
from offramp.trace import make_trace

SPECS = {
    name: ModelSpec(name="small_cnn", arguments={"width": width, "depth": 2, "classes": 4})
    for name, width in (("stage0", 2), ("stage1", 3), ("stage2", 4))
}


def images(n=7):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def networks(**options):
    return Cascade.from_models({k: build(s) for k, s in SPECS.items()}, specs=SPECS, **options)


def exits(**options):
    spec = SPECS["stage2"]
    return Cascade.from_network(
        build(spec), exits=1, head="gap_linear", example=images(1), spec=spec, **options
    )


def never_leave(cascade, stages, reference):
    policy = Policy(cascade.topology.chain(stages), {(0,): Node(Constant(False))})
    return Candidate(policy=policy, method="mine", reference=reference)


def contents(folder):
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    manifest = json.loads(found.pop("manifest.json"))
    return found, {k: v for k, v in manifest.items() if k not in ("created", "sha256")}


@pytest.mark.parametrize(
    "cascade",
    [
        networks(class_names=["p", "q", "r", "s"], transform=Normalize(0.5)),
        exits(),
    ],
    ids=["networks", "exits"],
)
def test_saved_loaded_and_saved_again_a_bundle_is_the_same(tmp_path, cascade):
    names = cascade.topology.names
    candidate = never_leave(cascade, names[:2], names[-1])
    model = Adaptive(
        cascade, candidate, costs=Costs.simple("usd", [1.0 + k for k in range(len(names))])
    )
    save(model, tmp_path / "one", input_shape=(1, 8, 8))
    again = load(tmp_path / "one")
    save(again, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert torch.equal(again(images()).log_probs, model(images()).log_probs)
    assert torch.equal(again.reference(images()).log_probs, model.reference(images()).log_probs)
    assert (again.class_names, again.costs) == (model.class_names, model.costs)


def test_a_loaded_model_knows_what_was_chosen_and_promised(tmp_path):
    chosen = fit(make_trace(400, classes=4), "threshold", grid=8, progress=False).cheapest(
        max_drop=0.2
    )
    save(Adaptive(networks(), chosen), tmp_path / "b")
    choice = load(tmp_path / "b").choice
    assert isinstance(choice, StoredChoice)
    assert choice.sentence == chosen.sentence
    assert choice.numbers["max_drop"] == 0.2
    assert to_json(choice.candidate) == to_json(chosen.candidate)
    save(load(tmp_path / "b"), tmp_path / "c")
    assert read_manifest(tmp_path / "c").choice == read_manifest(tmp_path / "b").choice


def test_a_policy_alone_has_no_reference_and_cannot_be_saved(tmp_path):
    cascade = networks()
    model = Adaptive(cascade, never_leave(cascade, ["stage0", "stage1"], "stage1").policy)
    for ask in (lambda: model.reference, lambda: save(model, tmp_path / "b")):
        with pytest.raises(
            InputError, match="A policy alone does not say what it is compared with"
        ):
            ask()
    assert not (tmp_path / "b").exists()


def test_what_is_held_and_what_is_not(tmp_path):
    cascade = networks()
    save(Adaptive(cascade, never_leave(cascade, ["stage0", "stage1"], "stage1")), tmp_path / "b")
    held = load(tmp_path / "b").cascade
    assert isinstance(held, HeldStages)
    assert [stage.name for stage in held] == ["stage0", "stage1"]
    assert held.topology.names == ("stage0", "stage1", "stage2")


def test_a_model_that_was_loaded_or_cut_tells_its_input_when_it_is_exported(tmp_path):
    cut = exits()
    candidate = never_leave(cut, cut.topology.names, "last")
    made = export_onnx(Adaptive(cut, candidate), tmp_path / "cut.onnx")
    assert made.inputs == {"input": ("batch", 1, 8, 8)}
    whole = networks()
    model = Adaptive(whole, never_leave(whole, ["stage0", "stage1"], "stage1"))
    with pytest.raises(InputError, match=r"does not tell what its inputs look like: pass example"):
        export_onnx(model, tmp_path / "whole.onnx")
    save(model, tmp_path / "b", input_shape=(1, 8, 8))
    made = export_onnx(load(tmp_path / "b"), tmp_path / "loaded", folder=True)
    assert made.bytes == sum(made.files.values())
    assert {"run.py", "manifest.json", "policy.json"} < set(made.files)
