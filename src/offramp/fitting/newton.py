"""Weighted logistic regression by Newton's method.

Layer: fitting.  Source: methods.md 1 c (the 0/1 indicator relaxed to logistic loss; the bias is
then set by `offramp.fitting.cuts`).  Why our own: docs/adr/0006, docs/adr/0063.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64
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
    start: Float64[np.ndarray, " d"] | None = None,
) -> Float64[np.ndarray, " d"]:
    """Minimize the weighted mean logistic loss plus ridge / 2 * |coefficients|^2.

    Args:
        columns: Features, `(n, d)`, standardized; the last column is all ones (the intercept,
            which the ridge leaves out).
        positive: The class wanted, `(n,)`.
        weights: Cost of getting an example wrong, `(n,)`, >= 0, not all 0; only ratios matter.
        ridge: Strength of the penalty, > 0.
        start: Where to begin, `(d,)`: the solution of a neighboring problem.

    Returns:
        Coefficients `(d,)`, intercept last; with the gradient's largest entry below 1e-6.

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
        penalty=np.array([*[ridge] * (len(rows) - 1), 0.0]),
    )
    here = problem.at(np.zeros(len(rows)) if start is None else start.copy())
    for _ in range(_ROUNDS):
        gradient = problem.gradient(here)
        if np.abs(gradient).max() < _TOLERANCE:
            break
        step = np.linalg.solve(problem.curvature(here), gradient)
        following = _line_search(problem, here, step, float(gradient @ step))
        if following is None:
            break
        here = following
    return here.coefficients


class _Point(NamedTuple):
    """Coefficients `(d,)`, the loss there, and each example's probability of the wrong class."""

    coefficients: Float64[np.ndarray, " d"]
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
        penalty: Of each coefficient, `(d,)`.
    """

    rows: Tensor
    single: Tensor
    sign: Float64[np.ndarray, " n"]
    share: Float64[np.ndarray, " n"]
    penalty: Float64[np.ndarray, " d"]

    def at(self, coefficients: Float64[np.ndarray, " d"]) -> _Point:
        margin = (self.rows.T @ torch.from_numpy(coefficients)).numpy()
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

    def gradient(self, here: _Point) -> Float64[np.ndarray, " d"]:
        force = self.share * self.sign
        force *= here.wrong
        gradient: FloatArray = self.penalty * here.coefficients
        gradient -= (self.rows @ torch.from_numpy(force)).numpy()
        return gradient

    def curvature(self, here: _Point) -> Float64[np.ndarray, "d d"]:
        """Second derivatives, in single precision: they steer the steps, not where these end."""
        bend = 1.0 - here.wrong
        bend *= here.wrong
        bend *= self.share
        found = (self.single * torch.from_numpy(bend.astype(np.float32))) @ self.single.T
        return found.numpy().astype(np.float64) + np.diag(self.penalty + 1e-10)


def _line_search(
    problem: _Problem, here: _Point, step: Float64[np.ndarray, " d"], descent: float
) -> _Point | None:
    """Halve Newton's step until the loss falls enough (Armijo); None where no step does."""
    length = 1.0
    for _ in range(40):
        trial = problem.at(here.coefficients - length * step)
        if trial.loss <= here.loss - 1e-4 * length * descent:
            return trial
        length /= 2
    return None
