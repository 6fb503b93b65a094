"""The promise of one candidate that was chosen before, tested on examples of their own.

Layer: evaluation.  Source: methods.md 4; with one candidate the fixed sequence is a single test.
"""

from offramp.evaluation.calibration import Calibration
from offramp.evaluation.certify import certify
from offramp.evaluation.choice import Choice
from offramp.evaluation.evaluate import evaluate, split_name
from offramp.evaluation.judging import labeled_by
from offramp.evaluation.limits import Limits
from offramp.evaluation.results import FrontierPoint
from offramp.evaluation.weights import ClassWeights
from offramp.policy import Candidate
from offramp.trace import Trace


def confirm(
    part: Trace,
    candidate: Candidate,
    limits: Limits,
    *,
    fit: Trace,
    delta: float,
    class_weights: ClassWeights | None = None,
    labeled: bool = True,
) -> Choice:
    """Test whether one candidate keeps limits on new examples like those of `part`.

    Args:
        part: Examples on which nothing was fitted and nothing chosen: often `test`. After a choice
            without `delta` `calibrate` is none of these, for the choice has looked at it.
        candidate: What was chosen.
        limits: As in `Frontier.certify`; so are `delta`, `class_weights`.
        fit: The examples that the candidate was fitted on.
        delta: Largest chance of a wrong promise, in (0, 1).
        class_weights: Known factors by which classes become more frequent.
        labeled: False where the labels of `part` are not to be trusted.

    Raises:
        SplitOverlapError: If an example is in both parts.
        InputError: If a limit or `delta` lies outside (0, 1), or as `Frontier.certify` does.

    >>> from offramp.evaluation import fit
    >>> from offramp.trace import make_trace
    >>> sizes = {"fit": 1000, "calibrate": 500, "test": 2000}
    >>> trace = make_trace(3500, stages=2, seed=0).split_into(sizes, seed=0)
    >>> chosen = fit(trace, "threshold", progress=False).cheapest(max_drop=0.02, delta=None)
    >>> test, fitted = trace.subset("test"), trace.subset("fit")
    >>> found = confirm(test, chosen.candidate, {"accuracy_drop": 0.04}, fit=fitted, delta=0.1)
    >>> found.guarantee.tested, found.n
    (1, 2000)
    """
    fit.require_disjoint(part)
    held = part if labeled else labeled_by(part, candidate.reference)
    f = candidate.reference
    alone = Candidate.single(fit.topology, f, reference=f, top=candidate.top)
    point, fallback = (_point(one, fit, held, labeled=labeled) for one in (candidate, alone))
    split = "calibrate" if split_name(part) == "all" else split_name(part)
    return certify(
        [point],
        fallback,
        Calibration.of(held, labeled=labeled, split=split),
        limits,
        delta=delta,
        class_weights=class_weights,
    )


def _point(candidate: Candidate, fit: Trace, part: Trace, *, labeled: bool) -> FrontierPoint:
    before, now = (evaluate(one, candidate, bootstrap=0) for one in (fit, part))
    return FrontierPoint(
        candidate=candidate,
        fit=before,
        calibrate=now if labeled else None,
        unlabeled=None if labeled else now,
    )
