"""`offramp predict`: answers of a bundle, as a table.

Layer: cli.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from offramp._core.errors import InputError, MissingExtraError
from offramp._core.files import whole_file
from offramp._core.progress import progress_bar
from offramp.cli import options
from offramp.cli.output import Output, amount, note, percent

if TYPE_CHECKING:
    from offramp.bundle import LoadedBundle
    from offramp.runtime import Answer

_SHOWN = 5  # skipped files named in a note
_INVALID = -1

Columns = Mapping[str, Sequence[int | float | str]]


class _Write(Protocol):
    def __call__(self, columns: Columns) -> None:
        """Write some more rows."""
        ...


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle to run.")],
    inputs: Annotated[
        list[Path], typer.Argument(help="Images, folders of images, or npz files.")
    ],
    out: Annotated[
        Path, typer.Option(help="Table to write; it ends in .csv or .parquet.")
    ] = Path("predictions.csv"),
    array: Annotated[str, typer.Option(help="Name of the inputs in npz files.")] = "images",
    ids: Annotated[
        str | None, typer.Option(help="Name of the ids in npz files; by default counted.")
    ] = None,
    batch_size: options.BatchSize = 256,
    device: options.Device = "cpu",
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Fold batch-norms: faster, equal only to rounding."),
    ] = False,
    allow_import: options.AllowImport = False,
    json: options.Json = False,
) -> None:
    """Classify images or arrays with a bundle.

    In: a bundle, and images, folders of images (with or without subfolders), or npz files.
    Out: a table with id, label, class_name, confidence, stage and cost of each input. Images
    that cannot be decoded are skipped, counted and named.

    Example: offramp predict runs/demo/bundle photos/ --out predictions.csv
    """
    from offramp.bundle import load_bundle
    from offramp.cli.inputs import InputReader

    output = Output(as_json=json)
    if out.suffix not in _WRITERS:
        raise InputError(f"--out must end in {' or '.join(_WRITERS)}, got {out.name!r}.")
    loaded = load_bundle(bundle, device=device, optimise=fast, allow_import=allow_import)
    reader = InputReader.of(loaded, inputs, array=array, ids=ids)
    left: Counter[str] = Counter()
    n, invalid, total_cost = 0, 0, 0.0
    with _WRITERS[out.suffix](out) as write, progress_bar("Predicting", None) as step:
        for names, batch in reader.batches(batch_size):
            answer = loaded.adaptive(batch, names)
            columns = columns_of(names, answer, loaded.class_names)
            write(columns)
            left.update(str(stage) for stage in columns["stage"])
            n += len(names)
            invalid += int((~answer.valid).sum())
            total_cost += 0.0 if answer.cost is None else float(answer.cost.sum())
            step(len(names))
        if n == 0:
            raise InputError(f"None of the {len(reader.skipped)} images can be decoded.")
    if reader.skipped:
        names_shown = ", ".join(reader.skipped[:_SHOWN])
        more = f" and {len(reader.skipped) - _SHOWN} more" if len(reader.skipped) > _SHOWN else ""
        note(f"{len(reader.skipped)} images cannot be decoded, skipped: {names_shown}{more}.")
    if invalid:
        note(f"{invalid} inputs have no answer (no finite logits): label {_INVALID}.")
    unit = _unit(loaded)
    output.line(f"{n} answers in {out}")
    output.table(["left at", "inputs", "share"], _exits(loaded, left, n))
    if unit is not None:
        output.line(f"mean cost {amount(total_cost / n, unit)}")
    output.result(
        {
            "out": str(out),
            "n": n,
            "skipped": reader.skipped,
            "invalid": invalid,
            "exits": {name: left[name] for name in loaded.adaptive.stage_names if left[name]},
            "unit": unit,
            "mean_cost": None if unit is None else total_cost / n,
        }
    )


def columns_of(
    names: Sequence[int | str], answer: "Answer", class_names: Sequence[str]
) -> Columns:
    """The rows of a batch, by column."""
    labels = answer.labels.tolist()
    nothing: list[float | str] = [""] * len(names)
    return {
        "id": list(names),
        "label": labels,
        "class_name": [
            class_names[k] if k >= 0 and class_names else ("" if k < 0 else str(k)) for k in labels
        ],
        "confidence": answer.confidence.tolist(),
        "stage": [answer.stage_names[k] for k in answer.stage.tolist()],
        "cost": nothing if answer.cost is None else answer.cost.tolist(),
    }


def _unit(loaded: "LoadedBundle") -> str | None:
    costs = loaded.manifest.stage_costs()
    return None if costs is None else costs.unit


def _exits(loaded: "LoadedBundle", left: Counter[str], n: int) -> list[list[str]]:
    names = [name for name in loaded.adaptive.stage_names if left[name]]
    return [[name, str(left[name]), percent(left[name] / n)] for name in names]


@contextmanager
def _csv(out: Path) -> Iterator[_Write]:
    with whole_file(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        started = False

        def write(columns: Columns) -> None:
            nonlocal started
            if not started:
                writer.writerow(columns)
                started = True
            writer.writerows(zip(*columns.values(), strict=True))

        yield write


@contextmanager
def _parquet(out: Path) -> Iterator[_Write]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
    with whole_file(out) as temporary:
        held: list[parquet.ParquetWriter] = []

        def write(columns: Columns) -> None:
            # Ids of several files may be numbers and names; a column has one type.
            fixed = {**columns, "id": [str(name) for name in columns["id"]]}
            if set(columns["cost"]) == {""}:
                fixed["cost"] = [float("nan")] * len(columns["cost"])
            table = pa.table(fixed)
            if not held:
                held.append(parquet.ParquetWriter(temporary, table.schema))
            held[0].write_table(table)

        try:
            yield write
        finally:
            for writer in held:
                writer.close()


_WRITERS = {".csv": _csv, ".parquet": _parquet}
