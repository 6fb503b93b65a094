"""From a configuration to examples, a cascade and its costs.

Layer: project.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from offramp._core.checks import check_choice
from offramp._core.costs import Costs
from offramp._core.errors import InputError, OfframpError
from offramp._core.types import SPLITS, Batch, Split
from offramp.data import Dataset, load_dataset
from offramp.models import WRAPPERS
from offramp.project.classifiers import check_fitted, classifier_stages
from offramp.project.config.sections import CostSection, RunConfig
from offramp.project.heads import HEADS, load_heads
from offramp.project.inputs import columns_read, decodes_itself
from offramp.project.networks import built, planned, service_of, spec_of, with_heads
from offramp.stages import Cascade, given_costs, measure_costs
from offramp.trace import Trace, from_npz, from_parquet


def dataset_of(config: RunConfig) -> Dataset:
    """The examples that `[data]` describes, divided into splits where it says how.

    Of a folder of images it gives the bytes of the files where a network decodes them itself; of a
    table the columns that stages read, where all of them name theirs.

    Raises:
        InputError: If there is no `[data]`.
    """
    data = config.data
    if data is None:
        raise InputError(f"{config.file} needs [data].")
    options = data.source_options()
    sections = config.stage if config.network is None else [config.network]
    transforms = [section.transform for section in sections]
    if data.kind == "folder" and decodes_itself(transforms):
        options = {"decode": False, **options}
    if data.kind == "table" and all(columns_read([each]) for each in transforms):
        options = {"columns": columns_read(transforms) or None, **options}
    found = load_dataset(data.kind, data.path, **options)
    if data.part is not None:
        found = found.subset(data.part)
    if data.splits:
        found = found.split_into(data.splits, seed=data.seed, stratified=data.stratified)
    if data.ranges:
        found = found.with_ranges({split: (a, b) for split, (a, b) in data.ranges.items()})
    return found


def answers_of(config: RunConfig) -> Trace:
    """The trace that `[answers]` describes, divided into splits where it says how.

    Raises:
        InputError: If there is no `[answers]`, or as `offramp.trace.from_npz`.
        FileFormatError: If the file cannot be read.
    """
    answers = config.answers
    if answers is None:
        raise InputError(f"{config.file} needs [answers].")
    path = Path(answers.path)
    kinds = {".npz": from_npz, ".parquet": from_parquet}
    check_choice("the ending of answers.path", path.suffix, tuple(kinds))
    given = answers.model_dump(exclude={"path", "splits", "seed"}, exclude_none=True)
    trace = kinds[path.suffix](path, **given)
    return trace.split_into(answers.splits, seed=answers.seed) if answers.splits else trace


def cascade_of(
    config: RunConfig,
    folder: Path,
    class_names: tuple[str, ...] = (),
    *,
    example: Batch | None = None,
    trained: bool = True,
) -> Cascade:
    """Build the stages of `[[stage]]` and connect them, or cut `[network]` and load its heads.

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
        example = dataset_of(config).batch(0, 1).inputs
    plan = planned(config, folder, example, class_names)
    cascade = with_heads(config, plan, example, class_names)
    if trained:
        load_heads(config.folder / HEADS, cascade, config.file)
    return cascade


def recorded(config: RunConfig, examples: Dataset) -> Dataset:
    """The examples that policies may learn from: not those that heads or classifiers learned from.

    Raises:
        InputError: If none is left, or classifiers were fitted on others than these.
    """
    if any(stage.to_fit for stage in config.stage):
        check_fitted(config, examples)
        return all_but(examples, "train", "the classifiers are fitted")
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
    """Warn if a network has the weights that it begins with: it answers at random."""
    stages = [(f"stage {s.name!r}", s.model) for s in config.stage if s.untrained]
    network = config.network
    if network is not None and network.weights is None and ":" not in network.model:
        stages.append(("network", network.model))
    for what, model in stages:
        if model not in WRAPPERS:  # whose network has weights of its own
            warnings.warn(f"The {what} ({model}) has random weights: none are given.", stacklevel=2)


def costs_of(cascade: Cascade, cost: CostSection, examples: Dataset, *, device: str) -> Costs:
    """Measure or take the costs that `[cost]` asks for, on the first examples.

    Services are never measured: they tell their prices, or their costs are given.

    Raises:
        InputError: If nobody says what a service costs.
    """
    told = {stage.name: 0.0 for stage in cascade if stage.unit == cost.unit}
    if cost.given:
        given = {**told, **cost.given}
        return given_costs(cascade, cost.unit, given, note="given in the configuration")
    services = {stage.name: stage.unit for stage in cascade if stage.on_error is not None}
    if services and len(services) == len(cascade) and len(set(services.values())) == 1:
        unit = next(iter(services.values()))
        if unit is not None:
            return Costs.simple(unit, [0.0] * len(cascade))
    if services:
        raise InputError(
            f"[cost] must give the costs: {list(services)} are services, which are not measured. "
            'With prices say unit = "usd" and given = { ... } for the other stages.'
        )
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
    with fitting_networks(batch):
        return measure_costs(cascade, batch, unit, batch_size=batch_size, device=device)


@contextmanager
def fitting_networks(batch: Batch) -> Iterator[None]:
    """Within, what torch raises where networks cannot run on a batch says what to look at.

    Raises:
        InputError: In the place of such an error.
    """
    try:
        yield
    except RuntimeError as error:  # of torch; those of the project say what to do
        if isinstance(error, (OfframpError, torch.OutOfMemoryError)):
            raise
        raise InputError(
            f"A network cannot run on the examples, whose first is {_described(batch)}. Do "
            f"`arguments` and `transform` fit the data? PyTorch says: {error}"
        ) from error


def _described(batch: Batch) -> str:
    """The first example of a batch in words."""
    if isinstance(batch, Tensor):
        return f"{batch.dtype} of shape {tuple(batch.shape[1:])}"
    return "no single tensor"


def _of_stages(config: RunConfig, folder: Path, class_names: tuple[str, ...]) -> Cascade:
    ready = {stage.name: service_of(stage, class_names) for stage in config.stage}
    if any(stage.sklearn is not None for stage in config.stage):
        ready |= classifier_stages(config, class_names)
    own = [stage for stage in config.stage if ready[stage.name] is None]
    specs = {stage.name: spec_of(stage, class_names) for stage in own}
    edges = config.cascade.edges
    return Cascade.from_models(
        {name: stage or built(specs[name], folder) for name, stage in ready.items()},
        edges=edges if isinstance(edges, str) else [(a, b) for a, b in edges],
        transform={stage.name: stage.transform for stage in own},
        specs=specs,
        outputs={stage.name: stage.outputs for stage in own},
        class_names=class_names,
    )
