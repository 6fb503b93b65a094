"""The trace: its checks, its parts, its figures against slow twins."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.costs import Costs
from offramp._core.errors import InputError, SplitOverlapError
from offramp._core.topology import Topology
from offramp._core.types import SPLITS
from offramp.trace import Trace, make_trace


def tiny(**changes):
    """Three examples, two stages, two classes."""
    fields = {
        "topology": Topology.of(["a", "b"]),
        "labels": torch.tensor([0, 1, 1]),
        "classes": 2,
        "costs": Costs.simple("flops", [1.0, 4.0]),
        "logits": torch.tensor([[[2.0, 1.0]] * 2, [[3.0, 0.0], [0.0, 1.0]], [[0.0, 2.0]] * 2]),
    }
    return Trace(**{**fields, **changes})


def test_wrong_is_counted_one_example_at_a_time():
    trace = make_trace(200, classes=5, seed=3)
    for stage in range(3):
        for top in (1, 2):
            slow = []
            for row, label in zip(trace.logits[:, stage], trace.labels, strict=True):
                order = sorted(range(5), key=lambda k, r=row: (-float(r[k]), k))
                slow.append(int(label) not in order[:top])
            assert trace.wrong(stage, top=top).tolist() == slow
            assert trace.accuracy(stage, top=top) == pytest.approx(1 - np.mean(slow))


def test_the_cheaper_of_two_equally_accurate_stages_is_the_most_accurate():
    logits = torch.tensor([[[1.0, 0.0]] * 2])
    trace = tiny(labels=torch.tensor([0]), logits=logits, costs=Costs.simple("usd", [4.0, 1.0]))
    assert trace.most_accurate() == 1


def test_stage_costs_are_those_of_each_stage_alone():
    topology = Topology.of(["a", "b"], sources=[-1, 0])
    assert tiny(topology=topology).stage_costs().tolist() == [1.0, 5.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_output_that_is_not_finite_is_named_by_example_and_stage(bad):
    logits = torch.zeros(40_000, 2, 64)  # more than is checked at once
    logits[35_000, 1, 7] = bad
    with pytest.raises(InputError, match="for example 35000, stage 'b'"):
        tiny(logits=logits, labels=torch.zeros(40_000, dtype=torch.int64), classes=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.tensor([0, 2, 1])}, r"labels must be in \[0, 2\), got 2 for example 1"),
        ({"labels": torch.tensor([0, -1, 1])}, r"got -1 for example 1"),
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"classes": 3}, r"logits must have shape \(3, 2, 3\), got \(3, 2, 2\)"),
        ({"costs": Costs.simple("usd", [1.0])}, r"one entry per stage \(2\), got 1"),
        ({"logits": None}, "one of logits, ranked labels and losses"),
        ({"class_names": ("x",)}, "class_names must have 2 entries, got 1"),
        ({"ids": np.array([5, 6, 5])}, "ids must be unique"),
        ({"ids": np.array([5, 6])}, r"ids must have shape \(3\), got \(2,\)"),
        ({"split": torch.tensor([0, 1, 4])}, "split must hold indices"),
        ({"confidence": torch.zeros(3, 2)}, "confidence belongs to ranked"),
        (
            {"logits": torch.zeros(0, 2, 2), "labels": torch.zeros(0, dtype=torch.int64)},
            "at least one example, got n = 0",
        ),
    ],
)
def test_a_wrong_field_is_refused_with_its_value(changes, message):
    with pytest.raises(InputError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan")])
def test_a_confidence_outside_its_interval_is_named(bad):
    confidence = torch.tensor([[0.5, 0.5], [0.5, bad], [0.5, 0.5]])
    ranked = torch.zeros(3, 2, 1, dtype=torch.int64)
    with pytest.raises(InputError, match=rf"got {bad}.* for example 1, stage 'b'"):
        tiny(logits=None, ranked=ranked, confidence=confidence)


def test_a_prediction_outside_the_classes_is_merely_wrong():
    ranked = torch.tensor([[[-7], [0]], [[99], [1]], [[1], [1]]])
    trace = tiny(logits=None, ranked=ranked)
    assert trace.wrong(0).tolist() == [True, True, False]


@given(st.integers(0, 2**31), st.sampled_from(["logits", "labels"]))
def test_parts_are_disjoint_and_together_the_whole(seed, kind):
    trace = make_trace(40, kind=kind, seed=seed)
    trace = replace(trace, ids=np.array([f"e{k}" for k in range(40)]))
    divided = trace.split_into({"fit": 20, "calibrate": 10, "test": 10}, seed=seed)
    parts = [divided.subset(name) for name in ("fit", "calibrate", "test")]
    assert [len(part) for part in parts] == [20, 10, 10]
    assert sorted(i for part in parts for i in part.ids) == sorted(trace.ids)
    for first in range(3):
        for second in range(first):
            parts[first].require_disjoint(parts[second])
    where = {name: k for k, name in enumerate(trace.ids)}
    for part in parts:
        back = torch.tensor([where[i] for i in part.ids])
        assert torch.equal(part.labels, trace.labels[back])
        assert torch.equal(part.output(1).top(1), trace.output(1).top(1)[back])


def test_examples_in_both_parts_are_an_error_that_names_one():
    trace = make_trace(10)
    with pytest.raises(SplitOverlapError, match=r"2 examples are in both parts, e\.g\. .*4"):
        trace.take(torch.arange(6)).require_disjoint(trace.take(torch.arange(4, 10)))


def test_rows_take_a_mask_or_positions():
    trace = make_trace(5)
    mask = torch.tensor([True, False, False, True, False])
    assert trace.take(mask).ids.tolist() == trace.take(torch.tensor([0, 3])).ids.tolist() == [0, 3]


def test_a_split_that_nobody_is_in_is_an_error():
    trace = make_trace(10)
    with pytest.raises(InputError, match="has no splits"):
        trace.subset("fit")
    divided = trace.split_into({"fit": 10}, seed=0)
    assert divided.has_split("fit")
    assert not divided.has_split("test")
    with pytest.raises(InputError, match="No example of this trace is in the split 'test'"):
        divided.subset("test")


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"fit": 11}, r"make \[11\] of 10 examples"),
        ({"fit": 0.9, "test": 0.9}, "must sum to at most 1"),
        ({"fit": 0}, r"make \[0\] of 10 examples; every split needs at least one"),
        ({"fit": 0.5, "test": 3}, "all fractions or all numbers"),
    ],
)
def test_shares_that_do_not_fit_are_refused(shares, message):
    with pytest.raises(InputError, match=message):
        make_trace(10).split_into(shares, seed=0)


def test_the_same_seed_divides_the_same_way():
    trace = make_trace(50)
    one, two, other = (trace.split_into({"fit": 25, "test": 25}, seed=s).split for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert {SPLITS[k] for k in one.unique().tolist()} == {"fit", "test"}


def test_a_trace_without_splits_is_halved_and_one_with_splits_is_left_as_it_is():
    trace = make_trace(51, seed=0)
    halved = trace.halved(seed=1)
    expected = trace.split_into({"fit": 0.5, "calibrate": 0.5}, seed=1)
    assert torch.equal(halved.split, expected.split)
    assert abs(len(halved.subset("fit")) - len(halved.subset("calibrate"))) == 1
    assert len(halved) == 51
    assert halved.halved(seed=2) is halved


def test_other_costs_are_kept_when_the_unit_changes():
    trace = tiny()
    seconds = Costs.simple("seconds", [0.1, 0.2])
    changed = trace.with_costs(seconds)
    assert changed.costs is seconds
    assert changed.other_costs == (trace.costs,)
    assert changed.with_costs(trace.costs).other_costs == (seconds,)
