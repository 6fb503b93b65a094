"""One frontier over cascades whose networks differ: each was trained anew, and recorded.

Layer: evaluation.
Source: methods.md 3 (a frontier over cost_weight; every cost_weight has its own classifiers).
A network trained together with others may do worse alone than it did before; so what a candidate
loses is measured against the networks as they were trained alone, on the same examples.
"""

from collections.abc import Sequence

from offramp._core.errors import InputError
from offramp.evaluation.calibration import Calibration
from offramp.evaluation.evaluate import evaluate, pooled
from offramp.evaluation.frontier import Frontier
from offramp.evaluation.judging import mark_fronts
from offramp.evaluation.results import FrontierPoint
from offramp.evaluation.sweep import sweep
from offramp.policy import Candidate
from offramp.trace import Trace


def frontier_of_traces(
    cascades: Sequence[tuple[Trace, Sequence[Candidate]]], baseline: Trace, *, reference: str
) -> Frontier:
    """Candidates for several traces of the same examples, compared with networks of another one.

    Args:
        cascades: Traces with the splits `fit` and, to choose on, `calibrate`; and what was fitted
            for each, with this reference.
        baseline: Of the networks trained alone, on the same examples in the same order. The
            reference and the single networks are those of this trace.
        reference: Name of the reference.

    Raises:
        InputError: If a trace holds other examples than the baseline, or there is no candidate.

    >>> from offramp.trace.testing import make_trace
    >>> sizes = {"fit": 200, "calibrate": 100}
    >>> alone = make_trace(n=300, stages=2, seed=0).split_into(sizes, seed=0)
    >>> small = Candidate.single(alone.topology, "stage0", reference="stage1")
    >>> frontier_of_traces([(alone, [small])], alone, reference="stage1").points[0].judged.n
    300
    """
    points = [
        _point(trace, candidate, baseline)
        for trace, candidates in cascades
        for candidate in candidates
    ]
    if not points:
        raise InputError("cascades must hold at least one candidate, got none.")
    calibrate = baseline.subset("calibrate") if baseline.has_split("calibrate") else None
    top = points[0].candidate.top
    alone = sweep(
        [], baseline.subset("fit"), calibrate, reference=reference, top=top, progress=False
    )
    marked, _ = mark_fronts([*points, *alone.singles])
    return Frontier(
        points=tuple(marked[: len(points)]),
        singles=tuple(marked[len(points) :]),
        reference=reference,
        calibration=_calibration([baseline, *(trace for trace, _ in cascades)]),
    )


def _calibration(traces: Sequence[Trace]) -> Calibration | None:
    if not all(trace.has_split("calibrate") for trace in traces):
        return None
    return Calibration.of(*(trace.subset("calibrate") for trace in traces))


def _point(trace: Trace, candidate: Candidate, baseline: Trace) -> FrontierPoint:
    fit = evaluate(trace.subset("fit"), candidate, bootstrap=0, baseline=baseline.subset("fit"))
    if not trace.has_split("calibrate"):
        return FrontierPoint(candidate=candidate, fit=fit)
    held = baseline.subset("calibrate")
    calibrate = evaluate(trace.subset("calibrate"), candidate, bootstrap=0, baseline=held)
    return FrontierPoint(
        candidate=candidate, fit=fit, calibrate=calibrate, judged_on_both=pooled(fit, calibrate)
    )
