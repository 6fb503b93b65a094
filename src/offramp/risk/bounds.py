"""P-values from a count of errors or a mean loss, and what joins several risks.

Layer: risk.  Source: Bates, Angelopoulos, Lei, Malik, Jordan 2021, arXiv:2101.02703, and
Angelopoulos et al. 2021, arXiv:2110.01052 (Hoeffding-Bentkus); each docstring has the formula.
"""

import math
from fractions import Fraction

import numpy as np
from scipy import special, stats

from offramp._core.checks import check_positive_int, check_probability
from offramp._core.errors import InputError
from offramp._core.types import FloatArray, IntArray
from offramp.risk.losses import check_counts, check_means

_ROUNDING = 1e-9  # n times a mean that was an integer may lie this far above it


def binomial_p_values(errors: IntArray, n: int, *, max_risk: float) -> FloatArray:
    """P-values of "the risk exceeds `max_risk`" for losses that are 0 or 1, exact.

    The chance of so few errors at a risk of exactly `max_risk`: P(Bin(n, B) <= errors).

    Args:
        errors: How many of the examples had loss 1, one count for each candidate, `(k,)`.
        n: Number of examples.
        max_risk: B, in (0, 1).

    Returns:
        `(k,)`, in (0, 1]; lower is safer.

    Raises:
        InputError: If a count lies outside [0, n], or `max_risk` outside (0, 1).

    Source: Clopper and Pearson, Biometrika 1934; Bates et al. 2021.

    >>> import numpy as np
    >>> binomial_p_values(np.array([0, 1]), 149, max_risk=0.02).round(3).tolist()
    [0.049, 0.199]
    """
    check_probability("max_risk", max_risk)
    return np.asarray(stats.binom.cdf(check_counts("errors", errors, n), n, max_risk))


def binomial_p_values_reference(errors: IntArray, n: int, *, max_risk: float) -> FloatArray:
    """As `binomial_p_values`, summing every term in exact fractions."""
    b = Fraction(max_risk)
    terms = [math.comb(n, k) * b**k * (1 - b) ** (n - k) for k in range(n + 1)]
    return np.array([float(sum(terms[: e + 1])) for e in errors.tolist()], dtype=np.float64)


def hoeffding_bentkus_p_values(means: FloatArray, n: int, *, max_risk: float) -> FloatArray:
    """P-values of "the risk exceeds `max_risk`" for losses in [0, 1], from their mean alone.

    The smaller of exp(-n h(min(m, B), B)), h(a, b) = a log(a/b) + (1 - a) log((1 - a)/(1 - b)),
    and e P(Bin(n, B) <= ceil(n m)). Valid for any losses in [0, 1]; where they vary little, as
    differences do, it is far from the smallest that is.

    Args:
        means: Mean loss of each candidate, m, `(k,)`, in [0, 1].
        n: Number of examples.
        max_risk: B, in (0, 1).

    Returns:
        `(k,)`, in (0, 1]; lower is safer.

    Raises:
        InputError: If a mean lies outside [0, 1], or `max_risk` outside (0, 1).

    Source: Hoeffding 1963; Bentkus 2004; joined in Bates et al. 2021 and Angelopoulos et al. 2021.

    >>> import numpy as np
    >>> hoeffding_bentkus_p_values(np.array([0.0, 0.02]), 300, max_risk=0.02).round(4).tolist()
    [0.0023, 1.0]
    """
    check_probability("max_risk", max_risk)
    check_positive_int("n", n)
    m = np.minimum(check_means("means", means), max_risk)
    divergence = special.rel_entr(m, max_risk) + special.rel_entr(1 - m, 1 - max_risk)
    bentkus = math.e * stats.binom.cdf(np.ceil(n * means - _ROUNDING), n, max_risk)
    return np.asarray(np.minimum(1.0, np.minimum(np.exp(-n * divergence), bentkus)))


def hoeffding_bentkus_p_values_reference(
    means: FloatArray, n: int, *, max_risk: float
) -> FloatArray:
    """As `hoeffding_bentkus_p_values`, one candidate at a time by the formula."""
    found = []
    for mean in means.tolist():
        m = min(mean, max_risk)
        left = m * math.log(m / max_risk) if m > 0 else 0.0
        right = (1 - m) * math.log((1 - m) / (1 - max_risk))
        count = np.array([math.ceil(n * mean - _ROUNDING)], dtype=np.int64)
        tail = binomial_p_values_reference(count, n, max_risk=max_risk)[0]
        found.append(min(1.0, math.exp(-n * (left + right)), math.e * float(tail)))
    return np.array(found, dtype=np.float64)


def rescaled_difference(losses: FloatArray, max_difference: float) -> tuple[FloatArray, float]:
    """Loss differences in [-1, 1] and their limit, moved to [0, 1]: x becomes (1 + x) / 2.

    Raises:
        InputError: If a difference lies outside [-1, 1], or the limit outside (-1, 1).

    >>> import numpy as np
    >>> moved, limit = rescaled_difference(np.array([-1.0, 0.0, 1.0]), 0.02)
    >>> moved.tolist(), limit
    ([0.0, 0.5, 1.0], 0.51)
    """
    outside = ~(np.abs(losses) <= 1)
    if outside.any():
        raise InputError(
            f"losses must be differences in [-1, 1], got {float(losses[outside][0])!r}."
        )
    if not -1.0 < max_difference < 1.0:
        raise InputError(
            f"max_difference must be in (-1, 1), got {max_difference!r}. A percentage has to be "
            "divided by 100 first."
        )
    return (1 + losses) / 2, (1 + max_difference) / 2


def several_risks(p_values: FloatArray) -> FloatArray:
    """P-values of "at least one of several risks exceeds its limit": the largest of theirs.

    No further correction is needed: where one limit is exceeded, that risk's own p-value is valid,
    and the largest is not below it.

    Args:
        p_values: Of each risk and candidate, `(r, k)`.

    Returns:
        `(k,)`.

    Source: intersection-union test, Berger, Technometrics 24 (1982) 295-300; Angelopoulos et al.
    2021, several risks.

    >>> import numpy as np
    >>> several_risks(np.array([[0.01, 0.2], [0.04, 0.03]])).tolist()
    [0.04, 0.2]
    """
    if p_values.ndim != 2 or len(p_values) == 0:
        raise InputError(f"p_values must have shape (r, k), r >= 1, got {p_values.shape}.")
    return np.asarray(p_values.max(axis=0))
