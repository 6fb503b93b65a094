"""Texts from files: one on each line, or a column of a table.

Layer: data.
"""

from collections.abc import Sequence
from pathlib import Path

from offramp._core.checks import check_path
from offramp._core.errors import FileFormatError, InputError
from offramp.data.arrays import rows
from offramp.data.dataset import Dataset
from offramp.data.table import TABLES, read_table

LINES = (".txt",)


def texts(
    path: Path | str,
    *,
    text: str = "text",
    label: str = "label",
    id: str | None = None,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    r"""Read labeled texts from a table with a header: .csv, or .tsv, whose fields have no quotes.

    Args:
        path: The file, in UTF-8.
        text: Column of the texts, the inputs.
        label: Column of the labels: names, or numbers in [0, c).
        id: Column of unique ids; by default rows are counted from 0.
        split: Column of the splits' names.
        class_names: Names of the classes; by default those that are there, sorted, or, where all
            are whole numbers, these.

    Raises:
        FileFormatError: If the file cannot be read.
        UnknownNameError: If it has no such column.
        InputError: As `rows`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Path(folder) / "reviews.csv"
    ...     _ = table.write_text("text,label\nfine,good\npoor,bad\n")
    ...     examples = texts(table)
    >>> examples.class_names, examples.batch(0, 1).inputs
    (('bad', 'good'), ['fine'])
    """
    path = check_path("path", path)
    wanted = [text, label, *[column for column in (id, split) if column is not None]]
    found = read_table(path, wanted)
    labels: list[int] | list[str] = found[label]
    if class_names is None:
        if all(value.isdecimal() for value in found[label]):
            labels = [int(value) for value in found[label]]
        else:
            class_names = sorted(set(found[label]))
    return rows(
        found[text],
        labels,
        class_names=class_names,
        ids=None if id is None else found[id],
        split=None if split is None else found[split],
        name=path.name,
    )


def read_texts(path: Path, column: str = "text") -> list[str]:
    """The texts of a file: each line of a .txt, or a column of a table.

    Raises:
        FileFormatError: If it cannot be read.
        UnknownNameError: If there is no such column.
    """
    if path.suffix.lower() in TABLES:
        return read_table(path, [column])[column]
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} cannot be read as text in UTF-8: {error}") from error
    lines = content.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"{path} is empty.")
    return lines
