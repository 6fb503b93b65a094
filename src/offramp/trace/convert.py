"""Arrays of any origin as the tensors that a trace holds.

Layer: trace.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from offramp._core.arrays import array_of, tensor_of
from offramp._core.checks import check_labels, check_split, is_text, names_to_classes
from offramp._core.errors import InputError
from offramp._core.ids import shown_id
from offramp._core.types import SPLITS, AnyArray, BoolArray, Split

_ABOVE_ONE = 1e-6  # float32 rounds sums of probabilities to a little above 1


def scores(name: str, values: AnyArray) -> Tensor:
    """Numbers as float32, or float16 where they are given so."""
    given = numbers(name, values)
    return given if given.dtype == torch.float16 else given.to(torch.float32)


def labels_of(labels: AnyArray, class_names: Iterable[str]) -> Tensor:
    """True labels of `check_labels` in memory of their own."""
    found = check_labels(labels, class_names=class_names)
    return found if isinstance(labels, Tensor) else found.clone()


def integers(name: str, values: AnyArray) -> Tensor:
    """Whole numbers as int64, also where they are held as floats.

    Raises:
        InputError: If one is not whole.
    """
    given = numbers(name, values)
    if given.is_floating_point():
        fractional = given[~(given == given.round())]  # NaN is among them
        if len(fractional):
            raise InputError(f"{name} must be whole numbers, got {float(fractional[0])!r}.")
    return given.to(torch.int64)


@final
@dataclass
class Answers:
    """Reads the predicted labels of one stage after the other, and remembers what was odd.

    Names that are no class get numbers from `c` on, the same ones for all stages. A refusal (None,
    NaN or a negative number) gets a negative number of its stage's own, so that two refusals never
    agree.

    Args:
        class_names: For labels that are text.
    """

    class_names: Sequence[str]
    refused: dict[str, BoolArray] = field(default_factory=dict)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    _table: dict[str, int] | None = None

    def read(self, stage: str, values: AnyArray) -> Tensor:
        """Labels `(n,)` or ranked labels `(n, r)` of the next stage as int64 `(n, r)`."""
        name = f"predictions of {stage!r}"
        if isinstance(values, Tensor):
            values = values.detach().cpu()
        array = array_of(name, values, gaps=True)
        array = array[:, None] if array.ndim == 1 else array
        missing = missing_in(array)
        code = -1 - len(self.refused)
        rest = array[~missing]
        if is_text(rest):
            rest = np.array([self._number(stage, label) for label in rest], dtype=np.int64)
        elif rest.dtype == object:
            rest = np.array(rest.tolist()) if len(rest) else np.zeros(0, dtype=np.int64)
        found = np.full(array.shape, code, dtype=np.int64)
        found[~missing] = integers(name, rest).numpy()
        missing |= found < 0
        found[missing] = code
        self.refused[stage] = missing[:, 0] if missing.ndim == 2 else missing
        return torch.from_numpy(found)

    def _number(self, stage: str, label: object) -> int:
        if self._table is None:
            self._table = names_to_classes(self.class_names, f"predictions of {stage!r}")
        if not isinstance(label, str):
            raise InputError(
                f"predictions of {stage!r} must be all text or all numbers, got {shown_id(label)} "
                "among texts."
            )
        if label not in self._table:
            self._table[label] = len(self._table)
        if self._table[label] >= len(self.class_names):
            self.unknown.setdefault(stage, []).append(str(label))
        return self._table[label]

    def note(self) -> str:
        """What counts as a wrong answer without being a class, in words; "" where nothing does."""
        parts = []
        for stage, rows in self.refused.items():
            if rows.any():
                parts.append(
                    f"{stage!r} refused {int(rows.sum())} of {len(rows)} (None, NaN or below 0)"
                )
        for stage, labels in self.unknown.items():
            shown = ", ".join(repr(label) for label in dict.fromkeys(labels[:3]))
            parts.append(f"{stage!r} gave {len(labels)} labels that are no class, such as {shown}")
        return "" if not parts else f"{'; '.join(parts)}. These count as wrong answers."


def confidences_of(name: str, values: AnyArray, refused: BoolArray) -> Tensor:
    """Confidences `(n,)`, float32: 0 where a stage refused; rounding outside [0, 1] is cut."""
    array = array_of(name, values, gaps=True) if not isinstance(values, Tensor) else values
    if isinstance(array, np.ndarray) and array.dtype == object:
        gaps = missing_in(array).flat
        filled = [np.nan if gap else v for gap, v in zip(gaps, array.flat, strict=True)]
        array = array_of(name, filled).reshape(array.shape)
    given = scores(name, array).float()
    if given.shape == refused.shape:
        given = given.masked_fill(torch.from_numpy(refused), 0.0)
    near = (given > -_ABOVE_ONE) & (given < 1 + _ABOVE_ONE)
    return torch.where(near, given.clamp(0.0, 1.0), given)


def missing_in(array: NDArray[Any]) -> BoolArray:
    """True where an entry is None, NaN or the missing value of pandas."""
    if array.dtype.kind == "f":
        return np.asarray(np.isnan(array), dtype=np.bool_)
    if array.dtype.kind != "O":
        return np.zeros(array.shape, dtype=np.bool_)
    flat = [v is None or _is_nan(v) for v in array.flat]
    return np.array(flat, dtype=np.bool_).reshape(array.shape)


def _is_nan(value: object) -> bool:
    if type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def prices(costs: Mapping[str, object], n: int) -> tuple[Tensor | None, list[float], str]:
    """Prices of all stages, `(n, s)`, or None where none differs; their means; and what was done.

    Args:
        costs: For each stage one cost, or `(n,)` prices, in the order of the stages.
        n: Number of examples.

    Raises:
        InputError: If there is another number of prices than examples, or one is no cost.
    """
    columns: list[Tensor] = []
    notes: list[str] = []
    for stage, given in costs.items():
        values = tensor_of(f"costs of {stage!r}", given).detach().cpu().double()
        if values.dim() > 0 and values.shape != (n,):
            raise InputError(
                f"costs of {stage!r} must be one number, or one price for each of the {n} "
                f"examples, got shape {tuple(values.shape)}."
            )
        bad = ~(torch.isfinite(values) & (values >= 0))
        if bool(bad.any()) and values.dim() > 0:
            raise InputError(
                f"costs of {stage!r} must be finite and at least 0, got "
                f"{float(values[bad][0])!r} for example {int(bad.nonzero()[0])}."
            )
        low, high = (float(v) for v in (values.min(), values.max())) if n else (0.0, 0.0)
        if low != high:
            notes.append(f"{stage}: mean of {n} prices from {low:g} to {high:g}")
        columns.append(values.expand(n))
    means = [_mean(column) for column in columns]
    return torch.stack(columns, dim=1) if notes else None, means, "; ".join(notes)


def _mean(column: Tensor) -> float:
    """The mean; of equal numbers that number, whatever rounding makes of their sum; of none 0."""
    if not len(column):  # the trace refuses that
        return 0.0
    return float(column[0] if bool((column == column[0]).all()) else column.mean())


def numbers(name: str, values: AnyArray) -> Tensor:
    """Numbers in memory of their own, of a type that torch computes with."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    array = array_of(name, values)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch computes with few of these
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise InputError(f"{name} must fit into int64, got {int(array.max())}.")
        array = array.astype(np.int64)
    given = tensor_of(name, array)
    return given.clone() if np.may_share_memory(given.numpy(), array) else given


def split_indices(split: ArrayLike | Split, n: int) -> Tensor:
    """Index into `SPLITS` of each of `n` examples, int8, from names, indices or one name for all.

    Raises:
        InputError: If a name or an index is none of a split's.
    """
    if isinstance(split, str):
        return torch.full((n,), SPLITS.index(check_split("split", split)), dtype=torch.int8)
    given = array_of("split", split)
    if given.dtype.kind in "OU":
        names, inverse = np.unique(given.astype(str), return_inverse=True)
        indices = [SPLITS.index(check_split("split", str(name))) for name in names]
        return torch.tensor(indices, dtype=torch.int8)[torch.from_numpy(inverse.reshape(-1))]
    found = integers("split", given)
    outside = (found < 0) | (found >= len(SPLITS))
    if bool(outside.any()):
        raise InputError(f"split must hold indices into {SPLITS}, got {int(found[outside][0])}.")
    return found.to(torch.int8)
