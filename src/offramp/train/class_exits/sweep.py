"""A finished sweep: every branch of a network trained, with what it says of each split.

Layer: train.  Source: Bonato and Bouganis, class-specific early exit, sections 3 and 4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from offramp._core.checks import check_known
from offramp._core.errors import InputError
from offramp._core.types import IntArray, Split
from offramp.data import Dataset
from offramp.fitting.class_exits import Branch, ClassData, ClassExit
from offramp.models import ModelSpec
from offramp.policy import Policy
from offramp.stages import Cascade, CutPoint, Transforms, read_by
from offramp.train.class_exits.cascade import BuiltExit, DenseExit, HeadExit, class_cascade
from offramp.train.class_exits.evidence import class_data_of, joined
from offramp.train.class_exits.features import BranchFeatures
from offramp.train.class_exits.heads import HeadColumns, head_columns
from offramp.train.class_exits.layout import BranchSpec
from offramp.train.class_exits.timing import Clock, branch_times, depths
from offramp.train.class_exits.training import Recipe, TrainedBranches, train_branches

VALIDATION = "validation"  # the part of "train" that judges the epochs


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Attachment:
    """The network that branches are attached to, and where.

    Args:
        net: In evaluation mode.
        points: Of `attachment_points`.
        example: Some raw input.
        grid: Averages per side of a map.
        transform: Applied to the raw input first.
        table: For superclasses: for each class of the network its superclass.
        spec: How to build `net` again, or None if nobody knows.
    """

    net: nn.Module
    points: tuple[CutPoint, ...]
    example: Tensor
    grid: int
    transform: Transforms
    table: tuple[int, ...] | None
    spec: ModelSpec | None

    @property
    def given(self) -> Tensor:
        """What the network reads of the example."""
        found: Tensor = read_by(self.net, self.transform, self.example)
        return found


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """All branches of a network, trained, with what they say of the examples to choose on.

    Args:
        attachment: The network.
        class_names: Names of the classes that exits answer: superclasses where there are.
        parts: Trained branches; their columns stand side by side.
        features: Kept features of each split, with "train" and "validation".
        labels: True labels of each split, `(n,)`.
        baselines: The network's predictions on "fit", "calibrate" and "test", as far as they are.
        recipe: How the branches were trained.
        heads: Heads of all classes that stand beside the branches, or None.
    """

    attachment: Attachment
    class_names: tuple[str, ...]
    parts: tuple[TrainedBranches, ...]
    features: Mapping[str, BranchFeatures]
    labels: Mapping[str, IntArray]
    baselines: Mapping[Split, IntArray]
    recipe: Recipe
    heads: HeadColumns | None = None
    _held: dict[str, ClassData] = field(default_factory=dict, repr=False)

    @property
    def specs(self) -> tuple[BranchSpec, ...]:
        """The trained branches, the columns that `data` begins with."""
        return tuple(spec for part in self.parts for spec in part.branches)

    def data(self, split: Split) -> ClassData:
        """What a choice looks at on one split.

        The columns are the branches, then those exits of all classes that they make together, then
        each class, and all classes, of each head.

        Raises:
            UnknownNameError: If the examples had no such split.
        """
        check_known("split", split, self.baselines)
        if split not in self._held:
            outputs = [part.outputs(self.features[split]) for part in self.parts]
            found = class_data_of(
                torch.cat(outputs, dim=1),
                self.specs,
                self.labels[split],
                self.baselines[split],
                self.class_names,
                split=split,
            )
            if self.heads is not None:
                found = replace(
                    found,
                    evidence=np.hstack([found.evidence, self.heads.evidence[split]]),
                    own=np.hstack([found.own, self.heads.own[split]]),
                )
            self._held[split] = found
        return self._held[split]

    def branches(
        self, unit: str = "flops", *, batch_size: int = 1, rounds: int = 15
    ) -> list[Branch]:
        """What stands in each column of `data`, with its costs.

        Args:
            unit: "flops" or "seconds".
            batch_size: Examples that run at once, where seconds are measured.
            rounds: Of the measurement.
        """
        clock = Clock(unit=unit, batch_size=batch_size, rounds=rounds)
        at = self.attachment
        known = depths(at.net, self._points(), at.given, clock)
        return [
            Branch(point=point, keep_previous=kept, target=target, timing=known.timing(point, e))
            for point, kept, target, e in [*self._trained(clock), *self._of_heads(clock)]
        ]

    def _trained(self, clock: Clock) -> list[tuple[str, bool, int | None, float]]:
        """Point, KP, class and e of each branch, and of each exit of all classes."""
        at = self.attachment
        every = [
            BranchSpec(reads=reads, target=0, keep_previous=len(reads) > 1)
            for reads, _ in joined(self.specs, len(self.class_names))
        ]
        found: list[tuple[str, bool, int | None, float]] = []
        for specs, outputs in ((self.specs, 1), (every, len(self.class_names))):
            times = branch_times(
                at.points, specs, clock, grid=at.grid, outputs=outputs, device=at.example.device
            )
            found += [
                (
                    at.points[spec.point].name,
                    spec.keep_previous,
                    spec.target if outputs == 1 else None,
                    e,
                )
                for spec, e in zip(specs, times, strict=True)
            ]
        return found

    def _of_heads(self, clock: Clock) -> list[tuple[str, bool, int | None, float]]:
        """The same of each column of the heads."""
        if self.heads is None:
            return []
        times = self.heads.times(clock, self.attachment.example.device)
        return [
            (self.heads.head(k).point.name, False, self.heads.target(k), e)
            for k, e in enumerate(times)
        ]

    def reads(self, column: int) -> tuple[str, ...]:
        """Names of the points that the branch, or the head, in a column reads."""
        held = self._head_column(column)
        if held is not None and self.heads is not None:
            return (self.heads.head(held).point.name,)
        names = [point.name for point in self.attachment.points]
        return tuple(names[j] for j in self._reads(column))

    def label(self, column: int) -> str:
        """What stands in a column, in a word: "branch", or the name of a head's stage."""
        held = self._head_column(column)
        return "branch" if held is None or self.heads is None else self.heads.head(held).name

    def cascade(self, exits: Sequence[ClassExit]) -> tuple[Cascade, Policy]:
        """The network with these exits, and the policy that decides; to record, run and save.

        Args:
            exits: Of a design, in the order in which they are reached.
        """
        at = self.attachment
        made = [self._built(leaf) for leaf in exits]
        return class_cascade(
            at.net,
            made,
            at.example,
            class_names=self.class_names,
            points=[point.name for point in self._points()],
            grid=at.grid,
            transform=at.transform,
            table=at.table,
            spec=at.spec,
        )

    def _built(self, leaf: ClassExit) -> BuiltExit:
        reads, held = self.reads(leaf.column), self._head_column(leaf.column)
        if held is not None and self.heads is not None:
            head = self.heads.head(held)
            return HeadExit(chosen=leaf, reads=reads, module=head.module, spec=head.spec)
        weight, bias = self.dense(leaf.column)
        return DenseExit(chosen=leaf, reads=reads, weight=weight, bias=bias)

    def _points(self) -> list[CutPoint]:
        """All points that exits may read, in the order in which they run."""
        own = self.attachment.points
        return list(own) if self.heads is None else self.heads.merged(own)

    def with_heads(
        self,
        cascade: Cascade,
        examples: Dataset,
        *,
        batch_size: int = 256,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ) -> "Sweep":
        """The same sweep with trained heads of all classes as candidates beside the branches.

        An exit for one class then tests the probability that such a head gives it.

        Args:
            cascade: Of `Cascade.from_network` of the same network, its heads trained, without the
                examples of "fit", "calibrate" and "test".
            examples: What the sweep was run on.
            batch_size: Examples that run at once.
            device: Where they run.
            progress: Show a bar.

        Raises:
            InputError: If the cascade is of another network, or the sweep is of superclasses.
        """
        if self.attachment.table is not None:
            raise InputError(
                "Heads of all classes cannot stand beside branches of superclasses. Run the sweep "
                "without groups."
            )
        found = head_columns(
            cascade,
            self.attachment.given,
            self.attachment.net,
            examples,
            self.baselines,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
        return replace(self, heads=found, _held={})

    def with_branches(self, specs: Sequence[BranchSpec], *, progress: bool = True) -> "Sweep":
        """The same sweep with further branches, trained now."""
        train, judged = self.features["train"], self.features[VALIDATION]
        trained = train_branches(
            train,
            judged,
            specs,
            self.recipe,
            labels=torch.from_numpy(self.labels["train"]),
            judged_labels=torch.from_numpy(self.labels[VALIDATION]),
            progress=progress,
        )
        return replace(self, parts=(*self.parts, trained), _held={})

    def _head_column(self, column: int) -> int | None:
        """Position among the columns of the heads, or None for a column of branches."""
        trained = len(self.specs) + len(joined(self.specs, len(self.class_names)))
        if self.heads is None or column < trained:
            return None
        return column - trained

    def _reads(self, column: int) -> tuple[int, ...]:
        specs = self.specs
        if column < len(specs):
            return specs[column].reads
        return joined(specs, len(self.class_names))[column - len(specs)][0]

    def dense(self, column: int) -> tuple[Tensor, Tensor]:
        """Weights `(features, outputs)` and biases `(outputs,)` of the branch in a column.

        Raises:
            InputError: If there is no such column.
        """
        specs = self.specs
        if column >= len(specs):
            _, columns = joined(specs, len(self.class_names))[column - len(specs)]
            weights, biases = zip(*(self.dense(k) for k in columns), strict=True)
            return torch.cat(weights, dim=1), torch.cat(biases)
        for part in self.parts:
            if column < len(part.branches):
                return part.dense(column)
            column -= len(part.branches)
        raise InputError(f"column must be below {len(specs)}, got {column}.")
