"""Ray Data answers as the model by itself, loses nothing, and goes on where it was."""

import json
import os
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from offramp._core.costs import Costs
from offramp.bundle import load, save
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize
from offramp.testing import random_policy
from support.served import NAMES, SHAPE, cascade_of, inputs_of, model_of

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
KINDS = [{"combine": how} for how in ("last", "mean", "log_linear")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    model = model_of(cascade_of(transform=Normalize(scale=1 / 64)))
    save(model, path := tmp_path_factory.mktemp("answers") / "net", input_shape=SHAPE)
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Bundles of four stages, with policies of all kinds."""
    nets, specs = {}, {}
    for k in range(4):
        arguments = {"width": 1 + k, "depth": 2, "classes": 3, "in_channels": 1}
        nets[f"n{k}"] = build(ModelSpec(name="small_cnn", arguments={**arguments, "seed": k}))
        specs[f"n{k}"] = ModelSpec(name="small_cnn", arguments=arguments)
    cascade = Cascade.from_models(nets, specs=specs, class_names=NAMES)
    found = []
    for seed, kind in enumerate(KINDS):
        policy = random_policy(cascade.topology, seed=seed, classes=3, **kind)
        last = cascade.topology.names[policy.topology.active[-1]]
        candidate = Candidate(policy=policy, method="random", reference=last)
        model = Adaptive(cascade, candidate, costs=Costs.simple("flops", [1.0, 2.0, 3.0, 4.0]))
        path = tmp_path_factory.mktemp("mixed") / f"m{seed}"
        save(model, path, input_shape=SHAPE)
        found.append(path)
    return found


def rows_of(dataset):
    """All rows, by id."""
    rows = dataset.take_all()
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def check_same(rows, answer, names):
    assert sorted(rows) == sorted(names)
    stages = [answer.stage_names[k] for k in answer.stage.tolist()]
    for k, name in enumerate(names):
        row = rows[name]
        assert (row["label"], row["stage"]) == (int(answer.labels[k]), stages[k])
        assert row["cost"] == float(answer.cost[k])
        assert row["confidence"] == pytest.approx(float(answer.confidence[k]), rel=1e-4)
        assert row["error"] is None


def test_every_kind_of_policy_is_answered_as_by_the_model(cluster, mixed):
    from offramp.batch import classify

    x = inputs_of(150, seed=3)
    names = [f"row{k}" for k in range(len(x))]
    data = cluster.data.from_items(
        [{"id": name, "x": row.numpy()} for name, row in zip(names, x, strict=True)],
        override_num_blocks=4,
    )
    for path in mixed:
        found = rows_of(classify(data, path, workers=1, rows=64))
        check_same(found, load(path)(x, names), names)


def folder_of(root, n=12, bad=(5,)):
    root.mkdir()
    drawn = np.random.default_rng(0)
    for k in range(n):
        Image.fromarray(drawn.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / f"{k:02}.png")
    for k in bad:
        (root / f"{k:02}.png").write_bytes(b"no image")
    return root


def tables_in(out):
    from pyarrow import concat_tables, parquet

    paths = sorted(out.glob("part-*.parquet"))
    tables = [parquet.read_table(path).replace_schema_metadata(None) for path in paths]
    return {row["id"]: row for row in concat_tables(tables).to_pylist()}


def test_a_folder_is_answered_in_shards_and_goes_on_where_it_was(cluster, bundle, tmp_path, run):
    photos, out = folder_of(tmp_path / "photos"), tmp_path / "answers"
    asked = ("predict", bundle, photos, "--engine", "ray", "--out", out, "--shard", 4)
    first = run(*asked, "--workers", 2, "--json")
    assert first.code == 0, first.err
    said = json.loads(first.out)
    assert (said["n"], said["errors"], said["shards"]) == (12, 1, 3)
    rows = tables_in(out)
    assert sorted(rows) == [f"{k:02}.png" for k in range(12)]
    assert "cannot be decoded" in rows["05.png"]["error"]
    local = run("predict", bundle, photos, "--out", tmp_path / "p.parquet")
    assert local.code == 0
    from pyarrow import parquet

    for row in parquet.read_table(tmp_path / "p.parquet").to_pylist():
        assert {name: rows[row["id"]][name] for name in ("label", "stage", "cost")} == {
            name: row[name] for name in ("label", "stage", "cost")
        }
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    (out / "part-000001.parquet").unlink()
    again = run(*asked, "--json")
    assert json.loads(again.out) == said
    assert tables_in(out) == rows
    changed = [p.name for p, when in kept.items() if p.stat().st_mtime_ns != when]
    assert changed == ["part-000001.parquet"]


def test_answers_of_another_job_are_not_mixed(cluster, bundle, tmp_path, run):
    out = tmp_path / "answers"
    for name in ("a", "b"):
        folder_of(tmp_path / name, n=2, bad=())
    asked = ("predict", bundle, tmp_path / "a", "--engine", "ray", "--out", out, "--workers", 1)
    assert run(*asked).code == 0
    other = ("predict", bundle, tmp_path / "b", "--engine", "ray", "--out", out, "--workers", 1)
    refused = run(*other)
    assert refused.code != 0
    assert "holds answers of another job: other inputs" in refused.err.replace("\n", " ")
    assert run(*other, "--overwrite").code == 0
    assert len(tables_in(out)) == 2


def test_no_shard_is_begun_that_might_cost_too_much(cluster, bundle, tmp_path, run):
    photos, out = folder_of(tmp_path / "photos", bad=()), tmp_path / "answers"
    asked = ("predict", bundle, photos, "--engine", "ray", "--out", out, "--shard", 4)
    said = json.loads(run(*asked, "--workers", 1, "--max-cost", 25, "--json").out)
    assert said["cost"] <= 25
    assert said["left"] >= 1
    whole = json.loads(run(*asked, "--workers", 1, "--max-cost", 1000, "--json").out)
    assert (whole["n"], whole["left"]) == (12, 0)
    assert whole["cost"] > said["cost"]


def test_a_table_of_numbers_is_read_by_its_row_groups(cluster, bundle, tmp_path, run):
    import pyarrow as pa
    from pyarrow import parquet

    x = inputs_of(10, seed=5)
    table = pa.table({"x": x.tolist(), "name": [f"no{k}" for k in range(10)]})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    out = tmp_path / "answers"
    done = run(
        *("predict", bundle, tmp_path / "t.parquet", "--engine", "ray", "--out", out),
        *("--column", "x", "--ids", "name", "--workers", 1, "--json"),
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["shards"] == 3
    names = [f"no{k}" for k in range(10)]
    check_same(tables_in(out), load(bundle)(x, names), names)


class Deadly:
    """Reads numbers, and kills its process once in the middle of a job."""

    def __init__(self, mark):
        self.mark = mark

    def __call__(self, shard, answering):
        names, x = shard.what
        if names[0] == "r8" and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield answering.of_raw(names, torch.tensor(x))


def test_a_process_that_is_killed_loses_nothing(cluster, bundle, tmp_path):
    from offramp.batch import Loading, Shard, predict_shards
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    x = inputs_of(20, seed=9)
    names = [f"r{k}" for k in range(20)]
    shards = [Shard(n=4, what=(names[k : k + 4], x[k : k + 4].tolist())) for k in range(0, 20, 4)]
    out, how = tmp_path / "answers", Loading(bundle=bundle)
    told = {"asked": {"job": "numbers"}, "workers": 1}
    tally = predict_shards(shards, Deadly(tmp_path / "mark"), how, out, **told)
    assert (tmp_path / "mark").exists()
    assert (tally.n, tally.errors) == (20, 0)
    check_same(tables_in(out), load(bundle)(x, names), names)


def test_a_bundle_that_is_not_there_is_named(cluster, tmp_path):
    from offramp.batch import classify

    data = cluster.data.from_items([{"id": 1, "x": torch.zeros(SHAPE).numpy()}])
    with pytest.raises(cluster.exceptions.RayError, match="every machine of the cluster can read"):
        classify(data, tmp_path / "nowhere", workers=1).take_all()
