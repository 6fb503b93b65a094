"""Which subfolder is which class: by the order of their names, or as a list says.

Layer: data.
"""

import csv
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import final

from offramp._core.checks import check_choice, check_positive_int
from offramp._core.errors import FileFormatError, InputError
from offramp._core.naming import utf8_name

#: Names in the order of the classes; or the class of each; or a CSV file that says it.
Classes = Sequence[str] | Mapping[str, int] | Path
ORDERS = ("sorted", "natural")
_SPLITS = frozenset(
    (
        *("train", "training", "val", "valid", "validation", "dev", "eval"),
        *("test", "testing", "trainval", "fit", "calibrate", "holdout"),
    )
)
_SHOWN = 5  # folders named in a message
_CLASSES_AT_MOST = 10_000_000


@final
@dataclass(frozen=True, kw_only=True)
class ClassList:
    """The classes of a network, and which folders are theirs.

    Args:
        index: Class of each folder by name, from 0.
        names: Names of all classes, for people.
    """

    index: Mapping[str, int]
    names: tuple[str, ...]

    @classmethod
    def of(cls, classes: Classes, count: int | None) -> "ClassList":
        """A list as `image_folder` takes it.

        Raises:
            InputError: If it is empty, names a folder twice, or a number is no class.
            FileFormatError: If a CSV file lacks a column or cannot be read.
        """
        rows = _rows(classes)
        if not rows:
            raise InputError("classes must name at least one folder, got none.")
        index: dict[str, int] = {}
        for folder, number, _ in rows:
            if _key(folder) in index:
                raise InputError(f"classes must name each folder once, got {folder!r} twice.")
            if not 0 <= number < _CLASSES_AT_MOST:
                raise InputError(f"classes must count from 0, got {number} for {folder!r}.")
            index[_key(folder)] = number
        least = max(index.values()) + 1
        n = least if count is None else check_positive_int("class_count", count)
        if n < least:
            raise InputError(
                f"class_count must be above every class of the list ({least - 1}), got {n}."
            )
        return cls(index=index, names=_names(rows, n))

    def of_folder(self, name: str) -> int | None:
        """The class of a folder, or None if the list does not name it."""
        return self.index.get(_key(name))


def sorted_folders(names: Iterable[str], order: str) -> list[str]:
    """Names in the order of the classes: as text, or with numbers in them counted.

    >>> sorted_folders(["10", "2", "1"], "sorted"), sorted_folders(["10", "2", "1"], "natural")
    (['1', '10', '2'], ['1', '2', '10'])
    """
    if check_choice("order", order, ORDERS) == "sorted":
        return sorted(names)
    return sorted(names, key=lambda name: (_natural(name), name))


def check_level(root: Path, names: Sequence[str], nested: Sequence[str]) -> None:
    """Refuse a folder of `train/` and `val/`, which is one level above the classes.

    Args:
        root: The folder.
        names: Its subfolders that hold pictures.
        nested: Those of them that hold pictures in subfolders only.

    Raises:
        InputError: If all of them are named like splits, and are several or hold subfolders.
    """
    if not names or any(name.lower() not in _SPLITS for name in names):
        return
    if len(names) > 1 or nested:
        raise InputError(
            f"path must be a folder with one subfolder per class, got {root}, whose subfolders "
            f"are splits ({', '.join(names)}). Take one of them, such as {root / names[0]}; if "
            "these are classes indeed, name them in classes."
        )


def check_listed(root: Path, names: Sequence[str], known: ClassList) -> None:
    """Raise `InputError` that names the folders which a list does not."""
    unknown = [name for name in names if known.of_folder(name) is None]
    if not unknown:
        return
    near = get_close_matches(unknown[0], list(known.index), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(
        f"classes must name each subfolder of {root} that holds images; it lacks "
        f"{some(unknown)}.{hint} Add it to the list, or move it elsewhere."
    )


def empty_folders(empty: Sequence[str], *, counted: bool) -> list[str]:
    """A sentence about class folders without an image; `counted` if they are classes even so."""
    if not empty:
        return []
    what = "1 class folder holds" if len(empty) == 1 else f"{len(empty)} class folders hold"
    return [f"{what} no image: {some(empty)}{', and counts all the same' if counted else ''}."]


def doubtful_order(names: Sequence[str]) -> list[str]:
    """A sentence about numbered folders in an order that nobody chose, where it matters."""
    if not all(map(str.isdecimal, names)) or list(names) == sorted_folders(names, "natural"):
        return []
    return [
        f"The class folders are numbered and were sorted as text ({some(names)}), as torchvision "
        "does it; timm counts. Say order='sorted' or order='natural'."
    ]


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(utf8_name(name)) for name in names[:_SHOWN]) + more


def _key(name: str) -> str:
    """Macs write letters with accents as two characters, others as one."""
    return unicodedata.normalize("NFC", utf8_name(name))


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _rows(classes: Classes) -> list[tuple[str, int, str | None]]:
    """Folder, class, and name if there is one."""
    if isinstance(classes, Mapping):
        return [(folder, int(number), None) for folder, number in classes.items()]
    if isinstance(classes, str | Path):
        return _read_list(Path(classes))
    return [(folder, k, folder) for k, folder in enumerate(classes)]


def _read_list(path: Path) -> list[tuple[str, int, str | None]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            columns = table.fieldnames or []
            rows = list(table)
    except (OSError, ValueError, csv.Error) as error:
        raise FileFormatError(f"{path} cannot be read as a list of classes: {error}") from error
    if "folder" not in columns or "index" not in columns:
        raise FileFormatError(
            f"{path} must have the columns folder and index, and may have name, got "
            f"{', '.join(columns) or 'none'}."
        )
    found = []
    for line, row in enumerate(rows, start=2):
        folder, number = row["folder"], row["index"]
        if not folder or number is None or not re.fullmatch(r"\s*[0-9]{1,9}\s*", number):
            raise FileFormatError(
                f"{path}, line {line}: index must be the number of a class, from 0, and folder "
                f"its name, got {number!r} and {folder!r}."
            )
        found.append((folder, int(number), row.get("name") or None))
    return found


def _names(rows: Sequence[tuple[str, int, str | None]], count: int) -> tuple[str, ...]:
    """Names of all classes; those of which nothing is known go by their number."""
    given: dict[int, list[str]] = {}
    for folder, number, name in rows:
        names = given.setdefault(number, [])
        called = utf8_name(folder) if name is None else name
        if called not in names:
            names.append(called)
    return tuple(", ".join(given.get(k, [str(k)])) for k in range(count))
