"""Images in a folder, one subfolder per class, decoded when they are asked for.

Layer: data.
"""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from offramp._core.checks import check_path
from offramp._core.errors import InputError
from offramp._core.naming import printable, utf8_name
from offramp._core.picture import Side, check_sizes, usual_resize
from offramp._core.progress import progress_bar
from offramp.data.class_folders import (
    Classes,
    ClassList,
    check_level,
    check_listed,
    doubtful_order,
    empty_folders,
    some,
    sorted_folders,
)
from offramp.data.dataset import Dataset
from offramp.data.listing import Listing, ignored_files, is_hidden, is_picture, pictures_in
from offramp.data.picture import damage, read_image

_QUEUED = 512  # images handed to the threads at a time


@final
@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Image files as uint8 tensors `(3, height, width)`, decoded on access, or as their bytes.

    Args:
        root: Folder that the names are relative to.
        names: Files, as relative paths with "/".
        size: Height and width that are cut from the middle, in pixels, or one number for both.
        resize: What is covered by scaling first, as `read_image` takes it.
        orient: True turns images as their EXIF tags say.
        decode: False gives the bytes of the files.
    """

    root: Path
    names: tuple[str, ...]
    size: Side
    resize: Side
    orient: bool = True
    decode: bool = True

    def __post_init__(self) -> None:
        check_sizes(self.size, self.resize)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> UInt8[Tensor, "3 h w"] | bytes:
        """One image; raises `FileFormatError` if it cannot be decoded any more."""
        path = self.root / self.names[position]
        if not self.decode:
            return path.read_bytes()
        return read_image(
            path,
            size=self.size,
            resize=self.resize,
            orient=self.orient,
        )

    def take(self, positions: Sequence[int]) -> "ImageFiles":
        """Some of the images, in this order."""
        return replace(self, names=tuple(self.names[k] for k in positions))

    def identity(self) -> bytes:
        """Names and sizes of the files, and how they are turned and cut."""
        sizes = [(self.root / name).stat().st_size for name in self.names]
        how = [self.size, self.resize, "upright" if self.orient else "as it lies"]
        if not self.decode:
            how = ["as bytes"]
        return json.dumps([self.names, sizes, *how]).encode()


def image_folder(
    path: Path | str,
    *,
    size: Side = 224,
    resize: Side | None = None,
    check: bool = True,
    orient: bool = True,
    decode: bool = True,
    classes: Classes | None = None,
    class_count: int | None = None,
    order: str | None = None,
) -> Dataset:
    r"""Take the images of a folder; each subfolder is a class.

    Files may lie deeper. Hidden files and folders (a dot in front, `__MACOSX`, `@eaDir` and others
    that systems leave) are ignored anywhere; other files that are no images are counted in a
    warning.

    Args:
        path: Folder of one subfolder per class.
        size: Height and width cut from the middle, in pixels, or one number for a square.
        resize: What is covered by scaling first, as `read_image` takes it; by default `size` * 8/7
            rounded (256 for 224).
        check: True decodes every image once, with a progress bar, and leaves out those that are
            corrupt. False trusts them; a corrupt one is an error later.
        orient: True turns images as their EXIF tags say; False for a network that was trained on
            images as they lie in the files.
        decode: False gives the bytes of each file, for stages whose transforms decode and resize:
            networks of several resolutions read one folder. `size` then says nothing.
        classes: Which subfolder is which class of the network: folder names in the order of the
            classes; or a mapping of folders to numbers from 0; or a CSV file with the columns
            folder, index and perhaps name. There may be more of them than subfolders. None counts
            the subfolders in their order.
        class_count: Number of classes of the network, where the list names fewer: ten of a
            thousand.
        order: Of the classes where no list says it: "sorted" as text, 10 before 2; "natural" counts
            2 before 10, as timm does. None is "sorted", with a warning where it matters.

    Returns:
        Examples with uint8 inputs `(3, height, width)` decoded on access, or bytes; ids are
        relative paths, odd bytes in them escaped (`caf\xe9.png`).

    Raises:
        InputError: If there is no such folder, it has no subfolders, or no readable image; if it
            is one level too high (its subfolders are `train`, `val`); or if the list lacks a
            subfolder that holds images.

    Warns:
        UserWarning: One for all corrupt images, with their number and the first names; and one
            for everything else that was left out or is unusual.
    """
    root = check_path("path", path)
    if not decode and (resize is not None or not orient):
        raise InputError(
            "resize and orient must be left out where images are not decoded, got "
            f"resize={resize!r} and orient={orient!r}; the transforms say it: [Decode(orient=...), "
            "Resize(...)]."
        )
    if not root.is_dir():
        raise InputError(f"path must be a folder with one subfolder per class, got {root}.")
    cover = usual_resize(size) if resize is None else resize
    check_sizes(size, cover)  # before all images are decoded
    known = None if classes is None else ClassList.of(classes, class_count)
    if known is None and class_count is not None:
        raise InputError(f"class_count needs classes, the list to go with it, got {class_count}.")
    if known is not None and order is not None:
        raise InputError(f"order must be left out where classes says it, got {order!r}.")
    listings = {
        name: pictures_in(root / name)
        for name in sorted_folders(_subfolders(root), order or "sorted")
    }
    numbers, class_names = _numbered(root, listings, known)
    found = [(file, numbers[name]) for name in numbers for file in listings[name].files]
    if check:
        found = _sound(root, found)
    if not found:
        raise InputError(
            f"{root} has no readable image in {len(listings)} subfolders; it must hold one "
            "subfolder per class."
        )
    _warn_of_oddities(root, listings, listed=known is not None, order=order)
    names = [file.relative_to(root).as_posix() for file, _ in found]
    return Dataset(
        inputs=ImageFiles(
            root=root,
            names=tuple(names),
            size=size,
            resize=cover,
            orient=orient,
            decode=decode,
        ),
        labels=torch.tensor([label for _, label in found]),
        class_names=class_names,
        ids=np.array([utf8_name(name) for name in names]),
        name=utf8_name(root.name),
    )


def _subfolders(root: Path) -> list[str]:
    return [d.name for d in root.iterdir() if d.is_dir() and not is_hidden(d.name)]


def _numbered(
    root: Path, listings: Mapping[str, Listing], known: ClassList | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The class of each folder that counts, and the names of all classes."""
    filled = [name for name, listing in listings.items() if listing.files]
    if known is None or any(known.of_folder(name) is None for name in filled):
        check_level(root, filled, [name for name in filled if _nested(root / name, listings[name])])
    if known is None:
        return {name: k for k, name in enumerate(listings)}, tuple(map(utf8_name, listings))
    check_listed(root, filled, known)
    numbers = {name: known.of_folder(name) for name in filled}
    return {name: k for name, k in numbers.items() if k is not None}, known.names


def _nested(folder: Path, listing: Listing) -> bool:
    """True if all images lie in subfolders."""
    return all(file.parent != folder for file in listing.files)


def _warn_of_oddities(
    root: Path, listings: Mapping[str, Listing], *, listed: bool, order: str | None
) -> None:
    empty = [name for name, listing in listings.items() if not listing.files]
    said = empty_folders(empty, counted=not listed)
    beside = sum(is_picture(file) for file in root.iterdir())
    if beside:
        said.append(f"{beside} images lie beside the class folders and were left out.")
    if not listed and order is None:
        said += doubtful_order(list(listings))
    if not listed and len(listings) == 1 and all(_nested(root / k, x) for k, x in listings.items()):
        said.append(f"{some(list(listings))} is the only class; is path one level too high?")
    ignored = ignored_files(listing.ignored for listing in listings.values())
    if ignored:
        said.append(ignored)
    if said:
        warnings.warn(f"{utf8_name(str(root))}: {' '.join(said)}", stacklevel=3)


def _sound(root: Path, found: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    kept: list[tuple[Path, int]] = []
    corrupt: list[tuple[Path, str]] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,  # Pillow decodes outside of Python's lock
        progress_bar(printable(f"Checking images in {root.name}"), len(found)) as step,
    ):
        for start in range(0, len(found), _QUEUED):  # bounded, so that an interrupt is heard soon
            block = found[start : start + _QUEUED]
            for entry, wrong in zip(block, pool.map(damage, [f for f, _ in block]), strict=True):
                if wrong is None:
                    kept.append(entry)
                else:
                    corrupt.append((entry[0], wrong))
                step(1)
    if corrupt:
        names = some([file.relative_to(root).as_posix() for file, _ in corrupt])
        warnings.warn(
            f"{len(corrupt)} of {len(found)} images in {root} cannot be decoded and were "
            f"skipped: {names}. The first: {corrupt[0][1]}.",
            stacklevel=3,
        )
    return kept
