"""Timing of alternatives side by side: interleaved rounds, medians, synchronised.

Layer: runtime.  Source: style.md 3, habit 20: a speed claim is a ratio taken in one run.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError

RATIO = "ratio"


def time_side_by_side(
    functions: Mapping[str, Callable[[], object]], *, rounds: int = 15, warmup: int = 2
) -> dict[str, float]:
    """Median time of each function, their calls interleaved so that all meet the same machine.

    Args:
        functions: At least two, by name; the last is what the first is compared with.
        rounds: Calls of each that are timed, at least 1.
        warmup: Calls of each before, not timed, >= 0.

    Returns:
        For each name the median in seconds; and "ratio": the median over the rounds of the last
        function's time over the first's. Above 1 the first is faster.

    Raises:
        InputError: If there are fewer than two functions, or one is named "ratio".

    >>> times = time_side_by_side({"nothing": lambda: None, "sum": lambda: sum(range(20000))})
    >>> times["ratio"] > 1
    True
    """
    check_positive_int("rounds", rounds)
    if warmup < 0:
        raise InputError(f"warmup must be an integer of at least 0, got {warmup}.")
    if len(functions) < 2 or RATIO in functions:
        raise InputError(
            f"functions must hold at least two, none of them named {RATIO!r}, "
            f"got {list(functions)}."
        )
    for _ in range(warmup):
        for function in functions.values():
            _seconds(function)
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            taken[name].append(_seconds(function))
    first, last = taken[next(iter(taken))], taken[next(reversed(taken))]
    ratios = [slow / max(fast, 1e-12) for fast, slow in zip(first, last, strict=True)]
    return {**{name: median(times) for name, times in taken.items()}, RATIO: median(ratios)}


def _seconds(function: Callable[[], object]) -> float:
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - start


def synchronise() -> None:
    """Wait until the device has done everything, if one is in use."""
    # Not merely available: asking a device that nobody uses would start it.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
