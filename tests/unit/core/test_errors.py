"""The error tree is what its drawing says; messages print the value that was wrong."""

import builtins
import re

import pytest

from offramp._core import checks, errors
from offramp._core.registry import Registry


def test_the_drawing_is_complete():
    named = set(re.findall(r"\b\w+Error\b", errors.__doc__))
    named -= {"ValueError", "RuntimeError", "KeyError", "ImportError", "OSError"}
    assert named == {name for name, value in vars(errors).items() if isinstance(value, type)}


def test_each_leaf_is_the_builtin_that_the_drawing_names():
    drawn = re.findall(r"(\w+Error) \((\w+)\)", errors.__doc__)
    assert len(drawn) == 10
    for name, builtin in drawn:
        assert issubclass(getattr(errors, name), getattr(builtins, builtin))


@pytest.mark.parametrize("value", [0.0, 1.0, 5, float("nan")])
def test_a_probability_outside_its_interval_is_printed(value):
    with pytest.raises(errors.InputError, match=rf"delta must be in \(0, 1\), got {value}"):
        checks.check_probability("delta", value)


@pytest.mark.parametrize("value", [0, -3, True])
def test_only_whole_numbers_from_one_are_positive_integers(value):
    with pytest.raises(errors.InputError, match=f"n must be an integer.*got {value!r}"):
        checks.check_positive_int("n", value)


def test_a_wrong_shape_prints_both_shapes():
    with pytest.raises(errors.InputError, match=r"x must have shape \(2, any\), got \(3, 1\)"):
        checks.check_shape("x", (3, 1), (2, None))
    checks.check_shape("x", (2, 9), (2, None))


def test_an_unknown_name_suggests_the_near_one_and_reads_as_a_sentence():
    registry = Registry("model", {"resnet20": dict})
    with pytest.raises(errors.UnknownNameError) as caught:
        registry.create("resnet2")
    assert str(caught.value) == (
        "There is no model 'resnet2'. Did you mean 'resnet20'? Known: resnet20."
    )


def test_a_missing_package_names_its_extra():
    error = errors.MissingExtraError("zeus", "energy")
    assert "pip install 'offramp[energy]'" in str(error)
    assert isinstance(error, ImportError)
