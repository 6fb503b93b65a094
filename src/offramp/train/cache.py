"""Pooled features of a frozen backbone, kept on disk so that it runs only once.

A folder holds one file for each pooling, which grows in the order of the examples, and
`cache.json`, which says whose features they are and how many rows count (`offramp._core.growing`).
Files are mapped to be read, never to be written: where a disk is full, a write says so, and a
mapping ends the process.

Layer: train.  Source: none.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp._core.batch import to_device
from offramp._core.errors import InputError
from offramp._core.files import remove_folder
from offramp._core.growing import GrowingFiles
from offramp._core.progress import progress_bar
from offramp.data import Dataset
from offramp.models import PooledHead, extract_logits
from offramp.stages import Cascade, OfFirst, Stage
from offramp.train.features import Computed, backbone_digest, in_bfloat16

CacheDtype = Literal["float16", "float32"]
_NOTE = "cache.json"
_OURS = re.compile(r"cache\.json|features-\d+\.bin")


@final
class Cached:
    """Reads pooled features from mapped files.

    Args:
        heads: The heads by stage.
        features: For each stage the features of all examples, `(n, ...)`.
        device: Where the heads are.
        bfloat16: Compute in bfloat16.
    """

    def __init__(
        self,
        heads: Mapping[str, PooledHead],
        features: Mapping[str, NDArray[Any]],
        device: torch.device | str,
        *,
        bfloat16: bool = False,
    ) -> None:
        self._heads, self._features, self._device = heads, features, device
        self._bfloat16 = bfloat16

    def carries(
        self,
        rows: Tensor,
        names: Iterable[str],
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """For each of the named stages its pooled features."""
        wanted = set(names)
        for name in self._heads:
            if name in wanted:
                read = torch.from_numpy(self._features[name][rows.numpy()])
                yield name, to_device(read, self._device).to(torch.float32)

    def answer(self, name: str, carry: Any) -> Tensor:  # noqa: ANN401
        """Logits of what a stage's head makes of its features."""
        with in_bfloat16(self._device, self._bfloat16):
            return extract_logits(self._heads[name].classify(carry)).to(torch.float32)


def cached_features(
    folder: Path,
    cascade: Cascade,
    examples: Dataset,
    names: Sequence[str],
    *,
    dtype: CacheDtype,
    bfloat16: bool,
    batch_size: int,
    device: torch.device | str,
    progress: bool,
) -> Cached:
    """Keep on disk what the heads' poolings give for every example; memory does not grow with n.

    An interrupted run goes on where it stopped, and a complete one is only read.

    Args:
        folder: Where the files lie; made if it is not there.
        cascade: In evaluation mode, on `device`.
        examples: What rows will count in.
        names: Stages whose heads begin with a pooling.
        dtype: How features are stored; "float16" halves the files and rounds.
        bfloat16: Compute in bfloat16.
        batch_size: Examples that run at once.
        device: Where the cascade is.
        progress: Show a bar.

    Raises:
        InputError: If a head does not begin with a pooling, the folder holds features of another
            backbone or of other examples or anything else, or a feature does not fit float16.
        FileFormatError: If its files are damaged.
        BusyError: If another process is filling the folder.
        StorageError: If the disk is full; what fits is kept.
    """
    heads = {name: _pooled(cascade.stage(name)) for name in names}
    keys = {name: _key(cascade.stage(name), head) for name, head in heads.items()}
    first = {keys[name]: name for name in reversed(names)}  # equal poolings share a file
    identity = {
        "backbone": backbone_digest(cascade),
        "examples": examples.fingerprint,
        "poolings": "; ".join(sorted(first)),
        "dtype": dtype,
        "bfloat16": repr(bfloat16),
    }
    n = len(examples)
    features = _Features(folder, identity, first)
    if features.rows < n:
        computed = Computed(cascade, examples, device, bfloat16=bfloat16)
        with features.files:
            bar = progress_bar("Caching features", n, enabled=progress, done=features.rows)
            with bar as advance:
                while features.rows < n:
                    rows = torch.arange(features.rows, min(features.rows + batch_size, n))
                    features.append(
                        {
                            keys[name]: _pooled_values(cascade.stage(name), heads[name], carry)
                            for name, carry in computed.carries(rows, first.values())
                        }
                    )
                    advance(len(rows))
    return Cached(
        heads, {name: features.read(key) for name, key in keys.items()}, device, bfloat16=bfloat16
    )


def remove_cached(folder: Path) -> None:
    """Remove a folder with folders of cached features; `InputError` if it holds anything else."""
    remove_folder(folder, _OURS)


@final
@dataclass(frozen=True, kw_only=True)
class _Facts:
    rows: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of a row, by key


@final
class _Features:
    """One file for each key, of which the first `rows` of `n` rows are filled."""

    def __init__(self, folder: Path, identity: Mapping[str, str], keys: Iterable[str]) -> None:
        self._names = {key: f"features-{k}.bin" for k, key in enumerate(sorted(keys))}
        self._dtype = np.dtype(identity["dtype"])
        self.files = GrowingFiles(
            folder,
            [*self._names.values()],
            note=_NOTE,
            identity=identity,
            facts=_Facts(),
            repair="Delete the folder to compute the features again.",
        )

    @property
    def rows(self) -> int:
        """How many are filled."""
        return self.files.facts.rows

    def append(self, block: Mapping[str, NDArray[Any]]) -> None:
        """Add rows `(m, ...)` of each key."""
        m = len(next(iter(block.values())))
        shapes = {key: values.shape[1:] for key, values in block.items()}
        narrowed = {
            self._names[key]: _narrowed(key, values, self._dtype).tobytes()
            for key, values in block.items()
        }
        self.files.append(narrowed, _Facts(rows=self.rows + m, shapes=shapes))

    def read(self, key: str) -> NDArray[Any]:
        """The features of a key, `(rows, ...)`, mapped."""
        shape = (self.rows, *self.files.facts.shapes[key])
        path = self.files.folder / self._names[key]
        return np.memmap(path, dtype=self._dtype, mode="r", shape=shape)


def _key(stage: Stage, head: PooledHead) -> str:
    return f"{stage.group}: {' '.join(repr(head.pool).split())}"


def _narrowed(key: str, values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    largest = float(np.abs(values).max(initial=0.0))
    if dtype == np.float16 and largest > float(np.finfo(np.float16).max):
        raise InputError(
            f"Features of {key!r} reach {largest:.3g}, which float16 cannot hold; pass "
            "cache_dtype='float32'."
        )
    return values.astype(dtype)


def _pooled_values(stage: Stage, head: PooledHead, carry: Any) -> NDArray[Any]:  # noqa: ANN401
    with torch.no_grad():
        read = stage.head.read(carry) if isinstance(stage.head, OfFirst) else (carry,)
        pooled: Tensor = head.pool(*read)
    return pooled.float().cpu().numpy()


def _pooled(stage: Stage) -> PooledHead:
    head = stage.head.head if isinstance(stage.head, OfFirst) else stage.head
    if isinstance(head, PooledHead) and not list(head.pool.parameters()):
        return head
    raise InputError(
        f"cache keeps pooled features, but the head of {stage.name!r} does not begin with a "
        "pooling without weights (PooledHead). Train it without a cache; heads=[...] trains the "
        "others with one."
    )
