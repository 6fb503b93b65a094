"""Which stages of a model run in one process of a cluster, which in the front, and which apart.

Layer: serve.  Source: docs/adr/0059.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from offramp._core.batch import flat
from offramp._core.errors import InputError
from offramp._core.topology import RAW_INPUT
from offramp.runtime import Adaptive
from offramp.serve.inputs import Inputs, held_by
from offramp.stages.segments import run_segments

Parts = tuple[tuple[str, ...], ...]

FRONT = "offramp"  # the deployment that takes requests
_REQUEST = 0.005  # seconds that Ray computes for a request, in proxy and front (docs/adr/0059)
_BATCH, _ROUNDS = 8, 4  # examples, and how often they are run; the fastest counts


def parts_of(
    model: Adaptive,
    inputs: Inputs,
    fuse: str | Sequence[Sequence[str]],
    apart: Collection[str] = (),
    clock: Callable[[], float] = time.process_time,
) -> tuple[tuple[str, ...], Parts]:
    """The names of the stages that run in the front, and of those that run together elsewhere.

    Stages stay together whose networks are one: with another head, or in one piece. Beyond that,
    a stage stays with the one that it continues where what is carried between the two takes more
    bytes than the raw input: it is cheaper to compute where it lies than to send it.

    In the front run those of these parts, the first of them first, that together compute less for
    an example than Ray does for a request. To send them a batch would cost more than they do, and
    the processes that all requests pass are busy before they are.

    Args:
        model: Of a bundle.
        inputs: What it reads.
        fuse: "auto" by bytes and seconds; "none" only those that must stay together; or groups of
            names that shall, those with `FRONT` in the front.
        apart: Names of stages that "auto" leaves out of the front, since they scale by themselves.
        clock: Gives seconds that this process computes, others on the machine not counted.

    Raises:
        InputError: If `fuse` is none of these, or names a stage twice or one that there is not.
    """
    topology = model.policy.topology
    names = [stage.name for stage in held_by(model) if not stage.waits]
    asked = [] if isinstance(fuse, str) else [list(group) for group in fuse]
    if isinstance(fuse, str) and fuse not in ("auto", "none"):
        raise InputError(f"fuse must be 'auto', 'none' or groups of stages, got {fuse!r}.")
    every = [name for group in asked for name in group]
    if len(set(every)) < len(every) or not set(every) <= {*names, FRONT}:
        raise InputError(
            f"fuse must hold each of {[*names, FRONT]} at most once, the last for the front, got "
            f"{asked}."
        )
    found = _measured(model, inputs, clock) if fuse == "auto" else {}
    belongs = {name: name for name in (FRONT, *names)}

    def together(one: str, other: str) -> None:
        here, there = belongs[one], belongs[other]
        for name, part in belongs.items():
            if part == there:
                belongs[name] = here

    stages = {stage.name: stage for stage in held_by(model) if stage.name in belongs}
    for name, stage in stages.items():
        k = topology.index(name)
        for j, group in enumerate(topology.groups[:k]):
            if group == topology.groups[k] and topology.names[j] in belongs:
                together(topology.names[j], name)
        source = topology.sources[k]
        if source == RAW_INPUT or topology.names[source] not in belongs:
            continue
        before = topology.names[source]
        if stage.part.ran or (found and found[before].heavy):
            together(before, name)
    for wanted in asked:
        for name in wanted[1:]:
            together(wanted[0], name)
    if found:
        left = _REQUEST
        for part in _parts(belongs):
            each = math.fsum(found[name].seconds for name in part if name != FRONT)
            if FRONT not in part and not set(apart).intersection(part) and each <= left:
                left -= each
                together(FRONT, part[0])
    front, *parts = _parts(belongs)
    return front[1:], tuple(parts)


def _parts(belongs: Mapping[str, str]) -> Parts:
    """Those that belong together, that with the front first, and its name first in it."""
    found: dict[str, list[str]] = {}
    for name, first in belongs.items():
        found.setdefault(first, []).append(name)
    return tuple(tuple(part) for part in found.values())


class _Measured(NamedTuple):
    """What is known of a stage: what an example takes, and if its carry is more than the input."""

    seconds: float
    heavy: bool


@torch.inference_mode()
def _measured(model: Adaptive, inputs: Inputs, clock: Callable[[], float]) -> dict[str, _Measured]:
    """Of each stage; where nobody can tell, all carry much and take long."""
    stages = list(held_by(model))
    noise = None if any(stage.waits for stage in stages) else inputs.noise(_BATCH)
    if noise is None:
        return {stage.name: _Measured(math.inf, True) for stage in stages}
    raw, seconds, heavy = _bytes(noise), dict[str, float](), dict[str, bool]()
    for _ in range(_ROUNDS):
        before = clock()
        for stage, result in run_segments(stages, noise, model.cascade.topology):
            stage.answer(result)
            taken = (clock() - before) / _BATCH
            seconds[stage.name] = min(taken, seconds.get(stage.name, math.inf))
            heavy[stage.name] = _bytes(result) > raw
            before = clock()
    return {name: _Measured(seconds[name], heavy[name]) for name in seconds}


def _bytes(batch: Any) -> float:  # noqa: ANN401  (raw input or a carry)
    try:
        return sum(part.numel() * part.element_size() for part in flat(batch))
    except (TypeError, ValueError):  # rows: nobody knows
        return 0.0
