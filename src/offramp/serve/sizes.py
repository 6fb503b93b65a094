"""How many examples make a full batch of each stage on this machine, measured while loading.

A full batch is the smallest that costs hardly more for each example than any other. Larger ones
save nothing, and whoever waits behind them waits longer.

Layer: serve.
"""

import math
import time
from collections.abc import Callable

import torch

from offramp.runtime import Adaptive
from offramp.runtime.sizes import FULL
from offramp.serve.inputs import Inputs, held_by
from offramp.stages.segments import run_segments

_ROUNDS = 3  # of which the fastest counts: whatever disturbs a measurement makes it longer
_ENOUGH = 0.1  # seconds of rounds of one size, after which no other begins
_HARDLY = 1.05  # times what an example costs in the best batch
_LEAST = 16  # examples, up to which batches are tried in any case
_BESIDE = 0.001  # seconds that a batch takes beside its stage: to be joined, decided, handed out


def measured_sizes(
    model: Adaptive, inputs: Inputs, clock: Callable[[], float] = time.perf_counter
) -> dict[str, int]:
    """A full batch of each stage, by its name; none where nothing can be made up to measure with.

    None either where times were measured before, or a stage waits for somebody: what it is asked
    might have to be paid.

    Args:
        model: What is served.
        inputs: What it reads.
        clock: Gives seconds; for tests.
    """
    stages = list(held_by(model))
    if model.program.times is not None or any(stage.waits for stage in stages):
        return {}
    each: dict[str, dict[int, float]] = {stage.name: {} for stage in stages}
    size = 1
    while size <= FULL and _improves(each, size):
        noise = inputs.noise(size)
        if noise is None:
            return {}
        began = clock()
        for k in range(_ROUNDS):
            if k and clock() - began > _ENOUGH:
                break
            with torch.inference_mode():
                before = clock()
                for stage, result in run_segments(stages, noise, model.cascade.topology):
                    stage.answer(result)
                    now = clock()
                    taken = (now - before + _BESIDE) / size
                    sizes = each[stage.name]
                    sizes[size] = min(taken, sizes.get(size, math.inf))
                    before = now
        size *= 2
    return {
        name: min(size for size, taken in sizes.items() if taken <= _HARDLY * min(sizes.values()))
        for name, sizes in each.items()
    }


def _improves(each: dict[str, dict[int, float]], size: int) -> bool:
    """Whether some stage may be faster still in batches of a size: the last step was worth it."""
    return size <= _LEAST or any(
        last * _HARDLY < min(before) for *before, last in map(dict.values, each.values())
    )
