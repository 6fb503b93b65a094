"""CIFAR-10 and CIFAR-100 in their official binary layout.

A record is one label byte (CIFAR-100: coarse, then fine) and 3,072 bytes of a 32x32 image,
channel by channel. The layout with pickled Python objects is not read.

Layer: data.  Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
layout and checksums as on https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp._core.checks import check_choice, check_path
from offramp._core.errors import FileFormatError
from offramp._core.types import SPLITS
from offramp.data.dataset import Dataset
from offramp.data.download import Archive, fetch

_PIXELS = 3 * 32 * 32
_KRIZ = "https://www.cs.toronto.edu/~kriz/"
CIFAR10 = Archive(
    url=_KRIZ + "cifar-10-binary.tar.gz",
    checksum="md5:c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
)
CIFAR100 = Archive(
    url=_KRIZ + "cifar-100-binary.tar.gz",
    checksum="md5:03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
)
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@final
@dataclass(frozen=True)
class _File:
    name: str
    records: int
    first_id: int
    test: bool


_CIFAR10_FILES = (
    *(_File(f"data_batch_{k + 1}.bin", 10_000, 10_000 * k, False) for k in range(5)),
    _File("test_batch.bin", 10_000, 50_000, True),
)
_CIFAR100_FILES = (
    _File("train.bin", 50_000, 0, False),
    _File("test.bin", 10_000, 50_000, True),
)


def cifar10(root: Path | str, *, download: bool = False) -> Dataset:
    """Read CIFAR-10, or those of its batches that are there.

    Args:
        root: Folder that holds `cifar-10-batches-bin`, or this folder itself. Of
            `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin` any part may be
            missing; the name of the result says which were used.
        download: True fetches the archive (about 170 MB) if the folder is not there.

    Returns:
        uint8 `(n, 3, 32, 32)`; ids 0 to 49,999 are the training images, 50,000 to 59,999 the
        test images, whichever files are there; splits "train" and "test".

    Raises:
        FileFormatError: If no batch is there, or one has the wrong size or an unknown label.
    """
    folder = _folder(CIFAR10, check_path("root", root), download)
    names = _class_names(folder / "batches.meta.txt", 10) or CIFAR10_CLASSES
    return _read("cifar10", folder, _CIFAR10_FILES, names, label_bytes=1, label_at=0)


def cifar100(root: Path | str, *, label: str = "fine", download: bool = False) -> Dataset:
    """Read CIFAR-100, or one of its two files.

    Args:
        root: Folder that holds `cifar-100-binary`, or this folder itself.
        label: "fine" (100 classes) or "coarse" (20 superclasses).
        download: True fetches the archive (about 170 MB) if the folder is not there.

    Returns:
        As `cifar10`: uint8 `(n, 3, 32, 32)`, ids from 0 (train) and 50,000 (test).

    Raises:
        InputError: If `label` is neither.
        FileFormatError: If no file is there, or one has the wrong size or an unknown label.
    """
    check_choice("label", label, ("fine", "coarse"))
    folder = _folder(CIFAR100, check_path("root", root), download)
    count = 100 if label == "fine" else 20
    names = _class_names(folder / f"{label}_label_names.txt", count)
    return _read(
        f"cifar100 ({label})",
        folder,
        _CIFAR100_FILES,
        names or tuple(str(k) for k in range(count)),
        label_bytes=2,
        label_at=1 if label == "fine" else 0,
    )


def _folder(archive: Archive, root: Path, download: bool) -> Path:
    folder = root / archive.folder
    if folder.is_dir():
        return folder
    return fetch(archive, root) if download and root.name != archive.folder else root


def _read(
    name: str,
    folder: Path,
    files: Sequence[_File],
    class_names: tuple[str, ...],
    *,
    label_bytes: int,
    label_at: int,
) -> Dataset:
    present = [file for file in files if (folder / file.name).is_file()]
    if not present:
        raise FileFormatError(
            f"{folder} holds none of {', '.join(file.name for file in files)}. Unpack the "
            "official binary archive there, or allow the download (download=True)."
        )
    images = torch.empty((sum(file.records for file in present), 3, 32, 32), dtype=torch.uint8)
    labels: list[NDArray[Any]] = []
    start = 0
    for file in present:
        part = _records(folder / file.name, file.records, label_bytes)
        labels.append(part[:, label_at].astype(np.int64))
        _check_labels(folder / file.name, labels[-1], len(class_names))
        pixels = part[:, label_bytes:].reshape(-1, 3, 32, 32)
        images[start : start + file.records] = torch.from_numpy(pixels)
        start += file.records
    used = "" if len(present) == len(files) else f" [{', '.join(f.name for f in present)}]"
    return Dataset(
        inputs=images,
        labels=torch.from_numpy(np.concatenate(labels)),
        class_names=class_names,
        ids=np.concatenate([np.arange(f.first_id, f.first_id + f.records) for f in present]),
        split=_splits(present),
        name=name + used,
    )


def _records(path: Path, records: int, label_bytes: int) -> NDArray[Any]:
    wanted = records * (label_bytes + _PIXELS)
    have = path.stat().st_size
    if have != wanted:
        raise FileFormatError(
            f"{path} must have {wanted} bytes ({records} records), got {have}. It is truncated "
            "or another layout; fetch it again."
        )
    # mapped, so that the pixels are copied only once, into the tensor
    return np.memmap(path, dtype=np.uint8, mode="c", shape=(records, label_bytes + _PIXELS))


def _check_labels(path: Path, labels: NDArray[Any], classes: int) -> None:
    outside = np.flatnonzero(labels >= classes)
    if len(outside):
        raise FileFormatError(
            f"{path} has the label {labels[outside[0]]} in record {outside[0]}; labels must be "
            f"in [0, {classes}). The file is damaged or of another data set."
        )


def _class_names(path: Path, count: int) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if len(names) != count:
        raise FileFormatError(f"{path} must name {count} classes, got {len(names)}.")
    return names


def _splits(files: Sequence[_File]) -> Tensor:
    indices = [SPLITS.index("test" if file.test else "train") for file in files]
    counts = torch.tensor([file.records for file in files])
    return torch.tensor(indices, dtype=torch.int8).repeat_interleave(counts)
