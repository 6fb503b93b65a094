"""How long parts of a network take: medians of rounds in which the parts take turns.

Layer: stages.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from offramp._core.batch import batch_size, take_rows
from offramp._core.types import Batch

_WARM_UP = 2

Run = Callable[[], Any]


def median_seconds(parts: Sequence[Run], rounds: int, device: torch.device) -> list[float]:
    """Seconds of each part, the median of the rounds after two of warm-up.

    The parts take turns within each round, so that a disturbance of the machine hits all of them.
    """
    found: list[list[float]] = [[] for _ in parts]
    for _ in range(_WARM_UP + rounds):
        for seconds, part in zip(found, parts, strict=True):
            seconds.append(_seconds(part, device))
    return [median(seconds[_WARM_UP:]) for seconds in found]


def filled(batch: Batch, size: int) -> Batch:
    """So many examples, those of the batch over and over."""
    return take_rows(batch, torch.arange(size) % batch_size(batch))


def described(device: torch.device | str) -> str:
    """Where something was measured, for people."""
    where = torch.device(device)
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{where.type}, {torch.get_num_threads()} threads"


def _seconds(run: Run, device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
