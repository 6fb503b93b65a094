"""Checks of the losses and counts that p-values are computed from.

Layer: risk.
"""

import numpy as np

from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError
from offramp._core.types import FloatArray, IntArray


def check_counts(name: str, counts: IntArray, n: int) -> IntArray:
    """Return `counts`, `(k,)`, if each lies in 0..n; else raise `InputError`."""
    check_positive_int("n", n)
    outside = (counts < 0) | (counts > n)
    if outside.any():
        raise InputError(
            f"{name} must be counts of the n = {n} examples, in [0, {n}], got "
            f"{int(counts[outside][0])}."
        )
    return counts


def check_losses(name: str, losses: FloatArray) -> FloatArray:
    """Return `losses` if they are `(n, k)`, n >= 1, in [0, 1]; else raise `InputError`."""
    if losses.ndim != 2 or len(losses) == 0:
        raise InputError(
            f"{name} must have shape (n, k), at least one example by candidates, got "
            f"{losses.shape}."
        )
    outside = ~((losses >= 0) & (losses <= 1))  # True for NaN as well
    if outside.any():
        raise InputError(
            f"{name} must be in [0, 1], got {float(losses[outside][0])!r}. Differences, in "
            "[-1, 1], are rescaled by rescaled_difference; other losses are divided by their "
            "largest possible value, and max_risk with them."
        )
    return losses


def check_means(name: str, means: FloatArray) -> FloatArray:
    """Return mean losses, `(k,)`, if each lies in [0, 1]; else raise `InputError`."""
    outside = ~((means >= 0) & (means <= 1))
    if outside.any():
        raise InputError(f"{name} must be in [0, 1], got {float(np.ravel(means[outside])[0])!r}.")
    return means
