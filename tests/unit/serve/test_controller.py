import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp._core.errors import InputError, UnknownNameError
from offramp.serve.gears import Controller

NAMES = ("reference", "drop-1", "drop-2", "drop-5")
DELAYS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.024, 0.025, 0.05, 0.051, 9.0]))


@settings(deadline=None)
@given(
    events=st.lists(st.tuples(DELAYS, st.floats(0, 3)), max_size=80),
    names=st.integers(1, 4).map(lambda k: NAMES[:k]),
    data=st.data(),
)
def test_it_stays_among_its_gears_and_moves_one_at_a_time_and_not_too_soon(events, names, data):
    start = data.draw(st.sampled_from([None, *names]))
    controller = Controller(names, start=start, target=0.05, down_after=0.5, up_after=4)
    now, moved, before = 0.0, None, controller.gear
    for delay, step in events:
        now += step
        after = controller.observe(delay, now)
        assert after in names
        assert after == controller.gear
        way = names.index(after) - names.index(before)
        assert abs(way) <= 1
        assert way <= 0 or delay > 0.05
        assert way >= 0 or delay < 0.025
        if way and moved is not None:
            assert now - moved >= (0.5 if way > 0 else 4)
        moved, before = (now, after) if way else (moved, after)


def test_under_load_it_goes_down_and_comes_back_when_it_is_calm():
    controller = Controller(NAMES, start="drop-1", target=0.05, down_after=0.2, up_after=2)
    seen = [controller.observe(0.3, k / 10) for k in range(10)]
    assert list(dict.fromkeys(seen)) == ["drop-1", "drop-2", "drop-5"]
    assert controller.observe(0.04, 1.5) == "drop-5", "between calm and too long it stays"
    seen = [controller.observe(0.0, 2 + k / 10) for k in range(70)]
    assert list(dict.fromkeys(seen)) == ["drop-5", "drop-2", "drop-1", "reference"]


def moves_up(load, seconds):
    """How often it moves up where gear 1 keeps up with the load and gear 0 does not."""
    controller = Controller(NAMES[:2], target=0.05, down_after=0.2, up_after=2)
    before, count = controller.gear, 0
    for k in range(10 * seconds):
        after = controller.observe(load[controller.gear], k / 10)
        count += after == "reference" != before
        before = after
    return count


def test_where_moving_up_goes_wrong_it_is_tried_less_and_less_often():
    often = moves_up({"reference": 0.2, "drop-1": 0.0}, 200)
    assert 10 < often < 30  # without waiting longer it would be 80


def test_a_person_holds_a_gear():
    controller = Controller(NAMES, down_after=0.1, up_after=1)
    controller.pin("drop-2")
    assert controller.pinned
    assert {controller.observe(9.0, float(k)) for k in range(9)} == {"drop-2"}
    controller.pin(None)
    assert controller.gear == "drop-2"
    assert controller.observe(9.0, 20.0) == "drop-2"
    assert controller.observe(9.0, 20.2) == "drop-5"
    with pytest.raises(UnknownNameError, match="no gear"):
        controller.pin("drop-9")


def test_bad_numbers_are_refused():
    with pytest.raises(InputError, match="different gears"):
        Controller([])
    with pytest.raises(InputError, match="different gears"):
        Controller(["a", "a"])
    with pytest.raises(UnknownNameError, match="no gear 'c'"):
        Controller(["a"], start="c")
    for name in ("target", "down_after", "up_after"):
        with pytest.raises(InputError, match=name):
            Controller(["a"], **{name: 0})
    with pytest.raises(InputError, match="delay"):
        Controller(["a"]).observe(float("nan"), 0.0)
