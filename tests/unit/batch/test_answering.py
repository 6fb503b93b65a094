"""What each process of a cluster does, without a cluster."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from offramp._core.errors import InputError, MissingExtraError
from offramp.batch.answering import Answering, Loading
from offramp.batch.cluster import resources
from offramp.batch.datasets import _Rows
from offramp.batch.shards import Purse
from offramp.batch.table import arrow_table
from offramp.bundle import load, save
from offramp.runtime import Adaptive
from offramp.stages import Normalize
from offramp.stages.transforms import Chain, Decode, Resize
from support.served import cascade_of, inputs_of, make_bundle, model_of


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("answering") / "net")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A bundle that decodes images itself."""
    steps = Chain([Decode(mode="L"), Resize(8), Normalize(scale=1 / 64)])
    path = tmp_path_factory.mktemp("answering") / "pictures"
    save(model_of(cascade_of(transform=steps)), path)
    return path


def test_columns_are_answered_as_by_the_model_in_order(bundle):
    x = inputs_of(200, seed=1)
    names = [f"row{k}" for k in range(200)]
    answer = load(bundle)(x, names)
    found = Answering(Loading(bundle=bundle, batch_size=32))
    for columns in (found.of_raw(names, x), found.of_columns(names, {"x": x.numpy()})):
        assert list(columns["id"]) == names
        assert list(columns["label"]) == answer.labels.tolist()
        assert list(columns["stage"]) == [answer.stage_names[k] for k in answer.stage.tolist()]
        assert list(columns["cost"]) == answer.cost.tolist()
        assert columns["error"] == [None] * 200
        assert len(arrow_table(columns)) == 200


def test_numbers_in_64_bits_are_read_as_in_32(bundle):
    x = inputs_of(5)
    found = Answering(Loading(bundle=bundle))
    wanted = found.of_columns(range(5), {"x": x.numpy()})
    assert found.of_columns(range(5), {"x": x.double().numpy()}) == wanted


def test_a_budget_for_each_example_holds(bundle):
    x = inputs_of(60)
    columns = Answering(Loading(bundle=bundle, max_request_cost=1.0)).of_raw(range(60), x)
    assert set(columns["stage"]) == {"small"}


def test_a_broken_image_costs_itself_alone(pictures):
    drawn = np.random.default_rng(0)
    files = []
    for _ in range(6):
        held = io.BytesIO()
        Image.fromarray(drawn.integers(0, 256, (9, 9), dtype=np.uint8)).save(held, "PNG")
        files.append(held.getvalue())
    good = np.array(files, dtype=object)
    found = Answering(Loading(bundle=pictures))
    wanted = found.of_columns(range(6), {"bytes": good})
    bad = good.copy()
    bad[2] = b"no image"
    columns = found.of_columns(range(6), {"bytes": bad})
    assert columns["label"][2] == -1
    assert "cannot be read as an image" in columns["error"][2]
    for name, values in wanted.items():
        for k in (0, 1, 3, 4, 5):
            assert columns[name][k] == pytest.approx(values[k])


def test_a_column_of_another_kind_is_refused_not_answered_with_errors(bundle):
    with pytest.raises(InputError, match="shape"):
        Answering(Loading(bundle=bundle)).of_columns(range(4), {"x": np.zeros((4, 3), np.float32)})


def test_a_bundle_that_is_not_on_this_machine_is_named(tmp_path):
    with pytest.raises(InputError, match=r"every machine of the cluster can read; .*nowhere"):
        Answering(Loading(bundle=tmp_path / "nowhere"))


def test_a_purse_is_never_overdrawn_and_a_shard_pays_once():
    purse = Purse(10.0, 4.0)
    assert purse.reserve(0, 5.0)
    assert not purse.reserve(1, 5.0)
    assert purse.reserve(0, 5.0)  # it runs again: its process has died
    purse.settle(0, 2.0)
    purse.settle(0, 2.0)
    assert purse.reserve(1, 4.0)
    assert not purse.reserve(2, 0.1)
    assert purse.reserve(1, 4.0)
    purse.settle(1, 4.0)
    assert not purse.reserve(2, 0.1)


@pytest.mark.parametrize("workers", [0, (0, 2), (3, 2)])
def test_numbers_of_workers_that_are_none(workers):
    with pytest.raises(InputError, match="workers must be"):
        resources(None, 1, workers)


@pytest.mark.parametrize("what", ["data", "serve"])
def test_without_ray_the_extra_is_named(monkeypatch, bundle, what):
    from offramp.batch import classify
    from offramp.serve.ray import build_app

    for name in [name for name in sys.modules if name == "ray" or name.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"offramp\[ray\]"):
        classify(None, bundle) if what == "data" else build_app(bundle)


def test_costs_that_nobody_knows_are_nan(tmp_path):
    model = model_of(cascade_of())
    save(Adaptive(model.cascade, model.choice), tmp_path / "free")
    x = inputs_of(5)
    rows = _Rows(Loading(bundle=tmp_path / "free"), "id")
    told = rows({"id": np.arange(5), "x": x.numpy()})
    assert told["label"].tolist() == model(x).labels.tolist()
    assert np.isnan(told["cost"]).all()
    assert np.isfinite(told["confidence"]).all()
