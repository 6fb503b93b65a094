"""From the sections of a configuration to networks, and to one with exits.

Layer: project.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.errors import InputError
from offramp._core.types import Batch
from offramp.adapters.http import from_http
from offramp.adapters.of_functions import function_spec
from offramp.adapters.openai import from_openai
from offramp.models import ModelSpec, build, default_head, head_arguments
from offramp.project.config.fields import DEFAULT_HEAD, HeadChoice
from offramp.project.config.sections import (
    BuiltSection,
    ExitsSection,
    NetworkSection,
    RunConfig,
    StageSection,
)
from offramp.stages import Cascade, CutPoint, Stage, choose_points, cut, cut_points, read_by
from offramp.stages.transforms import domain_of


def spec_of(section: BuiltSection, class_names: Sequence[str] = ()) -> ModelSpec:
    """How to build the network, or the function, which may answer with names of classes."""
    if isinstance(section, StageSection) and section.function is not None:
        return function_spec(section.function, class_names=class_names)
    return ModelSpec(
        name=section.model,
        arguments=section.arguments,
        weights=section.weights,
        weights_sha256=section.weights_sha256,
    )


def service_of(section: StageSection, class_names: Sequence[str] = ()) -> Stage | None:
    """The service that a section describes; None where it describes none.

    Raises:
        InputError: If a value is outside its domain, or the classes have no names.
    """
    found: Stage | None = None
    try:
        if section.openai is not None:
            found = from_openai(**{"labels": class_names, **_keyed(section.openai)})
        elif section.http is not None:
            names = {"class_names": class_names} if class_names else {}
            told = _keyed(section.http)
            found = from_http(**{**names, "transform": section.transform, **told})
    except InputError as error:
        raise InputError(f"Stage {section.name!r}: {error}") from error
    return found


def _keyed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a service, where `key_env = ""` says that it needs no key: TOML has no None."""
    return {k: None if k == "key_env" and value == "" else value for k, value in given.items()}


def built(spec: ModelSpec, folder: Path) -> nn.Module:
    """Build a network; "module:callable" is looked for in a folder as well."""
    with importing_from(folder):
        return build(spec)


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Within, modules are looked for in a folder as well."""
    place = str(folder.resolve())
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)


@final
@dataclass(frozen=True, kw_only=True)
class Planned:
    """A network and where it is to be cut.

    Args:
        net: The network.
        given: What it reads: raw input after the transform.
        points: The points by the names that the exits have.
        classes: Number of classes that the data have names for, None where there are none.
    """

    net: nn.Module
    given: Batch
    points: Mapping[str, CutPoint]
    classes: int | None = None


def planned(
    config: RunConfig, folder: Path, example: Batch, class_names: Sequence[str] = ()
) -> Planned:
    """Build the network and find the points of `[exits]`.

    Args:
        config: With a network and exits.
        folder: Where modules named by "module:callable" are looked for as well.
        example: Some raw input, `(m, ...)`.
        class_names: Names of the classes; they tell the logits of a network that returns more.

    Raises:
        InputError: If there is no such point, or the network cannot be cut there.
    """
    if config.network is None or config.exits is None:
        raise InputError(f"{config.file} must have the sections [network] and [exits].")
    net, given = network_of(config.network, folder, example)
    classes = len(class_names) or None
    points = _chosen(net, given, config.exits, classes)
    return Planned(net=net, given=given, points=points, classes=classes)


def with_heads(
    config: RunConfig, plan: Planned, example: Batch, class_names: Sequence[str] = ()
) -> Cascade:
    """Cut the network and put heads at the points; they are not trained.

    Raises:
        InputError: If a head does not fit what a layer gives; it names the exit.
    """
    if config.network is None or config.exits is None:
        raise InputError(f"{config.file} must have the sections [network] and [exits].")
    kinds = {label: partial(_spec, head) for label, head in config.exits.heads.items()}
    edges = config.cascade.edges
    return Cascade.from_network(
        plan.net,
        [replace(point, name=name) for name, point in plan.points.items()],
        head=dict.fromkeys(plan.points, kinds.get("") or kinds),
        example=example,
        last=config.network.name,
        edges="chain" if isinstance(edges, str) else [(a, b) for a, b in edges],
        transform=config.network.transform,
        class_names=class_names,
        spec=spec_of(config.network),
        classes=plan.classes,
    )


def network_of(network: NetworkSection, folder: Path, example: Batch) -> tuple[nn.Module, Batch]:
    """The network, and what it reads of some raw input."""
    net = built(spec_of(network), folder)
    return net, read_by(net, network.transform, example)


def random_input(
    shape: Sequence[int], count: int, transforms: Iterable[nn.Module | None] = ()
) -> Tensor:
    """So many made-up inputs, of the domain that the first transform with one reads, or [0, 1)."""
    domains = (domain_of(transform) for transform in transforms)
    low, high = next((domain for domain in domains if domain is not None), (0.0, 1.0))
    made = torch.rand((count, *shape), generator=torch.Generator().manual_seed(0))
    return made * (high - low) + low


def _chosen(
    net: nn.Module, given: Batch, exits: ExitsSection, classes: int | None
) -> dict[str, CutPoint]:
    points = cut_points(net, given, classes=classes)
    if exits.at is None:
        found = choose_points(
            points,
            every=exits.every,
            quantiles=exits.quantiles,
            match=exits.match,
            inside=exits.inside,
        )
        return {point.name: point for point in found}
    named = {name: point for point in points for name in (point.name, *point.aliases)}
    if any(layer not in named for layer in exits.at):
        # This says why not, and names the nearest that can be cut.
        cut(net, exits.at, given, classes=classes)
    return {layer: named[layer] for layer in exits.at}


def _spec(head: HeadChoice, shape: Sequence[int], classes: int) -> ModelSpec:
    if head.kind == DEFAULT_HEAD:
        return default_head(shape, classes)
    arguments = head_arguments(head.kind, shape, classes, **head.options)
    return ModelSpec(name=head.kind, arguments=arguments)
