"""Traces of losses: what they hold, what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from offramp._core.errors import InputError, UnknownNameError
from offramp.trace import (
    from_losses,
    from_npz,
    from_parquet,
    load_trace,
    make_trace,
    save_trace,
)

LOSSES = {"a": [0.0, 0.5, 1.0], "b": [0.25, 0.0, 0.0]}
SURE = {"a": [0.9, 0.4, 0.1], "b": [0.8, 0.8, 0.7]}
COSTS = {"costs": {"a": 1.0, "b": 4.0}, "unit": "usd"}


@pytest.mark.parametrize(
    "given",
    [
        {"losses": LOSSES, "confidences": SURE},
        {"losses": LOSSES, "features": {k: np.array(v)[:, None] for k, v in SURE.items()}},
        {
            "losses": np.array(list(LOSSES.values())).T,
            "confidences": torch.tensor(list(SURE.values())).T,
        },
    ],
)
def test_losses_and_what_is_seen_come_in_any_form(given):
    trace = from_losses(given.pop("losses"), **given, **COSTS)
    assert trace.losses.tolist() == [[0.0, 0.25], [0.5, 0.0], [1.0, 0.0]]
    assert trace.features.shape == (3, 2, 1)
    assert trace.features[:, 0, 0].tolist() == pytest.approx(SURE["a"])
    assert (trace.labeled, trace.graded, trace.outputs) == (False, True, "features")
    assert trace.stages == ("a", "b")
    assert trace.accuracy(0) == 0.5  # 1 - the mean loss
    assert trace.most_accurate() == 1


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint8])
def test_whole_numbers_say_that_nothing_lies_between(dtype):
    trace = from_losses(np.array([[0, 1], [1, 0]], dtype=dtype), confidences=np.eye(2), **COSTS)
    assert not trace.graded
    assert trace.wrong(0).tolist() == [False, True]
    assert trace.loss(1).tolist() == [1.0, 0.0]


def test_a_stage_that_answers_nothing_stands_before_others():
    losses = {"length": None, **LOSSES}
    features = {"length": [10.0, 20, 30], "a": np.ones((3, 2)), "b": [1.0, 2, 3]}
    costs = {"length": 0.0, "a": 1.0, "b": 4.0}
    trace = from_losses(losses, features=features, costs=costs, unit="usd")
    assert trace.silent == {0}
    assert trace.features[:, 0].tolist() == [[10.0, 0], [20, 0], [30, 0]]  # filled up
    with pytest.raises(InputError, match="'length' answers nothing"):
        trace.loss(0)
    whole = from_losses({"length": None, "a": [0, 1], "b": [0, 0]}, confidences=np.zeros((2, 3)),
                        costs=costs, unit="usd")  # fmt: skip
    assert (whole.silent, whole.graded) == ({0}, False)
    with pytest.raises(InputError, match="cannot be the last one visited, got 'length'"):
        from_losses(
            {"a": [0.1], "length": None}, confidences=np.zeros((1, 2)), costs=[[1, 1]], unit="usd"
        )


@pytest.mark.parametrize(
    ("losses", "others", "message"),
    [
        ({"a": [0.0, 1.5], "b": [0.0, 0.0]}, {}, "in \\[0, 1\\], got 1.5 for example 1, stage 'a'"),
        ({"a": [0, 2], "b": [0, 0]}, {}, "got whole numbers beyond"),
        ({"a": [0.0, np.nan], "b": [0.0, 0.0]}, {}, "for all examples of a stage or for none"),
        ({"a": [0.0, 0.1], "b": [0.0]}, {}, r"losses of 'b' must have shape \(2\), got \(1,\)"),
        ({"a": None, "b": None}, {}, "at least one stage"),
        ({}, {}, "at least one stage"),
        (LOSSES, {"confidences": None}, "exactly one of confidences"),
        (LOSSES, {"features": SURE}, "exactly one of confidences"),
        (LOSSES, {"confidences": {"a": SURE["a"]}}, r"\['b'\] have none"),
        (LOSSES, {"confidences": {**SURE, "c": SURE["a"]}}, "no stage 'c'"),
        (LOSSES, {"confidences": {**SURE, "a": [0.1, np.nan, 1]}}, "features must be finite"),
    ],
)
def test_what_is_wrong_is_named(losses, others, message):
    given = {"confidences": {k: (v or [0, 0])[:2] for k, v in losses.items()}, **COSTS, **others}
    with pytest.raises((InputError, UnknownNameError), match=message):
        from_losses(losses, **given)


@pytest.mark.parametrize("whole", [True, False])
def test_they_come_back_from_a_file(whole, tmp_path):
    trace = make_trace(20, kind="losses")
    if whole:
        trace = replace(trace, losses=(trace.losses > 0.5).to(torch.int8))
    save_trace(trace, tmp_path / "a.trace")
    again = load_trace(tmp_path / "a.trace")
    assert torch.equal(again.losses, trace.losses)
    assert torch.equal(again.features, trace.features)
    assert again.graded is not whole


def test_labels_and_losses_do_not_go_together():
    labeled, lost = make_trace(20), make_trace(20, kind="losses")
    with pytest.raises(InputError, match="classes must be 1 where there are losses"):
        replace(lost, classes=4)
    with pytest.raises(InputError, match="one of logits, ranked labels and losses"):
        replace(lost, logits=torch.zeros(20, 3, 1))
    with pytest.raises(InputError, match="losses and features belong together"):
        replace(labeled, losses=lost.losses)
    with pytest.raises(InputError, match="top must be 1"):
        lost.loss(0, top=2)


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_files_hold_losses_under_names(kind, tmp_path):
    columns = {"a": np.array([0.0, 0.5]), "b": np.array([0.2, 0.0]), "n": np.array([3.0, 9.0])}
    losses = {"length": None, "small": "a", "large": "b"}
    features = {"length": "n", "small": "a", "large": "b"}
    costs = {"length": 0.0, "small": 1.0, "large": "n"}
    path = tmp_path / f"judged.{kind}"
    if kind == "npz":
        np.savez(path, **columns)
        trace = from_npz(path, losses=losses, features=features, costs=costs, unit="usd")
        with pytest.raises(InputError, match="features belong to losses"):
            from_npz(path, predictions={"a": "a"}, features={"a": "n"}, costs=costs)
    else:
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), path)
        trace = from_parquet(path, losses=losses, features=features, costs=costs, unit="usd")
    assert trace.silent == {0}
    assert trace.loss(1).tolist() == [0.0, 0.5]
    assert trace.features[:, 0, 0].tolist() == [3.0, 9.0]
    assert trace.prices[:, 2].tolist() == [3.0, 9.0]
