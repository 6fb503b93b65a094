"""From fitted candidates to a frontier: each evaluated where it has to be.

Layer: evaluation.  Source: methods.md 1 (Pareto front on `fit`, operating point on `calibrate`).
"""

from collections.abc import Sequence

from offramp._core.errors import InputError
from offramp.evaluation.batch import evaluate_all
from offramp.evaluation.calibration import Calibration
from offramp.evaluation.frontier import Frontier
from offramp.evaluation.judging import judge, mark_fronts
from offramp.evaluation.results import FrontierPoint
from offramp.policy import Candidate
from offramp.trace import Trace


def sweep(
    candidates: Sequence[Candidate],
    fit: Trace,
    calibrate: Trace | None = None,
    *,
    reference: str,
    top: int = 1,
    progress: bool = True,
) -> Frontier:
    """Evaluate candidates on `fit`, and those on a Pareto front on `calibrate` as well.

    Args:
        candidates: What was fitted; all with this reference and `top`.
        fit: The examples that they were fitted on.
        calibrate: Other examples, to choose the operating point on.
        reference: Name of the reference.
        top: A label is right when it is among the `top` best.
        progress: Show a bar.

    Raises:
        SplitOverlapError: If an example stands in both parts.
        InputError: If a candidate has another reference or `top`.
    """
    if calibrate is not None:
        fit.require_disjoint(calibrate)
    for candidate in candidates:
        if (candidate.reference, candidate.top) != (reference, top):
            raise InputError(
                f"All candidates must have the reference {reference!r} and top {top}, got "
                f"{candidate.reference!r} and {candidate.top} for {candidate.label!r}."
            )
    alone = [
        Candidate.single(fit.topology, name, reference=reference, top=top)
        for k, name in enumerate(fit.stages)
        if k not in fit.silent
    ]
    everything = [*candidates, *alone]
    found = evaluate_all(fit, everything, progress=progress)
    points = [FrontierPoint(candidate=e.candidate, fit=e) for e in found]
    points, wanted = mark_fronts(points)
    if calibrate is not None:
        wanted[len(candidates) :] = True
        points = judge(points, wanted, calibrate, progress=progress)
    return Frontier(
        points=tuple(points[: len(candidates)]),
        singles=tuple(points[len(candidates) :]),
        reference=reference,
        calibration=None if calibrate is None else Calibration.of(calibrate),
    )
