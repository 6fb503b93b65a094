"""From a table and classifiers of scikit-learn to answers: all on the shell, columns by name."""

import csv
import json
import sys

import numpy as np
import pytest
import skops.io
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from offramp import load
from offramp.cli import main
from offramp.project.config.config import load_config
from offramp.serve.inputs import Inputs
from offramp.trace import load_trace

TREE = "sklearn.tree._tree.Tree"
ALLOW = ("--allow-types", TREE)
NAMES = [f"m{k}" for k in range(30)]
COLUMNS = f'transform = {{ kind = "columns", names = {json.dumps(NAMES)} }}'
CONFIG = f"""
[data]
kind = "table"
path = "cancer.csv"
options = {{ label = "kind" }}
splits = {{ train = 200, fit = 130, calibrate = 130, test = 100 }}

[[stage]]
name = "linear"
sklearn = ["sklearn.preprocessing:StandardScaler", "sklearn.linear_model:LogisticRegression"]
arguments = {{ logisticregression__C = 0.01 }}
{COLUMNS}

[[stage]]
name = "forest"
sklearn = "sklearn.ensemble:RandomForestClassifier"
arguments = {{ n_estimators = 20, max_depth = 4 }}
{COLUMNS}

[cost]
unit = "calls"
given = {{ linear = 1.0, forest = 20.0 }}

[fit]
policy = "threshold"
max_drop = 0.0
delta = "none"

[output]
dir = "run"
"""


def rows_of(values, labels, names=NAMES):
    kinds = np.array(["bad", "good"])[labels]
    return [[*names, "note", "kind"]] + [
        [*row, "a text", kind] for row, kind in zip(values.tolist(), kinds, strict=True)
    ]


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="module")
def cancer():
    return load_breast_cancer(return_X_y=True)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, cancer):
    """A folder after train, record and fit, with a run and a bundle."""
    folder = tmp_path_factory.mktemp("tables")
    write(folder / "cancer.csv", rows_of(*cancer))
    (folder / "run.toml").write_text(CONFIG)
    config = str(folder / "run.toml")
    bundle = ("--bundle", str(folder / "bundle"))
    for command in (["train"], ["record"], ["fit", *bundle]):
        assert main([*command, "--config", config]) == 0
    return folder


@pytest.fixture
def told(fitted, tmp_path):
    """Another configuration of the same table, in a folder of its own."""

    def write_config(*changes):
        (tmp_path / "cancer.csv").write_bytes((fitted / "cancer.csv").read_bytes())
        text = CONFIG
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        (tmp_path / "run.toml").write_text(text)
        return tmp_path / "run.toml"

    return write_config


def answers(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_recorded_is_what_scikit_learn_says_of_rows_it_has_not_seen(fitted, cancer):
    trace = load_trace(fitted / "run" / "record.trace")
    assert len(trace) == 360  # without the 200 that they were fitted on
    assert trace.class_names == ("bad", "good")
    model = load(fitted / "bundle", allow_types=[TREE])
    values = cancer[0][trace.ids].astype(np.float32)
    for stage in model.cascade:
        asked = stage.module._asked
        plain = asked.predict_proba(values)
        at = trace.stages.index(stage.name)
        np.testing.assert_allclose(trace.logits[:, at].softmax(1), plain, atol=1e-5)


def test_columns_are_found_by_name_in_any_order_and_others_are_not_looked_at(run, fitted, tmp_path):
    rows = rows_of(*(part[:50] for part in load_breast_cancer(return_X_y=True)))
    straight = write(tmp_path / "straight.csv", rows)
    turned = write(tmp_path / "turned.csv", [["extra", *row[::-1]] for row in rows])
    found = []
    for path in (straight, turned):
        out = tmp_path / f"{path.stem}-answers.csv"
        done = run("predict", fitted / "bundle", path, "--out", out, *ALLOW)
        assert done.code == 0, done.err
        found.append(answers(out))
    assert found[0] == found[1]
    assert len(found[0]) == 50
    model = load(fitted / "bundle", allow_types=[TREE])
    columns = {name: [row[k] for row in rows[1:]] for k, name in enumerate(NAMES)}
    assert [row["class_name"] for row in found[0]] == [
        model.class_names[k] for k in model(columns).labels.tolist()
    ]


def test_rows_go_by_the_ids_that_are_named(run, fitted, tmp_path, cancer):
    rows = [["who", *row] for row in rows_of(*(part[:3] for part in cancer))]
    for k, row in enumerate(rows[1:]):
        row[0] = f"patient {k}"
    path = write(tmp_path / "new.csv", rows)
    out = tmp_path / "out.csv"
    done = run("predict", fitted / "bundle", path, "--ids", "who", "--out", out, *ALLOW)
    assert done.code == 0, done.err
    assert [row["id"] for row in answers(out)] == ["patient 0", "patient 1", "patient 2"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [["M3" if c == "m3" else c for c in rows[0]], *rows[1:]], "mean 'M3'"),
        (lambda rows: [rows[0], [*rows[1][:-1]]], "line 2: the row has 31 fields"),
        (lambda rows: [rows[0], ["", *rows[1][1:]]], "row 1: 'm0' is missing"),
        (
            lambda rows: [rows[0], ["wide", *rows[1][1:]]],
            "'m0' must be a finite number, got 'wide'",
        ),
        (lambda rows: [[*rows[0], "m0"], [*rows[1], 1]], "names 'm0' twice"),
    ],
)
def test_what_is_wrong_with_new_rows_is_told_and_nothing_written(
    run, fitted, tmp_path, cancer, change, said
):
    path = write(tmp_path / "new.csv", change(rows_of(*(part[:2] for part in cancer))))
    out = tmp_path / "out.csv"
    done = run("predict", fitted / "bundle", path, "--out", out, *ALLOW)
    assert done.code == 2
    assert said in done.err
    assert not out.exists()


def test_other_files_are_told_which_columns_are_read(run, fitted, tmp_path):
    (tmp_path / "a.txt").write_text("a text\n")
    done = run(
        "predict", fitted / "bundle", tmp_path / "a.txt", "--out", tmp_path / "o.csv", *ALLOW
    )
    assert done.code == 2
    assert "reads the columns ['m0', 'm1'" in done.err


def test_types_are_named_where_they_are_not_allowed(run, fitted, tmp_path):
    out = ("--out", tmp_path / "o.csv")
    done = run("predict", fitted / "bundle", fitted / "cancer.csv", *out)
    assert done.code == 2
    assert f"--allow-types {TREE}" in done.err


def test_a_server_takes_rows_as_objects(fitted, cancer):
    model = load(fitted / "bundle", allow_types=[TREE])
    inputs = Inputs(model, max_pixels=10)
    values = cancer[0][:4]
    rows = [dict(zip(NAMES, row, strict=True)) for row in values.tolist()]
    ready = inputs.of_rows([{**dict(reversed(row.items())), "more": 1} for row in rows])
    columns = {name: values[:, k].astype(np.float32) for k, name in enumerate(NAMES)}
    assert inputs.model(ready).labels.tolist() == model(columns).labels.tolist()


def test_the_same_configuration_fits_the_same_classifiers(run, told, fitted):
    config = told()
    assert run("train", "--config", config).code == 0
    name = "classifiers.safetensors"
    assert (config.parent / "run" / name).read_bytes() == (fitted / "run" / name).read_bytes()


def test_other_examples_than_they_were_fitted_on_are_refused(run, told):
    config = told()
    assert run("train", "--config", config).code == 0
    config.write_text(config.read_text().replace("[[stage]]", "seed = 1\n\n[[stage]]", 1))
    found = run("record", "--config", config)
    assert found.code == 2  # some would be tested on what they know
    assert "were fitted on other examples than the split 'train' holds now" in found.err
    assert run("train", "--config", config).code == 0
    config.write_text(config.read_text().replace("n_estimators = 20", "n_estimators = 21"))
    found = run("record", "--config", config)
    assert found.code == 2
    assert "'forest' in" in found.err
    assert "was fitted for another configuration" in found.err


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("train = 200, ", "", "split 'train', which these data do not have"),
        ("n_estimators = 20", "n_trees = 20", "Stage 'forest' cannot be fitted: Invalid parameter"),
        ("ensemble:RandomForest", "ensemble:Forest", "has no callable 'ForestClassifier'"),
        ('unit = "calls"\ngiven = { linear = 1.0, forest = 20.0 }', "", "cost.unit: flops of 'lin"),
        (COLUMNS, "", 'stage[0].transform: is missing: { kind = "columns"'),
        ('"kind"', '"Kind"', "no column of"),
        ("sklearn.ensemble:RandomForestClassifier", "forest", "stage[1].sklearn: must be a class"),
        ('name = "linear"', 'name = "linear"\nlabels = ["a"]', "labels: does not belong to"),
        ("[output]", "[joint]\n[output]", "joint: trains networks, and 'linear', 'forest' are cl"),
    ],
)
def test_what_cannot_be_fitted_is_told(run, told, before, after, said):
    found = run("train", "--config", told((before, after)))
    assert found.code == 2
    assert said in found.err


def test_they_are_not_trained_as_networks_are(run, told):
    found = run("train", "joint", "--config", told())
    assert found.code == 2
    assert "`offramp train classifiers` fits them" in found.err


def test_a_bundle_that_reads_images_says_so_of_a_table(run, deployed, fitted, tmp_path):
    out = ("--out", tmp_path / "o.csv")
    found = run("predict", deployed / "bundle", fitted / "cancer.csv", *out)
    assert found.code == 2
    assert "reads images or arrays, and no texts or tables" in found.err


def test_without_the_extra_it_is_named(run, told, monkeypatch):
    monkeypatch.setitem(sys.modules, "skops", None)
    found = run("train", "--config", told())
    assert found.code == 2
    assert "pip install 'offramp[sklearn]'" in found.err


def test_other_classifiers_than_a_trace_was_recorded_with_are_noted(run, told):
    config = told()
    assert run("train", "--config", config).code == 0
    assert run("record", "--config", config).code == 0
    assert "other classifiers" not in run("train", "--config", config).err
    config.write_text(config.read_text().replace("n_estimators = 20", "n_estimators = 5"))
    assert "was recorded with other classifiers" in run("train", "--config", config).err


def test_nothing_is_recorded_before_it_is_fitted(run, told):
    found = run("record", "--config", told())
    assert found.code == 2
    assert "The classifiers are not fitted yet" in found.err
    assert "offramp train -c" in found.err


OWN = f"""
name = "forest"
sklearn = "own.skops"
allow_types = ["{TREE}"]
{COLUMNS}
"""


def own(told, cancer, labels=None, **more):
    """A configuration whose second stage is a file of a fitted classifier."""
    old = CONFIG[CONFIG.rindex("[[stage]]\n") + len("[[stage]]\n") : CONFIG.index("\n[cost]")]
    text = OWN.lstrip() + ("" if labels is None else f"labels = {json.dumps(labels)}\n")
    for before, after in more.get("changes", ()):
        text = text.replace(before, after)
    config = told((old, text))
    values, numbers = cancer
    forest = RandomForestClassifier(10, random_state=0)
    forest.fit(values[:200].astype(np.float32), more.get("names", numbers)[:200])
    skops.io.dump(forest, config.parent / "own.skops")
    return config


def record(run, config):
    assert main(["train", "--config", str(config)]) == 0
    return run("record", "--config", config)


def test_a_fitted_classifier_comes_as_a_file_of_skops(run, told, cancer):
    found = record(run, own(told, cancer, names=np.array(["bad", "good"])[cancer[1]]))
    assert found.code == 0, found.err
    assert "forest" in found.out


def test_numbers_it_was_fitted_on_have_to_be_told(run, told, cancer):
    config = own(told, cancer)
    (config.parent / "config").mkdir()
    found = record(run, config)
    assert found.code == 2
    assert "labels = [...]" in found.err
    config.write_text(
        config.read_text().replace('"own.skops"', '"own.skops"\nlabels = ["bad", "good"]')
    )
    found = run("record", "--config", config)
    assert found.code == 0, found.err


def test_types_of_a_file_have_to_be_allowed(run, told, cancer):
    config = own(told, cancer, changes=[(f'allow_types = ["{TREE}"]\n', "")])
    found = record(run, config)
    assert found.code == 2
    assert f"types ['{TREE}']" in found.err
    assert "allow_types = [...] in the stage 'forest'" in found.err


def test_columns_in_another_order_than_it_was_fitted_on_are_refused(run, told, cancer):
    pd = pytest.importorskip("pandas")
    config = own(told, cancer)
    table = pd.DataFrame(cancer[0], columns=NAMES[::-1])
    linear = make_pipeline(StandardScaler(), LogisticRegression()).fit(table, cancer[1])
    skops.io.dump(linear, config.parent / "own.skops")
    found = record(run, config)
    assert found.code == 2
    assert "Stage 'forest' was fitted on the columns ['m29'" in found.err


def test_init_reads_the_table_and_what_it_writes_goes_to_a_bundle(
    run, tmp_path, monkeypatch, cancer
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "cancer.csv", rows_of(*cancer))
    asked = ("init", "--data", "table", "--path", "data/cancer.csv")
    found = run(*asked)
    assert found.code == 2
    assert "no column of data/cancer.csv 'label'" in found.err
    found = run(*asked, "--label", "kind")
    assert found.code == 2
    assert "'note' must be a finite number, got 'a text'" in found.err
    found = run(*asked, "--label", "kind", "--columns", ",".join(NAMES))
    assert found.code == 0, found.err
    config = load_config(tmp_path / "run.toml")
    assert [stage.name for stage in config.stage] == ["small", "large"]
    assert list(config.stage[1].transform.names) == NAMES
    following = [line.split()[1] for line in found.out.splitlines() if line.startswith("  offramp")]
    assert following == ["train", "record", "fit", "report"]
    assert run("train", "--config", "run.toml").code == 0
    assert run("record", "--config", "run.toml").code == 0


def test_init_takes_classifiers_by_class_and_by_file(run, tmp_path, monkeypatch, cancer):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "cancer.csv", [row[:3] + row[-1:] for row in rows_of(*cancer)])
    skops.io.dump(LogisticRegression().fit([[0.0], [1.0]], [0, 1]), tmp_path / "own.skops")
    found = run(
        *("init", "--data", "table", "--path", "cancer.csv", "--label", "kind"),
        *("--model", "own.skops", "--model", "sklearn.svm:SVC C=2"),
    )
    assert found.code == 0, found.err
    small, large = load_config(tmp_path / "run.toml").stage
    assert (small.to_fit, large.to_fit) == (False, True)
    assert large.sklearn == ["sklearn.svm:SVC"]
    assert large.arguments == {"C": 2}


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_shards_of_a_cluster_read_columns_as_one_process_does(fitted, tmp_path, cancer, ending):
    from offramp.batch import Loading
    from offramp.batch.answering import Answering
    from offramp.cli.predict_ray import planned

    rows = rows_of(*(part[:10] for part in cancer))
    path = write(tmp_path / "new.csv", rows)
    if ending == ".parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        columns = {name: [row[k] for row in rows[1:]] for k, name in enumerate(rows[0])}
        path = tmp_path / "new.parquet"
        parquet.write_table(pa.table(columns), path, row_group_size=4)
    reading = {"array": "images", "ids": None, "orient": None, "column": "text"}
    shards, read = planned(fitted / "bundle", [path], reading, 4)
    assert [shard.n for shard in shards] == [4, 4, 2]
    answering = Answering(Loading(bundle=fitted / "bundle", allow_types=(TREE,)))
    found = [part for shard in shards for part in read(shard, answering)]
    model = load(fitted / "bundle", allow_types=[TREE])
    columns = {name: [row[k] for row in rows[1:]] for k, name in enumerate(NAMES)}
    labels = [label for part in found for label in part["label"]]
    assert labels == model(columns).labels.tolist()
    assert [name for part in found for name in part["id"]] == list(range(10))
