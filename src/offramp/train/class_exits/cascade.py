"""The cascade and the policy of chosen exits: like any other from here on.

Layer: train.  Source: methods.md 2 (how a binary head stands in a trace; features shared; a class
exit may test p_k of a multi-class head).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from offramp.fitting.class_exits import ClassExit, class_policy
from offramp.models import ClassHead, ModelSpec
from offramp.policy import ClassThreshold, Feature, Linear, Policy, Rule
from offramp.stages import Cascade, Transforms, own_head, read_by
from offramp.stages.tapped import Tap, TappedNet, tapped_spec

LAST = "last"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class DenseExit:
    """A chosen exit with its dense layer.

    Args:
        chosen: Branch and threshold.
        reads: Names of the points that it reads.
        weight: `(features, outputs)`.
        bias: `(outputs,)`.
    """

    chosen: ClassExit
    reads: tuple[str, ...]
    weight: Tensor
    bias: Tensor

    def tap(self, name: str) -> Tap:
        """What it reads."""
        return Tap(name=name, reads=self.reads)

    def head(self, classes: int) -> ModelSpec:
        """The head, without its weights."""
        arguments = {
            "features": len(self.weight),
            "classes": classes,
            "target": self.chosen.branch.target,
        }
        return ModelSpec(name="class_head", arguments=arguments)

    def load(self, head: nn.Module) -> None:
        """Give the head its weights."""
        if isinstance(head, ClassHead):
            head.set_weights(self.weight, self.bias)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class HeadExit:
    """A chosen exit that tests one class, or the answer, of a head of all classes.

    Args:
        chosen: Branch and threshold.
        reads: Name of the point that it reads, alone.
        module: The head, trained.
        spec: How to build it again, or None if nobody knows.
    """

    chosen: ClassExit
    reads: tuple[str, ...]
    module: nn.Module
    spec: ModelSpec | None

    def tap(self, name: str) -> Tap:
        """What it reads."""
        return Tap(name=name, reads=self.reads, pooled=False)

    def head(self, classes: int) -> nn.Module | ModelSpec:
        """The head itself, or how to build it."""
        return self.module if self.spec is None else self.spec

    def load(self, head: nn.Module) -> None:
        """Give the head its weights."""
        if head is not self.module:
            head.load_state_dict(self.module.state_dict())


BuiltExit = DenseExit | HeadExit


def class_cascade(
    net: nn.Module,
    exits: Sequence[BuiltExit],
    example: Tensor,
    *,
    class_names: Sequence[str],
    points: Sequence[str],
    grid: int = 2,
    transform: Transforms = None,
    table: Sequence[int] | None = None,
    spec: ModelSpec | None = None,
) -> tuple[Cascade, Policy]:
    """Attach exits to a network.

    The stages are "exits.<class>" and the network's own answer, "last".

    Args:
        net: In evaluation mode; its weights are shared.
        exits: In the order in which they are reached.
        example: Some raw input.
        class_names: Names of the classes that the cascade answers: superclasses where there are.
        points: Names of the attachment points, in the order in which they run.
        grid: Averages per side of a map.
        transform: Applied to the raw input first.
        table: For superclasses: for each class of the network its superclass.
        spec: How to build `net` again; a bundle needs to know.
    """
    names = _tap_names(exits, class_names)
    taps = [e.tap(name) for name, e in zip(names, exits, strict=True)]
    read = [point for point in points if any(point in e.reads for e in exits)]
    given = read_by(net, transform, example)
    layers = [f"exits.{name}" for name in names]
    again = None
    if spec is not None:
        again = tapped_spec(spec, read, taps, given.shape[1:], grid=grid, table=table)
    cascade = Cascade.from_network(
        TappedNet(net, read, taps, given, grid=grid, table=table),
        layers,
        head={layer: e.head(len(class_names)) for layer, e in zip(layers, exits, strict=True)},
        example=example,
        last=LAST,
        transform=transform,
        class_names=class_names,
        spec=again,
    )
    for layer, leaf in zip(layers, exits, strict=True):
        head = cascade.stage(layer).head
        if head is not None:
            leaf.load(own_head(head))
    rules = [
        (layer, _rule(leaf.chosen, position))
        for position, (layer, leaf) in enumerate(zip(layers, exits, strict=True))
    ]
    return cascade, class_policy(cascade.topology, rules, LAST)


def _rule(chosen: ClassExit, stage: int) -> Rule:
    if chosen.branch.target is None:
        return Linear.threshold(Feature("log_margin", stage), chosen.log_odds)
    return ClassThreshold(stage, chosen.branch.target, chosen.log_odds)


def _tap_names(exits: Sequence[BuiltExit], class_names: Sequence[str]) -> list[str]:
    names: list[str] = []
    for leaf in exits:
        target = leaf.chosen.branch.target
        name = "all" if target is None else re.sub(r"\W", "_", class_names[target])
        taken = sum(other == name or other.startswith(f"{name}__") for other in names)
        names.append(f"{name}__{taken + 1}" if taken else name)
    return names
