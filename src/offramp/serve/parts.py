"""Which stages of a model run in one process of a cluster, and which have their own.

Layer: serve.  Source: docs/adr/0059.
"""

from collections.abc import Sequence
from typing import Any

import torch

from offramp._core.batch import flat
from offramp._core.errors import InputError
from offramp._core.topology import RAW_INPUT
from offramp.runtime import Adaptive
from offramp.serve.inputs import Inputs, held_by
from offramp.stages.segments import run_segments

Parts = tuple[tuple[str, ...], ...]


def parts_of(model: Adaptive, inputs: Inputs, fuse: str | Sequence[Sequence[str]]) -> Parts:
    """The names of the stages that run together.

    Stages stay together whose networks are one: with another head, or in one piece. Beyond that,
    a stage stays with the one that it continues where what is carried between the two takes more
    bytes than the raw input: it is cheaper to compute where it lies than to send it.

    Args:
        model: Of a bundle.
        inputs: What it reads.
        fuse: "auto" by bytes; "none" only those that must stay together; or groups of names that
            shall.

    Raises:
        InputError: If `fuse` is none of these, or names a stage twice or one that there is not.
    """
    topology = model.policy.topology
    names = [stage.name for stage in held_by(model) if not stage.waits]
    asked = [] if isinstance(fuse, str) else [list(group) for group in fuse]
    if isinstance(fuse, str) and fuse not in ("auto", "none"):
        raise InputError(f"fuse must be 'auto', 'none' or groups of stages, got {fuse!r}.")
    every = [name for group in asked for name in group]
    if len(set(every)) < len(every) or not set(every) <= set(names):
        raise InputError(f"fuse must hold each of {names} at most once, got {asked}.")
    heavy = _heavy(model, inputs) if fuse == "auto" else set()
    belongs = {name: name for name in names}

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
        if stage.part.ran or before in heavy:
            together(before, name)
    for wanted in asked:
        for name in wanted[1:]:
            together(wanted[0], name)
    found: dict[str, list[str]] = {}
    for name, first in belongs.items():
        found.setdefault(first, []).append(name)
    return tuple(tuple(part) for part in found.values())


@torch.inference_mode()
def _heavy(model: Adaptive, inputs: Inputs) -> set[str]:
    """Stages whose carries take more bytes than the raw input; all where nobody can tell."""
    stages = list(held_by(model))
    noise = None if any(stage.waits for stage in stages) else inputs.noise(1)
    if noise is None:
        return {stage.name for stage in stages}
    raw = _bytes(noise)
    return {
        stage.name
        for stage, carry in run_segments(stages, noise, model.cascade.topology)
        if _bytes(carry) > raw
    }


def _bytes(batch: Any) -> float:  # noqa: ANN401  (raw input or a carry)
    try:
        return sum(part.numel() * part.element_size() for part in flat(batch))
    except (TypeError, ValueError):  # rows: nobody knows
        return 0.0
