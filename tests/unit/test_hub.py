"""Models on the hub: saved, read back, uploaded, with a card that states the promise."""

import shutil
import subprocess
import sys

import pytest
import torch

import offramp
from offramp._core.errors import InputError, UnsupportedError
from offramp.adapters import from_openai, from_sklearn
from offramp.models import ModelSpec, build
from offramp.trace import make_trace

pytest.importorskip("huggingface_hub")
hub = pytest.importorskip("offramp.hub")

SPECS = {
    f"stage{k}": ModelSpec(name="small_cnn", arguments={"width": 2 + k, "depth": 2, "classes": 4})
    for k in range(2)
}
IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def frontier():
    trace = make_trace(600, stages=2, classes=4, seed=0)
    return offramp.fit(trace, "threshold", progress=False)


@pytest.fixture(scope="module")
def model(frontier):
    networks = {name: build(spec) for name, spec in SPECS.items()}
    cascade = offramp.Cascade.from_models(networks, specs=SPECS)
    return offramp.Adaptive(cascade, frontier.cheapest(max_drop=0.05, delta=None))


def test_it_is_read_back_and_the_card_states_the_promise(model, frontier, tmp_path):
    path = tmp_path / "saved"
    there = hub.HubModel(model, frontier=frontier, tested_on="600 made-up examples.", title="Demo")
    assert there.save_pretrained(path) is None
    card = (path / "README.md").read_text()
    for told in (model.choice.sentence, "600 made-up", "library_name: offramp", "# Demo"):
        assert told in card
    assert (path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    again = hub.HubModel.from_pretrained(path)
    assert torch.equal(again(IMAGES).labels, model(IMAGES).labels)
    assert again.model.choice.sentence == model.choice.sentence
    with pytest.raises(InputError, match="must be empty or not there"):
        there.save_pretrained(path)


def test_what_a_bundle_may_do_is_said_as_for_load(tmp_path):
    sklearn = pytest.importorskip("sklearn.ensemble")
    rows, classes = torch.randn(40, 3), [k % 2 for k in range(40)]
    forest = sklearn.RandomForestClassifier(2, random_state=0).fit(rows.numpy(), classes)
    url = "http:" + "//127.0.0.1:9/v1"
    paid = from_openai(url, model="m", labels=["0", "1"], prompt="{row}", key_env=None)
    for name, stage, allowed in [
        ("types", from_sklearn(forest), {"allow_types": ["sklearn.tree._tree.Tree"]}),
        ("network", paid, {"allow_network": ["127.0.0.1"]}),
    ]:
        cascade = offramp.Cascade.from_models({"it": stage})
        candidate = offramp.Candidate.single(cascade.topology, "it", reference="it")
        hub.HubModel(offramp.Adaptive(cascade, candidate)).save_pretrained(tmp_path / name)
        with pytest.raises(UnsupportedError, match=f"allow_{name}"):
            hub.HubModel.from_pretrained(tmp_path / name)
        assert hub.HubModel.from_pretrained(tmp_path / name, **allowed).model.stage_names == ("it",)


@pytest.mark.parametrize(
    "config",
    ['{"allow_network": true}', '{"allow_network": ["127.0.0.1"], "allow_import": true}'],
)
def test_a_repository_cannot_allow_anything(tmp_path, config):
    url = "http:" + "//127.0.0.1:9/v1"
    paid = from_openai(url, model="m", labels=["0", "1"], prompt="{row}", key_env=None)
    cascade = offramp.Cascade.from_models({"it": paid})
    candidate = offramp.Candidate.single(cascade.topology, "it", reference="it")
    hub.HubModel(offramp.Adaptive(cascade, candidate)).save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(config)
    with pytest.raises(UnsupportedError, match="would send its inputs"):
        hub.HubModel.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("config", ['{"model": 5}', '{"frontier": 5}', "[1]", '{"self": 1}', "{"])
def test_a_damaged_configuration_is_said_of_the_folder(model, tmp_path, config):
    hub.HubModel(model).save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"cannot be read as a model of the hub|frontier must be"):
        hub.HubModel.from_pretrained(tmp_path / "a")


def test_an_argument_of_another_kind_is_named(model, tmp_path):
    for arguments in ({"model": 5}, {"frontier": 5}, {"tested_on": 5}, {"title": ""}):
        with pytest.raises(InputError, match=f"{next(iter(arguments))} must be"):
            hub.HubModel(**{"model": model, **arguments})
    with pytest.raises(InputError, match="cannot be read as a model of the hub"):
        hub.HubModel.from_pretrained(tmp_path / "nowhere")
    hub.HubModel(model).save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match="allow_types must be a list of names"):
        hub.HubModel.from_pretrained(tmp_path / "a", allow_types="abc")


def test_it_is_uploaded_as_it_is_saved_and_comes_back_from_the_cache(model, tmp_path, monkeypatch):
    class Api:
        def __init__(self, token):
            assert token == "secret"

        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **_):
            shutil.copytree(folder_path, tmp_path / repo_id)
            return "the address of a commit"

    def download(repo_id, **_):
        return str(tmp_path / repo_id)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.hf_hub_download",
        lambda repo_id, filename, **_: str(tmp_path / repo_id / filename),
    )
    hub.HubModel(model).push_to_hub("owner/net", token="secret")
    held = {file.name for file in (tmp_path / "owner/net").iterdir()}
    assert {"manifest.json", "policy.json", "README.md"} <= held
    assert "secret" not in (tmp_path / "owner/net/README.md").read_text()
    (tmp_path / "owner/net/config.json").exists() or (
        tmp_path / "owner/net/config.json"
    ).write_text("{}")
    again = hub.HubModel.from_pretrained("owner/net")
    assert torch.equal(again(IMAGES).labels, model(IMAGES).labels)


def test_the_hub_is_not_imported_with_the_package():
    code = "import sys, offramp.bundle, offramp.runtime; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
