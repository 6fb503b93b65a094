"""What a call takes beside its link and its stages: measured by a clock that is known."""

import itertools

import pytest

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.link import Link
from offramp.serve.handling import measure_handling
from support.served import cascade_of, inputs_of


def test_what_a_call_takes_less_its_stages():
    ticks = itertools.count()  # each look at the clock is 10 ms after the one before
    costs = Costs.simple("seconds", [0.001, 0.004])
    found = measure_handling(
        cascade_of(), "large", inputs_of(2), costs, rounds=3, clock=lambda: 0.01 * next(ticks)
    )
    assert found == pytest.approx(0.006)
    assert next(ticks) == 2 * (3 + 3)


def test_a_plan_pays_for_it_once_a_call():
    link = Link(bandwidth=1000.0, round_trip=0.05, handling=0.006)
    assert link.cost(100) == pytest.approx(0.05 + 0.1 + 0.006)
    assert "6 ms for a call" in str(link)
    with pytest.raises(InputError, match="handling"):
        Link(bandwidth=1000.0, round_trip=0.05, handling=-1.0)
