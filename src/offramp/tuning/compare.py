"""An adaptive classifier and a static network, timed side by side on the same inputs.

Layer: tuning.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from offramp._core.batch import batch_size, take_rows
from offramp._core.errors import InputError
from offramp._core.progress import progress_bar
from offramp._core.types import Raw
from offramp.backends import Compiled
from offramp.stages import time_side_by_side

if TYPE_CHECKING:
    from offramp.runtime import Adaptive

MOST_CALLS = 64  # of one model in one round


def compare(
    adaptive: "Adaptive",
    static: "Adaptive",
    inputs: Raw,
    *,
    batch_sizes: Sequence[int],
    rounds: int,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Time both models in interleaved rounds, for each batch size.

    In each round each model answers the same batches: as many as the inputs fill, at most 64, so
    that at batch size 1 easy and hard examples count as often as they occur.

    Args:
        adaptive: The cascade.
        static: The network to compare with.
        inputs: Real inputs, on the models' device; repeated to fill a batch.
        batch_sizes: Examples per call.
        rounds: Rounds that are timed.
        progress: Show a bar.

    Returns:
        For each batch size what `offramp.report.TimingRow` takes: "batch_size", seconds per
        example "static_s" and "adaptive_s", "speedup" (static over adaptive), "rounds", "backend".

    Raises:
        InputError: If there are no inputs.
    """
    if batch_size(inputs) == 0:
        raise InputError("inputs must hold at least one example, got none.")
    rows = []
    with progress_bar("Timing", len(batch_sizes), enabled=progress) as step:
        for size in batch_sizes:
            batches = _batches(inputs, size)
            found = time_side_by_side(
                {"adaptive": _run(adaptive, batches), "static": _run(static, batches)},
                rounds=rounds,
            )
            examples = size * len(batches)
            rows.append(
                {
                    "batch_size": size,
                    "static_s": found["static"] / examples,
                    "adaptive_s": found["adaptive"] / examples,
                    "speedup": found["ratio"],
                    "rounds": rounds,
                    "backend": _backend(adaptive),
                }
            )
            step(1)
    return rows


def _batches(inputs: Raw, size: int) -> list[Raw]:
    n = batch_size(inputs)
    count = min(max(n // size, 1), MOST_CALLS)
    rows = torch.arange(count * size) % n
    return [take_rows(inputs, part) for part in rows.reshape(count, size)]


def _run(model: Callable[[Raw], object], batches: Sequence[Raw]) -> Callable[[], None]:
    def run() -> None:
        for batch in batches:
            model(batch)

    return run


def _backend(model: object) -> str:
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    weights = (weight for part in parts for weight in part.parameters(recurse=False))
    device = next((weight.device for weight in weights), torch.device("cpu"))
    if device.type == "cuda":
        return f"PyTorch {torch.__version__}, {torch.cuda.get_device_name(device)}"
    others = sorted({part.backend for part in parts if isinstance(part, Compiled)})
    threads = torch.get_num_threads()
    names = ", ".join(others) or f"PyTorch {torch.__version__}"
    return f"{names}, {threads} CPU thread{'s' if threads > 1 else ''}"
