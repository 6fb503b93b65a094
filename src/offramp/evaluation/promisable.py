"""What could be promised of each candidate by itself: the picture of a certificate.

A certificate tests candidates against one limit. Here the limit is what is looked for: the smallest
loss of accuracy that the examples refute. It holds for one candidate that was fixed beforehand,
not for the best of several; what is promised in fact is what `Frontier.certify` says.

Layer: evaluation.  Source: the tests of methods.md 4, inverted as in Clopper and Pearson,
Biometrika 26 (1934).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from offramp._core.checks import check_kind, check_probability
from offramp.evaluation.results import Evaluation, FrontierPoint
from offramp.evaluation.risk_tests import risk_p_values

_STEPS = 18  # halvings of the range of losses: to a hundredth of a hundredth of a point


@final
@dataclass(frozen=True, kw_only=True)
class Promisable:
    """One candidate: what it costs and loses on examples, and what they could promise.

    Args:
        cost_ratio: Its mean cost over the reference's.
        accuracy_drop: What it loses there, in [-1, 1].
        drop_bound: The loss that could be promised of it by itself, in (0, 1].
    """

    cost_ratio: float
    accuracy_drop: float
    drop_bound: float


def drop_bound(found: Evaluation, *, delta: float) -> float:
    """The smallest limit of the accuracy lost that these examples promise, in (0, 1].

    Args:
        found: An evaluation of labeled examples that nothing was fitted on.
        delta: Largest chance that more is lost on new examples, in (0, 1).

    Returns:
        1 where nothing can be promised; lower is better.

    Raises:
        InputError: If `delta` lies outside (0, 1), or the evaluation is of losses that no counts
            stand for.

    >>> from offramp.evaluation import evaluate
    >>> from offramp.policy import Candidate
    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=900, stages=2, seed=0)
    >>> alone = Candidate.single(trace.topology, "stage1", reference="stage1")
    >>> drop_bound(evaluate(trace, alone, bootstrap=0), delta=0.1) < 0.01
    True
    """
    check_kind("found", found, Evaluation)
    check_probability("delta", delta)
    low, high = max(0.0, found.accuracy_drop), 1.0
    if low == high:
        return 1.0  # all that the reference gets right is lost
    for _ in range(_STEPS):
        middle = (low + high) / 2
        p = risk_p_values([found], risk="accuracy_drop", max_drop=middle, delta=delta)[0]
        if p <= delta:
            high = middle
        else:
            low = middle
    return high


def promisable(points: Sequence[FrontierPoint], *, delta: float) -> tuple[Promisable, ...]:
    """What could be promised of each point that was evaluated on `calibrate`, the cheapest first.

    Args:
        points: Candidates; those without that part, or of losses that lie between 0 and 1, are
            left out.
        delta: As in `drop_bound`.

    >>> from offramp.evaluation import fit
    >>> from offramp.trace.testing import make_trace
    >>> frontier = fit(make_trace(900, stages=2, seed=0), "random", progress=False)
    >>> found = promisable(frontier.pareto, delta=0.1)
    >>> all(one.drop_bound > one.accuracy_drop for one in found)
    True
    """
    each = [p.calibrate for p in points if p.calibrate is not None]
    counted = [e for e in each if e.difference_tally is None]
    return tuple(
        Promisable(
            cost_ratio=e.cost_ratio,
            accuracy_drop=e.accuracy_drop,
            drop_bound=drop_bound(e, delta=delta),
        )
        for e in sorted(counted, key=lambda e: e.cost_ratio)
    )
