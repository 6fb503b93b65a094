"""Many dense layers in one row of weights: branches that read the same features share a product.

The features of all points lie side by side. For each point the branches that read it are runs of
neighboring columns, and each run has a block of weights. A batch is multiplied with every block
once; where a branch reads nothing there is no weight, so this is the product with a masked matrix
without its zeros.

Layer: train.  Source: none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BranchSpec:
    """A branch to train: what it reads, and for which class.

    Args:
        reads: Positions of the points it reads, rising; it is attached behind the last.
        target: The class, an index.
        keep_previous: True for KP=On.
    """

    reads: tuple[int, ...]
    target: int
    keep_previous: bool

    @property
    def point(self) -> int:
        """Position of the point that it is attached behind."""
        return self.reads[-1]


def every_branch(points: int, targets: Sequence[int]) -> list[BranchSpec]:
    """Branches behind each point, with KP=On and KP=Off, for each class; those with KP=On first.

    >>> len(every_branch(21, range(10)))
    420
    """
    on = [
        BranchSpec(reads=tuple(range(point + 1)), target=target, keep_previous=True)
        for point in range(points)
        for target in targets
    ]
    off = [
        BranchSpec(reads=(point,), target=target, keep_previous=False)
        for point in range(points)
        for target in targets
    ]
    return [*on, *off]


@final
@dataclass(frozen=True, slots=True)
class _Block:
    rows: slice  # of the features
    columns: slice  # of the branches
    weights: slice  # of the row of weights
    shape: tuple[int, int]


@final
class Layout:
    """Where each weight of each branch lies.

    Args:
        branches: The columns, in order.
        starts: Where the features of each point begin, and where the last end.
    """

    def __init__(self, branches: Sequence[BranchSpec], starts: Sequence[int]) -> None:
        self.branches = tuple(branches)
        self.blocks: list[_Block] = []
        size = 0
        for point in range(len(starts) - 1):
            low, high = starts[point], starts[point + 1]
            for first, last in _runs([point in b.reads for b in branches]):
                shape = (high - low, last - first)
                end = size + shape[0] * shape[1]
                self.blocks.append(
                    _Block(slice(low, high), slice(first, last), slice(size, end), shape)
                )
                size = end
        self.size = size

    def product(self, features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        """Outputs of all branches, `(m, b)`, of standardized features `(m, d)`."""
        outputs = bias.repeat(len(features), 1)
        for block in self.blocks:
            outputs[:, block.columns].addmm_(
                features[:, block.rows], weights[block.weights].view(block.shape)
            )
        return outputs

    def gradient(self, features: Tensor, slopes: Tensor) -> Tensor:
        """Gradient of the weights, `(size,)`, given that of the outputs, `(m, b)`."""
        found = torch.empty(self.size, dtype=features.dtype, device=features.device)
        for block in self.blocks:
            torch.mm(
                features[:, block.rows].T,
                slopes[:, block.columns],
                out=found[block.weights].view(block.shape),
            )
        return found

    def owners(self) -> Tensor:
        """Column of each weight, `(size,)`."""
        found = torch.empty(self.size, dtype=torch.int64)
        for block in self.blocks:
            columns = torch.arange(block.columns.start, block.columns.stop)
            found[block.weights] = columns.expand(block.shape).reshape(-1)
        return found

    def feature_of(self) -> Tensor:
        """Feature that each weight multiplies, `(size,)`."""
        found = torch.empty(self.size, dtype=torch.int64)
        for block in self.blocks:
            rows = torch.arange(block.rows.start, block.rows.stop)
            found[block.weights] = rows[:, None].expand(block.shape).reshape(-1)
        return found

    def column(self, weights: Tensor, column: int) -> Tensor:
        """Weights of one branch in the order of the features that it reads."""
        parts = [
            weights[block.weights].view(block.shape)[:, column - block.columns.start]
            for block in self.blocks
            if block.columns.start <= column < block.columns.stop
        ]
        return torch.cat(parts)

    def mask(self, features: int) -> Tensor:
        """True where a branch reads a feature, `(d, b)`: what the blocks leave out."""
        found = torch.zeros(features, len(self.branches), dtype=torch.bool)
        for block in self.blocks:
            found[block.rows, block.columns] = True
        return found


def _runs(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """First and one past the last position of each run of True."""
    start = None
    for k, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = k
        elif not flag and start is not None:
            yield start, k
            start = None
