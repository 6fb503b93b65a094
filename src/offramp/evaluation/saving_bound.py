"""What any policy could save at most within a loss, as an upper confidence limit.

A policy that knew the labels would pay, for each example, the least of cost + mu * loss, mu being
the price of a loss. For every price mu >= 0 that minimum bounds the cost of every policy whose
answers are those of single stages:

    mean cost of a policy with mean loss <= B  >=  E[min over stages (cost + mu * loss)] - mu * B

So one price suffices for a bound, and the best of a few, chosen beforehand from the costs, is close
to the best of all. Policies that combine the answers of several stages are not covered.

Layer: evaluation.  Source: weak duality of the linear programme of leaving within a loss; Bates et
al. 2021 for the limit of a mean.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from offramp._core.checks import check_kind
from offramp._core.types import FloatArray
from offramp.evaluation.results import Risk
from offramp.fitting.search import successors
from offramp.risk import hoeffding_bentkus_p_values
from offramp.trace import Trace

_PRICES = 12  # tried for each first stage: more of them widen the limit
_STEPS = 40  # of bisection


@final
@dataclass(frozen=True, kw_only=True)
class SavingBound:
    """Most that can be saved within a loss: 1 - cost / cost of the reference.

    Args:
        measured: On the examples themselves, knowing their labels.
        limit: On new examples; higher with probability `delta` at most.
    """

    measured: float
    limit: float


def saving_bound(
    trace: Trace, reference: str, *, max_drop: float, delta: float, risk: Risk, top: int = 1
) -> SavingBound:
    """The bound for policies that begin with any stage and answer as one of the stages does.

    Args:
        trace: Dataset, not looked at before.
        reference: Name of the reference.
        max_drop: B, the mean loss that is allowed, in [0, 1).
        delta: Chance that `limit` is too low, in (0, 1).
        risk: "accuracy_drop" or "negative_flips".
        top: A label is right when it is among the `top` best.

    >>> from offramp.trace import make_trace
    >>> trace = make_trace(2000, accuracies=[0.7, 0.9], seed=0)
    >>> found = saving_bound(trace, "stage1", max_drop=0.0, delta=0.1, risk="accuracy_drop")
    >>> 0.2 < found.measured < found.limit < 0.75
    True
    """
    check_kind("trace", trace, Trace, read="offramp.load_trace(path)")
    f = trace.topology.index(reference)
    losses = _losses(trace, f, risk, top)
    prices = _prices(trace, f)
    tried = {start: _worth_trying(cost) for start, cost in prices.items()}
    tests = sum(map(len, tried.values()))
    measured = limit = 0.0
    for start, cost in prices.items():
        found = [
            _savings(cost, losses, price, max_drop, delta / tests, risk) for price in tried[start]
        ]
        measured = max(measured, min(m for m, _ in found))
        limit = max(limit, min(most for _, most in found))
    return SavingBound(measured=measured, limit=limit)


def _losses(trace: Trace, f: int, risk: Risk, top: int) -> FloatArray:
    """Loss of leaving with each stage's answer, `(n, s)`."""
    stages = range(len(trace.topology))
    ones = np.ones(len(trace))
    loss = np.stack([ones if k in trace.silent else trace.loss(k, top=top) for k in stages], axis=1)
    difference = loss - loss[:, [f]]
    return difference if risk == "accuracy_drop" else difference.clip(min=0)


def _prices(trace: Trace, f: int) -> dict[int, FloatArray]:
    """For each first stage the cost ratio of ending at each stage; infinite where none ends.

    `(1, s)`, or `(n, s)` where examples have prices of their own. Only first stages that are
    cheaper than the reference: what starts with others saves nothing.
    """
    topology, own, bill = trace.topology, trace.mean_cost(f), trace.bill
    follows = successors(topology)
    found: dict[int, FloatArray] = {}
    for start in range(len(topology)):
        if trace.mean_cost(start) < own:
            rows = 1 if trace.prices is None else len(trace)
            cost = np.full((rows, len(topology)), np.inf)
            for k in ({start} | follows[start]) - trace.silent:
                path = (start, k) if k != start else (start,)
                cost[:, k] = bill.path(topology, path, ()) / own
            found[start] = cost
    return found


def _worth_trying(cost: FloatArray) -> list[float]:
    """Prices of a loss at which the best stage of an example changes: differences of costs."""
    mean = cost.mean(axis=0)
    finite = np.unique(mean[np.isfinite(mean)])
    steps = np.unique((finite[:, None] - finite[None, :]).clip(min=0))
    kept = np.unique(np.linspace(0, len(steps) - 1, min(_PRICES, len(steps))).round())
    return [float(v) for v in steps[kept.astype(np.int64)]]


def _savings(
    cost: FloatArray,
    losses: FloatArray,
    price: float,
    max_drop: float,
    delta: float,
    risk: Risk,
) -> tuple[float, float]:
    """The bound by one price of a loss: measured, and with its upper limit."""
    reached = np.isfinite(cost[0])
    least = (cost[:, reached] + price * losses[:, reached]).min(axis=1)  # (n,)
    cheapest = cost[:, reached].min(axis=1)  # leaving there is always open
    low = float(cheapest.min()) - price * (risk == "accuracy_drop")  # a correction is a loss of -1
    high = float(cheapest.max()) + price
    free = price * max_drop
    saved = float(least.mean())
    if high == low:
        return 1 - saved + free, 1 - saved + free
    shares = (high - least) / (high - low)  # (n,) in [0, 1]
    upper = _upper_limit(float(shares.mean()), len(shares), delta)
    return 1 - saved + free, 1 - (high - upper * (high - low)) + free


def _upper_limit(mean: float, n: int, delta: float) -> float:
    """Of the expectation of something in [0, 1]: exceeded with probability `delta` at most."""
    low, high = mean, 1.0
    means = np.array([mean])
    for _ in range(_STEPS):
        middle = (low + high) / 2
        inside = 0.0 < middle < 1.0
        if inside and hoeffding_bentkus_p_values(means, n, max_risk=middle)[0] > delta:
            low = middle
        else:
            high = middle
    return high
