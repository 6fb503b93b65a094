"""Weighted logistic regression by Newton's method, and the exact choice of the bias.

Layer: fitting.  Source: methods.md 1 c (the 0/1 indicator relaxed to logistic loss; then the bias
is set by an exact scan of the weighted 0/1 objective).  Why our own: measured.md, "Fitting".
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.special import expit

from offramp._core.errors import InputError

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
    share = weights / total
    sign = np.where(positive, 1.0, -1.0)
    penalty = np.full(columns.shape[1], ridge)
    penalty[-1] = 0.0
    current = np.zeros(columns.shape[1]) if start is None else start.copy()
    value, z = _loss(columns, sign, share, penalty, current)
    for _ in range(_ROUNDS):
        p = expit(-sign * z)  # (n,) probability of the wrong class
        gradient = penalty * current - columns.T @ (share * sign * p)
        if np.abs(gradient).max() < _TOLERANCE:
            break
        curvature = columns.T @ (columns * (share * p * (1 - p))[:, None])
        curvature[np.diag_indices_from(curvature)] += penalty + 1e-10
        step = np.linalg.solve(curvature, gradient)
        current, value, z, moved = _line_search(
            columns, sign, share, penalty, current, step, value, float(gradient @ step)
        )
        if not moved:
            break
    return current


def _loss(
    columns: Float64[np.ndarray, "n d"],
    sign: Float64[np.ndarray, " n"],
    share: Float64[np.ndarray, " n"],
    penalty: Float64[np.ndarray, " d"],
    at: Float64[np.ndarray, " d"],
) -> tuple[float, Float64[np.ndarray, " n"]]:
    z = columns @ at
    m = sign * z
    # log(1 + exp(-m)) without overflow; numpy's logaddexp is several times slower
    losses = np.log1p(np.exp(-np.abs(m))) + np.maximum(-m, 0.0)
    return float(share @ losses + 0.5 * (penalty @ at**2)), z


def _line_search(
    columns: Float64[np.ndarray, "n d"],
    sign: Float64[np.ndarray, " n"],
    share: Float64[np.ndarray, " n"],
    penalty: Float64[np.ndarray, " d"],
    at: Float64[np.ndarray, " d"],
    step: Float64[np.ndarray, " d"],
    value: float,
    descent: float,
) -> tuple[Float64[np.ndarray, " d"], float, Float64[np.ndarray, " n"], bool]:
    """Halve Newton's step until the loss falls enough (Armijo)."""
    length = 1.0
    for _ in range(40):
        trial = at - length * step
        new, z = _loss(columns, sign, share, penalty, trial)
        if new <= value - 1e-4 * length * descent:
            return trial, new, z, True
        length /= 2
    _, z = _loss(columns, sign, share, penalty, at)
    return at, value, z, False


class Cut(NamedTuple):
    """Where to cut scores: the action is taken where score >= `value`."""

    value: float
    total: float


def best_cut(
    scores: Float[np.ndarray, " n"],
    gains: Float64[np.ndarray, " n"],
    order: np.ndarray | None = None,
) -> Cut:
    """The cut that minimizes the sum of `gains` over the examples with score >= cut, exactly.

    Args:
        scores: `(n,)`, float32; equal scores stand on the same side.
        gains: What taking the action adds to the objective, `(n,)`; negative is good.
        order: The examples that count, by falling score; by default all of them.

    Returns:
        The cut, half-way between two scores (infinity takes nobody, -infinity everybody), and the
        sum. Among equal sums the one that takes the most, the cheaper action by convention.
    """
    if order is None:
        order = np.argsort(-scores)  # the order among equals does not matter: no cut splits them
    falling = scores[order]
    sums = np.concatenate([[0.0], np.cumsum(gains[order])])  # sums[i]: the i highest are taken
    ends = np.concatenate([[True], falling[1:] != falling[:-1], [True]])  # a tie is never split
    candidates = np.flatnonzero(ends)
    values = sums[candidates]
    slack = 1e-12 * max(1.0, float(np.abs(values).max()))
    taken = int(candidates[np.flatnonzero(values <= values.min() + slack)[-1]])
    if taken == 0:
        return Cut(np.inf, 0.0)
    if taken == len(falling):
        return Cut(-np.inf, float(sums[-1]))
    return Cut(_between(falling[taken], falling[taken - 1]), float(sums[taken]))


def _between(low: np.floating, high: np.floating) -> float:
    """A float32 number in (low, high]: the middle where it is one."""
    middle = np.float32(0.5) * np.float32(low) + np.float32(0.5) * np.float32(high)
    return float(middle if low < middle <= high else high)


def best_cut_reference(scores: Float[np.ndarray, " n"], gains: Float64[np.ndarray, " n"]) -> float:
    """The slow obvious twin: the smallest sum over all cuts."""
    cuts = [np.inf, *np.unique(scores)]
    return min(float(gains[scores >= cut].sum()) for cut in cuts)
