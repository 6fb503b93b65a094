"""`offramp predict`: answers of a bundle, as a table.

Layer: cli.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, final, runtime_checkable

import typer

from offramp._core.errors import InputError
from offramp._core.files import new_file
from offramp._core.optional import imported
from offramp._core.ownership import check_file
from offramp._core.progress import progress_bar
from offramp.batch.table import Columns, Value, arrow_table, columns_of
from offramp.cli import options
from offramp.cli.output import Output, amount, note, percent

if TYPE_CHECKING:
    from offramp.project.inputs import InputReader
    from offramp.runtime import Adaptive, Prediction

_SHOWN = 5  # skipped files named in a note
# Whoever takes the first ' off such text has the name again: those with one already get another.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")

_Ask = Callable[[Any, Any], "Prediction"]  # of a batch and the names of its examples


@runtime_checkable
class _Write(Protocol):
    def __call__(self, columns: Columns) -> None:
        """Write some more rows."""
        ...


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle to run.")],
    inputs: Annotated[
        list[Path], typer.Argument(help="Images, folders, npz files, tables, or texts.")
    ],
    out: Annotated[Path, typer.Option(help="Table to write; it ends in .csv or .parquet.")] = Path(
        "predictions.csv"
    ),
    array: options.Array = "images",
    ids: Annotated[
        str | None,
        typer.Option(help="Name of the ids in npz files and tables; by default counted."),
    ] = None,
    column: Annotated[
        str, typer.Option(help="Name of the texts in tables; of a .txt each line is one.")
    ] = "text",
    batch_size: options.BatchSize = 256,
    device: options.Device = "cpu",
    backend: options.Backend = None,
    threads: options.Threads = None,
    fold: options.Fold = False,
    orient: Annotated[
        bool | None,
        typer.Option(
            "--orient/--no-orient",
            help="Turn images as their EXIF tags say, or not; by default as the images were read "
            "that the bundle was fitted on, else turned.",
        ),
    ] = None,
    allow_import: options.AllowImport = False,
    allow_network: options.AllowNetwork = None,
    allow_types: options.AllowTypes = None,
    max_request_cost: Annotated[
        float | None,
        typer.Option(
            help="The most that an input may cost, in the bundle's unit: no stage is begun that "
            "would go beyond, and those before it answer."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="What runs it: local, this process; or ray, a cluster.")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of --engine ray; by default all of its CPUs."),
    ] = None,
    shard: Annotated[
        int, typer.Option(min=1, help="Inputs in each table that --engine ray writes.")
    ] = 1024,
    max_cost: Annotated[
        float | None,
        typer.Option(
            help="The most that all inputs together may cost, with --engine ray: no shard is begun "
            "that might go beyond."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a table that is there already.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Classify images, arrays, rows of a table or texts with a bundle.

    In: a bundle, and images, folders of images (with or without subfolders), npz files; tables
    (.csv, .tsv, .parquet) with the columns that the bundle reads, found by name; or texts: one on
    each line of a .txt, or a column of a table.

    Out: a table with id, label, class_name, confidence, stage and cost of each input. Images
    that cannot be decoded are skipped, counted and named; hidden files and folders are ignored,
    files with other endings counted. Text in a .csv that a spreadsheet would take for a formula
    begins with an apostrophe; odd bytes in file names are written out in hexadecimal.

    With --engine ray, of the extra `ray`, processes of a cluster answer shards, and --out is a
    folder of tables, one for each shard; it takes .parquet as well. A job that was stopped goes on
    where it was when it is given again.

    Example: offramp predict runs/demo/bundle photos/ --out predictions.csv
    """
    from offramp import load
    from offramp._core.checks import check_choice
    from offramp.data.listing import ignored_files
    from offramp.project.inputs import InputReader
    from offramp.runtime import NO_LABEL

    output = Output(as_json=json)
    check_choice("--engine", engine, ("local", "ray"))
    options.set_threads(threads)
    if engine == "ray":
        from offramp.batch import Loading
        from offramp.cli.predict_ray import predict_with_ray

        how = Loading(
            bundle=bundle,
            device=device,
            backend=backend,
            fold=fold,
            allow_import=allow_import,
            allow_network=tuple(allow_network or ()),
            allow_types=tuple(allow_types or ()),
            threads=threads or 1,
            batch_size=batch_size,
            max_request_cost=max_request_cost,
        )
        predict_with_ray(
            how,
            inputs,
            out,
            reading={"array": array, "ids": ids, "orient": orient, "column": column},
            shard=shard,
            workers=workers,
            max_cost=max_cost,
            overwrite=overwrite,
            output=output,
        )
        return
    if max_cost is not None or workers is not None:
        raise InputError("--max-cost and --workers go with --engine ray.")
    if out.suffix not in _WRITERS:
        raise InputError(f"--out must end in {' or '.join(_WRITERS)}, got {out.name!r}.")
    check_file(out, overwrite=overwrite, keep=[bundle, *inputs])
    model = load(
        bundle,
        device=device,
        fold=fold,
        allow_import=allow_import,
        allow_network=allow_network or False,
        allow_types=allow_types or (),
        backend=backend,
    )
    reader = InputReader.of(bundle, inputs, array=array, ids=ids, orient=orient, column=column)
    with _WRITERS[out.suffix](out, overwrite) as write, _answers(model, max_request_cost) as ask:
        tally = _predict(model, ask, reader, write, batch_size)
    if ignored := ignored_files([reader.ignored]):
        note(ignored)
    if reader.skipped:
        shown = ", ".join(reader.skipped[:_SHOWN])
        more = f" and {len(reader.skipped) - _SHOWN} more" if len(reader.skipped) > _SHOWN else ""
        note(f"skipped {len(reader.skipped)} images that cannot be decoded: {shown}{more}.")
    if tally.invalid:
        note(f"{tally.invalid} inputs have no answer (nothing finite): label {NO_LABEL}.")
    if tally.ended:
        note(f"{tally.ended} inputs were answered by what their budget allows.")
    costs = model.costs
    mean_cost = None if costs is None else tally.cost / tally.n
    output.line(f"{tally.n} answers in {out}")
    exits = {name: tally.left[name] for name in model.stage_names if tally.left[name]}
    rows = [[name, str(count), percent(count / tally.n)] for name, count in exits.items()]
    output.table(["left at", "inputs", "share"], rows)
    if costs is not None and mean_cost is not None:
        output.line(f"mean cost {amount(mean_cost, costs.unit)}")
    output.result(
        {
            "out": str(out),
            "n": tally.n,
            "skipped": reader.skipped,
            "ignored": dict(reader.ignored),
            "invalid": tally.invalid,
            "ended_by_budget": tally.ended,
            "exits": exits,
            "unit": None if costs is None else costs.unit,
            "mean_cost": mean_cost,
        }
    )


@final
@dataclass
class _Tally:
    """What happened to all inputs together."""

    n: int = 0
    invalid: int = 0
    ended: int = 0  # by their budget
    cost: float = 0.0
    left: Counter[str] = field(default_factory=Counter)


@contextmanager
def _answers(model: "Adaptive", budget: float | None) -> "Iterator[_Ask]":
    """What answers a batch, where each input may cost no more than a budget."""
    from offramp.runtime import Executor

    if budget is None:
        yield model
        return
    with Executor(model, patience=0.0) as executor:
        yield lambda batch, names: executor.future(batch, names, budget=budget).result()


def _predict(
    model: "Adaptive", ask: "_Ask", reader: "InputReader", write: _Write, size: int
) -> _Tally:
    """Answer all inputs, batch by batch, so that memory does not grow with their number."""
    tally = _Tally()
    with progress_bar("Predicting", None) as step:
        for names, batch in reader.batches(size):
            answer = ask(batch, names)
            columns = columns_of(names, answer, model.class_names)
            write(columns)
            tally.n += len(names)
            tally.invalid += int((~answer.valid).sum())
            tally.cost += 0.0 if answer.cost is None else float(answer.cost.sum())
            tally.ended += answer.reasons.count("budget")
            tally.left.update(str(stage) for stage in columns["stage"])
            step(len(names))
    if tally.n == 0:
        raise InputError(
            f"There is nothing to predict: {len(reader.skipped)} images, none of which can be "
            "decoded."
        )
    return tally


def _cell(value: Value) -> Value:
    """A value as a spreadsheet may read it: text that it would run as a formula begins with '.

    Who names the files and classes is not who opens the table. Text that is a number stays one.
    """
    if not isinstance(value, str) or not _FORMULA.match(value) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"


@contextmanager
def _csv(out: Path, overwrite: bool) -> Iterator[_Write]:
    new = new_file(out, overwrite=overwrite)
    with new as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        started = False

        def write(columns: Columns) -> None:
            nonlocal started
            if not started:
                writer.writerow(columns)
                started = True
            rows = zip(*columns.values(), strict=True)
            writer.writerows([_cell(value) for value in row] for row in rows)

        yield write


@contextmanager
def _parquet(out: Path, overwrite: bool) -> Iterator[_Write]:
    parquet = imported("pyarrow.parquet", "parquet")
    with new_file(out, overwrite=overwrite) as temporary:
        held: list[Any] = []

        def write(columns: Columns) -> None:
            table = arrow_table(columns)
            if not held:
                held.append(parquet.ParquetWriter(temporary, table.schema))
            held[0].write_table(table)

        try:
            yield write
        finally:
            for writer in held:
                writer.close()


_WRITERS = {".csv": _csv, ".parquet": _parquet}
