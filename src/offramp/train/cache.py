"""Pooled features of a frozen backbone, kept on disk so that it runs only once.

A folder holds one npy file for each pooling, filled in the order of the examples, and `cache.json`,
which says whose features they are, how many rows count and what the checksum of those is. It is
written before the first row, and then after rows have reached the disk. Files are mapped to be
read, never to be written: where a disk is full, a write says so, and a mapping ends the process.

Layer: train.  Source: none.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import read_json, remove_folder, storing, write_json
from offramp._core.ownership import check_place, is_empty
from offramp._core.progress import progress_bar
from offramp._core.schema import from_json
from offramp._core.seal import Digest, is_sealed, sealed
from offramp._core.temporaries import locked
from offramp.data import Dataset
from offramp.models import PooledHead, extract_logits
from offramp.stages import Cascade, OfFirst, Stage
from offramp.train.features import Computed, backbone_digest, in_bfloat16

CacheDtype = Literal["float16", "float32"]
CHECKPOINT_ROWS = 4096  # rows of work that a kill may cost
_MANIFEST = "cache.json"
_OURS = re.compile(r"cache\.json|features-\d+\.npy")
_AGAIN = "Delete the folder to compute the features again."


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
                yield name, read.to(self._device, torch.float32)

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
        batch_size: Dataset that run at once.
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
    files = _Files(folder, identity, n=n)
    if files.rows < n:
        computed = Computed(cascade, examples, device, bfloat16=bfloat16)
        with locked(folder), _Files(folder, identity, n=n) as files:
            bar = progress_bar("Caching features", n, enabled=progress, done=files.rows)
            with bar as advance:
                while files.rows < n:
                    rows = torch.arange(files.rows, min(files.rows + batch_size, n))
                    files.append(
                        {
                            keys[name]: _pooled_values(cascade.stage(name), heads[name], carry)
                            for name, carry in computed.carries(rows, first.values())
                        }
                    )
                    advance(len(rows))
    return Cached(
        heads, {name: files.read(key) for name, key in keys.items()}, device, bfloat16=bfloat16
    )


def remove_cached(folder: Path) -> None:
    """Remove a folder with folders of cached features; `InputError` if it holds anything else."""
    remove_folder(folder, _OURS)


@final
@dataclass(frozen=True, kw_only=True)
class _Manifest:
    version: Literal[2]
    identity: dict[str, str]
    files: dict[str, str]
    rows: int
    digests: dict[str, str]  # of the rows that count, by key
    sha256: str


@final
class _Files:
    """One file for each key, of which the first `rows` of `n` rows are filled.

    As a context manager it can be appended to, and keeps on an error what it has.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], *, n: int) -> None:
        self._folder, self._identity, self._n = folder, dict(identity), n
        self._names: dict[str, str] = {}
        self._open: dict[str, IO[bytes]] = {}
        self._digests: dict[str, Digest] = {}
        self.rows = self._saved = 0
        if (folder / _MANIFEST).exists():
            self._adopt()

    def __enter__(self) -> "_Files":
        check_place(self._folder)
        if not (self._folder / _MANIFEST).exists():
            if self._folder.exists() and not is_empty(self._folder):
                raise InputError(
                    f"cache must be a folder of cached features or an empty one, and "
                    f"{self._folder} holds other files. Give another folder; nothing was changed."
                )
            self._note()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # On an error, such as a full disk, keep what can be kept and let the error through.
            with suppress(*() if kind is None else (OSError,)):
                if self._open:
                    self._checkpoint()
        finally:
            for file in self._open.values():
                with suppress(OSError):  # what could not be written does not count anyway
                    file.close()
            self._open = {}

    def append(self, block: Mapping[str, NDArray[Any]]) -> None:
        """Add rows `(m, ...)` of each key."""
        if not self._open:
            self._names = {key: f"features-{k}.npy" for k, key in enumerate(sorted(block))}
            for key, values in block.items():
                self._open[key] = self._opened(key, values)
            self._digests = self._digests or {key: hashlib.sha256() for key in block}
        rows = self.rows
        held: dict[str, bytes] = {}
        for key, values in block.items():
            rows = self.rows + len(values)
            held[key] = _narrowed(key, values, self._identity["dtype"]).tobytes()
            with storing(self._folder / self._names[key]):
                self._open[key].write(held[key])
        for key, written in held.items():  # of whole rows only, if a disk is full
            self._digests[key].update(written)
        self.rows = rows
        if self.rows - self._saved >= CHECKPOINT_ROWS:
            self._checkpoint()

    def read(self, key: str) -> NDArray[Any]:
        """The features of a key, `(n, ...)`, mapped."""
        path = self._folder / self._names.get(key, "")
        try:
            found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FileFormatError(f"{path} cannot be read: {error}. {_AGAIN}") from error
        if len(found) != self._n or found.dtype != np.dtype(self._identity["dtype"]):
            raise FileFormatError(
                f"{path} holds {len(found)} rows of {found.dtype}, but {self._n} of "
                f"{self._identity['dtype']} belong there. {_AGAIN}"
            )
        return found

    def _opened(self, key: str, values: NDArray[Any]) -> IO[bytes]:
        """The file of a key, at the place of the next row."""
        path, shape = self._folder / self._names[key], (self._n, *values.shape[1:])
        dtype = np.dtype(self._identity["dtype"])
        row = dtype.itemsize * int(np.prod(shape[1:]))
        if self.rows:
            if self.read(key).shape != shape:
                raise FileFormatError(f"{path} does not have the shape {shape}. {_AGAIN}")
            there = path.open("r+b")
            there.seek(path.stat().st_size - row * (self._n - self.rows))
            return there
        with storing(path):
            file = path.open("wb")
            described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, described)
            file.truncate(file.tell() + row * self._n)  # rows are filled in later
        return file

    def _adopt(self) -> None:
        path = self._folder / _MANIFEST
        try:
            value = read_json(path)
            found = from_json(_Manifest, value, where=path)
        except FileFormatError as error:
            raise FileFormatError(f"{path} cannot be read: {error} {_AGAIN}") from error
        other = [k for k, v in self._identity.items() if found.identity.get(k) != v]
        if other:
            raise InputError(
                f"The features in {self._folder} are of other {', '.join(other)}. Give another "
                "folder as cache, or delete this one."
            )
        self._names, self.rows, self._saved = found.files, found.rows, found.rows
        self._digests = {key: self._digest(key) for key in found.files}
        digests = {key: digest.hexdigest() for key, digest in self._digests.items()}
        if not is_sealed(value) or digests != found.digests:
            raise FileFormatError(f"The features in {self._folder} were damaged. {_AGAIN}")

    def _digest(self, key: str) -> Digest:
        digest, values = hashlib.sha256(), self.read(key)
        for start in range(0, self.rows, CHECKPOINT_ROWS):
            part = values[start : min(start + CHECKPOINT_ROWS, self.rows)]
            digest.update(np.ascontiguousarray(part).data)
        return digest

    def _checkpoint(self) -> None:
        for key, file in self._open.items():
            with storing(self._folder / self._names[key]):
                file.flush()
                os.fsync(file.fileno())
        self._note()
        self._saved = self.rows

    def _note(self) -> None:
        digests = {key: digest.hexdigest() for key, digest in self._digests.items()}
        found = {"version": 2, "identity": self._identity, "files": self._names, "rows": self.rows}
        write_json(self._folder / _MANIFEST, sealed({**found, "digests": digests}))


def _key(stage: Stage, head: PooledHead) -> str:
    return f"{stage.group}: {' '.join(repr(head.pool).split())}"


def _narrowed(key: str, values: NDArray[Any], dtype: str) -> NDArray[Any]:
    largest = float(np.abs(values).max(initial=0.0))
    if dtype == "float16" and largest > float(np.finfo(np.float16).max):
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
