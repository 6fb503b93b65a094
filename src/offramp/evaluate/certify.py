"""Certified operating points: the cheapest setting whose promise has been tested.

Candidates stand in an order that `fit` fixed, from the safest to the cheapest. Each is tested on
the `calibrate` examples alone; the walk ends where the first fails, and the last that passed is
promised.

Layer: evaluate.  Source: methods.md 4; Learn then Test, Angelopoulos et al. 2021, arXiv:2110.01052.
"""

from collections.abc import Sequence

import numpy as np

from offramp._core.checks import check_choice, check_probability
from offramp._core.errors import InputError
from offramp._core.types import FloatArray, IntArray
from offramp.evaluate.certificate import Calibration, Certificate, NotCertified, points_text
from offramp.evaluate.results import RISKS, Evaluation, FrontierPoint, Risk
from offramp.policy import Setting
from offramp.policy.pareto import pareto_front
from offramp.policy.risk import (
    Passed,
    binomial_p_values,
    examples_needed,
    fewest_examples,
    fixed_sequence,
    paired_p_values,
)

_SLACK = 0.05  # of delta, spent on how often the answers of a setting and F differ


def certify(
    candidates: Sequence[FrontierPoint],
    fallback: Setting,
    calibration: Calibration | None,
    *,
    max_loss: float,
    delta: float,
    risk: Risk = "difference",
) -> Certificate | NotCertified:
    """Test candidates in their order and promise the last that passes.

    Args:
        candidates: From the safest to the cheapest, in an order that does not depend on
            `calibrate`; each evaluated on it.
        fallback: F alone.
        calibration: What the examples of `calibrate` are; None where there are none.
        max_loss: B, in (0, 1).
        delta: Largest chance of a wrong promise, in (0, 1).
        risk: "difference": accuracy lost. "excess": new errors, corrections not counted.

    Raises:
        InputError: If `max_loss` or `delta` lies outside (0, 1), or `risk` is unknown.

    >>> from offramp.evaluate import fit
    >>> from offramp.trace import make_trace
    >>> frontier = fit(make_trace(4000, stages=2, seed=0), "myopic", progress=False)
    >>> found = frontier.cheapest(max_loss=0.03, delta=0.1)
    >>> type(found).__name__, found.p_value <= 0.1
    ('Certificate', True)
    """
    check_probability("max_loss", max_loss)
    check_probability("delta", delta)
    check_choice("risk", risk, RISKS)
    against = _objection(candidates, calibration, max_loss, delta)
    if against is None and calibration is not None:
        found = [_tested_on(point) for point in candidates]
        p_values = risk_p_values(found, risk=risk, max_loss=max_loss, delta=delta)
        walked = fixed_sequence(p_values, delta=delta)
        if isinstance(walked, Passed):
            return _certificate(
                candidates, walked, calibration, max_loss=max_loss, delta=delta, risk=risk
            )
        measured = points_text(found[0].risk(risk))
        against = f"{walked.reason}; its risk in calibrate is {measured} points"
    usable = calibration is None or not (calibration.seen_in_training or calibration.lossy)
    needed = None
    if usable and candidates:
        needed = _sufficient(candidates[0], max_loss=max_loss, delta=delta, risk=risk)
    return NotCertified(
        setting=fallback,
        risk=risk,
        max_loss=max_loss,
        delta=delta,
        why=against or "",
        n=0 if calibration is None else calibration.n,
        examples_needed=needed,
    )


def safest_first(
    points: Sequence[FrontierPoint], f: FrontierPoint, *, risk: Risk
) -> list[FrontierPoint]:
    """The Pareto front on `fit`, from the safest point to the cheapest; only `fit` is read.

    Args:
        points: Settings and single networks.
        f: F alone: what costs as much is left out, F itself needs no promise.
        risk: The axis beside the cost.
    """
    check_choice("risk", risk, RISKS)
    costs = np.array([p.fit.cost_ratio for p in points], dtype=np.float64)
    kept = pareto_front(costs, np.array([p.fit.risk(risk) for p in points], dtype=np.float64))
    cheaper = [p for p, on in zip(points, kept, strict=True) if on and _cost(p) < _cost(f)]
    return sorted(cheaper, key=_cost, reverse=True)


def _cost(point: FrontierPoint) -> float:
    return point.fit.cost_ratio


def outcome_counts(evaluations: Sequence[Evaluation]) -> tuple[IntArray, IntArray]:
    """How many examples are lost against F, and how many corrected, `(k,)` each.

    Exact: the loss difference of an example is -1, 0 or 1, so n * excess counts the first and
    n * (excess - difference) the second.

    Raises:
        InputError: If the risks are no shares of n examples.
    """
    n = np.array([e.n for e in evaluations], dtype=np.float64)
    excess = np.array([e.excess for e in evaluations], dtype=np.float64)
    difference = np.array([e.difference for e in evaluations], dtype=np.float64)
    exact = np.stack([n * excess, n * (excess - difference)]).reshape(2, -1)
    counts = np.rint(exact).astype(np.int64)
    off = np.abs(exact - counts).max(axis=0, initial=0.0) > 1e-6 * np.maximum(n, 1)
    if off.any():
        first = int(np.flatnonzero(off)[0])
        raise InputError(
            "excess and difference must be counts over n, got "
            f"{float(excess[first])!r} and {float(difference[first])!r} for n = {int(n[first])}."
        )
    return counts[0], counts[1]


def risk_p_values(
    evaluations: Sequence[Evaluation], *, risk: Risk, max_loss: float, delta: float
) -> FloatArray:
    """P-values of "the risk exceeds `max_loss`", one for each evaluation, `(k,)`.

    Args:
        evaluations: Of settings, all on the same examples.
        risk: "excess": exact binomial. "difference": paired test.
        max_loss: B, in (0, 1).
        delta: Level that the p-values will be compared with, in (0, 1).
    """
    if not evaluations:
        return np.empty(0, dtype=np.float64)
    losses, corrections = outcome_counts(evaluations)
    n = evaluations[0].n
    return _p_values(losses, corrections, n, risk=risk, max_loss=max_loss, delta=delta)


def _p_values(
    losses: IntArray, corrections: IntArray, n: int, *, risk: Risk, max_loss: float, delta: float
) -> FloatArray:
    if risk == "excess":
        return binomial_p_values(losses, n, max_risk=max_loss)
    slack = _SLACK * delta
    return paired_p_values(losses, corrections, n, max_difference=max_loss, slack=slack)


def _objection(
    candidates: Sequence[FrontierPoint],
    calibration: Calibration | None,
    max_loss: float,
    delta: float,
) -> str | None:
    """What rules a certificate out before any test, or None."""
    if calibration is None:
        return (
            "it takes examples that nothing was fitted on, and this frontier has no calibrate "
            "part, or was stored without saying which"
        )
    if calibration.seen_in_training:
        return (
            "the networks were trained on these examples (seen_in_training); what they lose on "
            "new ones cannot be told from them"
        )
    if calibration.lossy:
        return (
            "the trace is lossy (float16); decisions taken on it may differ from those at run "
            "time. Record it in float32"
        )
    least = fewest_examples(max_risk=max_loss, delta=delta)
    if calibration.n < least:
        return (
            f"even without a single error it takes log(delta)/log(1 - max_loss) = {least} "
            f"examples in calibrate to promise {points_text(max_loss)} points with delta = "
            f"{delta:g}, and there are {calibration.n}"
        )
    return None if candidates else "no setting is cheaper than F on fit"


def _tested_on(point: FrontierPoint) -> Evaluation:
    if point.calibrate is None:
        raise InputError(
            f"Every candidate must have been evaluated on calibrate, got {point.setting.label!r} "
            "without."
        )
    return point.calibrate


def _certificate(
    candidates: Sequence[FrontierPoint],
    walked: Passed,
    calibration: Calibration,
    *,
    max_loss: float,
    delta: float,
    risk: Risk,
) -> Certificate:
    point = candidates[walked.index]
    found = _tested_on(point)
    return Certificate(
        setting=point.setting,
        fit=point.fit,
        calibrate=found,
        risk=risk,
        max_loss=max_loss,
        delta=delta,
        p_value=walked.p_value,
        calibration=calibration,
        tested=min(walked.index + 2, len(candidates)),
        assumptions=_assumptions(calibration.n),
        sentence=_sentence(found, risk, max_loss, delta, walked.p_value),
    )


def _assumptions(n: int) -> tuple[str, ...]:
    return (
        f"New examples come from the same source as the {n} of calibrate (they are exchangeable); "
        "where the data shift, nothing is promised.",
        "No network, no policy and no order of testing was made with the help of calibrate.",
        "Risk, limit and delta were set before calibrate was looked at; the best of several tries "
        "is not certified.",
        "What runs is what was recorded: the same networks, preprocessing and precision.",
    )


def _sentence(found: Evaluation, risk: Risk, max_loss: float, delta: float, p_value: float) -> str:
    f = found.setting.reference
    limit = points_text(max_loss)
    plural = "point" if limit == "1" else "points"
    if risk == "excess":
        promise = f"makes at most {limit} {plural} of errors that {f} alone does not make"
    else:
        promise = f"loses at most {limit} {plural} of accuracy against {f} alone"
    return (
        f"With a confidence of {100 * (1 - delta):g} %, {found.setting.label} {promise}, on new "
        f"examples like the {found.n} that it was tested on (p = {p_value:.2g}), at "
        f"{found.cost_ratio:.3f} of its cost."
    )


def _sufficient(safest: FrontierPoint, *, max_loss: float, delta: float, risk: Risk) -> int | None:
    """About how many examples the safest candidate would have passed with; None if no number."""
    found = safest.calibrate or safest.fit
    losses, corrections = (counts[0] / found.n for counts in outcome_counts([found]))
    if found.risk(risk) >= max_loss:
        return None

    def p_value(n: int) -> float:
        lost = np.array([round(n * losses)], dtype=np.int64)
        won = np.array([min(round(n * corrections), n - int(lost[0]))], dtype=np.int64)
        return float(_p_values(lost, won, n, risk=risk, max_loss=max_loss, delta=delta)[0])

    least = fewest_examples(max_risk=max_loss, delta=delta)
    return examples_needed(p_value, delta=delta, at_least=least)
