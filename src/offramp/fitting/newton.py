"""Weighted logistic regression by Newton's method.

Layer: fitting.  Source: methods.md 1 c (the 0/1 indicator relaxed to logistic loss; the bias is
then set by `offramp.fitting.cuts`).  Why our own: docs/adr/0006, docs/adr/0063.
"""

from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from offramp._core.errors import InputError
from offramp._core.types import FloatArray

_ROUNDS = 50
_TOLERANCE = 1e-6


def fit_weighted_logistic(
    columns: Float64[np.ndarray, "n d"],
    positive: Bool[np.ndarray, " n"],
    weights: Float64[np.ndarray, " n"],
    *,
    ridge: float = 1e-3,
    start: Float64[np.ndarray, " k"] | None = None,
    classes: "Classes | None" = None,
) -> Float64[np.ndarray, " k"]:
    """Minimize the weighted mean logistic loss plus ridge / 2 * |coefficients|^2.

    Args:
        columns: Features, `(n, d)`, standardized; the last column is all ones (the intercept,
            which the ridge leaves out).
        positive: The class wanted, `(n,)`.
        weights: Cost of getting an example wrong, `(n,)`, >= 0, not all 0; only ratios matter.
        ridge: Strength of the penalty, > 0.
        start: Where to begin: the solution of a neighboring problem.
        classes: Further columns, of the classes that examples are in.

    Returns:
        Coefficients `(d,)`, the intercept last, and behind them those of `classes`; the gradient's
        largest entry is below 1e-6.

    Raises:
        InputError: If all weights are 0, or the ridge is not positive.

    >>> x = np.array([[-1.0, 1.0], [1.0, 1.0]])
    >>> w = fit_weighted_logistic(x, np.array([False, True]), np.ones(2), ridge=0.1)
    >>> bool(w[0] > 0)
    True
    """
    total = float(weights.sum())
    if not total > 0:
        raise InputError(f"weights must not all be 0, got a sum of {total}.")
    if not ridge > 0:
        raise InputError(f"ridge must be greater than 0, got {ridge!r}.")
    rows = np.ascontiguousarray(columns.T)  # (d, n): a feature lies in one piece
    problem = _Problem(
        rows=torch.from_numpy(rows),
        single=torch.from_numpy(rows.astype(np.float32)),
        sign=np.where(positive, 1.0, -1.0),
        share=weights / total,
        penalty=np.array([*[ridge] * (len(rows) - 1), 0.0, *[ridge] * len(classes or ())]),
        classes=classes,
    )
    here = problem.at(np.zeros(len(problem.penalty)) if start is None else start.copy())
    for _ in range(_ROUNDS):
        gradient = problem.gradient(here)
        if np.abs(gradient).max() < _TOLERANCE:
            break
        step = problem.step(here, gradient)
        following = _line_search(problem, here, step, float(gradient @ step))
        if following is None:
            break
        here = following
    return here.coefficients


@final
@dataclass(frozen=True)
class Classes:
    """A column for each class but the last, that is not 0 for the examples of this class alone.

    Sums over such a column are sums over the examples of a class, so labels are all that is kept.

    Args:
        labels: The class of each example, `(n,)`, in [0, c).
        scale: What stands in each column where it is not 0, `(c - 1,)`, > 0.
    """

    labels: Int64[np.ndarray, " n"]
    scale: Float64[np.ndarray, " c_1"]

    @classmethod
    def of(cls, labels: Int64[np.ndarray, " n"], classes: int) -> "Classes":
        """Indicators divided by their deviation; one that is constant stays as it is."""
        share = np.bincount(labels, minlength=classes)[:-1] / len(labels)
        deviation = np.sqrt(share * (1 - share))
        return cls(labels, 1 / np.where(deviation > 1e-8, deviation, 1.0))

    def __len__(self) -> int:
        return len(self.scale)

    def times(self, coefficients: Float64[np.ndarray, " c_1"]) -> Float64[np.ndarray, " n"]:
        """Weighted sums of the columns, one for each example."""
        return np.append(coefficients * self.scale, 0.0).take(self.labels)

    def sums(self, values: np.ndarray, power: int = 1) -> Float64[np.ndarray, " c_1"]:
        """Sum of each column, or of its square, times `values`, `(n,)`."""
        each = np.bincount(self.labels, weights=values, minlength=len(self) + 1)
        found: FloatArray = each[:-1] * self.scale**power
        return found


class _Point(NamedTuple):
    """Coefficients `(k,)`, the loss there, and each example's probability of the wrong class."""

    coefficients: Float64[np.ndarray, " k"]
    loss: float
    wrong: Float64[np.ndarray, " n"]


class _Problem(NamedTuple):
    """A weighted logistic regression.

    Products are PyTorch's, as everywhere here: what limits its threads limits those of the fit.

    Args:
        rows: The features, `(d, n)`, float64.
        single: The same in float32.
        sign: 1 or -1 for the class wanted, `(n,)`.
        share: Weights that sum to 1, `(n,)`.
        penalty: Of each coefficient, `(d,)`, and those of classes.
        classes: Columns of classes.
    """

    rows: Tensor
    single: Tensor
    sign: Float64[np.ndarray, " n"]
    share: Float64[np.ndarray, " n"]
    penalty: Float64[np.ndarray, " k"]
    classes: Classes | None

    def at(self, coefficients: Float64[np.ndarray, " k"]) -> _Point:
        d = len(self.rows)
        margin = (self.rows.T @ torch.from_numpy(coefficients[:d])).numpy()
        if self.classes is not None:
            margin += self.classes.times(coefficients[d:])
        margin *= self.sign
        small = np.exp(-np.abs(margin))  # in (0, 1]: nothing overflows
        losses = np.log1p(small)
        losses -= np.minimum(margin, 0.0)
        losses *= self.share
        wrong = np.where(margin > 0, small, 1.0)
        small += 1.0
        wrong /= small
        ridge = 0.5 * float((self.penalty * coefficients**2).sum())
        return _Point(coefficients, float(losses.sum()) + ridge, wrong)

    def gradient(self, here: _Point) -> Float64[np.ndarray, " k"]:
        d = len(self.rows)
        force = self.share * self.sign
        force *= here.wrong
        gradient: FloatArray = self.penalty * here.coefficients
        gradient[:d] -= (self.rows @ torch.from_numpy(force)).numpy()
        if self.classes is not None:
            gradient[d:] -= self.classes.sums(force)
        return gradient

    def step(self, here: _Point, gradient: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
        """Newton's step. Curvature is of single precision: it steers, not where the steps end.

        No two classes share an example, so their block of the curvature is a diagonal: what is
        solved is what remains of the others when it is eliminated (Schur's complement).
        """
        d = len(self.rows)
        bend = 1.0 - here.wrong
        bend *= here.wrong
        bend *= self.share
        bent = self.single * torch.from_numpy(bend.astype(np.float32))
        curvature = (bent @ self.single.T).numpy().astype(np.float64)
        curvature += np.diag(self.penalty[:d] + 1e-10)
        if self.classes is None:
            solved: FloatArray = np.linalg.solve(curvature, gradient)
            return solved
        own = self.classes.sums(bend, power=2) + self.penalty[d:] + 1e-10  # (c - 1,)
        shared = np.stack([self.classes.sums(row) for row in bent.numpy()])  # (d, c - 1)
        passed = shared / own
        rest = curvature - passed @ shared.T
        first = np.linalg.solve(rest, gradient[:d] - passed @ gradient[d:])
        return np.append(first, (gradient[d:] - first @ shared) / own)


def _line_search(
    problem: _Problem, here: _Point, step: Float64[np.ndarray, " k"], descent: float
) -> _Point | None:
    """Halve Newton's step until the loss falls enough (Armijo); None where no step does."""
    length = 1.0
    for _ in range(40):
        trial = problem.at(here.coefficients - length * step)
        if trial.loss <= here.loss - 1e-4 * length * descent:
            return trial
        length /= 2
    return None
