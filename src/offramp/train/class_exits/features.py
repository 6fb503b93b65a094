"""What branches read: the pooled maps of every attachment point, kept on disk.

Layer: train.  Source: methods.md 2 (B is frozen, so one pass gives all features).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from offramp._core.device import check_device
from offramp.data import Dataset
from offramp.models import PooledHead
from offramp.stages import Cascade, CutPoint, Transforms
from offramp.stages.tapped import branch_pool
from offramp.train.cache import Cached, CacheDtype, cached_features
from offramp.train.class_exits.points import width_of


@final
class BranchFeatures:
    """Pooled maps of some examples, read from disk.

    Args:
        cached: Features of each point.
        points: Names of the points, in the order in which they run.
        widths: Features of each point.
        labels: True labels, `(n,)`.
    """

    def __init__(
        self, cached: Cached, points: Sequence[str], widths: Sequence[int], labels: Tensor
    ) -> None:
        self._cached = cached
        self.points, self.widths, self.labels = tuple(points), tuple(widths), labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where the features of each point begin, and where the last end."""
        ends = torch.tensor([0, *self.widths]).cumsum(0)
        return tuple(ends.tolist())

    def take(self, index: Tensor) -> Tensor:
        """Features of some examples, all points side by side, `(m, d)`, float32."""
        parts = [part for _, part in self._cached.carries(index, self.points)]
        return torch.cat(parts, dim=1)


def branch_features(
    folder: Path,
    net: nn.Module,
    points: Sequence[CutPoint],
    examples: Dataset,
    *,
    grid: int = 2,
    transform: Transforms = None,
    dtype: CacheDtype = "float16",
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> BranchFeatures:
    """Run a network once and keep what it gives at all points, pooled.

    An interrupted pass goes on where it stopped; a complete one is only read.

    Args:
        folder: Where the files lie; made if it is not there.
        net: In evaluation mode; its weights stay as they are.
        points: Of `attachment_points`.
        examples: What to run it on.
        grid: Averages per side of a map.
        transform: Applied to the raw input first.
        dtype: How features are stored; "float16" halves the files and rounds.
        batch_size: Examples that run at once.
        device: Where the network runs, and where `rows` gives the features.
        progress: Show a bar.

    Raises:
        InputError: If the folder holds features of another network or of other examples.
        FileFormatError: If its files are damaged.

    >>> import tempfile
    >>> from offramp.data import arrays
    >>> from offramp.models import cifar_resnet
    >>> from offramp.train.class_exits import attachment_points
    >>> net, images = cifar_resnet(8, width=0.25).eval(), torch.zeros(4, 3, 8, 8)
    >>> points = attachment_points(net, images)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = branch_features(Path(folder), net, points, arrays(images, [0, 1, 0, 1]),
    ...                             progress=False)
    ...     found.take(torch.tensor([2])).shape
    torch.Size([1, 240])
    """
    names = [point.name for point in points]
    heads = {
        point.name: PooledHead(branch_pool(grid, len(point.shape) - 1), nn.Identity())
        for point in points
    }
    example = examples.batch(0, 1).inputs
    cascade = Cascade.from_network(net, names, head=heads, example=example, transform=transform)
    device = check_device(device)
    cascade.to(device)
    cached = cached_features(
        folder,
        cascade,
        examples,
        names,
        dtype=dtype,
        batch_size=batch_size,
        device=device,
        bfloat16=False,
        progress=progress,
    )
    widths = [width_of(point, grid) for point in points]
    return BranchFeatures(cached, names, widths, examples.labels)
