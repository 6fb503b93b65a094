"""How many examples a promise takes.

Layer: risk.  Source: methods.md 4.
"""

import math
from collections.abc import Callable

from offramp._core.checks import check_probability

_MOST = 10_000_000  # examples: beyond, "about so many" helps nobody


def fewest_examples(*, max_risk: float, delta: float) -> int:
    """Examples without which nothing is certified, even if none of them is lost.

    Without any error the chance of it at a risk of B is (1 - B)^n, so n >= log(delta)/log(1 - B).

    Args:
        max_risk: B, in (0, 1).
        delta: Largest chance of a wrong promise, in (0, 1).

    Raises:
        InputError: If one of them lies outside (0, 1).

    >>> fewest_examples(max_risk=0.005, delta=0.05), fewest_examples(max_risk=0.02, delta=0.05)
    (598, 149)
    """
    check_probability("max_risk", max_risk)
    check_probability("delta", delta)
    return math.ceil(math.log(delta) / math.log1p(-max_risk))


def examples_needed(
    p_value: Callable[[int], float], *, delta: float, at_least: int = 1
) -> int | None:
    """About how many examples would have passed, if their shares had stayed the same.

    An estimate: new examples may turn out better or worse, each in about half of all cases.

    Args:
        p_value: The p-value that a given number of examples would have.
        delta: What it has to reach, in (0, 1).
        at_least: Where the search begins, >= 1.

    Returns:
        None if ten million examples would not do.

    >>> examples_needed(lambda n: 0.98**n, delta=0.05)
    149
    """
    check_probability("delta", delta)
    low, high = at_least - 1, at_least
    while p_value(high) > delta:
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if p_value(middle) <= delta:
            high = middle
        else:
            low = middle
    return high
