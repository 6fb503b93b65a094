"""How long parts of a network take: medians of rounds in which the parts take turns.

Layer: stages.  Source: style.md 3, habit 20: a speed claim is a ratio taken in one run.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from offramp._core.batch import batch_size, take_rows
from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError
from offramp._core.types import Raw

_WARM_UP = 2
RATIO = "ratio"

Run = Callable[[], Any]


def median_seconds(parts: Sequence[Run], rounds: int, device: torch.device) -> list[float]:
    """Seconds of each part, the median of the rounds after two of warm-up.

    The parts take turns within each round, so that a disturbance of the machine hits all of them.
    """
    found: list[list[float]] = [[] for _ in parts]
    for _ in range(_WARM_UP + rounds):
        for seconds, part in zip(found, parts, strict=True):
            seconds.append(_seconds(part, lambda: synchronize(device)))
    return [median(seconds[_WARM_UP:]) for seconds in found]


def filled(batch: Raw, size: int) -> Raw:
    """So many examples, those of the batch over and over."""
    return take_rows(batch, torch.arange(size) % batch_size(batch))


def described(device: torch.device | str) -> str:
    """Where something was measured, for people."""
    where = torch.device(device)
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{where.type}, {torch.get_num_threads()} threads"


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
            _seconds(function, synchronize)
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            taken[name].append(_seconds(function, synchronize))
    first, last = taken[next(iter(taken))], taken[next(reversed(taken))]
    ratios = [slow / max(fast, 1e-12) for fast, slow in zip(first, last, strict=True)]
    return {**{name: median(times) for name, times in taken.items()}, RATIO: median(ratios)}


def synchronize(device: torch.device | None = None) -> None:
    """Wait until a device has done everything; by default the present one, if it is in use."""
    if device is not None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    # Not merely available: asking a device that nobody uses would start it.
    elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def _seconds(run: Run, wait: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start
