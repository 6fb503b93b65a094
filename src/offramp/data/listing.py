"""Which files below a folder are pictures, for everyone who reads folders.

Layer: data.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from offramp._core.naming import utf8_name

#: Endings of files that are taken for images.
ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp"),
    *(".gif", ".tif", ".tiff", ".ppm", ".pgm"),
)
# What systems and programs leave in folders of people; names with a dot in front are theirs too.
_SYSTEM = frozenset(
    (
        *("__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "$recycle.bin"),
        *("system volume information", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini"),
    )
)


@final
@dataclass(frozen=True, kw_only=True)
class Listing:
    """The pictures below a folder.

    Args:
        files: In the order of their paths.
        ignored: How many other files there are, by ending in lower case; hidden ones are left out.
    """

    files: tuple[Path, ...]
    ignored: Mapping[str, int]


def is_hidden(name: str) -> bool:
    """True for what begins with a dot, and what systems leave: `__MACOSX`, `@eaDir`, `Thumbs.db`.

    >>> is_hidden(".ipynb_checkpoints"), is_hidden("__MACOSX"), is_hidden("cat")
    (True, True, False)
    """
    return name.startswith(".") or name.lower() in _SYSTEM


def is_picture(file: Path) -> bool:
    """True for a file with an image's ending that is not hidden."""
    return file.suffix.lower() in ENDINGS and not is_hidden(file.name) and file.is_file()


def pictures_in(folder: Path) -> Listing:
    """The pictures in a folder and its subfolders; nothing below a hidden folder is looked at.

    Raises:
        OSError: If a subfolder cannot be read.
    """
    found: list[Path] = []
    ignored: Counter[str] = Counter()
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for file in (Path(place, name) for name in names if not is_hidden(name)):
            if is_picture(file):
                found.append(file)
            else:
                ignored[utf8_name(file.suffix.lower())] += 1
    return Listing(files=tuple(sorted(found)), ignored=ignored)


def ignored_files(listings: Iterable[Mapping[str, int]]) -> str:
    """A sentence about files that were left out, or nothing.

    >>> ignored_files([{".heic": 2, ".txt": 1}])
    '3 files were left out, whose endings offramp does not read: .heic (2), .txt (1).'
    """
    counts: Counter[str] = Counter()
    for listing in listings:
        counts.update(listing)
    if not counts:
        return ""
    total = sum(counts.values())
    kinds = ", ".join(f"{end or 'none'} ({n})" for end, n in sorted(counts.items()))
    what = "1 file was left out, whose ending" if total == 1 else f"{total} files were left out"
    return f"{what}{'' if total == 1 else ', whose endings'} offramp does not read: {kinds}."


def _unreadable(error: OSError) -> None:
    raise error
