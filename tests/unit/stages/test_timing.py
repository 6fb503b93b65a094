import time

import pytest

from offramp._core.errors import InputError
from offramp.stages import time_side_by_side


def test_the_ratio_says_how_many_times_faster_the_first_is():
    times = time_side_by_side(
        {"fast": lambda: time.sleep(0.002), "slow": lambda: time.sleep(0.01)}, rounds=5
    )
    assert set(times) == {"fast", "slow", "ratio"}
    assert 0.002 <= times["fast"] < times["slow"]
    assert 2 < times["ratio"] < 6


def test_calls_are_interleaved_and_warmed_up():
    calls = []
    functions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    time_side_by_side(functions, rounds=3, warmup=1)
    assert calls == ["a", "b"] * 4


def test_a_single_disturbed_round_changes_nothing():
    delays = iter([0.0, 0.2, 0.0, 0.0, 0.0])
    times = time_side_by_side(
        {"a": lambda: time.sleep(next(delays)), "b": lambda: time.sleep(0.002)}, rounds=5, warmup=0
    )
    assert times["a"] < 0.05


@pytest.mark.parametrize(
    ("functions", "arguments", "message"),
    [
        ({"a": int}, {}, r"at least two.*got \['a'\]"),
        ({"a": int, "ratio": int}, {}, "none of them named 'ratio'"),
        ({"a": int, "b": int}, {"rounds": 0}, "rounds must be an integer of at least 1, got 0"),
        ({"a": int, "b": int}, {"warmup": -1}, "warmup must be an integer of at least 0, got -1"),
    ],
)
def test_senseless_arguments_are_refused(functions, arguments, message):
    with pytest.raises(InputError, match=message):
        time_side_by_side(functions, **arguments)
