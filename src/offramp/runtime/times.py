"""How long each stage takes at each batch size, and what follows for how batches are run.

The seconds are of this machine, these networks and this backend; ratios among them decide, so
they are measured in rounds that take turns.

Layer: runtime.  Source: methods.md 6 (the ideal: each stage at its best batch size).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from offramp._core.checks import check_known, check_positive_int
from offramp._core.errors import InputError
from offramp._core.topology import Topology

FULL = 64  # a batch that uses a CPU well and fits into its caches

_WORTH = 0.97  # a split or a saved gathering must promise this much, or noise would decide

Table = tuple[tuple[float, ...], ...]  # (stages, sizes), seconds of one call


@final
@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Seconds of each stage for each batch size.

    Args:
        stages: Names of the cascade's stages, `(s,)`.
        sizes: Batch sizes, ascending, the first of them 1.
        segment: Seconds of a stage's segment (a whole network's answer included) on a batch of
            each size, `(s, sizes)`, > 0.
        head: The same of its head, >= 0; 0 where there is none.
        carry: Seconds to copy what its segment gives, >= 0; 0 where nobody continues from it.
        raw: Seconds to copy a raw batch of each size, >= 0.
        where: The machine, for people.

    Raises:
        InputError: If sizes do not ascend from 1, or a table has another shape or is negative.

    >>> times = StageTimes(stages=("a",), sizes=(1, 8), segment=((1.0, 2.0),), head=((0.0, 0.0),),
    ...                    carry=((0.0, 0.0),), raw=(0.0, 0.0), where="a laptop")
    >>> times.seconds(0, 8), times.split(0, 16), times.best_size(0)
    (2.0, (16,), 8)
    """

    stages: tuple[str, ...]
    sizes: tuple[int, ...]
    segment: Table
    head: Table
    carry: Table
    raw: tuple[float, ...]
    where: str

    def __post_init__(self) -> None:
        if not self.sizes or self.sizes[0] != 1 or list(self.sizes) != sorted(set(self.sizes)):
            raise InputError(f"sizes must ascend from 1, got {list(self.sizes)}.")
        for name in ("segment", "head", "carry"):
            table = getattr(self, name)
            if len(table) != len(self.stages):
                raise InputError(
                    f"{name} must have one row per stage ({len(self.stages)}), got {len(table)}."
                )
        least = float(np.nextafter(0, 1))
        for name, rows in (
            ("segment", self.segment),
            ("head", self.head),
            ("carry", self.carry),
            ("raw", (self.raw,)),
        ):
            for row in rows:
                if len(row) != len(self.sizes):
                    raise InputError(
                        f"{name} must have one number per size ({len(self.sizes)}), got {len(row)}."
                    )
                if not all(np.isfinite(row)) or min(row) < (least if name == "segment" else 0):
                    raise InputError(f"{name} must hold seconds, finite and positive, got {row}.")

    def seconds(self, stage: int, size: int) -> float:
        """Seconds of a segment on one batch; straight lines between the sizes measured."""
        return self._between(self.segment[stage], size)

    def split(self, stage: int, size: int) -> tuple[int, ...]:
        """Sizes of the parts in which a stage should take a batch; one where that is best."""
        found = self._splits.get((stage, size))
        if found is None:
            found = self._splits[stage, size] = self._best_split(stage, size)
        return found

    def planned(self, stage: int, size: int) -> float:
        """Seconds of a segment on a batch that is taken as `split` says."""
        parts = self.split(stage, size)
        joining = self._between(self.carry[stage], size) if len(parts) > 1 else 0.0
        return sum(self.seconds(stage, part) for part in parts) + joining

    def best_size(self, stage: int) -> int:
        """The batch size at which a stage, head included, takes least time per example."""
        each = [
            (self.segment[stage][i] + self.head[stage][i]) / b for i, b in enumerate(self.sizes)
        ]
        return self.sizes[int(np.argmin(each))]

    def whole_is_cheaper(self, stage: int, source: int, held: int, wanted: int) -> bool:
        """Whether running all that is held costs less than gathering those wanted first.

        Args:
            stage: Whose segment is to run.
            source: The stage whose carry it reads, or -1 for the raw input.
            held: Examples whose carry is held.
            wanted: Those of them that visit the stage.
        """
        copy = self._between(self.raw if source < 0 else self.carry[source], wanted)
        return self.planned(stage, held) < _WORTH * (self.planned(stage, wanted) + copy)

    @cached_property
    def _splits(self) -> dict[tuple[int, int], tuple[int, ...]]:
        return {}

    def _best_split(self, stage: int, size: int) -> tuple[int, ...]:
        """Equal parts, or full ones of a size measured and a rest: whatever promises least."""
        best: tuple[int, ...] = (size,)
        least = _WORTH * self.seconds(stage, size)
        joining = self._between(self.carry[stage], size)
        for part in self.sizes:
            if part >= size:
                break
            count = -(-size // part)
            small, more = divmod(size, count)
            equal = (small + 1,) * more + (small,) * (count - more)
            full = (part,) * (size // part) + ((size % part,) if size % part else ())
            for parts in (equal, full):
                promised = sum(self.seconds(stage, each) for each in parts) + joining
                if promised < least:
                    best, least = parts, promised
        return best

    def head_seconds(self, stage: int, size: int) -> float:
        """Seconds of a stage's own head on one batch."""
        return self._between(self.head[stage], size)

    def _between(self, row: Sequence[float], size: int) -> float:
        if size >= self.sizes[-1]:
            return row[-1] * size / self.sizes[-1]
        return float(np.interp(size, self.sizes, row))


def full_sizes(
    given: int | Mapping[str, int] | None,
    topology: Topology,
    times: StageTimes | None,
    waiting: Collection[int] = (),
) -> dict[int, int]:
    """For each stage how many examples make a full batch, by index.

    Those that wait for a service take examples one by one: none waits for another's answer.

    >>> full_sizes({"b": 8}, Topology.of(["a", "b", "c"]), None, waiting=[2])
    {0: 64, 1: 8, 2: 1}
    """
    stages = range(len(topology))
    if isinstance(given, int):
        return dict.fromkeys(stages, check_positive_int("batch_size", given))
    default = {k: FULL if times is None else times.best_size(k) for k in stages}
    default |= dict.fromkeys(waiting, 1)
    for name, size in (given or {}).items():
        check_known("stage", name, topology.names)
        default[topology.index(name)] = check_positive_int(f"batch_size[{name!r}]", size)
    return default
