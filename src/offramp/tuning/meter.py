"""Measuring how long each stage takes at each batch size.

Layer: tuning.  Source: methods.md 6; style.md 3, habit 20 (rounds that take turns).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, final

import torch

from offramp._core.batch import batch_size
from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError
from offramp._core.progress import progress_bar
from offramp._core.topology import RAW_INPUT, Topology
from offramp._core.types import Batch
from offramp.runtime.inflight import gather
from offramp.runtime.source import folded
from offramp.runtime.times import StageTimes
from offramp.stages import Cascade, HeldStages, Stage, take_rows, to_device
from offramp.stages.segments import run_segments
from offramp.stages.timing import described, synchronize

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_RAW = -1
_NOBODY = 1.0  # seconds of a stage that is not held: a table has a row for each


def measure_times(
    cascade: Cascade | HeldStages,
    example: Batch,
    *,
    batch_sizes: Sequence[int] = SIZES,
    rounds: int = 5,
    fold: bool = False,
    progress: bool = True,
) -> StageTimes:
    """Time every stage at every batch size, on this machine, as the cascade runs.

    Args:
        cascade: All stages, on the backend that is to be used; or the part of them that somebody
            holds: the others have times that nobody asks for.
        example: Raw input, one example or more; they are repeated to fill a batch.
        batch_sizes: What to measure; 1 is measured anyway.
        rounds: How often; each round measures every size once, and medians are kept.
        fold: Time prepared copies of the stages, as `Adaptive(..., fold=True)` runs them.
        progress: Show a bar on a terminal.

    Raises:
        InputError: If there is no example, or a size or `rounds` is no integer of at least 1.

    >>> from torch import nn
    >>> from offramp.stages import Cascade
    >>> cascade = Cascade.from_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    >>> times = measure_times(cascade, torch.zeros(1, 4), batch_sizes=[1, 8], rounds=1)
    >>> times.sizes, times.seconds(0, 8) > 0
    ((1, 8), True)
    """
    check_positive_int("rounds", rounds)
    stages = {cascade.topology.index(stage.name): stage for stage in cascade}
    stages = folded(stages) if fold else stages
    meter = Meter(cascade.topology, stages, example, batch_sizes)
    meter.round()
    meter.forget()
    with progress_bar("Measuring batch sizes", rounds, enabled=progress) as step:
        for _ in range(rounds):
            meter.round()
            step(1)
    return meter.times()


@final
class Meter:
    """Times stages, round by round.

    Args:
        topology: Whose stages they are.
        stages: By index; with each those that it builds upon.
        example: Raw input.
        sizes: Batch sizes to measure.

    Raises:
        InputError: If there is no example, or a size is no integer of at least 1.
    """

    def __init__(
        self,
        topology: Topology,
        stages: Mapping[int, Stage],
        example: Batch,
        sizes: Sequence[int],
    ) -> None:
        if batch_size(example) == 0:
            raise InputError("example must hold at least one example to repeat, got none.")
        self._topology, self._stages = topology, stages
        self._sizes = sorted({1, *(check_positive_int("batch_sizes", size) for size in sizes)})
        parameters = (p for stage in stages.values() for p in stage.parameters())
        self._device = next((p.device for p in parameters), torch.device("cpu"))
        n = batch_size(example)
        self._raw = {
            size: to_device(take_rows(example, torch.arange(size) % n), self._device)
            for size in self._sizes
        }
        self._taken: dict[tuple[str, int, int], list[float]] = {}

    @torch.inference_mode()
    def round(self) -> None:
        """Measure every size once."""
        for size in self._sizes:
            self._run(size)

    def forget(self) -> None:
        """Measure anew: what was measured so far was warm-up."""
        self._taken.clear()

    def per_example(self, kind: str, stage: int, *, at_most: int) -> float:
        """Least seconds per example of a "segment" or a "head", by the medians.

        Args:
            kind: Which.
            stage: Index of the stage.
            at_most: The largest batch size to look at, at least 1.
        """
        sizes = [size for size in self._sizes if size <= at_most]
        return min(self._median(kind, stage, size) / size for size in sizes)

    def times(self) -> StageTimes:
        """The medians of all rounds so far, where every stage was measured."""
        stages = range(len(self._topology))

        def table(kind: str) -> tuple[tuple[float, ...], ...]:
            return tuple(tuple(self._median(kind, k, b) for b in self._sizes) for k in stages)

        return StageTimes(
            stages=self._topology.names,
            sizes=tuple(self._sizes),
            segment=table("segment"),
            head=table("head"),
            carry=table("carry"),
            raw=tuple(self._median("raw", _RAW, size) for size in self._sizes),
            where=described(self._device),
        )

    def _median(self, kind: str, stage: int, size: int) -> float:
        # Stages of one group share a segment; it was measured for the first of them.
        if kind in ("segment", "carry") and stage != _RAW:
            groups = self._topology.groups
            stage = next((k for k in self._stages if groups[k] == groups[stage]), stage)
        if kind == "segment" and stage not in self._stages:
            return _NOBODY
        return median(self._taken.get((kind, stage, size), [0.0]))

    def _run(self, size: int) -> None:
        """All stages on a batch, each right after what it reads was computed."""
        topology, raw = self._topology, self._raw[size]
        rows = torch.arange(size, device=self._device)
        self._timed("raw", _RAW, size, partial(gather, raw, rows))
        continued = {topology.groups[j] for j in topology.sources if j != RAW_INPUT}

        def run(stage: Stage, given: Any) -> Any:  # noqa: ANN401  (a batch or a carry)
            k, carries = topology.index(stage.name), stage.gives_carry or stage.group in continued
            whole = stage.segment if carries else stage.run
            result = self._timed("segment", k, size, partial(whole, given))
            if carries:
                self._timed("carry", k, size, partial(gather, result, rows))
            return result

        for stage, result in run_segments(list(self._stages.values()), raw, topology, run=run):
            if stage.gives_carry:
                k = topology.index(stage.name)
                self._timed("head", k, size, partial(stage.answer, result))

    def _timed(self, kind: str, stage: int, size: int, run: Callable[[], Any]) -> Any:  # noqa: ANN401
        synchronize(self._device)
        start = time.perf_counter()
        result = run()
        synchronize(self._device)
        self._taken.setdefault((kind, stage, size), []).append(time.perf_counter() - start)
        return result
