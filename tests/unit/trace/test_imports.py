"""Imports from arrays, npz and parquet files, with and without logits."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from offramp._core.costs import Costs
from offramp._core.errors import (
    FileFormatError,
    InputError,
    MissingExtraError,
    UnknownNameError,
)
from offramp._core.types import SPLITS
from offramp.trace import from_logits, from_npz, from_parquet, from_predictions

SHARED = Path(__file__).parents[4] / "shared" / "data"
COSTS = {"small": 1.0, "large": 4.0}


def scores(n=20, c=3, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((n, c)).astype(np.float32) for name in COSTS}


def labels(n=20, c=3):
    return np.arange(n) % c


def flops(**arguments):
    return {"costs": COSTS, "unit": "flops", **arguments}


def test_logits_by_name_and_in_one_array_give_the_same_trace():
    by_name = from_logits(scores(), labels(), **flops())
    at_once = from_logits(np.stack(list(scores().values()), axis=1), labels(), **flops())
    assert by_name.stages == at_once.stages == ("small", "large")
    assert torch.equal(by_name.logits, at_once.logits)
    np.testing.assert_array_equal(by_name.logits[:, 1].numpy(), scores()["large"])
    assert by_name.costs == Costs.simple("flops", [1.0, 4.0])


@pytest.mark.parametrize("dtype", ["float64", "int32", ">f4", "uint16"])
def test_numbers_of_any_kind_become_float32(dtype):
    given = {name: (10 * np.abs(s)).astype(dtype) for name, s in scores().items()}
    trace = from_logits(given, labels().astype("uint8"), **flops())
    assert trace.logits.dtype == torch.float32
    assert not trace.lossy
    np.testing.assert_array_equal(trace.logits[:, 0].numpy(), given["small"].astype(np.float32))


def test_float16_is_kept_and_lossy():
    trace = from_logits(
        {k: torch.from_numpy(s).half() for k, s in scores().items()}, labels(), **flops()
    )
    assert trace.lossy
    assert trace.logits.dtype == torch.float16


def test_importing_copies_so_that_later_changes_do_not_reach_the_trace():
    given, known = scores(), labels()
    trace = from_logits(given, known, **flops())
    given["small"][:] = 0
    known[:] = 0
    assert trace.labels.max() == 2
    assert trace.logits[:, 0].abs().sum() > 0


def test_up_to_five_stages_get_every_edge_and_more_a_chain():
    def of(count, **arguments):
        each = {f"m{k}": np.zeros((4, 2)) for k in range(count)}
        costs = Costs.simple("flops", [2.0**k for k in range(count)])
        return from_logits(each, [0, 1, 0, 1], costs=costs, **arguments).topology

    assert len(of(5).edges) == 10
    assert len(of(6).edges) == 5
    assert len(of(6, edges="full").edges) == 15
    assert of(3, edges=[("m0", "m2"), ("m0", "m1")]).edges == ((0, 1), (0, 2))


def test_splits_may_be_names_indices_or_one_for_all():
    names = [SPLITS[k % 4] for k in range(20)]
    by_name = from_logits(scores(), labels(), **flops(split=names))
    by_index = from_logits(scores(), labels(), **flops(split=np.arange(20) % 4))
    assert torch.equal(by_name.split, by_index.split)
    assert by_name.split.dtype == torch.int8
    assert from_logits(scores(), labels(), **flops(split="test")).split.unique().tolist() == [3]
    with pytest.raises(InputError, match="got 'val'"):
        from_logits(scores(), labels(), **flops(split=["val"] * 20))
    with pytest.raises(InputError, match="got 4"):
        from_logits(scores(), labels(), **flops(split=[4] * 20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": None}, "unit must name what the costs are in"),
        ({"costs": {"small": 1.0}}, r"every stage; \['large'\] have none"),
        ({"costs": {**COSTS, "huge": 9.0}}, "no stage 'huge'"),
        ({"costs": {"small": -1.0, "large": 2.0}}, "got -1.0 for stage 0"),
        ({"ids": [0] * 20}, "ids must be unique"),
        ({"class_names": ["a"]}, "class_names must have 3 entries, got 1"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_value(arguments, message):
    with pytest.raises((InputError, UnknownNameError), match=message):
        from_logits(scores(), labels(), **flops(**arguments))


def test_shapes_that_differ_are_printed_by_stage():
    given = {**scores(), "large": np.zeros((20, 4))}
    with pytest.raises(InputError, match=r"'small': \(20, 3\), 'large': \(20, 4\)"):
        from_logits(given, labels(), **flops())


def test_text_is_no_logit_and_a_fraction_no_label():
    with pytest.raises(InputError, match="logits of 'small' must be numbers"):
        from_logits({"small": [["a", "b"]]}, [0], costs={"small": 1.0}, unit="usd")
    with pytest.raises(InputError, match=r"labels must be whole numbers, got 0\.5"):
        from_logits(scores(), labels() + 0.5, **flops())
    with pytest.raises(InputError, match="labels must be whole numbers, got nan"):
        from_logits(scores(), np.full(20, np.nan), **flops())


def services(n=30):
    rng = np.random.default_rng(4)
    known = rng.integers(0, 3, n)
    return {
        "labels": known,
        "pred_0": np.where(rng.random(n) < 0.7, known, -1).astype(np.int16),  # -1: no answer
        "conf_0": rng.random(n).astype(np.float32),
        "pred_9": np.where(rng.random(n) < 0.9, known, 17).astype(np.int16),  # a foreign label
        "conf_9": np.where(rng.random(n) < 0.5, 1.0, 0.0).astype(np.float32),
    }


SERVICES = {
    "predictions": {"local": "pred_0", "cloud": "pred_9"},
    "confidences": {"local": "conf_0", "cloud": "conf_9"},
    "costs": {"local": 0.0, "cloud": 0.001},
    "unit": "usd",
}


def test_services_are_imported_from_npz(tmp_path):
    table = services()
    np.savez(tmp_path / "s.npz", meta=np.array(["x"]), **table)
    with pytest.warns(UserWarning, match="'local' refused"):
        trace = from_npz(tmp_path / "s.npz", **SERVICES)
    assert trace.classes == 3
    assert trace.wrong(0).tolist() == (table["pred_0"] != table["labels"]).tolist()
    assert trace.wrong(1).tolist() == (table["pred_9"] != table["labels"]).tolist()
    np.testing.assert_array_equal(trace.confidence[:, 1].numpy(), table["conf_9"])
    assert torch.isfinite(trace.output(1).scores()).all()


def test_rankings_without_confidences_are_imported():
    ranked = {"small": [[0, 1], [2, 0]], "large": [[1, 0], [5000, 2]]}
    trace = from_predictions(ranked, [1, 2], **flops(classes=1000))
    assert trace.confidence is None
    assert trace.wrong(0, top=2).tolist() == [False, False]
    assert trace.wrong(1, top=1).tolist() == [False, True]
    assert trace.classes == 1000


@pytest.mark.parametrize(
    ("confidences", "message"),
    [
        ({"small": [0.5, 0.5]}, r"every stage; \['large'\] have none"),
        ({"small": [0.5, 0.5], "large": [0.5, 1.5]}, r"got 1\.5 for example 1, stage 'large'"),
        ({"small": [0.5, 0.5], "large": [0.5]}, r"must have shape \(2\), got \(1,\)"),
        ({"small": [0.5, 0.5], "larg": [0.5]}, "Did you mean 'large'"),
    ],
)
def test_wrong_confidences_are_refused(confidences, message):
    predictions = {"small": [0, 1], "large": [0, 1]}
    with pytest.raises((InputError, UnknownNameError), match=message):
        from_predictions(predictions, [0, 1], **flops(confidences=confidences))


def test_logits_are_imported_from_npz_with_ids_and_splits(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        labels=labels(),
        name=np.array([f"x{k}" for k in range(20)]),
        part=np.array(["fit", "test"] * 10),
        **{f"logits_{k}": v for k, v in scores().items()},
    )
    trace = from_npz(
        tmp_path / "a.npz",
        logits={"small": "logits_small", "large": "logits_large"},
        ids="name",
        split="part",
        seen_in_training=True,
        **flops(),
    )
    assert trace.ids[3] == "x3"
    assert trace.subset("test").ids.tolist() == [f"x{k}" for k in range(1, 20, 2)]
    assert trace.seen_in_training


def test_a_wrong_array_name_suggests_the_near_one(tmp_path):
    np.savez(tmp_path / "a.npz", labels=labels(), logits_small=scores()["small"])
    with pytest.raises(UnknownNameError, match="Did you mean 'logits_small'"):
        from_npz(
            tmp_path / "a.npz", logits={"small": "logit_small"}, costs={"small": 1}, unit="usd"
        )


def test_one_kind_of_answers_must_be_named(tmp_path):
    np.savez(tmp_path / "a.npz", labels=labels())
    with pytest.raises(
        InputError, match="exactly one of logits, probabilities, predictions and losses, got none"
    ):
        from_npz(tmp_path / "a.npz", **flops())


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", b"plain text", b"\x93NUMPY"])
def test_a_file_that_is_no_npz_is_named(tmp_path, content):
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"a\.npz cannot be read as an npz file"):
        from_npz(path, logits={"small": "x"}, costs={"small": 1.0}, unit="usd")


def test_pickled_arrays_are_never_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", labels=np.array([{"a": 1}], dtype=object), x=np.zeros((1, 2)))
    with pytest.raises(FileFormatError, match=r"a\.npz cannot be read.*pickled objects are never"):
        from_npz(tmp_path / "a.npz", logits={"small": "x"}, costs={"small": 1.0}, unit="usd")


def test_lists_and_single_columns_of_parquet_give_the_same_trace(tmp_path):
    columns = {"label": labels(), "name": [f"x{k}" for k in range(20)], "part": ["fit"] * 20}
    for stage, values in scores().items():
        columns[stage] = list(values)
        columns.update({f"{stage}_{c}": values[:, c] for c in range(3)})
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    options = flops(ids="name", split="part")
    lists = from_parquet(
        tmp_path / "a.parquet", logits={"small": "small", "large": "large"}, **options
    )
    single = from_parquet(
        tmp_path / "a.parquet",
        logits={stage: [f"{stage}_{c}" for c in range(3)] for stage in COSTS},
        **options,
    )
    assert torch.equal(lists.logits, single.logits)
    np.testing.assert_array_equal(lists.logits[:, 0].numpy(), scores()["small"])
    assert lists.ids[7] == "x7"
    assert lists.has_split("fit")


def test_services_are_imported_from_parquet(tmp_path):
    table = services()
    parquet.write_table(pa.table({k: v for k, v in table.items()}), tmp_path / "s.parquet")
    np.savez(tmp_path / "s.npz", **table)
    with pytest.warns(UserWarning, match="'local' refused"):
        trace = from_parquet(tmp_path / "s.parquet", labels="labels", **SERVICES)
    with pytest.warns(UserWarning, match="'local' refused"):
        other = from_npz(tmp_path / "s.npz", **SERVICES)
    assert torch.equal(trace.ranked, other.ranked)
    assert torch.equal(trace.confidence, other.confidence)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1.0, 2.0], [1.0]]), "column 'x' of .* must hold lists of one length"),
        (pa.array([[1.0, None], [1.0, 2.0]]), "must hold lists of one length without empty"),
        (pa.array([None, [1.0, 2.0]]), "column 'x' of .* has 1 empty cells"),
    ],
)
def test_gaps_in_parquet_are_named(tmp_path, column, message):
    parquet.write_table(pa.table({"label": [0, 1], "x": column}), tmp_path / "a.parquet")
    with pytest.raises(FileFormatError, match=message):
        from_parquet(tmp_path / "a.parquet", logits={"m": "x"}, costs={"m": 1.0}, unit="usd")


def test_a_file_that_is_no_parquet_and_a_wrong_column_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    with pytest.raises(FileFormatError, match=r"a\.parquet cannot be read"):
        from_parquet(path, logits={"m": "x"}, costs={"m": 1.0}, unit="usd")
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(FileFormatError, match=r"a\.parquet cannot be read"):
        from_parquet(path, logits={"m": "x"}, costs={"m": 1.0}, unit="usd")
    parquet.write_table(pa.table({"label": [0], "score": [[1.0, 2.0]]}), path)
    with pytest.raises(UnknownNameError, match=r"no column 'scores'\. Did you mean 'score'"):
        from_parquet(path, logits={"m": "scores"}, costs={"m": 1.0}, unit="usd")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"offramp\[parquet\]"):
        from_parquet(tmp_path / "a.parquet", logits={"m": "x"}, costs={"m": 1.0}, unit="usd")


def real(*parts):
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the real data {'/'.join(parts)} is not beside the repository")
    return path


@pytest.mark.shared
@pytest.mark.parametrize("name", ["IMDB", "WAIMAI", "FERPLUS", "AUDIOMNIST"])
def test_answers_of_real_services_are_imported(name):
    path = real("frugalml", f"{name}.npz")
    with np.load(path) as file:
        table = [line.split(",") for line in file["meta"][1:]]
        known, first = file["labels"], file[f"pred_{table[0][0]}"]
    table.sort(key=lambda row: float(row[2]))
    trace = from_npz(
        path,
        predictions={row[1]: f"pred_{row[0]}" for row in table},
        confidences={row[1]: f"conf_{row[0]}" for row in table},
        costs={row[1]: float(row[2]) / 10_000 for row in table},
        unit="usd",
        classes=int(table[0][3]),
    )
    assert trace.accuracy(trace.topology.index("Google")) == pytest.approx((known == first).mean())
    assert min(trace.costs.segment) == trace.costs.segment[0] > 0


@pytest.mark.shared
def test_published_top5_lists_are_imported():
    path = real("imagenet_top5", "imagenet_val50k_top5_67models.npz")
    with np.load(path) as file:
        models, top5 = list(file["models"]), file["top5"]
        known, names = file["labels"], file["files"]
    chosen = {name: top5[models.index(name)] for name in ("alexnet", "resnet50")}
    costs = {"alexnet": 18.42, "resnet50": 100.0}
    trace = from_predictions(chosen, known, costs=costs, unit="relative", classes=1000, ids=names)
    assert trace.accuracy(0) == pytest.approx(0.5652, abs=5e-4)
    assert trace.accuracy(1) == pytest.approx(0.7613, abs=5e-4)
    assert trace.accuracy(0, top=5) > 0.78


@pytest.mark.shared
def test_real_logits_are_imported():
    path = real("cifar10", "resnet_logits", "test_jpeg_1000_5500.npz")
    with np.load(path) as file:
        names, macs = [str(m) for m in file["models"]], file["macs"]
    trace = from_npz(
        path,
        logits={name: f"logits_{name}" for name in names},
        costs={name: 2.0 * m for name, m in zip(names, macs, strict=True)},
        unit="flops",
    )
    assert len(trace) == 4500
    assert trace.accuracy(0) == pytest.approx(0.81, abs=0.01)
    assert trace.accuracy(3) == pytest.approx(0.832, abs=0.01)
