"""What a loader gives, checked: inputs with labels and ids.

Layer: recording.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from torch import Tensor
from torch.utils.data import RandomSampler

from offramp._core.batch import as_batch
from offramp._core.checks import check_labels
from offramp._core.errors import InputError
from offramp._core.ids import as_ids
from offramp._core.types import Ids, IntArray, Raw, Split
from offramp.stages import batch_size, take_rows
from offramp.trace.convert import integers, split_indices


@runtime_checkable
class HasLoader(Protocol):
    """A data set that makes its own loader."""

    def loader(self, batch_size: int) -> Iterable[Any]:
        """Batches of (inputs, labels) or (inputs, labels, ids), always in the same order."""
        ...


Loader = Iterable[Any] | HasLoader


@final
@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some labeled examples.

    Args:
        inputs: Raw input of `m` examples.
        labels: `(m,)`.
        ids: `(m,)`, int64 or str.
    """

    inputs: Raw
    labels: IntArray
    ids: Ids

    def __len__(self) -> int:
        return len(self.labels)

    def after(self, count: int) -> "Rows":
        """All but the first `count`."""
        index = integers("positions", np.arange(count, len(self)))
        return Rows(
            inputs=take_rows(self.inputs, index), labels=self.labels[count:], ids=self.ids[count:]
        )


def labeled_rows(
    loader: Loader,
    size: int,
    take_in: Callable[[object], Raw] = as_batch,
    class_names: Sequence[str] = (),
) -> Iterator[Rows]:
    """Walk through a loader.

    Args:
        loader: Gives (inputs, labels) or (inputs, labels, ids); without ids the examples are
            numbered from 0.
        size: Batch size, for a data set that makes its own loader.
        take_in: What makes a batch of the inputs.
        class_names: In the order of the scores; labels may be these names.

    Raises:
        InputError: If a batch has another form, or its parts differ in length.
    """
    start = 0
    for item in loader.loader(size) if isinstance(loader, HasLoader) else loader:
        if not isinstance(item, Sequence) or len(item) not in (2, 3):
            raise InputError(
                "The loader must give (inputs, labels) or (inputs, labels, ids), got "
                f"{type(item).__name__}"
                + (f" of length {len(item)}." if isinstance(item, Sequence) else ".")
            )
        inputs = take_in(item[0])
        m = batch_size(inputs)
        labels = check_labels(item[1], class_names=class_names).numpy()
        ids = _ids(item[2]) if len(item) == 3 else np.arange(start, start + m, dtype=np.int64)
        if labels.shape != (m,) or ids.shape != (m,):
            raise InputError(
                f"Inputs, labels and ids of a batch must be equally many, got {m} inputs, labels "
                f"of shape {labels.shape} and ids of shape {ids.shape}."
            )
        start += m
        if m:
            yield Rows(inputs=inputs, labels=labels, ids=ids)


def dataset_of(loader: Loader) -> Any:  # noqa: ANN401  (data sets have no common type)
    """The data set behind a loader; behind a data set of batches that which it cuts up."""
    found = getattr(loader, "dataset", loader)
    return getattr(found, "examples", found)


def total_rows(loader: Loader) -> int | None:
    """Number of examples, where it is known: a list of batches does not know it."""
    if not (isinstance(loader, HasLoader) or hasattr(loader, "dataset")):
        return None
    try:
        return len(dataset_of(loader))
    except TypeError:  # an iterable data set
        return None


def row_splits(loader: Loader, ids: Ids, split: Split | None) -> Tensor | None:
    """Index of the split of each recorded example, `(n,)`, int8, or None where nobody says.

    A data set with an array `split` says it for each of its examples, in its own order; where it
    has `ids` too, the order is checked.

    Raises:
        InputError: If data set and caller both say it, or the recorded order is another one.
    """
    dataset = dataset_of(loader)
    own = getattr(dataset, "split", None)
    if not isinstance(own, np.ndarray | Tensor):
        return None if split is None else split_indices(split, len(ids))
    if split is not None:
        raise InputError(
            f"split must be left out where the data set has splits of its own, got {split!r}."
        )
    known = getattr(dataset, "ids", None)
    same = np.array_equal(_ids(known), ids) if known is not None else _in_order(loader)
    if len(own) != len(ids) or not same:
        raise InputError(
            f"The splits of the data set ({len(own)} examples) do not belong to the {len(ids)} "
            "recorded examples in their order; do not shuffle, and use the whole data set."
        )
    return split_indices(own if isinstance(own, np.ndarray) else own.numpy(), len(ids))


def _in_order(loader: Loader) -> bool:
    return not isinstance(getattr(loader, "sampler", None), RandomSampler)


def _ids(values: Any) -> Ids:  # noqa: ANN401  (as the loader collates them)
    return as_ids(values.cpu().numpy() if isinstance(values, Tensor) else values)
