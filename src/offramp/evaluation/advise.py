"""Is a cascade worth it? An answer from a few hundred labeled outputs, before anything is fitted.

Oracles say what can be saved; what promises take says what can be certified. Nothing is chosen on
the examples, so few of them are enough to say no.

Layer: evaluation.  Source: methods.md 1 (oracles) and 4 (how many examples a promise takes).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import numpy as np

from offramp._core.checks import (
    check_choice,
    check_fraction,
    check_kind,
    check_known,
    check_probability,
)
from offramp._core.errors import InputError
from offramp._core.types import FloatArray
from offramp.evaluation.evaluate import reference_cost
from offramp.evaluation.results import Risk
from offramp.evaluation.risk_tests import SLACK
from offramp.evaluation.saving_bound import saving_bound
from offramp.fitting.oracles import oracle
from offramp.fitting.search import sub_chains
from offramp.policy.promise import points_text
from offramp.risk import binomial_p_values, examples_needed, fewest_examples, paired_p_values
from offramp.trace import Trace

_RISKS: tuple[Risk, ...] = ("accuracy_drop", "negative_flips")
_LONGEST = 3  # stages of the chains that the neutral oracle tries; 2 where there are many stages
_MANY = 10
_STEPS = 30  # of bisection


@final
@dataclass(frozen=True, kw_only=True)
class Promise:
    """What can be promised for a cascade, given how often it differs from the reference.

    Args:
        differs: Share of examples that it gets right where the reference is wrong, or the other
            way round.
        smallest_max_drop: The smallest B that the examples at hand would certify; None if none.
        examples_needed: Examples in `calibrate` that would certify the B asked for; None where no
            number would.
    """

    differs: float
    smallest_max_drop: float | None
    examples_needed: int | None


@final
@dataclass(frozen=True, kw_only=True)
class Advice:
    """Whether a cascade is worth building, and the figures behind the answer.

    Args:
        worth_it: Yes or no.
        sentence: Why, in plain words.
        reference: Name of the reference.
        unit: Of `reference_cost`.
        reference_cost: Cost of the reference per example.
        n: Examples that the savings were measured on.
        calibrate: Examples that a promise could rest on.
        risk: "accuracy_drop" or "negative_flips".
        max_drop: B, as asked for.
        delta: As asked for; the chance that `most_saved` is too low as well.
        min_saving: Saving below which the answer is no.
        most_saved: No policy that answers as one of the stages does saves more within B: upper
            confidence limit of what one would save that knew the labels.
        most_saved_measured: The same on the examples, without a limit.
        neutral_saved: What the neutral oracle saves without loss on its best chain. Policies on
            logits come near it, those on labels and confidences save less.
        single: The cheapest stage that is within B by one standard error on its own; the reference
            if no other.
        single_saved: What it saves.
        at_best: What can be promised for a cascade that never differs from the reference: nothing
            does better.
        as_usual: The same if it differs as often as the first stage of the neutral oracle's chain
            does; it loses nothing ("accuracy_drop"), or half of B ("negative_flips").
    """

    worth_it: bool
    sentence: str
    reference: str
    unit: str
    reference_cost: float
    n: int
    calibrate: int
    risk: Risk
    max_drop: float
    delta: float
    min_saving: float
    most_saved: float
    most_saved_measured: float
    neutral_saved: float
    single: str
    single_saved: float
    at_best: Promise
    as_usual: Promise


def advise(
    trace: Trace,
    *,
    max_drop: float = 0.01,
    delta: float = 0.1,
    risk: Risk = "accuracy_drop",
    reference: str | None = None,
    top: int = 1,
    unit: str | None = None,
    min_saving: float = 0.1,
) -> Advice:
    """Say whether a cascade of these stages is worth building.

    Args:
        trace: Labelled outputs, a few hundred or more. With splits, savings are measured on `fit`
            and promises counted on `calibrate`, which is not looked at; without, both are all.
        max_drop: B, the loss that you can bear, in (0, 1): 0.01 is one point.
        delta: Chance of being wrong that you can bear, in (0, 1).
        risk: "accuracy_drop": accuracy lost. "negative_flips": new errors.
        reference: Name of the reference; by default the most accurate stage.
        top: A label is right when it is among the `top` best.
        unit: Which table of costs, by its unit; by default the trace's own.
        min_saving: Saving that makes it worth the trouble, in [0, 1].

    Raises:
        InputError: If an argument is outside its domain, or the networks were trained on the
            examples.
        UnknownNameError: If there is no such stage.

    >>> from offramp.trace import make_trace
    >>> trace = make_trace(600, accuracies=[0.8, 0.92], seed=0)
    >>> advice = advise(trace, max_drop=0.02, risk="negative_flips")
    >>> advice.worth_it, advice.at_best.examples_needed
    (True, 114)
    """
    check_kind("trace", trace, Trace, read="offramp.load_trace(path)")
    check_probability("max_drop", max_drop)
    check_probability("delta", delta)
    check_choice("risk", risk, _RISKS)
    check_fraction("min_saving", min_saving)
    if trace.graded:
        raise InputError(
            "trace must hold labels, or losses that are 0 or 1 (whole numbers), got losses between "
            "them: how many examples a promise takes cannot be told beforehand. Fit and certify."
        )
    if trace.seen_in_training:
        raise InputError(
            "trace must hold examples that no network was trained on, got seen_in_training=True: "
            "on what they have learned the expensive stages look better than they are. Record "
            "others."
        )
    part, calibrate = _parts(_in_unit(trace, unit))
    name = part.stages[part.most_accurate(top=top)] if reference is None else reference
    own = reference_cost(part, check_known("stage", name, part.stages))
    bound = saving_bound(part, name, max_drop=max_drop, delta=delta, risk=risk, top=top)
    first, neutral = _neutral(part, name, top)
    single, single_cost = _single(part, name, max_drop, risk, top)
    first = next(k for k in range(first, len(part.topology)) if k not in part.silent)
    differs = float((part.loss(first, top=top) != _f_loss(part, name, top)).mean())
    promise = partial(_promise, calibrate, max_drop=max_drop, delta=delta, risk=risk)
    found = Advice(
        worth_it=False,
        sentence="",
        reference=name,
        unit=part.costs.unit,
        reference_cost=own,
        n=len(part),
        calibrate=calibrate,
        risk=risk,
        max_drop=max_drop,
        delta=delta,
        min_saving=min_saving,
        most_saved=bound.limit,
        most_saved_measured=bound.measured,
        neutral_saved=1 - neutral / own,
        single=single,
        single_saved=1 - single_cost / own,
        at_best=promise(differs=0.0, half=False),
        as_usual=promise(differs=differs, half=risk == "negative_flips"),
    )
    worth_it, sentence = _verdict(found)
    return replace(found, worth_it=worth_it, sentence=sentence)


def _in_unit(trace: Trace, unit: str | None) -> Trace:
    if unit is None:
        return trace
    tables = {costs.unit: costs for costs in (*trace.other_costs, trace.costs)}
    check_choice("unit", unit, tables)
    return trace.with_costs(tables[unit])


def _parts(trace: Trace) -> tuple[Trace, int]:
    """What may be looked at, and how many examples a promise could rest on."""
    if not trace.has_split("fit"):
        return trace, len(trace)
    has = trace.has_split("calibrate")
    return trace.subset("fit"), len(trace.subset("calibrate")) if has else 0


def _f_loss(part: Trace, reference: str, top: int) -> FloatArray:
    return part.loss(part.topology.index(reference), top=top)


def _neutral(part: Trace, reference: str, top: int) -> tuple[int, float]:
    """First stage and mean cost of the cheapest chain to the reference under the neutral oracle."""
    f = part.topology.index(reference)
    longest = _LONGEST if len(part.topology) <= _MANY else 2
    chains = [c for c in sub_chains(part.topology, longest=longest) if c.active[-1] == f]
    costs = [
        float(oracle(part, "neutral", topology=c, reference=reference, top=top).cost.mean())
        for c in chains
    ]
    if not chains:
        return f, part.mean_cost(f)
    best = int(np.argmin(costs))
    return chains[best].root, costs[best]


def _single(
    part: Trace, reference: str, max_drop: float, risk: Risk, top: int
) -> tuple[str, float]:
    """The cheapest stage within the limit on its own, one standard error below it."""
    f_loss = _f_loss(part, reference, top)
    within = {reference: part.mean_cost(part.topology.index(reference))}
    for k, name in enumerate(part.stages):
        if k in part.silent:
            continue
        loss = part.loss(k, top=top) - f_loss
        loss = loss if risk == "accuracy_drop" else loss.clip(min=0)
        if loss.mean() + loss.std() / np.sqrt(len(loss)) <= max_drop:
            within[name] = part.mean_cost(k)
    best = min(within, key=lambda name: within[name])
    return best, within[best]


def _promise(
    calibrate: int, *, differs: float, half: bool, max_drop: float, delta: float, risk: Risk
) -> Promise:
    """What a cascade could be promised that differs so often, and loses half of B or nothing."""

    def p_value(n: int, limit: float) -> float:
        if risk == "negative_flips":
            lost = np.array([round(n * limit / 2) if half else 0], dtype=np.int64)
            return float(binomial_p_values(lost, n, max_risk=limit)[0])
        each = np.array([int(n * differs / 2)], dtype=np.int64)
        slack = SLACK * delta
        return float(paired_p_values(each, each, n, max_difference=limit, slack=slack)[0])

    least = fewest_examples(max_risk=max_drop, delta=delta)
    return Promise(
        differs=differs,
        smallest_max_drop=_smallest(lambda limit: p_value(calibrate, limit), delta, calibrate),
        examples_needed=examples_needed(
            lambda n: p_value(n, max_drop), delta=delta, at_least=least
        ),
    )


def _smallest(p_value: Callable[[float], float], delta: float, n: int) -> float | None:
    """The smallest limit that passes, to a hundredth of a point; None up to one half."""
    low, high = 0.0, 0.5
    if n == 0 or p_value(high) > delta:
        return None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if p_value(middle) <= delta else (middle, high)
    return math.ceil(high * 10_000) / 10_000


def _verdict(found: Advice) -> tuple[bool, str]:
    """Yes or no, and why in plain sentences."""
    f, loss = found.reference, _points(found.max_drop)
    if found.most_saved < found.min_saving:
        return False, (
            f"No: within {loss} not even a policy that knew the labels would save more than "
            f"{_percent(found.most_saved)} of the cost of {f}, with a confidence of "
            f"{100 * (1 - found.delta):g} %. Run {f} alone."
        )
    ideal = f"an ideal policy would save {_percent(found.neutral_saved)}"
    if found.single != f and found.single_saved > found.neutral_saved - found.min_saving:
        return False, (
            f"No: {found.single} alone stays within {loss} and saves "
            f"{_percent(found.single_saved)} of the cost of {f}; {ideal} without loss. Run "
            f"{found.single} alone."
        )
    if found.neutral_saved < found.min_saving:
        return False, (
            f"No: {ideal} of the cost of {f} without loss, real ones often less, and "
            f"{_percent(found.min_saving)} is what it has to be. Run {f} alone."
        )
    return True, (
        f"Yes: {ideal} of the cost of {f} without loss, real ones often less, and within "
        f"{loss} none more than {_percent(found.most_saved)}. {_promise_text(found)}"
    )


def _promise_text(found: Advice) -> str:
    """How many examples the promise takes."""
    needed, least = found.as_usual.examples_needed, found.at_best.examples_needed
    what = f"To promise {_points(found.max_drop)} with delta = {found.delta:g}"
    if needed is None or least is None:
        return f"{what} no number of examples is enough."
    if needed <= found.calibrate:
        return f"{what} takes about {needed} examples in calibrate, and there are enough."
    return (
        f"{what} takes about {needed} examples in calibrate, {least} at the very least: label "
        f"about {needed - found.calibrate} more."
    )


def _points(share: float) -> str:
    text = points_text(share)
    return f"{text} {'point' if text == '1' else 'points'}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
