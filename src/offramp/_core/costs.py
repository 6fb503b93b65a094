"""What a stage costs per example, split into segment, head and decision.

Layer: _core.  Source: methods.md 1 and 6 (definitions).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from offramp._core.errors import InputError
from offramp._core.schema import omitted, stored
from offramp._core.topology import Path, Topology
from offramp._core.types import BoolArray, FloatArray
from offramp._core.units import UNITS


@final
@stored(whole=True)
@dataclass(frozen=True, kw_only=True)
class Costs:
    """Cost per example of each stage, in one declared unit.

    Args:
        unit: "flops" (a multiply-add counts as 2), "seconds", "joules", "usd", or the user's own.
        segment: Cost of running each stage's segment (its network), `(s,)`, finite, >= 0.
        head: Cost of each stage's own head, `(s,)`; 0 where the head is part of the segment.
        decision: Cost of deciding after each stage, `(s,)`.
        note: How the figures were made, in words: batch size, device, source.
        places: Where each stage runs, `(s,)`: 0 where the examples arise, 1 for the next place, and
            so on, never back. Empty where all run in one place.
        links: What going from each place to the next costs an example, once.

    Raises:
        InputError: If a cost is negative or not finite, or the lengths differ.

    >>> Costs.simple("flops", [1.0, 4.0]).visit(Topology.of(["a", "b"]), (0,), 1)
    4.0
    >>> apart = replace(Costs.simple("seconds", [1.0, 4.0]), places=(0, 1), links=(2.0,))
    >>> apart.visit(Topology.of(["a", "b"]), (0,), 1), apart.alone(Topology.of(["a", "b"]), 1)
    (6.0, 6.0)
    """

    unit: str
    segment: tuple[float, ...]
    head: tuple[float, ...]
    decision: tuple[float, ...]
    note: str = ""
    places: tuple[int, ...] = omitted(())
    links: tuple[float, ...] = omitted(())

    def __post_init__(self) -> None:
        if not isinstance(self.unit, str) or not self.unit:
            raise InputError(f"unit must be a name such as {tuple(UNITS)}, got {self.unit!r}.")
        for name in ("segment", "head", "decision"):
            try:
                values = np.asarray(getattr(self, name), dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise InputError(f"{name} must be one number for each stage: {error}") from error
            if values.shape != (len(self.segment),):
                raise InputError(
                    f"{name} must have one cost per stage, shape ({len(self.segment)},), got shape "
                    f"{values.shape}; prices of examples belong to a trace."
                )
            bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
            if len(bad):
                raise InputError(
                    f"{name} costs must be finite and at least 0, got {values[bad[0]]} for "
                    f"stage {bad[0]}."
                )
            object.__setattr__(self, name, tuple(float(v) for v in values))
        self._check_places()

    def _check_places(self) -> None:
        if self.places and len(self.places) != len(self.segment):
            raise InputError(
                f"places must have one entry per stage ({len(self.segment)}), got "
                f"{len(self.places)}."
            )
        if any(not 0 <= place <= len(self.links) for place in self.places):
            raise InputError(
                f"places must be in [0, {len(self.links)}], the number of links, got {self.places}."
            )
        if any(not 0 <= cost < np.inf for cost in self.links):
            raise InputError(f"links must be finite and at least 0, got {self.links}.")

    @classmethod
    def simple(cls, unit: str, stage: Sequence[float], *, note: str = "") -> "Costs":
        """Whole networks: all cost in the segment, heads and decisions free."""
        zeros = (0.0,) * len(stage)
        return cls(unit=unit, segment=tuple(stage), head=zeros, decision=zeros, note=note)

    def __len__(self) -> int:
        return len(self.segment)

    @property
    def each(self) -> tuple[float, ...]:
        """Of each stage its segment and its head, `(s,)`."""
        return tuple(map(sum, zip(self.segment, self.head, strict=True)))

    def slower(self, times: float) -> "Costs":
        """The same stages where all of them cost so many times as much."""
        return replace(
            self,
            segment=tuple(times * v for v in self.segment),
            head=tuple(times * v for v in self.head),
            decision=tuple(times * v for v in self.decision),
        )

    def visit(self, topology: Topology, path: Path, stage: int) -> float:
        """Cost of going on from `path` to `stage`: segments still missing, and its head."""
        missing = topology.new_segments(path, stage)
        return sum(self.segment[j] for j in missing) + self.head[stage] + self.crossing(path, stage)

    def crossing(self, path: Path, stage: int) -> float:
        """Cost of the links between where an example is after `path` and where `stage` runs."""
        if not self.places:
            return 0.0
        here = max((self.places[k] for k in path), default=0)
        return sum(self.links[here : self.places[stage]])

    def alone(self, topology: Topology, stage: int) -> float:
        """Cost of `stage` run alone on the raw input, with no decision taken."""
        return self.visit(topology, (), stage)

    def path(self, topology: Topology, path: Path, decided: Sequence[int]) -> float:
        """Cost of everything that ran on `path`; `decided` are the stages that took a decision."""
        visits = sum(self.visit(topology, path[:i], k) for i, k in enumerate(path))
        return visits + sum(self.decision[k] for k in path if k in decided)

    def only(self, stages: Sequence[int]) -> "Costs":
        """Of some stages, by index."""
        return replace(
            self,
            segment=tuple(self.segment[k] for k in stages),
            head=tuple(self.head[k] for k in stages),
            decision=tuple(self.decision[k] for k in stages),
            places=tuple(self.places[k] for k in stages) if self.places else (),
        )

    def relative_to(self, topology: Topology, stage: int) -> "Costs":
        """The same costs divided by what `stage` costs alone: cost ratios.

        Raises:
            InputError: If that is nothing, so that nothing can be saved.
        """
        own = self.alone(topology, stage)
        if not own > 0:
            raise InputError(
                f"The cost of the reference ({topology.names[stage]!r}) must be greater than 0, "
                f"got {own}."
            )
        return Costs(
            unit=f"{self.unit} / {topology.names[stage]}",
            segment=tuple(v / own for v in self.segment),
            head=tuple(v / own for v in self.head),
            decision=tuple(v / own for v in self.decision),
            places=self.places,
            links=tuple(v / own for v in self.links),
        )

    def warn_if_flat(self, topology: Topology, *, factor: float = 2.0) -> None:
        """Warn where a stage costs less than `factor` times the one before it.

        With costs growing by b, the waste of examining weaker networks first is at most
        b / (b - 1) of the cost (Guan et al. 2018, section 4.2).
        """
        for k in topology.active:
            children = topology.children(k)
            if not children:
                continue
            ratio = min(self.visit(topology, (k,), c) for c in children)
            before = self.alone(topology, k)
            if all(s == -1 for s in topology.sources) and before > 0 and ratio < factor * before:
                following = min(children, key=lambda c: self.visit(topology, (k,), c))
                warnings.warn(
                    f"Stage {topology.names[following]!r} costs {ratio / before:.2f} times "
                    f"{topology.names[k]!r}; below {factor:g} a step saves little.",
                    stacklevel=2,
                )


@final
@dataclass(frozen=True, kw_only=True)
class PricedCosts:
    """`Costs` of `n` examples each of which has prices of its own.

    What `Costs` gives as one number this gives as one for each example, `(n,)`.

    Args:
        mean: Heads and decisions, which cost the same for all, and the unit.
        prices: Price of each stage's segment, `(n, s)`.

    >>> mean = Costs.simple("usd", [1.0, 4.0])
    >>> priced = PricedCosts(mean=mean, prices=np.array([[1.0, 2.0], [1.0, 6.0]]))
    >>> priced.path(Topology.of(["a", "b"]), (0, 1), ()).tolist()
    [3.0, 7.0]
    """

    mean: Costs
    prices: FloatArray

    @property
    def decision(self) -> tuple[float, ...]:
        """As in `Costs`."""
        return self.mean.decision

    def visit(self, topology: Topology, path: Path, stage: int) -> FloatArray:
        """As `Costs.visit`."""
        missing = list(topology.new_segments(path, stage))
        rest = self.mean.head[stage] + self.mean.crossing(path, stage)
        return np.asarray(self.prices[:, missing].sum(axis=1) + rest)

    def alone(self, topology: Topology, stage: int) -> FloatArray:
        """As `Costs.alone`."""
        return self.visit(topology, (), stage)

    def path(self, topology: Topology, path: Path, decided: Sequence[int]) -> FloatArray:
        """As `Costs.path`."""
        total = np.zeros(len(self.prices)) + sum(self.decision[k] for k in path if k in decided)
        for i, k in enumerate(path):
            total += self.visit(topology, path[:i], k)
        return total

    def relative_to(self, topology: Topology, stage: int) -> "PricedCosts":
        """The same divided by what `stage` costs alone on average."""
        own = float(self.alone(topology, stage).mean())
        segment = tuple(self.prices.mean(axis=0).tolist())
        mean = replace(self.mean, segment=segment).relative_to(topology, stage)
        return PricedCosts(mean=mean, prices=self.prices / own)

    def take(self, rows: BoolArray) -> "PricedCosts":
        """Of some examples."""
        return PricedCosts(mean=self.mean, prices=self.prices[rows])


Bill = Costs | PricedCosts  # what examples are billed by: numbers, or one number for each
