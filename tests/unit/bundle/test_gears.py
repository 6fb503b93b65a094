"""Gears travel in a bundle, with what each of them runs and promises."""

import json

import pytest
import torch

from offramp._core.errors import FileFormatError, InputError, UnknownNameError
from offramp.bundle import load, read_manifest, save
from offramp.evaluation import fit
from offramp.models import ModelSpec, build
from offramp.policy.gears import Gears
from offramp.runtime import Adaptive
from offramp.stages import Cascade
from offramp.trace.testing import make_trace

SPEC = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2, "classes": 3})
IMAGES = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def frontier():
    trace = make_trace(3000, accuracies=[0.8, 0.85, 0.9], classes=3, seed=2)
    return fit(trace, "threshold", combines=["last"], confidences=["margin"], progress=False)


@pytest.fixture(scope="module")
def cascade(frontier):
    names = frontier.singles[0].fit.stages
    return Cascade.from_models(
        {name: build(SPEC) for name in names}, specs=dict.fromkeys(names, SPEC)
    )


@pytest.fixture(scope="module")
def gears(frontier):
    found = frontier.gears({"careful": 0.03, "fast": 0.1})
    assert found.names == ("reference", "careful", "fast")
    return found


@pytest.mark.parametrize("fold", [False, True])
def test_every_gear_of_a_bundle_answers_as_by_itself(cascade, gears, tmp_path, fold):
    save(Adaptive(cascade, gears["fast"], gears=gears), tmp_path / "b")
    loaded = load(tmp_path / "b", fold=fold)
    assert loaded.gear == "fast"
    assert loaded.gears.names == gears.names
    for gear in gears:
        alone = Adaptive(cascade, gear.candidate, fold=fold)(IMAGES)
        found = loaded.in_gear(gear.name)
        assert found.gear == gear.name
        assert found.gears is loaded.gears
        assert torch.equal(found(IMAGES).log_probs, alone.log_probs)
        assert torch.equal(found(IMAGES).stage, alone.stage)
        assert loaded.gears[gear.name].guarantee == gear.guarantee
    assert loaded.choice.guarantee == gears["fast"].guarantee
    assert read_manifest(tmp_path / "b").choice.numbers["gear"] == "fast"


def test_gears_share_their_networks_also_where_copies_run(cascade, gears):
    model = Adaptive(cascade, gears["careful"], gears=gears, fold=True)
    for other in (model.in_gear("fast"), model.in_gear("careful"), model.reference):
        shared = set(model.program.stages) & set(other.program.stages)
        assert shared
        for k in shared:
            assert model.program.stages[k].module is other.program.stages[k].module
            assert model.program.stages[k].module is not cascade.stage(k).module


def test_a_bundle_that_is_saved_again_keeps_its_gears(cascade, gears, tmp_path):
    save(Adaptive(cascade, gears["careful"], gears=gears), tmp_path / "a")
    save(load(tmp_path / "a").in_gear("fast"), tmp_path / "b")
    assert load(tmp_path / "b").gear == "fast"
    assert (tmp_path / "a/gears.json").read_bytes() == (tmp_path / "b/gears.json").read_bytes()


def test_a_model_without_gears_says_so(frontier, cascade, gears, tmp_path):
    choice = frontier.cheapest(max_drop=0.05)
    save(Adaptive(cascade, choice), tmp_path / "b")
    assert not (tmp_path / "b" / "gears.json").exists()
    loaded = load(tmp_path / "b")
    assert not loaded.gears
    assert loaded.gear is None
    with pytest.raises(InputError, match="has no gears, got 'fast'"):
        loaded.in_gear("fast")
    model = Adaptive(cascade, gears["fast"], gears=gears)
    with pytest.raises(UnknownNameError, match="no gear 'fst'"):
        model.in_gear("fst")


def test_what_was_chosen_apart_from_the_gears_is_not_saved(frontier, cascade, gears, tmp_path):
    choice = frontier.cheapest(max_drop=0.05)
    model = Adaptive(cascade, choice, gears=gears)
    assert model.gear is None
    with pytest.raises(InputError, match="must run in one of its gears"):
        save(model, tmp_path / "b")


@pytest.mark.parametrize("what", ["changed", "gone", "other delta"])
def test_gears_that_were_changed_on_disk_are_refused(cascade, gears, tmp_path, what):
    save(Adaptive(cascade, gears["fast"], gears=gears), tmp_path / "b")
    path = tmp_path / "b" / "gears.json"
    if what == "gone":
        path.unlink()
    elif what == "changed":
        path.write_text(path.read_text().replace("0.03", "0.01"))
    else:
        value = json.loads(path.read_text())
        value["delta"] = 0.01
        path.write_text(json.dumps(value))
    with pytest.raises(FileFormatError, match="gears"):
        load(tmp_path / "b")


def test_gears_are_one_family(gears):
    fast, careful = gears["fast"], gears["careful"]
    with pytest.raises(InputError, match="begin with 'reference'"):
        Gears(delta=0.1, held=(fast, careful))
    with pytest.raises(InputError, match="different names"):
        Gears(delta=0.1, held=(gears["reference"], fast, fast))
    with pytest.raises(InputError, match="delta = None"):
        Gears(held=gears.held)
