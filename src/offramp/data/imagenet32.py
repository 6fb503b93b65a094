"""ImageNet at 32x32 pixels, in its official npz batches.

Layer: data.  Source: Chrabaszcz, Loshchilov, Hutter, "A Downsampled Variant of ImageNet as an
Alternative to the CIFAR datasets" (arXiv:1707.08819); layout as on image-net.org.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offramp._core.checks import check_choice, check_path
from offramp._core.errors import FileFormatError
from offramp._core.types import SPLITS
from offramp.data.arrays import read_arrays
from offramp.data.dataset import Dataset

_CLASSES = 1000
_PIXELS = 3 * 32 * 32
_TRAIN = tuple(f"train_data_batch_{k}.npz" for k in range(1, 11))
_VALIDATION = ("val_data.npz",)
_FILES = {"all": _TRAIN + _VALIDATION, "train": _TRAIN, "validation": _VALIDATION}


def imagenet32(root: Path | str, *, part: str = "all") -> Dataset:
    """Read ImageNet 32x32, or those of its batches that are there.

    Args:
        root: Folder of `train_data_batch_1.npz` to `train_data_batch_10.npz` and `val_data.npz`;
            any part may be missing, the name of the result says which were used. There is no
            download: image-net.org gives the files to registered users.
        part: Which files to look for: "all", "train" or "validation". All training images take
            4 GB of memory.

    Returns:
        uint8 `(n, 3, 32, 32)`; the labels of the files, 1 to 1000, become 0 to 999 and the class
        names "1" to "1000"; ids are strings "file:position"; splits "train" and "test"
        (the validation images).

    Raises:
        InputError: If `part` is none of the three.
        FileFormatError: If no file is there, or one is not of this layout.
    """
    check_choice("part", part, _FILES)
    root = check_path("root", root)
    names = [name for name in _FILES[part] if (root / name).is_file()]
    if not names:
        raise FileFormatError(
            f"{root} holds none of {_FILES[part][0]} ... {_FILES[part][-1]}. They cannot be "
            "downloaded from here: register at image-net.org, take the npz files of the "
            "32x32 images and unpack them there."
        )
    # labels first, to make room once: both copies of the pixels together would take 8 GB
    labels = [_labels(root / name) for name in names]
    images = torch.empty((sum(map(len, labels)), 3, 32, 32), dtype=torch.uint8)
    start = 0
    for name, own in zip(names, labels, strict=True):
        images[start : start + len(own)] = torch.from_numpy(_pixels(root / name, len(own)))
        start += len(own)
    indices = [SPLITS.index("test" if name in _VALIDATION else "train") for name in names]
    counts = torch.tensor([len(own) for own in labels])
    used = "" if len(names) == len(_FILES["all"]) else f" [{', '.join(names)}]"
    return Dataset(
        inputs=images,
        labels=torch.from_numpy(np.concatenate(labels)),
        class_names=tuple(str(k + 1) for k in range(_CLASSES)),
        ids=np.array(
            [
                f"{name.removesuffix('.npz')}:{k}"
                for name, own in zip(names, labels, strict=True)
                for k in range(len(own))
            ]
        ),
        split=torch.tensor(indices, dtype=torch.int8).repeat_interleave(counts),
        name="imagenet32" + used,
    )


def _labels(path: Path) -> NDArray[Any]:
    labels = read_arrays(path, ["labels"])["labels"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise FileFormatError(
            f"labels of {path} must be integers of one axis, got {labels.dtype} {labels.shape}."
        )
    if len(labels) and not (labels.min() >= 1 and labels.max() <= _CLASSES):
        raise FileFormatError(
            f"labels of {path} must be in [1, {_CLASSES}], got {labels.min()} to {labels.max()}."
        )
    return labels.astype(np.int64) - 1


def _pixels(path: Path, count: int) -> NDArray[Any]:
    data = read_arrays(path, ["data"])["data"]
    if data.shape != (count, _PIXELS) or data.dtype != np.uint8:
        raise FileFormatError(
            f"data of {path} must be uint8 ({count}, {_PIXELS}), 32x32 pixels by channel, got "
            f"{data.dtype} {data.shape}."
        )
    return data.reshape(-1, 3, 32, 32)
