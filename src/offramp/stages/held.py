"""The part of a cascade that somebody holds: some of its stages, under the topology of all.

Layer: stages.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from offramp._core.checks import check_known
from offramp._core.topology import Topology
from offramp.stages.stage import Stage


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class HeldStages:
    """Some stages of a cascade; stands where a cascade does, as long as nobody asks for others.

    Args:
        topology: All stages of the cascade, held or not.
        stages: Those that are held, by name, in order.
        class_names: Names of the classes, or none.
        input_shape: Shape of one example, where it is known.

    >>> from torch import nn
    >>> held = HeldStages(topology=Topology.of(["a", "b"]), stages={"b": Stage("b", nn.Identity())})
    >>> held.stage(1).name, [stage.name for stage in held]
    ('b', ['b'])
    """

    topology: Topology
    stages: Mapping[str, Stage]
    class_names: tuple[str, ...] = ()
    input_shape: tuple[int, ...] | None = None

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages.values())

    def stage(self, which: int | str) -> Stage:
        """A stage by position or name; raises `UnknownNameError` where it is not held."""
        name = which if isinstance(which, str) else self.topology.names[which]
        return self.stages[check_known("stage", name, self.stages)]

    def with_stages(self, stages: Sequence[Stage]) -> "HeldStages":
        """The same part with other stages in the place of its own, under the same names."""
        return replace(self, stages={stage.name: stage for stage in stages})
