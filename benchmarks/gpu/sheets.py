"""CIFAR-10's training images as lossless WebP: 50 sheets of 40 rows of 25, and the labels.

That is half of what the official files take, less than any general compression of them.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from offramp.data import Dataset, arrays

SHEETS = "sheet_*.webp"
LABELS = "labels.npy"
COUNT, ROWS, COLUMNS = 50, 40, 25
EACH = ROWS * COLUMNS  # images of a sheet
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_sheet(images: torch.Tensor, path: Path, *, method: int = 4) -> None:
    """Write 1,000 images `(1000, 3, 32, 32)`, uint8; a higher `method`, to 6, takes longer."""
    rows = images.numpy().reshape(ROWS, COLUMNS, 3, 32, 32).transpose(0, 3, 1, 4, 2)
    picture = Image.fromarray(np.ascontiguousarray(rows.reshape(ROWS * 32, COLUMNS * 32, 3)))
    picture.save(path, "WEBP", lossless=True, quality=100, method=method)


def read_sheet(path: Path) -> torch.Tensor:
    """Its 1,000 images, `(1000, 3, 32, 32)`, uint8."""
    sheet = np.asarray(Image.open(path).convert("RGB")).reshape(ROWS, 32, COLUMNS, 32, 3)
    return torch.from_numpy(sheet.transpose(0, 2, 4, 1, 3).reshape(EACH, 3, 32, 32).copy())


def sheet_name(k: int) -> str:
    """Name of the sheet of the images from 1,000 k on."""
    return f"sheet_{k:02d}.webp"


def read_sheets(folder: Path) -> Dataset:
    """All images with their labels, in the order of the official files."""
    images = torch.cat([read_sheet(folder / sheet_name(k)) for k in range(COUNT)])
    labels = np.load(folder / LABELS, allow_pickle=False).astype(np.int64)
    return arrays(
        images, torch.from_numpy(labels), layout="nchw", class_names=NAMES, name="cifar10 (train)"
    )
