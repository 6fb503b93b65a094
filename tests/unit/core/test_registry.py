"""A registry is a dictionary that is filled by hand, once for each name."""

from contextlib import suppress

import pytest

from offramp._core.errors import InputError, UnknownNameError
from offramp._core.registry import Registry, number_of_additions


def colors():
    return Registry("color", {"red": 1, "blue": 2})


def test_members_are_found_by_name_and_in_order():
    found = colors()
    assert (list(found), found["blue"], len(found), "red" in found) == (["red", "blue"], 2, 2, True)
    assert dict(found.items()) == {"red": 1, "blue": 2}


def test_a_name_that_is_not_there_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"no color 'read'\. Did you mean 'red'"):
        colors()["read"]
    assert colors().get("read") is None


def test_a_name_that_is_taken_is_refused():
    found = colors()
    with pytest.raises(InputError, match="The color 'red' is registered already"):
        found.add("red", 3)
    assert found["red"] == 1


def test_what_is_lent_is_given_back_and_counted_whatever_happens():
    found, before = colors(), number_of_additions()
    with suppress(RuntimeError), found.lent("green", 3):
        assert found["green"] == 3
        raise RuntimeError("as it happens")
    assert "green" not in found
    assert number_of_additions() == before + 2
