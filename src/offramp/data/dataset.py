"""Labelled examples with names and splits: what networks are trained, recorded and tested on.

Layer: data.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, cast, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Int8, Int64
from torch import Tensor
from torch.utils.data import DataLoader

from offramp._core.batch import RowList, as_rows, is_table, only_tensors, take_rows
from offramp._core.batch import batch_size as batch_length
from offramp._core.checks import (
    check_class_names,
    check_labels,
    check_positive_int,
    check_shape,
    check_split,
)
from offramp._core.division import counts_of, random_order, stratified_order
from offramp._core.errors import InputError, SplitOverlapError
from offramp._core.ids import as_ids, shown_id
from offramp._core.types import SPLITS, Ids, Raw, Split

_CHUNK = 4096  # rows hashed at a time: the inputs may be mapped from disk
_SHOWN = 5  # names listed in a message


@runtime_checkable
class LazyInputs(Protocol):
    """Inputs that are made on access, such as the images of a folder."""

    def __len__(self) -> int:
        """Number of inputs."""
        ...

    def __getitem__(self, position: int) -> Any:  # noqa: ANN401  (a tensor, or a row)
        """One input, without the batch axis: a tensor, all of one shape, or a row of any type."""
        ...

    def take(self, positions: Sequence[int]) -> "LazyInputs":
        """Some of the inputs, in this order."""
        ...

    def identity(self) -> bytes:
        """Bytes that change when the inputs change, cheaper than reading them all."""
        ...


class LabelledBatch(NamedTuple):
    """What a loader gives: inputs `(m, ...)`, labels `(m,)` int64, ids `(m,)` int64 or str.

    Inputs are a tensor, or a mapping of tensors where the data set has one.
    """

    inputs: Any  # a Batch; who knows the data set knows which kind
    labels: Tensor
    ids: Ids


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """`n` labeled examples of `c` classes; a map-style data set for torch.

    Args:
        inputs: `(n, ...)`, batch first; images are uint8 or float32 `(n, channels, h, w)`. Or a
            mapping of such tensors, as text models take them; or rows of any type, as
            `offramp._core.batch.as_rows` takes them; or inputs made on access (`LazyInputs`).
        labels: True labels, `(n,)`, int64, in [0, c).
        class_names: Names of the `c` classes.
        ids: Names of the examples, `(n,)`, int64 or str, unique.
        split: Index into `SPLITS` of each example, `(n,)`, int8, or None where undecided.
        name: What this is and which files were used, for people.

    Raises:
        InputError: If there are no examples, lengths differ, a label lies outside the classes,
            an id repeats, or a split index is unknown.

    >>> import torch
    >>> from offramp.data import arrays
    >>> examples = arrays(torch.zeros(6, 1, 2, 2), torch.tensor([0, 1, 0, 1, 0, 1]))
    >>> parts = examples.split_into({"fit": 4, "test": 2}, seed=0, stratified=True)
    >>> len(parts.subset("fit")), parts.subset("test").labels.sort().values.tolist()
    (4, [0, 1])
    """

    inputs: Raw
    labels: Int64[Tensor, " n"]
    class_names: tuple[str, ...]
    ids: Ids
    split: Int8[Tensor, " n"] | None = None
    name: str = "examples"

    def __post_init__(self) -> None:
        n, c = len(self.labels), self.classes
        if n == 0:
            raise InputError("A data set needs at least one example, got n = 0.")
        given = batch_length(self.inputs) if _are_rows(self.inputs) else len(self.inputs)
        if given != n:
            raise InputError(
                f"inputs and labels must have one length, got {given} inputs and {n} labels."
            )
        object.__setattr__(self, "class_names", check_class_names(self.class_names, c))
        object.__setattr__(self, "labels", check_labels(self.labels, c))
        object.__setattr__(self, "ids", as_ids(self.ids))
        check_shape("ids", self.ids.shape, (n,))
        values, counts = np.unique(self.ids, return_counts=True)
        if len(values) != n:
            first = int(np.flatnonzero(counts > 1)[0])
            raise InputError(
                f"ids must be unique, got {shown_id(values[first])} {counts[first]} times."
            )
        if self.split is not None:
            check_shape("split", self.split.shape, (n,))
            if bool(((self.split < 0) | (self.split >= len(SPLITS))).any()):
                raise InputError(f"split must hold indices into {SPLITS}.")

    @property
    def classes(self) -> int:
        """Number of classes `c`."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Any, int, int | str]:
        """Input, label and id of one example; of a table the input is a dict."""
        if isinstance(self.inputs, Mapping):
            one: Any = {name: values[position] for name, values in self.inputs.items()}
        elif is_table(self.inputs):
            one = self.inputs.iloc[position].to_dict()
        else:
            one = self.inputs[position]
        return one, int(self.labels[position]), self.ids[position].item()

    def batch(self, start: int, stop: int) -> LabelledBatch:
        """Dataset `start` to `stop` as one batch; tensors share memory with the data set."""
        where = slice(start, stop)
        inputs: Raw
        if isinstance(self.inputs, Tensor):
            inputs = self.inputs[where]
        elif isinstance(self.inputs, Mapping) and only_tensors(self.inputs):
            inputs = {name: values[where] for name, values in self.inputs.items()}
        else:
            inputs = self.inputs_at(torch.arange(*where.indices(len(self))))
        return LabelledBatch(inputs, self.labels[start:stop], self.ids[start:stop])

    def inputs_at(self, positions: Tensor) -> Raw:
        """Inputs of some examples as one batch, in this order."""
        if _are_rows(self.inputs):
            return take_rows(self.inputs, positions)
        found = [self.inputs[k] for k in positions.tolist()]
        return torch.stack(found) if isinstance(found[0], Tensor) else RowList(found)

    def loader(self, batch_size: int, *, num_workers: int = 0) -> "DataLoader[Any]":
        """A torch loader over batches, always in the order of the examples.

        Args:
            batch_size: Examples of each batch, the last one may be smaller.
            num_workers: Processes that prepare batches; 0 means this one.

        Returns:
            A loader of `LabelledBatch`; its length is the number of batches.
        """
        batches = _Batches(self, check_positive_int("batch_size", batch_size))
        return DataLoader(
            cast("Any", batches), batch_size=None, num_workers=num_workers, collate_fn=_as_it_is
        )

    def take(self, index: Tensor) -> "Dataset":
        """Some examples, by position or mask, in this order."""
        positions = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        inputs: Any = (
            take_rows(self.inputs, positions)
            if _are_rows(self.inputs)
            else self.inputs.take(positions.tolist())
        )
        return replace(
            self,
            inputs=inputs,
            labels=self.labels[positions],
            ids=self.ids[positions.numpy()],
            split=None if self.split is None else self.split[positions],
        )

    def subset(self, split: Split) -> "Dataset":
        """The examples of one split.

        Raises:
            InputError: If there are no splits, or none of the examples is in this one.
        """
        check_split("split", split)
        if self.split is None:
            raise InputError(
                f"{self.name} has no splits; divide it first with examples.split_into({{...}}, "
                "seed=...) or examples.with_ranges({...})."
            )
        mask = self.split == SPLITS.index(split)
        if not bool(mask.any()):
            raise InputError(f"No example of {self.name} is in the split {split!r}.")
        return self.take(mask)

    def split_into(
        self, shares: Mapping[Split, float | int], *, seed: int, stratified: bool = False
    ) -> "Dataset":
        """The same examples, split at random; splits they had before are forgotten.

        Args:
            shares: For each split a fraction in (0, 1] (floats) or a number of examples
                (integers). Examples left over are dropped.
            seed: Of the random order.
            stratified: True gives every split the classes in the proportions of the whole.

        Raises:
            InputError: If fractions and numbers are mixed, or there are not enough examples.

        Warns:
            UserWarning: If a split lacks a class; it names both.
        """
        counts = counts_of(shares, len(self))
        labels = self.labels.numpy()
        order = (
            stratified_order(labels, seed=seed)
            if stratified
            else random_order(len(self), seed=seed)
        )
        stops = np.cumsum(list(counts.values()))
        positions = zip(counts, np.split(order, stops)[:-1], strict=True)
        return self._assigned(dict(positions))

    def with_ranges(self, ranges: Mapping[Split, tuple[int, int]]) -> "Dataset":
        """The same examples, split by position; those in no range are dropped.

        Args:
            ranges: For each split its first position and the one after its last.

        Raises:
            InputError: If a range is empty or leaves the examples.
            SplitOverlapError: If two ranges share a position.

        Warns:
            UserWarning: If a split lacks a class; it names both.
        """
        positions: dict[Split, Any] = {}
        for split, (start, stop) in ranges.items():
            if not 0 <= start < stop <= len(self):
                raise InputError(
                    f"The range of {split!r} must lie in [0, {len(self)}] and not be empty, "
                    f"got ({start}, {stop})."
                )
            for other, (first, last) in ranges.items():
                if other != split and start < last and first < stop:
                    raise SplitOverlapError(
                        f"The ranges of {split!r} ({start}, {stop}) and {other!r} "
                        f"({first}, {last}) overlap. Splits must be disjoint."
                    )
            positions[split] = np.arange(start, stop)
        return self._assigned(positions)

    def require_disjoint(self, other: "Dataset") -> None:
        """Raise `SplitOverlapError` if an id stands in both; numbers and strings never match."""
        if (self.ids.dtype.kind == "U") != (other.ids.dtype.kind == "U"):
            return
        both = np.intersect1d(self.ids, other.ids)
        if len(both):
            raise SplitOverlapError(
                f"{len(both)} examples are in both {self.name} and {other.name}, e.g. "
                f"{shown_id(both[0])}. Splits must be disjoint."
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of labels, ids and inputs, 64 hexadecimal digits; splits and names left out.

        Of images in a folder names and sizes of the files count, not their pixels.
        """
        digest = hashlib.sha256()
        for values in (self.labels.numpy(), self.ids):
            digest.update(f"{values.dtype.str} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        if _are_rows(self.inputs):
            _hash(digest, self.inputs)
        else:
            digest.update(self.inputs.identity())
        return digest.hexdigest()

    def _assigned(self, positions: Mapping[Split, Int[np.ndarray, " _"]]) -> "Dataset":
        split = torch.full((len(self),), -1, dtype=torch.int8)
        for name, where in positions.items():
            split[torch.from_numpy(where)] = SPLITS.index(cast("Split", check_split("split", name)))
        kept = split >= 0
        chosen = replace(replace(self, split=None).take(kept), split=split[kept])
        chosen.warn_if_class_missing()
        return chosen

    def warn_if_class_missing(self) -> None:
        """Warn for each split that has examples but lacks a class; name split and classes."""
        if self.split is None:
            return
        for index in np.unique(self.split.numpy()).tolist():
            seen = np.unique(self.labels[self.split == index].numpy()).tolist()
            missing = [self.class_names[k] for k in sorted(set(range(self.classes)) - set(seen))]
            if missing:
                more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
                warnings.warn(
                    f"The split {SPLITS[index]!r} of {self.name} has no example of class "
                    f"{', '.join(repr(k) for k in missing[:_SHOWN])}{more}.",
                    stacklevel=4,
                )


def _are_rows(inputs: Raw) -> bool:
    """True for a batch of all examples, False for inputs that are made on access."""
    return isinstance(inputs, Tensor | Mapping | RowList) or is_table(inputs)


def _hash(digest: Any, value: Any) -> None:  # noqa: ANN401  (hashlib's own type, and any row)
    """Add a batch, or what stands in its rows."""
    if isinstance(value, Tensor):
        _hash_tensor(digest, value)
    elif isinstance(value, Mapping):
        for name in sorted(value):
            digest.update(f"{name} ".encode())
            _hash(digest, value[name])
    elif is_table(value):
        _hash(digest, {str(name): as_rows(value[name]) for name in value.columns})
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} ".encode())
        for part in value:
            _hash(digest, part)
    elif isinstance(value, bytes):
        digest.update(f"{len(value)} ".encode() + value)
    elif hasattr(value, "tobytes"):  # arrays, and images of Pillow
        shape = getattr(value, "shape", None) or (value.mode, value.size)
        digest.update(f"{shape} {getattr(value, 'dtype', '')} ".encode() + value.tobytes())
    else:
        digest.update(f"{value!r} ".encode())


def _hash_tensor(digest: Any, values: Tensor) -> None:  # noqa: ANN401  (hashlib's own type)
    digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
    for start in range(0, len(values), _CHUNK):
        digest.update(values[start : start + _CHUNK].contiguous().numpy().tobytes())


@final
class _Batches:
    """The batches of a data set as a data set, so that a batch is one slice, not many rows."""

    def __init__(self, examples: Dataset, batch_size: int) -> None:
        self.examples = examples
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __getitem__(self, number: int) -> LabelledBatch:
        start = number * self.batch_size
        return self.examples.batch(start, start + self.batch_size)


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401  (as torch types it)
    return batch
