"""A process that answers batches: a bundle, loaded once, whose survivors share batches.

The whole cascade is in one process, so nothing that an example carries leaves it (docs/adr/0059).

Layer: batch.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch

from offramp._core.batch import batch_size, split_rows
from offramp._core.checks import check_known, check_positive_int
from offramp._core.cluster import check_is_there
from offramp._core.errors import FileFormatError, InputError, OfframpError
from offramp._core.open_inference import WireTensor, datatype_of
from offramp._core.types import Raw
from offramp.batch.table import Columns, Value, columns_of
from offramp.bundle import load
from offramp.bundle.pictures import ImageFiles
from offramp.runtime import NO_LABEL, Adaptive, Executor, Prediction, RowsError
from offramp.runtime.times import FULL
from offramp.serve.inputs import Inputs

Names = Sequence[int | str]
Batch = Mapping[str, np.ndarray]  # columns, as Ray Data gives them
_MAX_PIXELS = 40_000_000


@final
@dataclass(frozen=True, kw_only=True)
class Loading:
    """How each process loads a bundle.

    Args:
        bundle: A folder that every machine of the cluster can read.
        device: Where networks run, as `offramp.load` takes it, like the next five.
        backend: What runs them.
        fold: Whether batch-norms are folded.
        allow_import: Whether the bundle may name Python code to import.
        allow_network: Hosts that its services may call.
        allow_types: Types that its classifiers of scikit-learn may be made of.
        threads: CPU threads of each process, which count as that many CPUs of the cluster.
        batch_size: Examples that a stage runs at a time.
        max_request_cost: The most that an example may cost; None for any.

    Raises:
        InputError: If `threads` or `batch_size` is no integer of at least 1.
    """

    bundle: Path
    device: str = "cpu"
    backend: str | None = None
    fold: bool = False
    allow_import: bool = False
    allow_network: tuple[str, ...] = ()
    allow_types: tuple[str, ...] = ()
    threads: int = 1
    batch_size: int = FULL
    max_request_cost: float | None = None

    def __post_init__(self) -> None:
        check_positive_int("threads", self.threads)
        check_positive_int("batch_size", self.batch_size)
        object.__setattr__(self, "bundle", Path(self.bundle).absolute())

    def load(self) -> Adaptive:
        """The model.

        Raises:
            InputError: If the bundle is not on this machine.
            OfframpError: As `offramp.load`.
        """
        check_is_there(self.bundle, self.bundle.is_dir())
        return load(
            self.bundle,
            device=self.device,
            backend=self.backend,
            fold=self.fold,
            allow_import=self.allow_import,
            allow_network=self.allow_network or False,
            allow_types=self.allow_types,
        )


@final
class Answering:
    """Answers batches, and says of examples that cannot be answered why.

    Args:
        how: Which bundle.

    Raises:
        OfframpError: As `Loading.load`.
    """

    def __init__(self, how: Loading) -> None:
        torch.set_num_threads(how.threads)
        self.model = how.load()
        self._how, self._executors = how, dict[int, Executor]()
        self._inputs: Inputs | None = None

    @property
    def most(self) -> float:
        """What an example costs at most: the most expensive way, or `max_request_cost`.

        Raises:
            InputError: If no costs are known.
        """
        costs, limit = self.model.program.costs, self._how.max_request_cost
        if costs is None:
            raise InputError(
                "max_cost must be None where the bundle knows no costs. Save it with some: "
                "Adaptive(cascade, choice, costs=costs)."
            )
        return max(costs) if limit is None else min(limit, max(costs))

    def of_raw(self, names: Names, rows: Raw) -> Columns:
        """The answers to raw input that the model takes as it is, in order."""
        return self._asked(self.model, names, rows)

    def of_columns(self, names: Names, batch: Batch) -> Columns:
        """The answers to columns of numbers, files of images, or texts, in order.

        Raises:
            InputError: If they are of another kind than the model reads, all of them.
        """
        if self._inputs is None:
            self._inputs = Inputs(self.model, _MAX_PIXELS, ImageFiles.of(self._how.bundle))
        n = len(names)
        try:
            return self._asked(self._inputs.model, names, _read(self._inputs, batch))
        except (InputError, FileFormatError) as error:
            if n == 1:
                if isinstance(error, InputError):
                    raise
                return unanswered(names, error)
        return self._each(names, batch)

    def _each(self, names: Names, batch: Batch) -> Columns:
        """The same row by row, so that only those who are to blame have no answer."""
        parts, wrong = list[Columns](), list[InputError]()
        for k in range(len(names)):
            one = {name: values[k : k + 1] for name, values in batch.items()}
            try:
                parts.append(self.of_columns(names[k : k + 1], one))
            except InputError as error:
                wrong.append(error)
                parts.append(unanswered(names[k : k + 1], error))
        if len(wrong) == len(names):  # it is not the rows: it is the column
            raise wrong[0]
        return joined(parts)

    def _asked(self, model: Adaptive, names: Names, rows: Raw) -> Columns:
        n, size = batch_size(rows), self._how.batch_size
        if n != len(names):
            raise InputError(f"names must be one for each of {n} examples, got {len(names)}.")
        executor = self._executors.get(id(model))
        if executor is None:
            executor = Executor(model, workers=1, batch_size=size, patience=0.0, gears={})
            self._executors[id(model)] = executor
        firsts = range(0, n, size)
        parts = split_rows(rows, [min(size, n - k) for k in firsts])
        asked = list[Future[Prediction]]()
        for k, part in zip(firsts, parts, strict=True):
            ids = list(names[k : k + size])
            asked.append(executor.future(part, ids, budget=self._how.max_request_cost))
        found = [
            _told(names[k : k + size], future, model)
            for k, future in zip(firsts, asked, strict=True)
        ]
        return joined(found)


def _told(names: Names, future: "Future[Prediction]", model: Adaptive) -> Columns:
    """What a part was answered, with a column that says of whom it was not, and why."""
    try:
        answer, errors = future.result(), dict[int, Exception]()
    except RowsError as error:
        if error.answer is None:
            return unanswered(names, *(error.errors[k] for k in range(len(names))))
        answer, errors = error.answer, error.errors
    except Exception as error:  # noqa: BLE001  (of the only example)
        return unanswered(names, error)
    columns = columns_of(names, answer, model.class_names)
    said: list[Value] = [_said(errors[k]) if k in errors else None for k in range(len(names))]
    stages = ["" if k in errors else stage for k, stage in enumerate(columns["stage"])]
    return {**columns, "stage": stages, "error": said}


def unanswered(names: Names, *errors: Exception) -> Columns:
    """What is told of examples that have no answer: one error of all, or one of each."""
    n = len(names)
    each = errors if len(errors) == n else errors * n
    return {
        "id": list(names),
        "label": [NO_LABEL] * n,
        "class_name": [""] * n,
        "confidence": [0.0] * n,
        "stage": [""] * n,
        "cost": [0.0] * n,
        "error": [_said(error) for error in each],
    }


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, OfframpError) else f"{type(error).__name__}: {error}"


def joined(parts: Sequence[Columns]) -> Columns:
    """The rows of several, one after the other."""
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def _read(inputs: Inputs, batch: Batch) -> Raw:
    """Raw input of columns."""
    wanted = [column.name for column in inputs.columns]
    given = dict(batch)
    if len(wanted) == len(given) == 1:
        given = {wanted[0]: next(iter(given.values()))}
    for name in wanted:
        check_known("column", name, given)
    if all(given[name].dtype != object for name in wanted) and inputs.kind == "tensor":
        shapes = {column.name: column.shape for column in inputs.columns}
        arrays = {name: _arranged(given[name], shapes[name]) for name in wanted}
        return inputs.of_tensors(
            [
                WireTensor(name=name, datatype=datatype_of(array), values=array)
                for name, array in arrays.items()
            ]
        )
    if len(wanted) == 1 and inputs.kind != "columns":
        return inputs.of_rows(given[wanted[0]].tolist())
    values = [given[name].tolist() for name in wanted]
    return inputs.of_rows(
        [dict(zip(wanted, row, strict=True)) for row in zip(*values, strict=True)]
    )


def _arranged(array: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """Numbers as networks read them: in 32 bits, and channels first, which Ray Data puts last."""
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    if shape is not None and len(shape) == 3 and array.shape[1:] == (*shape[1:], shape[0]):
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    return np.array(array)  # Ray's are read-only
