"""Which candidates may be promised, given a p-value for each.

Layer: risk.  Source: Angelopoulos et al. 2021, arXiv:2110.01052: whatever keeps the chance of any
false rejection at delta or below gives candidates whose risk is controlled.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from offramp._core.checks import check_probability
from offramp._core.errors import InputError
from offramp._core.types import BoolArray, FloatArray


@final
@dataclass(frozen=True, kw_only=True)
class Passed:
    """The last candidate of a sequence that passed its test, and all before it.

    Args:
        index: Its place in the sequence.
        p_value: The largest p-value up to there: the level at which all of them pass.
    """

    index: int
    p_value: float


@final
@dataclass(frozen=True, kw_only=True)
class NonePassed:
    """No candidate may be promised.

    Args:
        reason: Why, in one plain sentence.
    """

    reason: str


def fixed_sequence(p_values: FloatArray, *, delta: float) -> Passed | NonePassed:
    """Walk along an order that was fixed beforehand, as long as candidates pass.

    Each is tested at `delta` itself: the first candidate of the order whose risk is too large is
    the only one that can make the walk go wrong, and it passes with probability `delta` at most.

    Args:
        p_values: Of the candidates from the safest to the cheapest, `(k,)`, in [0, 1]. The order
            must not depend on the examples that the p-values come from.
        delta: Largest chance of a wrong promise, in (0, 1).

    Returns:
        The last candidate before the first that fails.

    Raises:
        InputError: If a p-value lies outside [0, 1], or `delta` outside (0, 1).

    Source: Angelopoulos et al. 2021, fixed sequence testing; Bauer 1991.

    >>> import numpy as np
    >>> fixed_sequence(np.array([0.001, 0.03, 0.2, 0.01]), delta=0.05)
    Passed(index=1, p_value=0.03)
    >>> fixed_sequence(np.array([0.3, 0.01]), delta=0.05)
    NonePassed(reason='the safest candidate has p = 0.3, above delta = 0.05')
    """
    check_probability("delta", delta)
    _check_p_values(p_values)
    if len(p_values) == 0:
        return NonePassed(reason="there is no candidate to test")
    passed = int(np.cumprod(p_values <= delta).sum())
    if passed == 0:
        p = float(p_values[0])
        return NonePassed(reason=f"the safest candidate has p = {p:.3g}, above delta = {delta:g}")
    return Passed(index=passed - 1, p_value=float(p_values[:passed].max()))


def fixed_sequence_reference(p_values: FloatArray, *, delta: float) -> Passed | NonePassed:
    """As `fixed_sequence`, one step after another."""
    last: Passed | NonePassed = NonePassed(reason="there is no candidate to test")
    largest = 0.0
    for index, p in enumerate(p_values.tolist()):
        if p > delta:
            if index == 0:
                reason = f"the safest candidate has p = {p:.3g}, above delta = {delta:g}"
                return NonePassed(reason=reason)
            break
        largest = max(largest, p)
        last = Passed(index=index, p_value=largest)
    return last


def bonferroni(p_values: FloatArray, *, delta: float) -> BoolArray:
    """True for candidates that may be promised, all at once, without an order: p <= delta / k.

    Args:
        p_values: `(k,)`, in [0, 1].
        delta: Largest chance that any of the promises is wrong, in (0, 1).

    Raises:
        InputError: If a p-value lies outside [0, 1], or `delta` outside (0, 1).

    Source: Angelopoulos et al. 2021, Bonferroni.

    >>> import numpy as np
    >>> bonferroni(np.array([0.01, 0.02, 0.04]), delta=0.05).tolist()
    [True, False, False]
    """
    check_probability("delta", delta)
    _check_p_values(p_values)
    return np.asarray(p_values <= delta / max(1, len(p_values)))


def holm(p_values: FloatArray, *, delta: float) -> BoolArray:
    """As `bonferroni`, but the limit grows as candidates pass; it never passes fewer.

    The smallest p-value is compared with delta / k, the next with delta / (k - 1), and so on until
    one fails.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.

    >>> import numpy as np
    >>> holm(np.array([0.01, 0.02, 0.04]), delta=0.05).tolist()
    [True, True, True]
    """
    check_probability("delta", delta)
    _check_p_values(p_values)
    order = np.argsort(p_values, kind="stable")
    limits = delta / np.arange(len(p_values), 0, -1)
    passed = np.zeros(len(p_values), dtype=np.bool_)
    passed[order] = np.cumprod(p_values[order] <= limits).astype(np.bool_)
    return passed


def holm_reference(p_values: FloatArray, *, delta: float) -> BoolArray:
    """As `holm`, taking the smallest that is left again and again."""
    left = dict(enumerate(p_values.tolist()))
    passed = np.zeros(len(p_values), dtype=np.bool_)
    while left:
        smallest = min(left, key=lambda i: left[i])
        if left[smallest] > delta / len(left):
            break
        passed[smallest] = True
        del left[smallest]
    return passed


def _check_p_values(p_values: FloatArray) -> None:
    if p_values.ndim != 1:
        raise InputError(f"p_values must have shape (k,), got {p_values.shape}.")
    outside = ~((p_values >= 0) & (p_values <= 1))  # True for NaN as well
    if outside.any():
        raise InputError(f"p_values must be in [0, 1], got {float(p_values[outside][0])!r}.")
