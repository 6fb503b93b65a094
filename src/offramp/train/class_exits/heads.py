"""Heads of all classes that are there anyway, as candidates beside the branches of one class.

Layer: train.  Source: methods.md 2 (a class exit may also test p_k of a multi-class head).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import nn

from offramp._core.errors import InputError
from offramp._core.types import FloatArray, IntArray, Split
from offramp.data import Dataset
from offramp.models import ModelSpec
from offramp.policy.features import Distribution
from offramp.policy.rules import class_log_odds
from offramp.recording import record
from offramp.stages import Cascade, CutPoint, cut_points, given_costs, own_head
from offramp.train.class_exits.timing import Clock, head_times


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SharedHead:
    """A trained head of all classes.

    Args:
        name: Of its stage in the cascade that it comes from.
        point: Where it is attached.
        module: In evaluation mode.
        spec: How to build it again, or None if nobody knows.
    """

    name: str
    point: CutPoint
    module: nn.Module
    spec: ModelSpec | None


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class HeadColumns:
    """Heads, with what each says of every split: a column for each class, then one for all.

    Args:
        heads: In the order in which they are reached.
        classes: Number of classes `c`.
        evidence: For each split `(n, h (c + 1))`.
        own: For each split what the columns answer, of the same shape.
        order: Names of all points of the network, in the order in which they run.
    """

    heads: tuple[SharedHead, ...]
    classes: int
    evidence: Mapping[Split, FloatArray]
    own: Mapping[Split, IntArray]
    order: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.heads) * (self.classes + 1)

    def head(self, column: int) -> SharedHead:
        """The head that a column is of."""
        return self.heads[column // (self.classes + 1)]

    def target(self, column: int) -> int | None:
        """The class that a column is of, or None for all."""
        k = column % (self.classes + 1)
        return None if k == self.classes else k

    def merged(self, points: Sequence[CutPoint]) -> list[CutPoint]:
        """Some points and those of the heads, each once, in the order in which they run."""
        named = {p.name: p for p in (*(head.point for head in self.heads), *points)}
        return sorted(named.values(), key=lambda point: self.order.index(point.name))

    def times(self, clock: Clock, device: torch.device | str) -> list[float]:
        """What the head of each column takes."""
        each = head_times(
            [head.point for head in self.heads],
            [head.module for head in self.heads],
            clock,
            device=device,
        )
        return [seconds for seconds in each for _ in range(self.classes + 1)]


def head_columns(
    cascade: Cascade,
    given: torch.Tensor,
    net: nn.Module,
    examples: Dataset,
    baselines: Mapping[Split, IntArray],
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> HeadColumns:
    """Run the heads of a cut network on each split.

    Args:
        cascade: Of `Cascade.from_network` of the same network.
        given: What the network reads of some example.
        net: The network, uncut.
        examples: With the splits.
        baselines: The network's predictions on each split.
        batch_size: Examples that run at once.
        device: Where everything runs.
        progress: Show a bar.

    Raises:
        InputError: If the cascade has no heads, or its last stage is not the network.
    """
    points = cut_points(net, given)
    named = {name: p for p in points for name in (p.name, *p.aliases)}
    stages = [stage for stage in cascade if stage.head is not None]
    if not stages or any(stage.group not in named for stage in stages):
        raise InputError(
            "cascade must be one of Cascade.from_network of the same network, with heads; got the "
            f"stages {list(cascade.topology.names)}."
        )
    heads = tuple(
        SharedHead(
            name=stage.name,
            point=named[stage.group],
            module=own_head(stage.head).eval(),
            spec=stage.head_spec,
        )
        for stage in stages
        if stage.head is not None
    )
    positions = [cascade.topology.index(head.name) for head in heads]
    evidence: dict[Split, FloatArray] = {}
    own: dict[Split, IntArray] = {}
    classes = 0
    for split, baseline in baselines.items():
        trace = record(
            cascade,
            examples.subset(split),
            device=device,
            costs=given_costs(cascade, "none", dict.fromkeys(cascade.topology.names, 0.0)),
            batch_size=batch_size,
            progress=progress,
        )
        classes = trace.classes
        _check_same(trace.output(len(trace.stages) - 1).top(1)[:, 0].numpy(), baseline, split)
        outputs = [Distribution(trace.output(k).scores().log_softmax(dim=1)) for k in positions]
        evidence[split] = np.concatenate([_evidence(o, classes) for o in outputs], axis=1)
        own[split] = np.concatenate([_answers(o, classes) for o in outputs], axis=1)
    return HeadColumns(
        heads=heads,
        classes=classes,
        evidence=evidence,
        own=own,
        order=tuple(point.name for point in points),
    )


def _check_same(predicted: IntArray, baseline: IntArray, split: str) -> None:
    other = int((predicted != baseline).sum())
    if other > len(baseline) // 100:  # kernels of another batch size round otherwise
        raise InputError(
            f"cascade must be of the same network: its last stage answers {other} of "
            f"{len(baseline)} examples of {split!r} otherwise."
        )


def _evidence(output: Distribution, classes: int) -> FloatArray:
    each = [class_log_odds(output, k) for k in range(classes)]
    return torch.stack([*each, output.log_margin], dim=1).double().numpy()


def _answers(output: Distribution, classes: int) -> IntArray:
    n = len(output.label)
    found: IntArray = np.empty((n, classes + 1), dtype=np.int64)
    found[:, :classes], found[:, classes] = np.arange(classes), output.label.numpy()
    return found
