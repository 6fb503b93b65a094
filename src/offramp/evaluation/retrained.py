"""One frontier over cascades whose networks differ: each was trained anew, and recorded.

Layer: evaluation.
Source: methods.md 3 (a frontier over alpha; every alpha has its own classifiers).
A network trained together with others may do worse alone than it did before; so what a setting
loses is measured against the networks as they were trained alone, on the same examples.
"""

from collections.abc import Sequence

from offramp._core.errors import InputError
from offramp.evaluation.certificate import Calibration
from offramp.evaluation.evaluate import evaluate, pooled
from offramp.evaluation.frontier import Frontier
from offramp.evaluation.judging import mark_fronts
from offramp.evaluation.results import FrontierPoint
from offramp.evaluation.sweep import sweep
from offramp.policy import Setting
from offramp.trace import Trace


def frontier_of_traces(
    candidates: Sequence[tuple[Trace, Sequence[Setting]]], baseline: Trace, *, reference: str
) -> Frontier:
    """Settings for several traces of the same examples, compared with networks of another one.

    Args:
        candidates: Traces with the splits `fit` and, to choose on, `calibrate`; and what was fitted
            for each, with this reference.
        baseline: Of the networks trained alone, on the same examples in the same order. F and the
            single networks are those of this trace.
        reference: Name of F.

    Raises:
        InputError: If a trace holds other examples than the baseline, or there is no setting.

    >>> from offramp.trace.testing import make_trace
    >>> alone = make_trace(n=300, stages=2, seed=0).divided({"fit": 200, "calibrate": 100}, seed=0)
    >>> small = Setting.single(alone.topology, "stage0", reference="stage1")
    >>> frontier_of_traces([(alone, [small])], alone, reference="stage1").points[0].judged.n
    300
    """
    points = [
        _point(trace, setting, baseline) for trace, settings in candidates for setting in settings
    ]
    if not points:
        raise InputError("candidates must hold at least one setting, got none.")
    calibrate = baseline.part("calibrate") if baseline.has_split("calibrate") else None
    top = points[0].setting.top
    alone = sweep([], baseline.part("fit"), calibrate, reference=reference, top=top, progress=False)
    marked, _ = mark_fronts([*points, *alone.singles])
    return Frontier(
        points=tuple(marked[: len(points)]),
        singles=tuple(marked[len(points) :]),
        reference=reference,
        calibration=_calibration([baseline, *(trace for trace, _ in candidates)]),
    )


def _calibration(traces: Sequence[Trace]) -> Calibration | None:
    if not all(trace.has_split("calibrate") for trace in traces):
        return None
    return Calibration.of(*(trace.part("calibrate") for trace in traces))


def _point(trace: Trace, setting: Setting, baseline: Trace) -> FrontierPoint:
    fit = evaluate(trace.part("fit"), setting, bootstrap=0, baseline=baseline.part("fit"))
    if not trace.has_split("calibrate"):
        return FrontierPoint(setting=setting, fit=fit)
    held = baseline.part("calibrate")
    calibrate = evaluate(trace.part("calibrate"), setting, bootstrap=0, baseline=held)
    return FrontierPoint(
        setting=setting, fit=fit, calibrate=calibrate, judged_on_both=pooled(fit, calibrate)
    )
