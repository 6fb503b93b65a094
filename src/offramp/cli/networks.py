"""From a configuration to examples, a cascade and its costs.

Layer: cli.
"""

import sys
import warnings
from pathlib import Path

import torch

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp.cli.config import CostSection, DataSection, RunConfig, StageSection
from offramp.data import Examples, load_examples
from offramp.models import ModelSpec, build
from offramp.stages import (
    Cascade,
    Normalize,
    given_costs,
    measure_flops,
    measure_joules,
    measure_seconds,
)


def examples_of(data: DataSection) -> Examples:
    """The examples that `[data]` describes, divided into splits where it says how."""
    found = load_examples(data.kind, data.path, **data.options)
    if data.part is not None:
        found = found.part(data.part)
    if data.splits:
        found = found.divided(data.splits, seed=data.seed, stratified=data.stratified)
    return found


def cascade_of(config: RunConfig, folder: Path, class_names: tuple[str, ...] = ()) -> Cascade:
    """Build the networks of `[[stage]]` and connect them.

    Args:
        config: With at least one stage.
        folder: Where the configuration lies; modules named by "module:callable" are looked for
            there as well.
        class_names: Names of the classes.
    """
    sys.path.insert(0, str(folder.resolve()))
    try:
        specs = {stage.name: _spec(stage) for stage in config.stage}
        models = {name: build(spec) for name, spec in specs.items()}
    finally:
        sys.path.remove(str(folder.resolve()))
    edges = config.cascade.edges
    return Cascade.of_models(
        models,
        edges=edges if isinstance(edges, str) else [(a, b) for a, b in edges],
        preprocess={s.name: _normalize(s) for s in config.stage if s.normalise is not None},
        specs=specs,
        class_names=class_names,
    )


def warn_of_raw_bytes(config: RunConfig, examples: Examples) -> None:
    """Warn if a network gets bytes as they are: most want numbers around 0."""
    bare = [stage.name for stage in config.stage if stage.normalise is None]
    if bare and examples[0][0].dtype == torch.uint8:
        warnings.warn(
            f"The inputs are bytes, and {', '.join(map(repr, bare))} without `normalise` gets them "
            "as they are; most networks need numbers: normalise = { scale = 0.00392156862745098 }.",
            stacklevel=2,
        )


def costs_of(cascade: Cascade, cost: CostSection, examples: Examples, *, device: str) -> Costs:
    """Measure or take the costs that `[cost]` asks for, on the first examples."""
    if cost.given:
        return given_costs(cascade, cost.unit, cost.given, note="given in the configuration")
    cascade.to(device)
    batch = examples.batch(0, min(cost.batch_size, len(examples))).inputs.to(device)
    if cost.unit == "flops":
        return measure_flops(cascade, batch[:1])
    if cost.unit == "joules":
        return measure_joules(cascade, batch, device=device)
    size = cost.batch_size
    return measure_seconds(cascade, batch, batch_sizes=[size], device=device)[size]


def _spec(stage: StageSection) -> ModelSpec:
    return ModelSpec(
        name=stage.model,
        arguments=stage.arguments,
        weights=stage.weights,
        weights_sha256=stage.weights_sha256,
    )


def _normalize(stage: StageSection) -> Normalize:
    if stage.normalise is None:
        raise InputError(f"Stage {stage.name!r} has no normalise.")
    return Normalize(stage.normalise.scale, stage.normalise.mean, stage.normalise.std)
