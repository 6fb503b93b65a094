"""Where the time of a batch goes, against what the work that cannot be avoided would take.

The ideal: for every stage the examples that reach it, times its time per example at its best
batch size not larger than the batches given; heads included where somebody may leave.

Layer: tuning.  Source: methods.md 6.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import final

import torch

from offramp._core.batch import split_rows
from offramp._core.checks import check_kind, check_positive_int
from offramp._core.errors import InputError
from offramp._core.types import Batch
from offramp.runtime.adaptive import Adaptive
from offramp.runtime.events import KINDS, NO_STAGE, Kind
from offramp.stages import batch_size as dataset_of
from offramp.stages.timing import described, synchronize
from offramp.tuning.meter import Meter

_WARM_UP = 1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A section of one batch's time.

    Args:
        kind: What the time went into, one of `offramp.runtime.events.KINDS`.
        stage: Name of the stage, or "" where it is the whole batch's.
        start_s: Seconds from the start of the batch.
        end_s: The same, later.
        examples: Examples that took part; for "wait" the number of waits.
    """

    kind: Kind
    stage: str
    start_s: float
    end_s: float
    examples: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StageProfile:
    """One stage's part of a profile, per pass over all examples.

    Args:
        name: Of the stage.
        visits: Examples that visited it.
        seconds: For each kind of section the time it took.
        ideal_s: What its examples would take at its best batch size.
    """

    name: str
    visits: int
    seconds: dict[Kind, float]
    ideal_s: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Where the time went, medians over rounds.

    Args:
        examples: In one pass.
        batch_size: Examples per batch.
        rounds: Passes that were timed.
        total_s: Seconds of a pass, measured without looking inside.
        ideal_s: Seconds that the stages would take at their best batch sizes.
        over_ideal: Ratio of the two.
        waits: Times that the host waited for the device, per batch.
        stages: In the order of the cascade; those that the policy uses.
        other_s: For each kind of section what belongs to no stage.
        spans: Sections of one batch, the one that took the median time.
        where: The machine.
    """

    examples: int
    batch_size: int
    rounds: int
    total_s: float
    ideal_s: float
    over_ideal: float
    waits: float
    stages: tuple[StageProfile, ...]
    other_s: dict[Kind, float]
    spans: tuple[Span, ...]
    where: str

    def seconds(self, kind: Kind) -> float:
        """Seconds of a pass that went into one kind of section."""
        return sum(stage.seconds[kind] for stage in self.stages) + self.other_s[kind]


def profile(
    model: Adaptive,
    batch: Batch,
    *,
    batch_size: int | None = None,
    rounds: int = 15,
) -> Profile:
    """Say where a model's time goes on some examples.

    Each round times a pass over the examples as it is, a pass that is looked into, and every stage
    by itself at every batch size, so that all meet the same machine.

    Args:
        model: An adaptive model; on the backend that it runs on.
        batch: Real inputs, one or more examples: others leave at other stages.
        batch_size: How many are given at a time; by default all of them.
        rounds: Rounds that are timed, at least 1.

    Raises:
        InputError: If there is no example, or a number is no integer of at least 1.

    >>> from torch import nn
    >>> from offramp.policy import Candidate
    >>> from offramp.stages import Cascade
    >>> cascade = Cascade.from_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    >>> model = Adaptive(cascade, Candidate.single(cascade.topology, "b", reference="b"))
    >>> found = profile(model, torch.zeros(6, 4), batch_size=2, rounds=1)
    >>> [(stage.name, stage.visits) for stage in found.stages], found.waits
    ([('b', 6)], 0.0)
    """
    check_kind("model", model, Adaptive, read="offramp.load(path)")
    check_positive_int("rounds", rounds)
    n = dataset_of(batch)
    if n == 0:
        raise InputError("batch must hold at least one example, got none.")
    size = min(n, n if batch_size is None else check_positive_int("batch_size", batch_size))
    parts = split_rows(batch, [min(size, n - start) for start in range(0, n, size)])
    meter = Meter(model.policy.topology, model.program.stages, batch, _sizes_up_to(size))
    totals, passes = list[float](), list[list[list[Span]]]()
    for number in range(_WARM_UP + rounds):
        if number == _WARM_UP:
            meter.forget()
            totals, passes = [], []
        totals.append(_seconds(model, parts))
        passes.append([_look_into(model, part) for part in parts])
        meter.round()
    return _profile(model, passes, totals, meter, parts, size)


class _Watch:
    """Notes what each section of a batch took; a `Mark`."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names, self._device = names, device
        self.spans: list[Span] = []
        synchronize(device)
        self._start = self._last = time.perf_counter()

    def __call__(self, kind: Kind, stage: int, examples: int) -> None:
        synchronize(self._device)  # else a device would work on when the next section has begun
        now = time.perf_counter()
        name = "" if stage == NO_STAGE else self._names[stage]
        span = Span(
            kind=kind,
            stage=name,
            start_s=self._last - self._start,
            end_s=now - self._start,
            examples=examples,
        )
        self.spans.append(span)
        self._last = time.perf_counter()  # what noting takes belongs to nobody


def _look_into(model: Adaptive, batch: Batch) -> list[Span]:
    watch = _Watch(model.stage_names, _device_of(model))
    model.watched(batch, mark=watch)
    return watch.spans


def _seconds(model: Adaptive, parts: Sequence[Batch]) -> float:
    synchronize(_device_of(model))
    start = time.perf_counter()
    for part in parts:
        model(part)
    synchronize(_device_of(model))
    return time.perf_counter() - start


def _device_of(model: Adaptive) -> torch.device:
    return model.policy.temperatures.device


def _profile(
    model: Adaptive,
    passes: Sequence[Sequence[Sequence[Span]]],
    totals: Sequence[float],
    meter: Meter,
    parts: Sequence[Batch],
    size: int,
) -> Profile:
    taken = _medians(passes)
    ideals, visits = ideal(model, parts, meter, at_most=size)
    stages = tuple(
        StageProfile(
            name=name,
            visits=visits.get(k, 0),
            seconds={kind: taken.get((kind, name), 0.0) for kind in KINDS},
            ideal_s=ideals[k],
        )
        for k, name in enumerate(model.stage_names)
        if k in ideals
    )
    batches = [spans for one in passes for spans in one]
    waits = sum(span.kind == "wait" for spans in passes[0] for span in spans)
    ideal_s = sum(ideals.values())
    return Profile(
        examples=sum(map(dataset_of, parts)),
        batch_size=size,
        rounds=len(passes),
        total_s=median(totals),
        ideal_s=ideal_s,
        over_ideal=median(totals) / ideal_s,
        waits=waits / len(parts),
        stages=stages,
        other_s={kind: taken.get((kind, ""), 0.0) for kind in KINDS},
        spans=tuple(sorted(batches, key=lambda spans: spans[-1].end_s)[len(batches) // 2]),
        where=described(model.policy.temperatures.device),
    )


def _medians(passes: Sequence[Sequence[Sequence[Span]]]) -> dict[tuple[Kind, str], float]:
    """Seconds of a pass by kind and stage, the median over the passes."""
    each: list[dict[tuple[Kind, str], float]] = []
    for batches in passes:
        sums: dict[tuple[Kind, str], float] = {}
        for spans in batches:
            for span in spans:
                key = (span.kind, span.stage)
                sums[key] = sums.get(key, 0.0) + span.end_s - span.start_s
        each.append(sums)
    keys = {key for sums in each for key in sums}
    return {key: median(sums.get(key, 0.0) for sums in each) for key in keys}


@torch.inference_mode()
def ideal(
    model: Adaptive, parts: Sequence[Batch], meter: Meter, *, at_most: int
) -> tuple[dict[int, float], dict[int, int]]:
    """What the stages would take at their best batch sizes, and nothing else.

    Args:
        model: Its answers say who visits what.
        parts: Batches of raw inputs.
        meter: Has timed the stages.
        at_most: The largest batch size that may be the best.

    Returns:
        For each stage the seconds of the ideal; and how many examples visit it.

    Source: methods.md 6.
    """
    topology = model.policy.topology
    seconds = dict.fromkeys(model.program.stages, 0.0)
    visits: Counter[int] = Counter()
    for part in parts:
        answer = model(part)
        for path in (answer.paths[way] for way in answer.path.tolist()):
            visits.update(path)
            for k, stage in enumerate(path):
                seconds[stage] += meter.per_example("head", stage, at_most=at_most)
                for j in topology.new_segments(path[:k], stage):
                    seconds[j] += meter.per_example("segment", j, at_most=at_most)
    return seconds, dict(visits)


def _sizes_up_to(size: int) -> list[int]:
    return [*(2**k for k in range(size.bit_length()) if 2**k < size), size]
