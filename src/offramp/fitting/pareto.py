"""Pareto fronts of points with a cost and a risk, both better when lower.

Layer: fitting.
"""

import numpy as np

from offramp._core.checks import check_shape
from offramp._core.types import BoolArray, FloatArray


def pareto_front(costs: FloatArray, risks: FloatArray) -> BoolArray:
    """True where no other point is at least as good in both and better in one, `(k,)`.

    Args:
        costs: `(k,)`, lower is better.
        risks: `(k,)`, lower is better.

    >>> import numpy as np
    >>> pareto_front(np.array([1.0, 2.0, 3.0]), np.array([0.3, 0.3, 0.1])).tolist()
    [True, False, True]
    """
    check_shape("risks", risks.shape, costs.shape)
    order = np.lexsort((risks, costs))  # by cost, then by risk
    cost, risk = costs[order], risks[order]
    first = np.searchsorted(cost, cost, side="left")  # the best of those that cost the same
    cheaper = np.concatenate([[np.inf], np.minimum.accumulate(risk)])[first]
    mask = np.zeros(len(costs), dtype=np.bool_)
    mask[order] = (risk == risk[first]) & (risk < cheaper) if len(costs) else mask
    return mask


def pareto_front_reference(costs: FloatArray, risks: FloatArray) -> BoolArray:
    """As `pareto_front`, comparing every pair."""
    points = list(zip(costs.tolist(), risks.tolist(), strict=True))
    return np.array(
        [not any(a <= c and b <= r and (a, b) != (c, r) for a, b in points) for c, r in points],
        dtype=np.bool_,
    )
