"""Gears: several operating points of one cascade, whose promises hold together.

Layer: policy.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, final

from offramp._core.checks import check_known
from offramp._core.errors import InputError
from offramp._core.schema import omitted
from offramp.policy.candidate import Candidate
from offramp.policy.promise import Guarantee

#: The gear in which the reference runs alone: nothing is lost against it.
REFERENCE: Final = "reference"

#: Confidences that answers may lie below; how many do is what is watched of them.
SCORES: Final = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")


@final
@dataclass(frozen=True, kw_only=True)
class Gear:
    """One operating point among several.

    Args:
        name: Small letters, digits, ".", "_" and "-".
        candidate: What runs.
        guarantee: What is promised of it, together with the other gears; None of the reference
            alone, which loses nothing against itself.
        sentence: The promise in plain words.
        cost_ratio: Expected mean cost over the reference's.
        exits: How many examples left at each stage where it was tested, `(s,)`; empty if unknown.
        scores: For how many of them the confidence was below each of `SCORES`; empty if unknown.

    Raises:
        InputError: If the name cannot be one, the cost is negative, or numbers of examples are.
    """

    name: str
    candidate: Candidate
    guarantee: Guarantee | None
    sentence: str
    cost_ratio: float
    exits: tuple[int, ...] = omitted(())
    scores: tuple[int, ...] = omitted(())

    def __post_init__(self) -> None:
        check_gear_name(self.name)
        if not self.cost_ratio >= 0 or any(count < 0 for count in self.exits):
            raise InputError(
                f"cost_ratio and exits of a gear must be at least 0, got {self.cost_ratio!r} and "
                f"{list(self.exits)!r}."
            )
        possible = all(0 <= count <= sum(self.exits) for count in self.scores)
        if len(self.scores) not in (0, len(SCORES)) or not possible:
            raise InputError(
                f"scores of a gear must be {len(SCORES)} counts of its {sum(self.exits)} examples, "
                f"got {list(self.scores)!r}."
            )


@final
@dataclass(frozen=True, kw_only=True)
class Gears:
    """Operating points of one cascade whose promises hold all at once, or none.

    Args:
        delta: Largest chance that any of their promises is wrong; None where there are none.
        held: The gears, the reference first, the cheapest last.
        left_out: By name, those that were asked for and of which nothing could be promised: why.

    Raises:
        InputError: If names come twice, references or stages differ, the first is not the
            reference alone, or another one has no promise.

    >>> len(Gears()), Gears().names
    (0, ())
    """

    delta: float | None = None
    held: tuple[Gear, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.held:
            return
        names, first = self.names, self.held[0]
        if len(set(names)) < len(names):
            raise InputError(f"Gears must have different names, got {list(names)}.")
        for gear in self.held:
            if gear.candidate.reference != first.candidate.reference:
                raise InputError(
                    f"Gears must have one reference, got {first.candidate.reference!r} and "
                    f"{gear.candidate.reference!r}."
                )
            gear.candidate.policy.topology.check_same_stages(
                first.candidate.policy.topology, f"gear {first.name!r}"
            )
        topology = first.candidate.policy.topology
        alone = [topology.names[k] for k in topology.active] == [first.candidate.reference]
        promised = all(gear.guarantee is not None for gear in self.held[1:])
        if first.name != REFERENCE or not alone or not promised or self.delta is None:
            raise InputError(
                f"Gears must begin with {REFERENCE!r}, the reference alone, and have a delta and a "
                f"promise of each other gear, got {list(names)} and delta = {self.delta!r}. "
                "Frontier.gears makes such gears."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Of all gears, the dearest first."""
        return tuple(gear.name for gear in self.held)

    def __len__(self) -> int:
        return len(self.held)

    def __iter__(self) -> Iterator[Gear]:
        return iter(self.held)

    def __getitem__(self, name: str) -> Gear:
        """The gear of this name.

        Raises:
            InputError: If there are none.
            UnknownNameError: If there is none of this name.
        """
        if not self.held:
            raise InputError(
                f"gear must be None where a model has no gears, got {name!r}. Make some: "
                "Adaptive(cascade, gears[name], gears=gears) with Frontier.gears(...)."
            )
        return self.held[self.names.index(check_known("gear", name, self.names))]


def check_gear_name(name: str) -> str:
    """Return the name of a gear if it may be one.

    Raises:
        InputError: If it is not of small letters, digits, ".", "_" and "-".
    """
    if _NAME.fullmatch(name) is None:
        raise InputError(
            "A gear must have a name of up to 40 small letters, digits, '.', '_' and '-', such as "
            f"'fast', got {name!r}."
        )
    return name
