"""A dataset of Ray Data, answered by a pool of processes.

Layer: batch.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError
from offramp.batch.cluster import Workers, ray_data, resources
from offramp.batch.table import with_numbers

if TYPE_CHECKING:
    from offramp.batch.answering import Answering, Batch, Loading

_ROWS = 1024  # that come to a process at a time; survivors share batches among them


def classify(
    dataset: Any,  # noqa: ANN401  (ray.data.Dataset; Ray is optional)
    bundle: "Path | str | Loading",
    *,
    inputs: str | Sequence[str] | None = None,
    id: str | None = "id",
    workers: Workers | None = None,
    rows: int = _ROWS,
    num_gpus: float = 0,
) -> Any:  # noqa: ANN401
    """Answer every row of a dataset with a bundle; nothing runs before the result is read.

    Each process holds the whole cascade, so what examples carry from stage to stage leaves none.
    Rows come out in any order, with their ids. A row that cannot be answered has the label -1, and
    `error` says why; the others of its batch are answered.

    Args:
        dataset: Of `ray.data`: `read_parquet`, `read_images`, `read_binary_files`, ...
        bundle: A folder that every machine of the cluster can read, or a `Loading` with options.
        inputs: The column that the model reads, or its columns by the names that it has for them:
            numbers, files of images as bytes, or texts; by default the only column that is not the
            id.
        id: The column of ids; None counts through what each process is given, and ids are then
            not unique.
        workers: How many processes, or the least and the most of them; by default one for each
            `threads` CPUs of the cluster.
        rows: How many a process is given at a time, among which survivors share batches.
        num_gpus: Of each process.

    Returns:
        A dataset with the columns `id`, `label`, `class_name`, `confidence`, `stage`, `cost` and
        `error`.

    Raises:
        MissingExtraError: If Ray is not installed.
        InputError: If the dataset has no such column, or an argument is outside its domain.
        ray.exceptions.RayError: While the result is read, if the bundle is not there or cannot be
            loaded; it ends with what offramp says of it.
    """
    ray = ray_data()
    from offramp.batch.answering import Loading

    check_positive_int("rows", rows)
    how = bundle if isinstance(bundle, Loading) else Loading(bundle=Path(bundle))
    names = dataset.columns() or []
    if id is not None and id not in names:
        raise InputError(f"id must be a column of the dataset, {names}, or None, got {id!r}.")
    given = [name for name in names if name != id] if inputs is None else inputs
    columns = [given] if isinstance(given, str) else list(given)
    if inputs is None and len(columns) != 1:
        raise InputError(
            f"inputs must say which of the columns {columns} the model reads: inputs='image'."
        )
    return dataset.select_columns([*columns, *([] if id is None else [id])]).map_batches(
        _Rows,
        batch_size=rows,
        fn_constructor_kwargs={"how": how, "id": id},
        **resources(ray, how.threads, workers, num_gpus),
    )


@final
class _Rows:
    """What a process of the pool runs."""

    def __init__(self, how: "Loading", id: str | None) -> None:
        self._how, self._id = how, id

    @cached_property
    def _answering(self) -> "Answering":
        # With the first batch: Ray would go on making processes whose constructors raise.
        from offramp.batch.answering import Answering

        return Answering(self._how)

    def __call__(self, batch: "Batch") -> "dict[str, np.ndarray[Any, Any]]":
        given = dict(batch)
        if self._id is None:
            names = np.arange(len(next(iter(given.values()))))
        else:
            names = given.pop(self._id)
        columns = with_numbers(self._answering.of_columns(names.tolist(), given))
        told = {name: np.array(values, dtype=_TYPES[name]) for name, values in columns.items()}
        return told | {"id": names}


_TYPES: dict[str, Any] = {"id": object, "label": np.int64, "confidence": float, "cost": float}
_TYPES |= dict.fromkeys(("class_name", "stage", "error"), object)
