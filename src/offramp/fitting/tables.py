"""What the learned policy is fitted on: for each visit path its features and the loss of leaving.

Everything is computed once, in chunks, with the very arithmetic that the fitted policy will use at
run time (float32 features, the same combination), so that a threshold means the same in both.

Layer: fitting.  Source: methods.md 1.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from offramp._core.checks import check_choice
from offramp._core.errors import InputError
from offramp._core.outputs import best_labels
from offramp._core.threads import one_thread
from offramp._core.topology import Path
from offramp._core.types import FloatArray, IntArray
from offramp.fitting.cuts import Ranking
from offramp.fitting.newton import Classes
from offramp.fitting.pooling import fit_path_pooling
from offramp.policy.combination import COMBINES, Combination, Combine
from offramp.policy.features import (
    COMBINED,
    CONFIDENCES,
    Distribution,
    Feature,
    confidence_features,
)
from offramp.policy.of_labels import distribution_of
from offramp.trace import Trace

Loss = str  # one of LOSSES
FeaturesOf = Callable[[Path], Sequence[Feature]]
LOSSES: tuple[Loss, ...] = ("negative_flips", "error")
_CHUNK = 16_384

_Key = tuple[Feature, Path]


@final
class Tables:
    """Features and losses of `n` examples for every path that may be visited.

    Paths are added by `ensure`, in one pass over the examples for all that are missing.

    Args:
        part: The examples to fit on.
        temperatures: One per stage.
        combine: How answers are made; pooling weights are fitted as paths are added.
        reference: Index of the reference.
        top: A label is right when it is among the `top` best.
        loss: "negative_flips": max(0, L(y) - L(y_F)), new errors only. "error": L(y).
        features_of: What to hold for a path; by default the learned policy's features.
        class_features: Whether a decision may also look at which class its stage predicts: features
            "predicts_0" to that of the last class but one, behind the others. Of these the labels
            are held, not a column for each class.
        weights: Pooling weights of some paths; those of the others are fitted.

    Raises:
        InputError: If the outputs are rankings without scores, or the loss is unknown.
    """

    def __init__(
        self,
        part: Trace,
        *,
        temperatures: Sequence[float],
        combine: Combine,
        reference: int,
        top: int = 1,
        loss: Loss = "negative_flips",
        features_of: FeaturesOf | None = None,
        class_features: bool = False,
        weights: Mapping[Path, Sequence[float]] | None = None,
    ) -> None:
        check_choice("loss", loss, LOSSES)
        if not part.labeled and combine != "last":
            raise InputError(
                f"combine must be 'last' where losses were recorded, got {combine!r}: answers "
                "without classes cannot be combined; nobody knows what a mixture would lose."
            )
        if part.labeled and not part.output(0).scored:
            raise InputError(
                "This trace holds rankings without logits or confidences; a learned policy has "
                "nothing to look at. Use policy='agreement'."
            )
        self.n = len(part)
        self.temperatures = tuple(temperatures)
        self.combination = Combination(combine, weights)
        self._reference_loss = part.loss(reference, top=top)
        self._reference_right = self._reference_loss == 0
        self._part, self._top, self._loss = part, top, loss
        self.outputs, self.feature_counts = part.outputs, part.feature_counts
        self._features_of = features_of or confidence_features_of(part, combine)
        self._class_features = class_features and part.features is None
        self._features: dict[Path, tuple[Feature, ...]] = {}
        self._columns: dict[_Key, np.ndarray] = {}
        self._predicted: dict[int, IntArray] = {}
        self._losses: dict[Path, np.ndarray] = {}
        self._designs: dict[Path, Design] = {}
        self._rankings: dict[tuple[_Key, float], Ranking] = {}

    def ensure(self, paths: Iterable[Path]) -> None:
        """Compute what is missing for some paths."""
        new = [path for path in dict.fromkeys(paths) if path not in self._features]
        if not new:
            return
        if self.combination.kind == "log_linear":
            given = self.combination.weights
            wanted = [path for path in new if path not in given]
            fitted = fit_path_pooling(self._part, wanted, self.temperatures)
            self.combination = Combination("log_linear", {**given, **fitted})
        held = set(self._columns)
        for path in new:
            self._features[path] = tuple(self._features_of(path))
            self._losses[path] = self._recorded_loss(path[-1])
        missing = {
            key
            for path in new
            for feature in self._features[path]
            if (key := _key(feature, path)) not in held
        }
        for key in missing:
            self._columns[key] = np.empty(self.n, dtype=np.float32)
        predicting = {path[-1] for path in new if self._class_features} - set(self._predicted)
        for k in predicting:
            self._predicted[k] = np.empty(self.n, dtype=np.int64)
        with one_thread(min(self.n, _CHUNK) * self._part.classes):
            for start in range(0, self.n, _CHUNK):
                rows = slice(start, min(start + _CHUNK, self.n))
                self._fill(new, missing, predicting, rows)

    def _fill(
        self, paths: Sequence[Path], keys: Iterable[_Key], predicting: Iterable[int], rows: slice
    ) -> None:
        index = torch.arange(rows.start, rows.stop)
        labels = self._part.labels[index]
        stages: dict[int, Distribution] = {}

        def stage(k: int) -> Distribution:
            if k not in stages:
                temperature = torch.tensor(self.temperatures[k])
                stages[k] = distribution_of(self._part.output(k).take(index), temperature)
            return stages[k]

        for k in predicting:  # a label that is no class of ours is 1 in no column, as the last
            label = stage(k).label.clamp(max=self._part.classes - 1)
            self._predicted[k][rows] = label.numpy()
        missing = set(keys)
        for path in paths:
            each = [stage(k) for k in self.combination.inputs(path)]
            answer = self.combination.of(path, each)
            if self._part.labeled:
                one = self._top == 1
                best = answer.label[:, None] if one else best_labels(answer.log_probs, self._top)
                self._losses[path][rows] = (best != labels[:, None]).all(dim=1).numpy()

            def distribution(k: int, answer: Distribution = answer) -> Distribution:
                return answer if k == COMBINED else stage(k)

            for feature in self._features[path]:
                key = _key(feature, path)
                if key in missing:  # several paths share the features of single stages
                    missing.remove(key)
                    self._columns[key][rows] = feature.of(distribution).numpy()

    def may_leave(self, stage: int) -> bool:
        """False after a stage that answers nothing."""
        return stage not in self._part.silent

    def loss_of_leaving(self, path: Path) -> FloatArray:
        """Loss of answering at the end of `path`, `(n,)`, in [0, 1]; 1 where nothing is said."""
        return self._of_kind(path, self._loss)

    def losses(self, path: Path) -> FloatArray:
        """Error and excess of answering at the end of `path`, `(n, 2)`."""
        return np.stack([self._of_kind(path, kind) for kind in ("error", "negative_flips")], axis=1)

    def _of_kind(self, path: Path, kind: Loss) -> FloatArray:
        loss = self._losses[path]
        if loss.dtype == np.bool_:
            new = loss if kind == "error" else loss & self._reference_right
            return new.astype(np.float64)
        loss = loss.astype(np.float64)
        return loss if kind == "error" else (loss - self._reference_loss).clip(min=0)

    def _recorded_loss(self, stage: int) -> np.ndarray:
        """Loss of a stage, `(n,)`; of labels to be filled in, for answers may be combined."""
        if self._part.labeled:
            return np.empty(self.n, dtype=np.bool_)
        silent = stage in self._part.silent
        return np.ones(self.n, np.float32) if silent else self._part.loss(stage).astype(np.float32)

    def features(self, path: Path) -> tuple[Feature, ...]:
        """The features held for a path, those of classes last."""
        found = self._features[path]
        if not self._class_features:
            return found
        classes = range(self._part.classes - 1)
        return (*found, *(Feature(f"predicts_{c}", path[-1]) for c in classes))

    def column(self, feature: Feature, path: Path) -> np.ndarray:
        """Values of one feature at the end of `path`, `(n,)`, float32."""
        return self._columns[_key(feature, path)]

    def columns(self, path: Path) -> list[np.ndarray]:
        """Values of all features but those of classes, at the end of `path`; `(n,)`, float32."""
        return [self.column(f, path) for f in self._features[path]]

    def predicted(self, path: Path) -> IntArray | None:
        """Class that the last stage of `path` predicts, `(n,)`, where it is a feature."""
        return self._predicted[path[-1]] if self._class_features else None

    def weighted_sum(self, path: Path, weights: np.ndarray) -> np.ndarray:
        """Of all features at the end of `path`, `(n,)`: `linear_score` bit for bit, faster.

        Args:
            path: Where the sum is taken.
            weights: One for each feature, `(d,)`, float32.
        """
        first, *others = self.columns(path)
        each, of_classes = np.split(weights, [len(others) + 1])
        total: np.ndarray = first * each[0]
        term = np.empty_like(total)
        for column, weight in zip(others, each[1:], strict=True):
            np.multiply(column, weight, out=term)
            total += term
        predicted = self.predicted(path)
        if predicted is not None:  # one is 1, the others add nothing
            total += np.append(of_classes, np.float32(0)).take(predicted)
        return total

    def confidences(self, path: Path) -> list[tuple[Feature, float]]:
        """Features that a threshold may be set on, with the sign that makes higher surer.

        Of a number that is no probability nobody knows it: both are there.
        """
        known = [(f, CONFIDENCES[f.kind]) for f in self._features[path] if f.kind in CONFIDENCES]
        values = [f for f in self._features[path] if f.kind.startswith("value_")]
        return known + [(f, sign) for f in values for sign in (1.0, -1.0)]

    def ranking(self, feature: Feature, path: Path, sign: float) -> Ranking:
        """Examples by falling `sign * feature`, sorted once."""
        key = _key(feature, path)
        if (key, sign) not in self._rankings:
            self._rankings[key, sign] = Ranking(np.float32(sign) * self._columns[key])
        return self._rankings[key, sign]

    def design(self, path: Path) -> "Design":
        """The standardized features at the end of `path`, made on first use."""
        if path not in self._designs:
            predicted = self.predicted(path)
            classes = None if predicted is None else Classes.of(predicted, self._part.classes)
            self._designs[path] = Design.of(self.columns(path), classes)
        return self._designs[path]


@final
@dataclass(frozen=True)
class Design:
    """Features with mean 0 and deviation 1, and an intercept.

    Args:
        matrix: `(n, d + 1)`, float64, the last column all ones.
        mean: Of each feature, `(d,)`.
        deviation: Of each feature, `(d,)`; 1 where it is constant.
        classes: Predicted classes; their columns have deviation 1, and a mean that the intercept
            takes in.
    """

    matrix: FloatArray
    mean: FloatArray
    deviation: FloatArray
    classes: Classes | None = None

    @classmethod
    def of(cls, columns: Sequence[np.ndarray], classes: Classes | None = None) -> "Design":
        """Standardize columns of float32."""
        matrix = np.ones((len(columns) + 1, len(columns[0]))).T  # a column lies in one piece
        mean, deviation = np.zeros(len(columns)), np.ones(len(columns))
        for i, column in enumerate(columns):
            values = column.astype(np.float64)
            mean[i] = values.mean()
            spread = float(values.std())
            deviation[i] = spread if spread > 1e-8 else 1.0
            matrix[:, i] = (values - mean[i]) / deviation[i]
        return cls(matrix, mean, deviation, classes)

    def rows(self, used: slice | IntArray) -> FloatArray:
        """Some rows of the matrix, a column still in one piece."""
        if isinstance(used, slice):
            return self.matrix[used]
        return self.matrix.T.take(used, axis=1).T

    def classes_of(self, used: slice | IntArray) -> Classes | None:
        """Predicted classes of some rows."""
        if self.classes is None:
            return None
        return replace(self.classes, labels=self.classes.labels[used])

    def raw_weights(self, coefficients: FloatArray) -> FloatArray:
        """Weights of the features as they come, from coefficients of the standardized ones."""
        d = len(self.deviation)
        raw = coefficients[:d] / self.deviation
        if self.classes is None:
            return raw
        return np.append(raw, self.classes.scale * coefficients[d + 1 :])


def combines_of(part: Trace) -> tuple[Combine, ...]:
    """The ways in which the stages' answers can be combined: without classes in none."""
    return COMBINES if part.labeled else ("last",)


def telling(part: Trace) -> list[tuple[int, int]]:
    """Stages and numbers among their features that differ between examples."""
    if part.features is None:
        return []
    differ = (part.features != part.features[0]).any(dim=0)  # (s, d)
    return [(int(k), int(j)) for k, j in differ.nonzero()]


def confidence_features_of(part: Trace, combine: Combine) -> FeaturesOf:
    """The features of the learned policy, for each path.

    Args:
        part: The examples; without classes it is the numbers that visited stages give.
        combine: How answers are made; a combined answer has features of its own.
    """
    numbers = telling(part)

    def features_of(path: Path) -> Sequence[Feature]:
        if part.features is not None:
            return [Feature(f"value_{j}", k) for k, j in numbers if k in path]
        return confidence_features(path, part.classes, combined=combine != "last")

    return features_of


def _key(feature: Feature, path: Path) -> _Key:
    return (feature, path) if feature.stage == COMBINED else (feature, ())
