"""`offramp predict --engine ray`: the same answers, by the processes of a cluster.

Layer: cli.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import sha256
from offramp._core.optional import imported
from offramp._core.progress import progress_bar
from offramp.batch import Loading, Shard, predict_shards
from offramp.bundle.names import MANIFEST
from offramp.cli.output import Output, note, percent

if TYPE_CHECKING:
    import numpy as np

    from offramp.batch.answering import Answering
    from offramp.batch.table import Columns
    from offramp.project.inputs import InputReader

_TABLE = ".parquet"


@final
@dataclass(frozen=True, kw_only=True)
class Piece:
    """What a shard is read from.

    Args:
        files: Names and paths: images, or one file of many examples.
        turn: Which part of such a file; of a table of Parquet, which row group.
        first: Number of the first example, for ids that are counted.
    """

    files: tuple[tuple[str, Path], ...]
    turn: int = 0
    first: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class Reading:
    """Reads shards in whichever process answers them.

    Args:
        reader: Of images, arrays and texts; None where there are only tables.
        size: Examples in a shard.
        column: Of texts, or other rows, in tables.
        columns: Those of numbers in its place, where the bundle reads some by name.
        ids: Column of their ids, or None to count.
        alone: Whether there is one file, so that its name says nothing.
    """

    reader: "InputReader | None"
    size: int
    column: str
    columns: tuple[str, ...] = ()
    ids: str | None
    alone: bool

    def __call__(self, shard: Shard, answering: "Answering") -> "Iterator[Columns]":
        """The answers to a shard, files that cannot be decoded among them."""
        from offramp.batch.answering import unanswered
        from offramp.project.inputs import holds_many

        piece: Piece = shard.what
        name, path = piece.files[0]
        if path.suffix.lower() == _TABLE:
            yield self._of_table(name, path, piece, answering)
            return
        if self.reader is None:  # for mypy: there are only tables
            return
        reader = replace(self.reader, files=piece.files, skipped=[], alone=self.alone)
        if holds_many(path):
            yield answering.of_raw(*reader.part(piece.turn, self.size))
            return
        for names, rows in reader.batches(self.size):
            yield answering.of_raw(names, rows)
        if reader.skipped:
            error = FileFormatError("The file cannot be decoded as an image.")
            yield unanswered(reader.skipped, error)

    def _of_table(self, name: str, path: Path, piece: Piece, answering: "Answering") -> "Columns":
        from offramp.data.table import as_numbers

        parquet = imported("pyarrow.parquet", "parquet")
        read = list(self.columns) or [self.column]
        wanted = read if self.ids is None else [*read, self.ids]
        table = parquet.ParquetFile(path).read_row_group(piece.turn, columns=wanted)
        rows = {column: table[column].to_pylist() for column in read}
        if self.columns:
            numbers = as_numbers(path, rows)
            values = {column: numbers[column].numpy() for column in read}
        else:
            values = {self.column: _array(rows[self.column])}
        n = table.num_rows
        if self.ids is not None:
            names = table[self.ids].to_pylist()
        else:
            counted = range(piece.first, piece.first + n)
            names = [k if self.alone else f"{name}[{k}]" for k in counted]
        return answering.of_columns(names, values)


def _array(rows: list[Any]) -> "np.ndarray":
    """Rows of a table as an array: of numbers where they are lists of such, else of objects."""
    import numpy as np

    if rows and isinstance(rows[0], list):
        return np.array(rows)
    values = np.empty(len(rows), dtype=object)
    values[:] = rows
    return values


def predict_with_ray(
    how: Loading,
    inputs: Sequence[Path],
    out: Path,
    *,
    reading: Mapping[str, Any],
    shard: int,
    workers: int | None,
    max_cost: float | None,
    overwrite: bool,
    output: Output,
) -> None:
    """Answer what the command line names, and say what came of it."""
    if out.suffix:
        raise InputError(
            f"--out must be a folder for the tables of the shards, with --engine ray, got "
            f"{out.name!r}."
        )
    shards, read = planned(how.bundle, inputs, reading, shard)
    asked = {
        "bundle": sha256(how.bundle / MANIFEST),
        "inputs": hashlib.sha256("\n".join(map(_named, shards)).encode()).hexdigest(),
        "options": {**reading, "max_request_cost": how.max_request_cost},
    }
    total = sum(part.n for part in shards)
    with progress_bar("Predicting", total) as step:
        tally = predict_shards(
            shards,
            read,
            how,
            out,
            asked=asked,
            workers=workers,
            max_cost=max_cost,
            overwrite=overwrite,
            told=step,
        )
    if tally.errors:
        note(f"{tally.errors} inputs have no answer; the column error says why.")
    if tally.left:
        note(
            f"{tally.left} of {len(shards)} shards were not begun: they might cost more than "
            "--max-cost allows. Give the command again with more, and it goes on."
        )
    output.line(f"{tally.n} answers in {out}")
    rows = [
        [name, str(count), percent(count / tally.n)] for name, count in tally.exits.most_common()
    ]
    output.table(["left at", "inputs", "share"], rows)
    output.result(
        {
            "out": str(out),
            "n": tally.n,
            "errors": tally.errors,
            "invalid": tally.invalid,
            "cost": tally.cost,
            "exits": dict(tally.exits),
            "shards": len(shards),
            "left": tally.left,
        }
    )


def planned(
    bundle: Path, inputs: Sequence[Path], reading: Mapping[str, Any], size: int
) -> tuple[list[Shard], Reading]:
    """The shards of a job, and what reads them.

    Raises:
        InputError: As `InputReader.of`.
    """
    from offramp.bundle import read_manifest
    from offramp.project.inputs import InputReader, columns_read

    paths = [path.absolute() for path in inputs]
    tables = [path for path in paths if path.suffix.lower() == _TABLE]
    others = [path for path in paths if path.suffix.lower() != _TABLE]
    reader = InputReader.of(bundle, others, **reading) if others else None
    files = [] if reader is None else list(reader.files)
    if reader is not None:
        reader.kept = {}  # each process reads a file once, not once for each shard of it
    alone = len(files) + len(tables) == 1
    columns = columns_read(getattr(s, "transform", None) for s in read_manifest(bundle).stages)
    read = Reading(
        reader=reader,
        size=size,
        column=reading["column"],
        columns=columns,
        ids=reading["ids"],
        alone=alone,
    )
    shards = list[Shard]()
    images = list[tuple[str, Path]]()
    for name, path in files:
        many = _count(path, {**reading, "column": next(iter(columns), reading["column"])})
        if many is None:
            images.append((name, path))
            continue
        firsts = range(0, many, size)
        shards += [
            Shard(n=min(size, many - k), what=Piece(files=((name, path),), turn=k // size))
            for k in firsts
        ]
    for k in range(0, len(images), size):
        part = tuple(images[k : k + size])
        shards.append(Shard(n=len(part), what=Piece(files=part)))
    for path in tables:
        shards += _groups(path)
    return shards, read


def _count(path: Path, reading: Mapping[str, Any]) -> int | None:
    """How many examples a file has; None of an image."""
    from offramp.data.arrays import read_arrays
    from offramp.data.table import TABLES
    from offramp.data.texts import LINES, read_texts

    if path.suffix.lower() == ".npz":
        return len(read_arrays(path, [reading["array"]])[reading["array"]])
    if path.suffix.lower() in (*LINES, *TABLES):
        return len(read_texts(path, reading["column"]))
    return None


def _groups(path: Path) -> Iterable[Shard]:
    """The row groups of a table."""
    parquet = imported("pyarrow.parquet", "parquet")
    if not path.is_file():
        raise InputError(f"There is no such input: {path}.")
    try:
        told = parquet.ParquetFile(path).metadata
    except Exception as error:
        raise FileFormatError(f"{path} cannot be read as a table of Parquet: {error}") from error
    first = 0
    for k in range(told.num_row_groups):
        n = told.row_group(k).num_rows
        yield Shard(n=n, what=Piece(files=((path.name, path),), turn=k, first=first))
        first += n


def _named(shard: Shard) -> str:
    """Which examples a shard has, as long as nobody changes the files."""
    each = (f"{path}:{path.stat().st_size}" for _, path in shard.what.files)
    return f"{shard.n} {shard.what.turn} {' '.join(each)}"
