"""Images in a folder, one subfolder per class, decoded when they are asked for.

Layer: data.
"""

import json
import struct
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import cpu_count
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from offramp._core.checks import check_positive_int
from offramp._core.errors import FileFormatError, InputError
from offramp._core.progress import progress_bar
from offramp.data.examples import Examples

#: Endings of files that are taken for images.
ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp"),
    *(".gif", ".tif", ".tiff", ".ppm", ".pgm"),
)
_SHOWN = 5  # corrupt images named in the warning
_QUEUED = 512  # images handed to the threads at a time
# What Pillow raises on damaged files, by decoder.
_DAMAGED = (OSError, SyntaxError, ValueError, struct.error, EOFError, Image.DecompressionBombError)


@final
@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Image files as uint8 tensors `(3, size, size)`, decoded on access.

    Args:
        root: Folder that the names are relative to.
        names: Files, as relative paths with "/".
        size: Side of the square that is cut from the middle, in pixels.
        resize: Length that the shorter side is scaled to first, in pixels, at least `size`.
    """

    root: Path
    names: tuple[str, ...]
    size: int
    resize: int

    def __post_init__(self) -> None:
        check_positive_int("size", self.size)
        if check_positive_int("resize", self.resize) < self.size:
            raise InputError(f"resize must be at least size ({self.size}), got {self.resize}.")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> UInt8[Tensor, "3 h w"]:
        """One image; raises `FileFormatError` if it cannot be decoded any more."""
        return read_image(self.root / self.names[position], size=self.size, resize=self.resize)

    def rows(self, positions: Sequence[int]) -> "ImageFiles":
        """Some of the images, in this order."""
        return replace(self, names=tuple(self.names[k] for k in positions))

    def identity(self) -> bytes:
        """Names and sizes of the files, and how they are cut."""
        sizes = [(self.root / name).stat().st_size for name in self.names]
        return json.dumps([self.names, sizes, self.size, self.resize]).encode()


def read_image(path: Path, *, size: int, resize: int) -> UInt8[Tensor, "3 h w"]:
    """Decode one image, scale its shorter side to `resize`, cut the middle `size` x `size`.

    Args:
        path: The file.
        size: Side of the result in pixels.
        resize: Length of the shorter side after scaling (bilinear, antialiased), in pixels.

    Returns:
        RGB, uint8 `(3, size, size)`; grey images are repeated in all three channels.

    Raises:
        FileFormatError: If the file cannot be decoded; it is named.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except _DAMAGED as error:
        raise FileFormatError(f"{path} cannot be read as an image: {error}") from error
    width, height = image.size
    shorter = min(width, height)
    # rounded down: this is how the longer side is found where such networks are trained
    wide, high = resize * width // shorter, resize * height // shorter
    if (wide, high) != (width, height):
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def image_folder(
    path: Path | str, *, size: int = 224, resize: int | None = None, check: bool = True
) -> Examples:
    """Take the images of a folder; each subfolder is a class, in the order of their names.

    Args:
        path: Folder of one subfolder per class; files may lie deeper, hidden ones and those
            without an image's ending are ignored.
        size: Side of the square cut from the middle, in pixels.
        resize: Length that the shorter side is scaled to first; by default `size` * 8 / 7
            rounded (256 for 224).
        check: True decodes every image once, with a progress bar, and leaves out those that are
            corrupt. False trusts them; a corrupt one is an error later.

    Returns:
        Examples with uint8 inputs `(3, size, size)` decoded on access; ids are relative paths.

    Raises:
        InputError: If there is no such folder, it has no subfolders, or no readable image.

    Warns:
        UserWarning: One for all corrupt images, with their number and the first names.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"path must be a folder with one subfolder per class, got {root}.")
    folders = sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))
    found = [(file, k) for k, folder in enumerate(folders) for file in _images(folder)]
    if check:
        found = _sound(root, found)
    if not found:
        raise InputError(
            f"{root} has no readable image in {len(folders)} subfolders; it must hold one "
            "subfolder per class."
        )
    names = [file.relative_to(root).as_posix() for file, _ in found]
    return Examples(
        inputs=ImageFiles(
            root=root,
            names=tuple(names),
            size=size,
            resize=round(size * 8 / 7) if resize is None else resize,
        ),
        labels=torch.tensor([label for _, label in found]),
        class_names=tuple(folder.name for folder in folders),
        ids=np.array(names),
        name=root.name,
    )


def _images(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in ENDINGS and not file.name.startswith(".") and file.is_file()
    )


def _sound(root: Path, found: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    kept: list[tuple[Path, int]] = []
    corrupt: list[tuple[Path, int]] = []
    with (
        ThreadPoolExecutor(cpu_count()) as pool,  # Pillow decodes outside of Python's lock
        progress_bar(f"Checking images in {root.name}", len(found)) as step,
    ):
        for start in range(0, len(found), _QUEUED):  # bounded, so that an interrupt is heard soon
            block = found[start : start + _QUEUED]
            for entry, sound in zip(block, pool.map(_decodes, [f for f, _ in block]), strict=True):
                (kept if sound else corrupt).append(entry)
                step(1)
    if corrupt:
        names = ", ".join(file.relative_to(root).as_posix() for file, _ in corrupt[:_SHOWN])
        more = f" and {len(corrupt) - _SHOWN} more" if len(corrupt) > _SHOWN else ""
        warnings.warn(
            f"{len(corrupt)} of {len(found)} images in {root} cannot be decoded and were "
            f"skipped: {names}{more}.",
            stacklevel=3,
        )
    return kept


def _decodes(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            image.draft("RGB", (1, 1))  # JPEG: all of the file is read, at an eighth of the size
            image.load()
    except _DAMAGED:
        return False
    return True
