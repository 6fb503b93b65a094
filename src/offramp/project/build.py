"""From a configuration to examples, a cascade and its costs.

Layer: project.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.types import SPLITS, Batch, Split
from offramp.data import Dataset, load_dataset
from offramp.project.config.sections import CostSection, DataSection, RunConfig
from offramp.project.heads import HEADS, load_heads
from offramp.project.networks import built, planned, spec_of, with_heads
from offramp.stages import Cascade, given_costs, measure_costs


def dataset_of(data: DataSection) -> Dataset:
    """The examples that `[data]` describes, divided into splits where it says how."""
    found = load_dataset(data.kind, data.path, **data.source_options())
    if data.part is not None:
        found = found.subset(data.part)
    if data.splits:
        found = found.split_into(data.splits, seed=data.seed, stratified=data.stratified)
    if data.ranges:
        found = found.with_ranges({split: (a, b) for split, (a, b) in data.ranges.items()})
    return found


def cascade_of(
    config: RunConfig,
    folder: Path,
    class_names: tuple[str, ...] = (),
    *,
    example: Batch | None = None,
    trained: bool = True,
) -> Cascade:
    """Build the networks of `[[stage]]` and connect them, or cut `[network]` and load its heads.

    Args:
        config: With at least one stage, or with a network that has exits.
        folder: Where the configuration lies; modules named by "module:callable" are looked for
            there as well.
        class_names: Names of the classes.
        example: Some raw input, `(m, ...)`, to cut a network with; by default the first of the
            configuration's data.
        trained: False leaves the heads of a cut network as they begin.

    Raises:
        InputError: If a network is to be cut and there are no data, or its heads are not trained
            or were trained for another configuration.
    """
    if config.network is None:
        return _of_stages(config, folder, class_names)
    if example is None:
        if config.data is None:
            raise InputError(f"{config.file} needs [data], whose inputs show how to cut.")
        example = dataset_of(config.data).batch(0, 1).inputs
    plan = planned(config, folder, example, class_names)
    cascade = with_heads(config, plan, example, class_names)
    if trained:
        load_heads(config.folder / HEADS, cascade, config.file)
    return cascade


def recorded(config: RunConfig, examples: Dataset) -> Dataset:
    """The examples that policies may learn from: not those that the heads are trained on.

    Raises:
        InputError: If none is left.
    """
    if config.network is None or examples.split is None:
        return examples
    return all_but(examples, config.train.part, "the heads are trained")


def all_but(examples: Dataset, part: Split, what: str) -> Dataset:
    """The examples outside a split, on which `what` is done.

    Raises:
        InputError: If none is left.
    """
    if examples.split is None:
        raise InputError(f"[data] needs splits: on {part!r} {what}, on fit, calibrate, test not.")
    kept = examples.split != SPLITS.index(part)
    if not bool(kept.any()):
        raise InputError(
            f"All examples are in the split {part!r}, on which {what}; "
            "[data] needs splits for fit, calibrate and test as well."
        )
    return examples.take(kept)


def warn_of_raw_bytes(config: RunConfig, examples: Dataset) -> None:
    """Warn if a network gets bytes as they are: most want numbers around 0."""
    sections = config.stage if config.network is None else [config.network]
    functions = {stage.name for stage in config.stage if stage.function is not None}
    bare = [s.name for s in sections if s.transform is None and s.name not in functions]
    first = examples[0][0]
    if bare and isinstance(first, Tensor) and first.dtype == torch.uint8:
        warnings.warn(
            f"The inputs are bytes, and {', '.join(map(repr, bare))} without `transform` gets them "
            "as they are; most networks need numbers: "
            'transform = { kind = "normalize", scale = 0.00392156862745098 }.',
            stacklevel=2,
        )


def warn_of_random_weights(config: RunConfig) -> None:
    """Warn if the network that gets exits has the weights that it begins with."""
    network = config.network
    if network is not None and network.weights is None and ":" not in network.model:
        warnings.warn(
            f"The network {network.model} has random weights: none are given.", stacklevel=2
        )


def costs_of(cascade: Cascade, cost: CostSection, examples: Dataset, *, device: str) -> Costs:
    """Measure or take the costs that `[cost]` asks for, on the first examples."""
    if cost.given:
        return given_costs(cascade, cost.unit, cost.given, note="given in the configuration")
    return _measured(cascade, cost.unit, cost.batch_size, examples, device)


def other_costs_of(
    cascade: Cascade, cost: CostSection, examples: Dataset, *, device: str
) -> list[Costs]:
    """Measure the costs in the further units that `[cost]` names in `also`."""
    units = [unit for unit in dict.fromkeys(cost.also) if unit != cost.unit]
    return [_measured(cascade, unit, cost.batch_size, examples, device) for unit in units]


def _measured(
    cascade: Cascade, unit: str, batch_size: int, examples: Dataset, device: str
) -> Costs:
    batch = examples.batch(0, min(batch_size, len(examples))).inputs
    return measure_costs(cascade, batch, unit, batch_size=batch_size, device=device)


def _of_stages(config: RunConfig, folder: Path, class_names: tuple[str, ...]) -> Cascade:
    specs = {stage.name: spec_of(stage, class_names) for stage in config.stage}
    edges = config.cascade.edges
    return Cascade.from_models(
        {name: built(spec, folder) for name, spec in specs.items()},
        edges=edges if isinstance(edges, str) else [(a, b) for a, b in edges],
        transform={stage.name: stage.transform for stage in config.stage},
        specs=specs,
        outputs={stage.name: stage.outputs for stage in config.stage},
        class_names=class_names,
    )
