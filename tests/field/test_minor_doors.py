"""Small wrong arguments: ids that wrapped or were cut, limits that are no numbers, class names."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import offramp
from offramp import Adaptive, Candidate, Cascade, record
from offramp._core.checks import (
    check_class_names,
    check_fraction,
    check_not_negative,
    check_positive_int,
    check_probability,
)
from offramp._core.errors import InputError, SplitOverlapError
from offramp._core.ids import as_ids, shown_id
from offramp._core.keys import example_keys
from offramp._core.schema import to_json
from offramp.data import arrays
from offramp.evaluation import Frontier, evaluate
from offramp.evaluation.certify import certify
from offramp.evaluation.limits import read_limits
from offramp.policy.promise import Limit
from offramp.trace import from_logits, load_trace, make_trace, save_trace

LARGE = np.array([2**63 + 5, 1], dtype=np.uint64)
ZEROS = {"a": np.zeros((2, 3)), "b": np.zeros((2, 3))}
PRICED = {"costs": {"a": 1.0, "b": 3.0}, "unit": "x"}


def trace_of(**more):
    return from_logits(ZEROS, [0, 1], **PRICED, **more)


def model():
    cascade = Cascade.from_models({"a": nn.Linear(4, 3)})
    return Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="a"))


DOORS = {
    "from_logits": lambda ids: trace_of(ids=ids).ids,
    "arrays": lambda ids: arrays(np.zeros((2, 3)), [0, 1], ids=ids).ids,
    "record": lambda ids: recorded(ids).ids,
    "Adaptive": lambda ids: bare(Adaptive.forward)(model(), torch.zeros(2, 4), ids=ids),
    "stream": lambda ids: list(model().stream([torch.zeros(2, 4)], [ids])),
    "example_keys": example_keys,
}
BAD_IDS = {
    "beyond int64": (LARGE, r"ids must be at most \d+ \(int64\), got 9223372036854775813"),
    "floats": (np.array([0.5, 1.7]), "ids must be integers or text, got an array of float64"),
    "floats in a tensor": (torch.tensor([0.5, 1.7]), "ids must be integers or text"),
    "whole floats": (np.array([0.0, 1.0]), "ids must be integers or text"),
    "truth values": (np.array([True, False]), "ids must be integers or text"),
    "nothing among them": (np.array([None, "b"], dtype=object), "such as None"),
    "too long": ([2**70, 1], "ids must be integers of 64 bits or text"),
}


def bare(function):
    """Without the type checker of the tests, as it is for users."""
    return inspect.unwrap(function)


def recorded(ids):
    cascade = Cascade.from_models({"a": nn.Linear(4, 3)})
    return record(cascade, [(torch.zeros(2, 4), [0, 1], ids)], progress=False)


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("door", DOORS)
def test_ids_that_would_wrap_or_be_cut_are_refused_everywhere(door, bad):
    ids, message = BAD_IDS[bad]
    with pytest.raises(InputError, match=message):
        DOORS[door](ids)


@pytest.mark.parametrize("door", ["from_logits", "arrays", "record"])
def test_ids_of_other_types_are_kept(door):
    kept = {"uint64": np.array([7, 1], dtype=np.uint64), "int8": np.array([7, 1], dtype=np.int8)}
    for ids in kept.values():
        found = DOORS[door](ids)
        assert (found.dtype, found.tolist()) == (np.dtype(np.int64), [7, 1])
    assert DOORS[door](["u", "v"]).tolist() == ["u", "v"]
    objects = np.array(["u", "longer"], dtype=object)
    assert DOORS[door](objects).tolist() == ["u", "longer"]
    paths = np.array([Path("a/b.png"), Path("c.png")], dtype=object)
    assert DOORS[door](paths).tolist() == [str(path) for path in paths]


@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=4))
def test_a_whole_number_stays_itself_or_is_refused(values):
    try:
        found = as_ids(values).tolist()
    except InputError:
        assert max(values) >= 2**63
        return
    assert found == values or [int(v) for v in found] == values


def test_ids_in_messages_are_plain():
    assert shown_id(np.str_("cat/1.png")) == "'cat/1.png'"
    assert shown_id(torch.tensor(7)) == shown_id(np.int64(7)) == shown_id(7) == "7"
    with pytest.raises(InputError, match=r"ids must be unique, got 'u' 2 times"):
        trace_of(ids=["u", "u"])
    with pytest.raises(InputError, match=r"ids must be unique, got 'u' 2 times"):
        arrays(np.zeros((2, 3)), [0, 1], ids=["u", "u"])
    with pytest.raises(InputError, match=r"ids must be unique, got 'u' 2 times"):
        recorded(["u", "u"])
    with pytest.raises(SplitOverlapError, match=r"e\.g\. 'u'\. Splits"):
        trace_of(ids=["u", "v"]).require_disjoint(trace_of(ids=["u", "w"]))
    cascade = Cascade.from_models({"a": nn.Linear(4, 3)})
    with pytest.raises(InputError, match=r"got 3 for example 'v'"):
        record(cascade, [(torch.zeros(2, 4), [0, 3], ["u", "v"])], progress=False)


@pytest.fixture(scope="module")
def frontier():
    trace = make_trace(200, stages=2, seed=0).split_into({"fit": 0.5, "calibrate": 0.5}, seed=0)
    return offramp.fit(trace, "random", progress=False)


NO_NUMBERS = [None, "1%", "0.01", True, [0.1, 0.2], b"0.1", {}]


@pytest.mark.parametrize("wrong", NO_NUMBERS)
def test_limits_that_are_no_numbers_are_named(frontier, wrong):
    for message, call in (
        ("max_drop", lambda: bare(Frontier.cheapest)(frontier, max_drop=wrong)),
        (
            "margin",
            lambda: bare(Frontier.cheapest)(frontier, max_drop=0.1, margin=wrong, delta=None),
        ),
        ("max_cost", lambda: bare(Frontier.best)(frontier, max_cost=wrong)),
        (
            "the limit of 'cost'",
            lambda: bare(Limit.__init__)(of(Limit), risk="cost", at_most=wrong),
        ),
        ("delta", lambda: bare(certify)([], None, None, {"cost": 0.5}, delta=wrong)),
        ("x", lambda: check_probability("x", wrong)),
        ("x", lambda: check_fraction("x", wrong)),
        ("x", lambda: check_not_negative("x", wrong)),
        ("x", lambda: check_positive_int("x", wrong)),
    ):
        with pytest.raises(InputError, match=rf"{message} must be a"):
            call()


def of(kind):
    return object.__new__(kind)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -0.1, 2.0])
def test_limits_outside_their_domain_are_named(frontier, wrong):
    with pytest.raises(InputError, match=r"max_drop must be in \[0, 1\)"):
        frontier.cheapest(max_drop=wrong, delta=None)
    with pytest.raises(InputError, match=r"must be in \(0, 1\)"):
        frontier.cheapest(max_drop=wrong, delta=0.1)
    with pytest.raises(InputError, match="delta must be in"):
        frontier.certify({"accuracy_drop": 0.1}, delta=wrong)
    if wrong != 2.0:
        with pytest.raises(InputError, match="max_cost must be"):
            frontier.best(max_cost=wrong)


def test_numbers_of_numpy_are_limits():
    assert check_probability("x", np.float32(0.5)) == 0.5
    assert check_probability("x", torch.tensor(0.5)) == 0.5
    assert to_json(Limit(risk="cost", at_most=np.float64(0.5)))["at_most"] == 0.5


def test_other_arguments_of_evaluation_are_named(frontier):
    with pytest.raises(
        InputError, match=r"limits must be a mapping from risks to limits, got 0\.1"
    ):
        bare(read_limits)(0.1)
    trace = make_trace(50, stages=2, seed=0)
    with pytest.raises(InputError, match="top must be an integer of at least 1, got 0"):
        offramp.fit(trace, "random", top=0, progress=False)
    with pytest.raises(InputError, match="bootstrap must be an integer of at least 1, got -1"):
        evaluate(trace, frontier.singles[0].candidate, bootstrap=-1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "dog"], "class_names must have 3 entries, got 2"),
        (["cat"] * 4, "class_names must have 3 entries, got 4"),
        ([0, 1, 2], "class_names must be text, got 0; take str of each"),
        ("cat", "class_names must be a list of names, got the text 'cat'"),
    ],
)
def test_class_names_of_the_wrong_number_or_type_are_named(names, message):
    with pytest.raises(InputError, match=message):
        check_class_names(names, 3)


def test_class_names_of_numpy_become_text_and_can_be_stored(tmp_path):
    trace = trace_of(class_names=np.array(["p", "q", "r"]))
    save_trace(trace, tmp_path / "t.trace")
    assert load_trace(tmp_path / "t.trace").class_names == ("p", "q", "r")
    assert {type(name) for name in trace.class_names} == {str}


def test_a_cascade_with_too_few_names_says_so_at_its_first_answer():
    cascade = Cascade.from_models({"a": nn.Linear(4, 3)}, class_names=["p", "q"])
    candidate = Candidate.single(cascade.topology, "a", reference="a")
    with pytest.raises(InputError, match=r"class_names must have 3 entries, .* got 2"):
        Adaptive(cascade, candidate)(torch.zeros(2, 4))
