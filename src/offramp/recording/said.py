"""What the stages of a cascade said about some examples, as arrays that a store keeps.

Layer: recording.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.outputs import StageOutput
from offramp._core.types import BoolArray, IntArray, OutputForm
from offramp.trace.files import narrowed

#: The arrays of each form, the first of which says who has not been answered.
ARRAYS_OF: Mapping[OutputForm, tuple[str, ...]] = {
    "logits": ("logits",),
    "confidence": ("ranked", "confidence"),
    "labels": ("ranked",),
}
PRICES = "prices"  # beside them, where stages tell what their answers cost
ODD = "that counts as a wrong answer."  # ends notes that are no warnings: services do that
_LEAN = 1e-3  # by how much a wrong class leads, so that the stage is as unsure as it can be


@final
@dataclass(frozen=True)
class Said:
    """Outputs of `s` stages for `m` examples.

    Args:
        classes: Number of classes `c`.
        arrays: By name: `logits` (m, s, c), NaN where they are not finite; or `ranked` (m, s, r),
            with or without `confidence` (m, s), NaN where there is no answer. With `prices` (m, s)
            where stages tell them.
    """

    classes: int
    arrays: Mapping[str, NDArray[Any]]

    @classmethod
    def of(cls, outputs: Sequence[StageOutput], listed: Sequence[float] | None = None) -> "Said":
        """Of all stages, in order, on the host.

        Args:
            outputs: What they said.
            listed: Prices of those that do not tell theirs; None to keep no prices.

        Raises:
            InputError: If they rank different numbers of labels.
        """
        found: dict[str, NDArray[Any]] = {}
        for name in ("logits", "ranked", "confidence"):
            each = [getattr(said, name) for said in outputs]
            if each[0] is not None:
                shapes = sorted({tuple(values.shape) for values in each})
                if len(shapes) > 1:
                    raise InputError(
                        f"All stages must answer for each example of a batch, and rank as many "
                        f"labels; got the shapes {shapes}."
                    )
                found[name] = np.stack([values.cpu().numpy() for values in each], axis=1)
        if listed is not None:
            each = [
                np.full(len(said), price) if said.prices is None else said.prices.cpu().numpy()
                for said, price in zip(outputs, listed, strict=True)
            ]
            found[PRICES] = np.stack(each, axis=1)
        if "logits" in found:
            found["logits"][~np.isfinite(found["logits"]).all(axis=2)] = np.nan
        return cls(outputs[0].classes, found)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def missing(self) -> BoolArray:
        """Where a stage has given no answer, `(m, s)`."""
        if "logits" in self.arrays:
            return np.asarray(np.isnan(self.arrays["logits"][:, :, 0]))
        if "confidence" in self.arrays:
            return np.asarray(np.isnan(self.arrays["confidence"]))
        return np.zeros(self.arrays["ranked"].shape[:2], dtype=np.bool_)

    def odd(self) -> tuple[IntArray, IntArray]:
        """How often each stage refused, and how often it gave a label that is no class, `(s,)`."""
        if "ranked" not in self.arrays:
            none = np.zeros(next(iter(self.arrays.values())).shape[1], dtype=np.int64)
            return none, none
        first, there = self.arrays["ranked"][:, :, 0], ~self.missing()
        refused, foreign = (first < 0) & there, (first >= self.classes) & there
        return refused.sum(axis=0), foreign.sum(axis=0)

    def take(self, keep: BoolArray) -> "Said":
        """Of some examples."""
        return Said(self.classes, {name: values[keep] for name, values in self.arrays.items()})

    def wrong_at(self, bad: BoolArray, labels: IntArray) -> "Said":
        """The same, with another class than the label where there was no answer."""
        made = {name: values.copy() for name, values in self.arrays.items()}
        rows, stages = np.nonzero(bad)
        other = (labels[rows] + 1) % self.classes
        if "logits" in made:
            made["logits"][rows, stages] = 0.0
            made["logits"][rows, stages, other] = _LEAN
        else:
            made["ranked"][rows, stages, 0] = other
            made["confidence"][rows, stages] = 0.0
        return Said(self.classes, made)

    def stored(self, dtype: str) -> "Said":
        """The same with its scores in another type.

        Raises:
            InputError: If a logit does not fit float16.
        """
        return Said(
            self.classes,
            {
                name: values if name in ("ranked", PRICES) else narrowed(name, values, dtype)
                for name, values in self.arrays.items()
            },
        )


def mean_costs(costs: Costs, prices: NDArray[Any]) -> Costs:
    """Costs whose segments are the means of prices `(n, s)`."""
    note = f"mean of the prices of {len(prices)} answers"
    return replace(
        costs,
        segment=tuple(prices.mean(axis=0).tolist()),
        note=f"{costs.note}; {note}" if costs.note else note,
    )


def notes_of(parts: Iterable[Said], stages: Sequence[str]) -> tuple[str, ...]:
    """What counts as a wrong answer without being a class, in words for each stage."""
    counts = [np.stack(part.odd()) for part in parts]
    if not counts:
        return ()
    refused, foreign = np.sum(counts, axis=0).tolist()
    return tuple(
        f"{stage!r} {what} {count} times; {ODD}"
        for stage, *both in zip(stages, refused, foreign, strict=True)
        for count, what in zip(both, ("refused", "gave a label that is no class"), strict=True)
        if count
    )
