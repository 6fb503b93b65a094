"""What exits of classes do to one split: the paper's figures, and those of the complete system.

Layer: fitting.  Source: Bonato and Bouganis, class-specific early exit, equations (4) to (7) and
(12); methods.md 2 for the two corrections: gains over examples of the class alone, and the accuracy
of the complete system.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from offramp._core.errors import InputError
from offramp._core.schema import stored, to_json
from offramp._core.types import BoolArray, FloatArray
from offramp.fitting.class_exits.data import (
    ROUNDING,
    STAYS,
    ClassData,
    ClassExit,
    answers_and_times,
    route,
    shares,
)
from offramp.fitting.class_exits.time import nested_time


@final
@stored(derived=("holds",))
@dataclass(frozen=True, kw_only=True)
class PaperFigures:
    """The figures of the paper's tables for the exits of one class on one split.

    Args:
        target: The class, an index.
        size: |k|, examples of the class.
        claimed: tp + fp, examples that leave early.
        claimed_right: tp, those of them that are of the class.
        rates: g of each exit by (4) and (12): it counts impostors, so it may exceed 1.
        accuracy_rest: (5), accuracy of the baseline's exit over the other classes.
        accuracy_exit: (6), accuracy of the binary decisions over all examples.
        accuracy_class: (7), accuracy on the class over all exits.
        beta: The baseline's own accuracy over the other classes.
        eta: The baseline's own accuracy on the class.
        precision: Share of the examples leaving early that are of the class; NaN if none leaves.
        precision_baseline: zeta, share of the baseline's predictions of the class that are right.
        time: t'' by (3) or (11), with `rates`.
        gain: t / t''; infinity where t'' is not above 0, which only impostors bring about.
        loss: t' / t.
    """

    target: int
    size: int
    claimed: int
    claimed_right: int
    rates: tuple[float, ...]
    accuracy_rest: float
    accuracy_exit: float
    accuracy_class: float
    beta: float
    eta: float
    precision: float
    precision_baseline: float
    time: float
    gain: float
    loss: float

    @property
    def holds(self) -> bool:
        """True if (5), (6) and (7) hold."""
        return (
            self.accuracy_rest >= self.beta - ROUNDING
            and self.accuracy_exit >= self.eta - ROUNDING
            and self.accuracy_class >= self.eta - ROUNDING
        )


def paper_figures(data: ClassData, exits: Sequence[ClassExit]) -> PaperFigures:
    """Equations (4) to (7) and (12) by their definitions.

    Args:
        data: The examples.
        exits: At least one, all of one class, in the order in which they are reached.

    Raises:
        InputError: If they are of several classes.
    """
    target = _only_target(exits)
    left = route(data, exits)
    own, early = data.labels == target, left != STAYS
    claims = [int((left == k).sum()) for k in range(len(exits))]
    unclaimed = int(own.sum()) - np.cumsum([0, *claims[:-1]])
    rates = tuple(c / u if u > 0 else 0.0 for c, u in zip(claims, unclaimed, strict=True))
    timings = [leaf.branch.timing for leaf in exits]
    time = nested_time(timings, rates)
    baseline, inflicted = timings[0].baseline, sum(timing.branch for timing in timings)
    predicted = data.baseline == target
    return PaperFigures(
        target=target,
        size=int(own.sum()),
        claimed=int(early.sum()),
        claimed_right=int((early & own).sum()),
        rates=rates,
        accuracy_rest=_share(data.right & ~own & ~early, ~own & ~early, empty=0.0),
        accuracy_exit=float((early == own).mean()),
        accuracy_class=_share(own & (early | data.right), own),
        beta=_share(data.right & ~own, ~own, empty=0.0),
        eta=_share(data.right & own, own),
        precision=_share(early & own, early),
        precision_baseline=_share(predicted & own, predicted),
        time=time,
        gain=baseline / time if time > 0 else float("inf"),
        loss=(baseline + inflicted) / baseline,
    )


@final
@dataclass(frozen=True, kw_only=True)
class SystemFigures:
    """What the complete system does on one split: every exit and the baseline together.

    Args:
        n: Dataset.
        accuracy: Of the complete system over all classes.
        accuracy_baseline: Of the baseline alone.
        recalls: Accuracy of the complete system on each class, `(c,)`; NaN without examples.
        recalls_baseline: The same of the baseline alone.
        sizes: Examples of each class, `(c,)`.
        times: Mean time over the examples of each class, `(c,)`; NaN without examples.
        time_baseline: t.
        missed: Examples of each class that the baseline's exit still gets wrong, `(c,)`.
        missed_baseline: Examples of each class that the baseline alone gets wrong, `(c,)`.
    """

    n: int
    accuracy: float
    accuracy_baseline: float
    recalls: tuple[float, ...]
    recalls_baseline: tuple[float, ...]
    sizes: tuple[int, ...]
    times: tuple[float, ...]
    time_baseline: float
    missed: tuple[int, ...]
    missed_baseline: tuple[int, ...]

    def gain(self, target: int) -> float:
        """How many times faster the examples of a class are, on the mean: `gain_true`."""
        return self.time_baseline / self.times[target]

    @property
    def gain_all(self) -> float:
        """How many times faster all examples are, on the mean."""
        spent = zip(self.times, self.sizes, strict=True)
        return self.time_baseline * self.n / sum(time * size for time, size in spent if size)

    def loss(self, targets: Sequence[int]) -> float:
        """Mean time of all other examples over t, as measured; above 1 they are slower."""
        pairs = [
            (time, size)
            for k, (time, size) in enumerate(zip(self.times, self.sizes, strict=True))
            if size and k not in targets
        ]
        count = sum(size for _, size in pairs)
        total = sum(time * size for time, size in pairs)
        return total / count / self.time_baseline if count else float("nan")

    @property
    def largest_fall(self) -> float:
        """How far accuracy, or the recall of a class, falls below the baseline's at most."""
        pairs = zip(self.recalls, self.recalls_baseline, strict=True)
        fallen = [before - now for now, before in pairs if not np.isnan(now)]
        return max([self.accuracy_baseline - self.accuracy, *fallen])

    def keeps_accuracy(self, tolerance: float) -> bool:
        """True if accuracy and each class's recall are not below B's by more than `tolerance`."""
        return self.largest_fall <= tolerance + ROUNDING


def system_figures(data: ClassData, exits: Sequence[ClassExit]) -> SystemFigures:
    """Figures of the complete system, counted over its examples.

    Args:
        data: The examples.
        exits: At least one, of any classes, in the order in which they are reached.
    """
    left, baseline = route(data, exits), exits[0].branch.timing.baseline
    answers, times = answers_and_times(data, exits, left, baseline)
    right = answers == data.labels
    return SystemFigures(
        n=len(data),
        accuracy=float(right.mean()),
        accuracy_baseline=float(data.right.mean()),
        recalls=tuple(shares(data.per_class(right), data.sizes).tolist()),
        recalls_baseline=tuple(data.recalls.tolist()),
        sizes=tuple(data.sizes.tolist()),
        times=tuple(shares(data.per_class(times), data.sizes).tolist()),
        time_baseline=baseline,
        missed=_counts(data.per_class((left == STAYS) & ~data.right)),
        missed_baseline=_counts(data.per_class(~data.right)),
    )


def as_json(record: object) -> Any:  # noqa: ANN401  (what JSON can hold)
    """A record as JSON values, with null in place of figures that are not finite."""
    return _finite(to_json(record))


def _finite(value: Any) -> Any:  # noqa: ANN401  (JSON values)
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _share(part: BoolArray, whole: BoolArray, *, empty: float = float("nan")) -> float:
    count = int(whole.sum())
    return float(part.sum() / count) if count else empty


def _only_target(exits: Sequence[ClassExit]) -> int:
    targets = {leaf.branch.target for leaf in exits}
    (target,) = targets if len(targets) == 1 else {None}
    if target is None:
        raise InputError(f"exits must be of one class, got {sorted(map(str, targets))}.")
    return target


def _counts(values: FloatArray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
