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
from offramp.runtime.times import FULL
from offramp.serve.inputs import Inputs, held_by
from offramp.stages.segments import run_segments

_ROUNDS = 5  # of which the fastest counts: whatever disturbs a measurement makes it longer
_ENOUGH = 1.0  # seconds of rounds, after which no other begins
_HARDLY = 1.1  # times what an example costs in the best batch: less is not worth twice the wait
_LEAST = 16  # examples, up to which batches are tried in any case
_BESIDE = 0.001  # seconds that a batch takes beside its stage: to be joined, decided, handed out


def measured_sizes(
    model: Adaptive, inputs: Inputs, clock: Callable[[], float] | None = None
) -> dict[str, int]:
    """A full batch of each stage, by its name; none where nothing can be made up to measure with.

    None either where times were measured before, or a stage waits for somebody: what it is asked
    might have to be paid.

    Args:
        model: What is served.
        inputs: What it reads.
        clock: Gives seconds; for tests.
    """
    clock = clock or _clock_of(model)
    stages = list(held_by(model))
    if model.program.times is not None or any(stage.waits for stage in stages):
        return {}
    each: dict[str, dict[int, float]] = {stage.name: {} for stage in stages}
    sizes = [1 << k for k in range(_LEAST.bit_length())]
    while sizes:
        given = [inputs.noise(size) for size in sizes]
        began = clock()
        for k in range(_ROUNDS):  # all sizes in each: what disturbs for a while disturbs them all
            if k and clock() - began > _ENOUGH:
                break
            for size, noise in zip(sizes, given, strict=True):
                if noise is None:
                    return {}
                with torch.inference_mode():
                    before = clock()
                    for stage, result in run_segments(stages, noise, model.cascade.topology):
                        stage.answer(result)
                        now = clock()
                        known, taken = each[stage.name], (now - before + _BESIDE) / size
                        known[size], before = min(taken, known.get(size, math.inf)), now
        larger = 2 * sizes[-1]
        sizes = [sizes[-1], larger] if larger <= FULL and _improves(each) else []
    return {
        name: min(size for size, taken in known.items() if taken <= _HARDLY * min(known.values()))
        for name, known in each.items()
    }


def _clock_of(model: Adaptive) -> Callable[[], float]:
    """Seconds of this thread where it computes alone; else those that pass.

    On a machine that others use as well, a large batch is interrupted and a small one is not.
    """
    alone = model.policy.temperatures.device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def _improves(each: dict[str, dict[int, float]]) -> bool:
    """Whether some stage may be faster still in a larger batch: the last step was worth it."""
    return any(last * _HARDLY < min(before) for *before, last in map(dict.values, each.values()))
