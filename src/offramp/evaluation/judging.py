"""Which points of a sweep are looked at once more, on examples that nothing was fitted on.

Layer: evaluation.  Source: none for the optimism of a fit (docs/adr/0067).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from offramp._core.types import BoolArray
from offramp.evaluation.batch import evaluate_all
from offramp.evaluation.evaluate import pooled
from offramp.evaluation.results import RISKS, Evaluation, FrontierPoint, Risk
from offramp.fitting.pareto import pareto_front
from offramp.trace import Trace


def optimism(found: Evaluation) -> float:
    """How much lower risks seem on the examples of a fit: one of them for each deciding rule.

    A cut placed as far as n examples permit without a loss has a risk of at most 1/(n + 1) in the
    mean: the chance that the next example lies beyond all losing ones. A policy of many rules
    avoids as many losses that way, so of those that lost nothing the most complex is the cheapest.

    Only orders depend on it. No test is any easier by it, and no promise rests on it.
    """
    return found.candidate.policy.deciding_rules / max(1, found.n)


def on_front(
    points: Sequence[FrontierPoint], risk: Risk, *, without_optimism: bool = False
) -> BoolArray:
    """True where no other point is both cheaper and of less risk on `fit`, `(k,)`."""
    costs = np.array([p.fit.cost_ratio for p in points], dtype=np.float64)
    risks = [p.fit.risk(risk) + (optimism(p.fit) if without_optimism else 0.0) for p in points]
    return pareto_front(costs, np.array(risks, dtype=np.float64))


def mark_fronts(points: Sequence[FrontierPoint]) -> tuple[list[FrontierPoint], BoolArray]:
    """The points with `on_front` as it is among them; and which are on the front of any risk.

    Those on a front when the optimism of the fit is added are among the latter.
    """
    accurate, safe = (on_front(points, risk) for risk in RISKS)
    marked = [replace(p, on_front=bool(on)) for p, on in zip(points, accurate, strict=True)]
    for risk in RISKS:
        safe |= on_front(points, risk, without_optimism=True)
    return marked, accurate | safe


def judge(
    points: Sequence[FrontierPoint], wanted: BoolArray, calibrate: Trace, *, progress: bool = False
) -> list[FrontierPoint]:
    """The points, those wanted also evaluated on `calibrate` where they are not yet."""
    judged = list(points)
    which = [i for i in np.flatnonzero(wanted).tolist() if points[i].calibrate is None]
    again = evaluate_all(calibrate, [points[i].candidate for i in which], progress=progress)
    for i, evaluation in zip(which, again, strict=True):
        both = pooled(points[i].fit, evaluation)
        judged[i] = replace(points[i], calibrate=evaluation, judged_on_both=both)
    return judged


def judge_again(
    points: Sequence[FrontierPoint], singles: int, part: Trace, *, labeled: bool
) -> list[FrontierPoint]:
    """The points, those on a front and the last `singles` evaluated on `part` in place of before.

    Args:
        points: Candidates, and single networks after them.
        singles: How many single networks there are.
        part: The examples; without labels the reference's first labels stand for the truth.
        labeled: Whether they have labels.
    """
    bare = [replace(p, calibrate=None, judged_on_both=None, unlabeled=None) for p in points]
    _, wanted = mark_fronts(bare)
    wanted[len(points) - singles :] = True
    again = judge(bare, wanted, part)
    if labeled:
        return again
    return [replace(p, calibrate=None, judged_on_both=None, unlabeled=p.calibrate) for p in again]


def labeled_by(part: Trace, reference: str) -> Trace:
    """The examples with the reference's first labels in place of their own.

    A service's label outside the classes becomes 0: nothing is read from it but that it is a label.
    """
    part.require_labels("labeled=False")
    first = part.output(part.topology.index(reference)).top(1)[:, 0]
    inside = (first >= 0) & (first < part.classes)
    return replace(part, labels=torch.where(inside, first, 0))
