"""Three small networks on handwritten digits: a minute, and nothing has to be there.

Layer: project.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch

from offramp._core.errors import InputError
from offramp._core.formatting import amount
from offramp._core.types import SPLITS, Split
from offramp.data import Dataset, digits
from offramp.models import ModelSpec, build
from offramp.project.worlds.world import Learned, World
from offramp.recording import record
from offramp.stages import Cascade, Normalize, measure_seconds
from offramp.trace import Trace
from offramp.train import train_classifier

SIZES: dict[Split, int] = {"train": 400, "fit": 500, "calibrate": 550, "test": 347}
_WHITE = 255 / 16  # digits are 0 to 16; pictures of one's own are bytes
_MEAN, _STD = 0.305, 0.376  # moments of the digits, where white is 1


@final
@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of the demo and how it is trained."""

    name: str
    width: int
    depth: int
    epochs: int
    learning_rate: float


#: Sizes were measured: each is eight to nine times as expensive as the one before, and better.
NETWORKS = (
    Network(name="small", width=4, depth=3, epochs=16, learning_rate=0.015),
    Network(name="middle", width=10, depth=4, epochs=20, learning_rate=0.008),
    Network(name="large", width=24, depth=5, epochs=24, learning_rate=0.004),
)


def pictures() -> Dataset:
    """The digits as bytes, black 0 and white 255, as pictures are read."""
    found = digits()
    if not isinstance(found.inputs, torch.Tensor):
        raise InputError("digits must be a tensor.")
    return replace(found, inputs=(found.inputs * _WHITE).round().to(torch.uint8))


def trained(
    examples: Dataset,
    networks: tuple[Network, ...] = NETWORKS,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Cascade:
    """A cascade of small networks, trained on the part `train` of the examples.

    Args:
        examples: Images of bytes, `(n, channels, h, w)`, with a split `train`.
        networks: Cheapest first.
        seed: Of the first weights and of the training.
        progress: Show bars.
    """
    part = examples.subset("train")
    transform = Normalize(1 / 255, _MEAN, _STD)
    specs = {
        n.name: ModelSpec(
            name="small_cnn",
            arguments={
                "width": n.width,
                "depth": n.depth,
                "in_channels": int(part.batch(0, 1).inputs.shape[1]),
                "classes": examples.classes,
                "seed": seed + k,
            },
        )
        for k, n in enumerate(networks)
    }
    models = {name: build(spec) for name, spec in specs.items()}
    for n in networks:
        train_classifier(
            models[n.name],
            part,
            epochs=n.epochs,
            seed=seed,
            transform=transform,
            learning_rate=n.learning_rate,
            description=f"Training {n.name}",
            progress=progress,
        )
    return Cascade.from_models(
        models, transform=transform, specs=specs, class_names=examples.class_names
    )


def recorded(cascade: Cascade, examples: Dataset, world: World, *, progress: bool) -> Trace:
    """The trace of all images but those trained on, with costs in FLOPs and in seconds."""
    fresh, sizes = examples, world.batch_sizes
    if examples.split is not None:
        fresh = examples.take(examples.split != SPLITS.index("train"))
    with warnings.catch_warnings():
        # In seconds the two small ones cost nearly the same; the policy counts FLOPs.
        warnings.simplefilter("ignore", UserWarning)
        some = fresh.batch(0, max(sizes)).inputs
        seconds = measure_seconds(cascade, some, batch_sizes=sizes, rounds=world.rounds)
        trace = record(cascade, fresh, progress=progress)
    return replace(trace, other_costs=tuple(seconds[size] for size in sizes))


def costs_in_words(trace: Trace) -> str:
    """What each stage costs, by name."""
    pairs = zip(trace.stages, trace.stage_costs(), strict=True)
    return ", ".join(f"{name} {amount(cost, 'flops')}FLOP" for name, cost in pairs)


def _learn(
    folder: Path | None,
    *,
    seed: int,
    progress: bool,
    tell: Callable[[str], None],
    networks: tuple[Network, ...] = NETWORKS,
) -> Learned:
    if folder is not None:
        raise InputError(f"The digits come with the package and take no folder, got {folder}.")
    tell(f"training {len(networks)} networks")
    examples = pictures().split_into(SIZES, seed=seed, stratified=True)
    cascade = trained(examples, networks, seed=seed, progress=progress)
    tell("recording what they say about images they have not seen")
    trace = recorded(cascade, examples, DIGITS, progress=progress)
    return Learned(
        trace=trace,
        cascade=cascade,
        test=examples.subset("test"),
        data=f"{examples.name}, SHA-256 {examples.fingerprint}",
        notes=(
            f"{len(networks)} small convolutional networks, trained on {SIZES['train']} images: "
            f"{costs_in_words(trace)}.",
        ),
    )


def of_networks(networks: tuple[Network, ...]) -> World:
    """The world of the digits with other networks."""

    def learn(
        folder: Path | None, *, seed: int, progress: bool, tell: Callable[[str], None]
    ) -> Learned:
        return _learn(folder, seed=seed, progress=progress, tell=tell, networks=networks)

    return replace(DIGITS, learn=learn)


DIGITS = World(
    name="digits",
    title="Adaptive inference on handwritten digits",
    inputs="images",
    learn=_learn,
)
