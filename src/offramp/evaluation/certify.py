"""Promises: the cheapest candidate whose limits have been tested.

Candidates stand in an order that `fit` fixed, from the safest on. Each is tested on the `calibrate`
examples alone; the walk ends where the first fails, and of those that passed one is promised.

Layer: evaluation.
Source: methods.md 4; Learn then Test, Angelopoulos et al. 2021, arXiv:2110.01052.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from offramp._core.checks import check_choice, check_probability
from offramp.evaluation.calibration import Calibration
from offramp.evaluation.choice import MEASURED, Choice, described
from offramp.evaluation.cost_tests import CostTest
from offramp.evaluation.limits import OF_COSTS, UNLABELED, Limits, joined, read_limits
from offramp.evaluation.order import walk_order
from offramp.evaluation.results import RISKS, Evaluation, FrontierPoint, Risk
from offramp.evaluation.risk_tests import (
    GradedTest,
    RecallTest,
    RiskTest,
    WeightedTest,
    evidence,
    measured,
    outcome_counts,
)
from offramp.evaluation.weights import ClassWeights, check_weights, risk_tests
from offramp.policy.promise import Guarantee, points_text
from offramp.risk import NonePassed, examples_needed, fixed_sequence, several_risks

_TALLIES = ("cost_tally", "loss_tally", "difference_tally")


def certify(
    points: Sequence[FrontierPoint],
    f: FrontierPoint,
    calibration: Calibration | None,
    limits: Limits,
    *,
    delta: float,
    class_weights: ClassWeights | None = None,
    least: Risk = "accuracy_drop",
) -> Choice:
    """Test candidates in an order that `fit` fixes, and promise one of those that pass.

    Args:
        points: Candidates and single networks; those that were evaluated on `calibrate` are tested.
        f: The reference alone, which runs where nothing is certified.
        calibration: What the examples of `calibrate` are; None where there are none.
        limits: As in `Frontier.certify`; so are `delta` and `class_weights`.
        delta: Largest chance of a wrong promise, in (0, 1).
        class_weights: Known factors by which classes become more frequent.
        least: Where only the cost is limited: the risk that the chosen candidate has least of.

    Raises:
        InputError: If a limit or `delta` lies outside (0, 1), a risk or class is unknown, or
            weights do not fit the examples.

    >>> from offramp.evaluation import fit
    >>> from offramp.trace import make_trace
    >>> frontier = fit(make_trace(4000, stages=2, seed=0), "threshold", progress=False)
    >>> found = frontier.certify({"accuracy_drop": 0.03, "cost": 0.95}, delta=0.1)
    >>> found.outcome, found.guarantee.p_value <= 0.1
    ('certified', True)
    """
    read = read_limits(limits)
    check_probability("delta", delta)
    check_choice("least", least, RISKS)
    only_cost = all(limit.risk in OF_COSTS for limit in read)
    minimized = least if only_cost else "cost"
    asked = Choice(point=f, limits=read, minimized=minimized, delta=delta, sentence="")
    tests = risk_tests(read, calibration, delta=delta, class_weights=class_weights)
    candidates = walk_order(points, f, tests, least)
    weights = None
    if candidates and calibration is not None and calibration.labeled:
        weights = check_weights(class_weights, calibration, evidence(candidates[0]))
    against = objection(candidates, tests, calibration, delta)
    if against is None and calibration is not None:
        p_values = several_risks(np.stack([test.p_values(candidates) for test in tests]))
        walked = fixed_sequence(p_values, delta=delta)
        if not isinstance(walked, NonePassed):
            passed = range(walked.index + 1)
            chosen = min(reversed(passed), key=lambda i: _merit(candidates[i], minimized))
            point = candidates[chosen]
            guarantee = Guarantee(
                limits=asked.limits,
                delta=delta,
                p_value=float(p_values[: chosen + 1].max()),
                tested=min(walked.index + 2, len(candidates)),
                n=calibration.n,
                split=calibration.split,
                fingerprint=calibration.fingerprint,
                class_weights=weights,
                assumptions=assumptions(calibration, weights, tests, point),
            )
            return replace(
                asked, point=point, guarantee=guarantee, sentence=promise(point, guarantee)
            )
        against = f"{walked.reason}; {seen(candidates[0], tests, calibration)}"
    return _refused(asked, against or "", candidates, tests, calibration)


def _refused(
    asked: Choice,
    why: str,
    candidates: Sequence[FrontierPoint],
    tests: Sequence[RiskTest],
    calibration: Calibration | None,
) -> Choice:
    """The reference alone, with what would have sufficed, and what the best candidate shows."""
    enough, shown = "", ""
    needed = _sufficient(candidates, tests, calibration, asked.delta or 0.0)
    n, split = (0, "calibrate") if calibration is None else (calibration.n, calibration.split)
    if needed is not None and needed > n:
        have = "" if f"there are {n}" in why else f"; there are {n}"
        enough = f" About {needed} examples in {split} would have sufficed{have}."
    kept = [p for p in candidates if _keeps(p, tests)] or list(candidates[:1])
    best = min(kept, key=lambda point: _merit(point, asked.minimized), default=None)
    if calibration is not None and calibration.seen_in_training:
        best = None  # what it shows there is too good
    if best is not None:
        found, risk = best.tested or best.fit, tests[0].limit.risk
        risk = "disagreement" if found is best.unlabeled else risk
        shown = f" The best candidate is {described(best.candidate, found, risk)}: {MEASURED}."
    return replace(
        asked,
        refused=why,
        alternative=best,
        examples_needed=needed,
        sentence=f"Not certified: {why}.{enough}{shown} Run {asked.candidate.label}.",
    )


def _keeps(point: FrontierPoint, tests: Sequence[RiskTest]) -> bool:
    """Whether all limits are kept on the examples at hand."""
    found = point.tested or point.fit
    return all(measured(test, found) <= test.limit.at_most for test in tests)


def _merit(point: FrontierPoint, minimized: str) -> float:
    """What to minimize among those that passed, on `fit`."""
    return point.fit.cost_ratio if minimized == "cost" else point.fit.risk(minimized)


def objection(
    candidates: Sequence[FrontierPoint],
    tests: Sequence[RiskTest],
    calibration: Calibration | None,
    delta: float,
) -> str | None:
    """What rules a certificate out before any test, or None."""
    if calibration is None:
        return (
            "it takes examples that nothing was fitted on, and this frontier has no calibrate "
            "part, or was stored without saying which. Give the trace a split 'calibrate' and fit "
            "again, or measure only, with delta=None (--delta none)"
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
    labeled = [test.limit.risk for test in tests if test.limit.risk not in UNLABELED]
    if labeled and not calibration.labeled:
        return (
            f"the examples of {calibration.split} have no labels, which {joined(labeled)} takes; "
            f"without them {joined(list(UNLABELED))} can be promised"
        )
    if not candidates:
        return "no candidate is cheaper than the reference on fit"
    short = (_shortage(candidates, test, calibration, delta) for test in tests)
    return next((text for text in short if text is not None), None)


def _shortage(
    candidates: Sequence[FrontierPoint], test: RiskTest, calibration: Calibration, delta: float
) -> str | None:
    """That there are fewer examples than could ever certify, and how many it takes; or None."""
    least, have, whose, of = test.fewest(candidates), calibration.n, "", ""
    if isinstance(test, RecallTest):
        rarest, have = test.rarest(evidence(candidates[0]))
        whose, of = " of each class", f" of class {calibration.class_names[rarest]!r}"
    if have >= least:
        return None
    if test.limit.risk == "cost":
        takes = f"even if all of them cost least it takes {least}"
    elif isinstance(test, GradedTest):
        takes = f"even without any loss it takes {least}"
    elif isinstance(test, WeightedTest):
        takes = f"even without a single error it takes, with these class weights, {least}"
    else:
        takes = f"even without a single error it takes log(delta)/log(1 - max_drop) = {least}"
    return (
        f"{takes} examples{whose} in {calibration.split} to promise "
        f"{_amount(test, calibration)} with delta = {delta:g}, and there are {have}{of}"
    )


def _amount(test: RiskTest, calibration: Calibration) -> str:
    share, risk = points_text(test.limit.at_most), test.limit.risk
    if risk == "over_budget":
        return f"{share} % over a budget of {test.limit.budget:g}"
    if risk == "cost":
        return f"a cost of {share} % of the reference's"
    if calibration.of_losses:
        return f"a loss of {test.limit.at_most:g}"
    return f"{share} points" if risk == "accuracy_drop" else f"{share} points of {risk}"


def seen(point: FrontierPoint, tests: Sequence[RiskTest], calibration: Calibration) -> str:
    """What the first candidate does on the examples, with the largest risk by name."""
    found = evidence(point)
    worst = max(tests, key=lambda test: float(test.p_values([point])[0]))
    share = points_text(measured(worst, found))
    if worst.limit.risk == "over_budget":
        return f"{share} % of {calibration.split} cost more than {worst.limit.budget:g}"
    if worst.limit.risk == "cost":
        return f"its cost in {calibration.split} is {share} % of the reference's"
    if calibration.of_losses:
        return f"its {worst.limit.risk} in {calibration.split} is {measured(worst, found):.4g}"
    return f"its {worst.limit.risk} in {calibration.split} is {share} points"


def assumptions(
    calibration: Calibration,
    weights: tuple[float, ...] | None,
    tests: Sequence[RiskTest],
    point: FrontierPoint,
) -> tuple[str, ...]:
    """Under what a promise of one candidate holds."""
    n, split = calibration.n, calibration.split
    source = (
        f"New examples come from the same source as the {n} of {split} (they are exchangeable); "
        "where the data shift, nothing is promised."
        if weights is None
        else f"New examples of each class come from the same source as those among the {n} of "
        f"{split}, and the shares of the classes change by exactly the weights that were given; "
        "where the data shift otherwise, nothing is promised."
    )
    return (
        source,
        f"No network, no policy and no order of testing was made with the help of {split}.",
        f"Risks, limits and delta were set before {split} was looked at; the best of several tries "
        "is not certified.",
        "What runs is what was recorded: the same networks, preprocessing and precision.",
        *(text for test in tests if isinstance(test, CostTest) for text in test.assumes(point)),
    )


def promise(point: FrontierPoint, guarantee: Guarantee) -> str:
    """The promise of one candidate in one sentence."""
    found = evidence(point)
    f, top = found.candidate.reference, found.candidate.top
    promise = joined(
        [
            limit.words(f, top=top, of_losses=found.of_losses, unit=found.unit)
            for limit in guarantee.limits
        ]
    )
    shifted = "" if guarantee.class_weights is None else ", their classes weighted as given"
    return (
        f"With a confidence of {100 * (1 - guarantee.delta):g} %, {found.candidate.label} "
        f"{promise}, on new examples like the {found.n} that it was tested on{shifted} "
        f"(p = {guarantee.p_value:.2g}); there it cost {found.cost_ratio:.3f} of {f} alone."
    )


def _sufficient(
    candidates: Sequence[FrontierPoint],
    tests: Sequence[RiskTest],
    calibration: Calibration | None,
    delta: float,
) -> int | None:
    """About how many examples the first candidate would have passed with; None if no number."""
    refused = calibration is not None and (calibration.seen_in_training or calibration.lossy)
    if refused or not candidates:
        return None
    first = candidates[0]
    found = first.tested or first.fit
    if any(measured(test, found) >= test.limit.at_most for test in tests):
        return None
    point = replace(first, calibrate=found)
    hard = [t.hardest(point) if isinstance(t, RecallTest) else t for t in tests]

    def p_value(n: int) -> float:
        at = [replace(point, calibrate=_scaled(found, n))]
        return max(float(test.p_values(at)[0]) for test in hard)

    least = max(test.fewest(candidates) for test in tests)
    return examples_needed(p_value, delta=delta, at_least=least)


def _scaled(found: Evaluation, n: int) -> Evaluation:
    """What the evaluation would be on `n` examples with the same shares, in whole examples."""
    if found.difference_tally is not None:  # losses that no counts stand for
        return replace(found, n=n, **_scaled_tallies(found, n))
    lost, won = (int(counts[0]) for counts in outcome_counts([found]))
    lost = round(lost * n / found.n)
    won = min(round(won * n / found.n), n - lost)
    differing = 0 if found.disagreement is None else round(n * found.disagreement)
    return replace(
        found,
        n=n,
        accuracy=round(n * found.accuracy) / n,
        negative_flips=lost / n,
        accuracy_drop=(lost - won) / n,
        disagreement=differing / n,
        class_outcomes=_scaled_table(found.class_outcomes, n / found.n),
        class_paths=_scaled_table(found.class_paths, n / found.n),
        class_disagreements=tuple(round(c * n / found.n) for c in found.class_disagreements),
        **_scaled_tallies(found, n),
    )


def _scaled_tallies(found: Evaluation, n: int) -> dict[str, Any]:
    """Its tallies, as they would be on `n` examples."""
    each = ((name, getattr(found, name)) for name in _TALLIES)
    return {name: None if tally is None else tally.scaled(n / found.n) for name, tally in each}


def _scaled_table(table: tuple[tuple[int, ...], ...], factor: float) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(round(factor * count) for count in row) for row in table)
