"""Functions, losses, suggestions and budgets: what is wrong is said by name, never raw."""

import numpy as np
import pytest
from torch import nn

import offramp
from offramp._core.errors import InputError, TopologyError
from offramp.adapters import from_function
from offramp.risk import conformal_limit, conformal_risk_control
from offramp.stages import Stage
from offramp.trace import from_losses, make_trace

COSTS = {"costs": {"a": 1.0, "b": 2.0}, "unit": "usd"}
ONE = {"a": [0.1], "b": [0.2]}


def function(rows):
    return [0] * len(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": {"a": [], "b": []}, "confidences": {"a": [], "b": []}}, "at least one example"),
        ({"losses": [[0.0, 1.0]], "confidences": [[0.1, 0.2]], "names": 5}, "names must be a list"),
        ({"losses": [[0.0, 1.0]], "confidences": [[0.1, 0.2]], "names": "ab"}, "names must be a"),
    ],
)
def test_losses(arguments, message):
    with pytest.raises(InputError, match=message):
        from_losses(**arguments, **COSTS)
    with pytest.raises(TopologyError, match="edges must be 'full', 'chain' or pairs of names"):
        from_losses(ONE, confidences=ONE, edges=5, **COSTS)


@pytest.mark.parametrize("wrong", [5, None, "answers.trace"])
def test_what_is_no_trace(wrong):
    for door in (offramp.suggest, offramp.fit):
        with pytest.raises(InputError, match="trace must be a Trace, got"):
            door(wrong)
    with pytest.raises(InputError, match="top must be an integer of at least 1"):
        offramp.suggest(make_trace(60), top=0)


def test_conformal_limits_take_any_numbers():
    assert conformal_limit([1, 2.0, 3], delta=0.5) == 2.0
    assert conformal_risk_control([[0.0, 1.0]] * 4, max_risk=0.5).index == 0
    for wrong in ([], [[1.0]], [np.nan]):
        with pytest.raises(InputError, match=r"values must be \(n,\) finite numbers"):
            conformal_limit(wrong, delta=0.5)
    for wrong in (None, "abc", ["a"], [1, None]):
        with pytest.raises(InputError, match="values must be"):
            conformal_limit(wrong, delta=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": 5}, "class_names must be a list of names, got 5"),
        ({"class_names": "ab"}, "class_names must be a list of names, got the text 'ab'"),
        ({"class_names": [1, 2]}, "class_names must be text"),
        ({"class_names": ["a"]}, "The number of classes must be an integer of at least 2, got 1"),
        ({"class_names": ["a", "a"], "outputs": "labels"}, "got 'a' several times"),
        ({"name": 5}, "name must be a text that is not empty, got 5"),
        ({"name": ""}, "name must be a text that is not empty, got ''"),
        ({"classes": 1}, "classes must be an integer of at least 2, got 1"),
        ({"classes": 0}, "classes must be an integer of at least 2, got 0"),
        ({"classes": 2.5}, "classes must be an integer of at least 2, got 2.5"),
    ],
)
def test_functions(options, message):
    with pytest.raises(InputError, match=message):
        from_function(function, **options)
    names = from_function(function, class_names=["crane", "crane"])  # scores need no names
    assert names.class_names == ("crane", "crane")


@pytest.mark.parametrize("options", [{"name": 5}, {"classes": 1}, {"class_names": 5}])
def test_stages(options):
    with pytest.raises(InputError):
        Stage(**{"name": "a", "module": nn.Linear(2, 2)} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"over_budget": 0.1}, "over_budget=0.1 is the share of the examples"),
        ({"over_budget": 0.1, "delta": None}, "over_budget=0.1 is the share of the examples"),
        ({"risk": "over_budget"}, "risk='over_budget' takes a budget and a share"),
        ({"risk": "over_budget", "max_request_cost": 1.5}, "risk='over_budget' takes a budget"),
    ],
)
def test_budgets_are_never_ignored(options, message):
    frontier = offramp.fit(make_trace(300, seed=0), "threshold", progress=False)
    with pytest.raises(InputError, match=message):
        frontier.cheapest(max_drop=0.1, **options)
