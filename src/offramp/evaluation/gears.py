"""Gears: for each of several limits the cheapest candidate, all promised with one delta.

For each limit candidates stand in an order that `fit` fixed. The orders are merged into one, by how
many standard errors a candidate lies within its limit on `fit`, and tested in that order at delta
each, up to the first that fails: so the chance that any promise is wrong is delta, however many
limits there are.

Layer: evaluation.
Source: methods.md 4; fixed sequence testing, Bauer 1991; none for the merged order
(docs/adr/0052).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from offramp._core.checks import check_choice, check_probability
from offramp._core.errors import InputError
from offramp._core.keys import example_keys
from offramp._core.topology import Path
from offramp._core.types import FloatArray
from offramp.evaluation.calibration import Calibration
from offramp.evaluation.certify import assumptions, objection, promise, seen
from offramp.evaluation.limits import OF_COSTS, read_limits
from offramp.evaluation.order import walk_order
from offramp.evaluation.replay import departures
from offramp.evaluation.results import Evaluation, FrontierPoint, Risk
from offramp.evaluation.risk_tests import RiskTest, evidence, slack
from offramp.evaluation.weights import risk_tests
from offramp.policy import Candidate, Evidence
from offramp.policy.gears import REFERENCE, SCORES, Gear, Gears
from offramp.policy.promise import PROMISES, Guarantee, points_text
from offramp.risk import NonePassed, fixed_sequence
from offramp.trace import Trace

#: Limits by the name of the gear, or limits alone, which give the names.
MaxDrops = Mapping[str, float] | Sequence[float]


@final
@dataclass(frozen=True, kw_only=True)
class _Walk:
    """What is tested for one gear, the safest first, and why nothing is, if so."""

    name: str
    test: RiskTest
    candidates: Sequence[FrontierPoint]
    against: str | None


def certify_gears(
    points: Sequence[FrontierPoint],
    f: FrontierPoint,
    calibration: Calibration | None,
    max_drops: MaxDrops,
    *,
    risk: Risk,
    delta: float,
    examples: Trace | None = None,
) -> Gears:
    """The gears that `Frontier.gears` documents.

    Args:
        points: Candidates and single networks; those that were evaluated on `calibrate` are tested.
        f: The reference alone.
        calibration: What the examples of `calibrate` are; None where there are none.
        max_drops: As in `Frontier.gears`; so are the others.
        risk: What is limited.
        delta: Largest chance that any promise is wrong.
        examples: Those of `calibrate`, or None.
    """
    check_probability("delta", delta)
    check_choice("risk", risk, [name for name in PROMISES if name not in OF_COSTS])
    named = _named(max_drops)
    walks = []
    for name, drop in named.items():
        (test,) = risk_tests(read_limits({risk: drop}), calibration, delta=delta)
        candidates = walk_order(points, f, [test], "accuracy_drop")
        walks.append(
            _Walk(
                name=name,
                test=test,
                candidates=candidates,
                against=objection(candidates, [test], calibration, delta),
            )
        )
    held, left_out = [_reference(f)], dict[str, str]()
    p_values = [
        np.ones(0) if walk.against else walk.test.p_values(walk.candidates) for walk in walks
    ]
    rooms = [[slack(walk.test, point.fit) for point in walk.candidates] for walk in walks]
    passed, tested = merged(rooms, p_values, delta)
    for walk, (count, p_value) in zip(walks, passed, strict=True):
        if count == 0 or calibration is None:
            left_out[walk.name] = _why_not(walk, calibration, delta)
            continue
        guarantee = Guarantee(
            limits=(walk.test.limit,),
            delta=delta,
            p_value=p_value,
            tested=tested,
            n=calibration.n,
            split=calibration.split,
            fingerprint=calibration.fingerprint,
            class_weights=None,
            assumptions=(
                *assumptions(calibration, None, [walk.test], walk.candidates[count - 1]),
                f"The {len(walks)} gears that were asked for were tested together: with a "
                f"confidence of {100 * (1 - delta):g} % the promises of all of them hold at once.",
            ),
        )
        held.append(_gear(walk.name, walk.candidates[count - 1], guarantee))
    kept = _distinct(held, left_out)
    if examples is not None:
        _check_same(examples, calibration)
        kept = tuple(replace(gear, scores=_scores(examples, gear.candidate)) for gear in kept)
    return Gears(delta=delta, held=kept, left_out=left_out)


def _named(max_drops: MaxDrops) -> dict[str, float]:
    """Limits by name, the smallest first."""
    given = max_drops
    if not isinstance(given, Mapping):
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise InputError(
                f"max_drops must be several limits, or limits by name, got {given!r}. For example "
                '(0.005, 0.01, 0.02) or {"careful": 0.005, "fast": 0.02}.'
            )
        given = {f"drop-{points_text(check_probability('max_drops', b))}": b for b in given}
        if len(given) < len(max_drops):
            raise InputError(f"max_drops must differ, got {list(max_drops)}.")
    if not given or REFERENCE in given:
        raise InputError(
            f"max_drops must name at least one limit, and none {REFERENCE!r}, which is always "
            f"there; got {dict(given)!r}."
        )
    return dict(sorted(given.items(), key=lambda item: item[1]))


def merged(
    rooms: Sequence[Sequence[float]], p_values: Sequence[FloatArray], delta: float
) -> tuple[list[tuple[int, float]], int]:
    """Test several walks as one, in an order that does not depend on the p-values.

    Those with the most room go first, and within a walk its own order is kept.

    Args:
        rooms: Of the candidates of each walk, by which they are merged.
        p_values: Theirs; of a walk that cannot be tested none.
        delta: Level of each test, and the largest chance that any that passes should not have.

    Returns:
        How many of each walk have passed, and the largest p-value until then; and how many were
        tested in all.

    >>> merged([[3.0, 1.0], [2.0]], [np.array([0.01, 0.02]), np.array([0.5])], 0.1)
    ([(1, 0.01), (0, 1.0)], 2)
    """
    steps = []
    for k, (room, found) in enumerate(zip(rooms, p_values, strict=True)):
        least = np.minimum.accumulate(np.array(room[: len(found)], dtype=np.float64))
        steps += [(-value, k, i) for i, value in enumerate(least.tolist())]
    steps.sort()
    in_order = np.array([p_values[k][i] for _, k, i in steps], dtype=np.float64)
    walked = fixed_sequence(in_order, delta=delta)
    passed = [(0, 1.0)] * len(rooms)
    if isinstance(walked, NonePassed):
        return passed, min(len(steps), 1)
    highest = np.maximum.accumulate(in_order).tolist()
    for (_, k, i), p_value in zip(steps[: walked.index + 1], highest, strict=False):
        passed[k] = (i + 1, p_value)
    return passed, min(walked.index + 2, len(steps))


def _distinct(held: Sequence[Gear], left_out: dict[str, str]) -> tuple[Gear, ...]:
    """Gears that are cheaper than those before them; the others gain nothing and lose more."""
    kept = [held[0]]
    for gear in held[1:]:
        if gear.cost_ratio < kept[-1].cost_ratio:
            kept.append(gear)
        else:
            left_out[gear.name] = (
                f"nothing cheaper than gear {kept[-1].name!r} was certified, whose limit is tighter"
            )
    return tuple(kept)


def _gear(name: str, point: FrontierPoint, guarantee: Guarantee) -> Gear:
    found = evidence(point)
    return Gear(
        name=name,
        candidate=point.candidate,
        guarantee=guarantee,
        sentence=promise(point, guarantee),
        cost_ratio=found.cost_ratio,
        exits=_exits(found),
    )


def _reference(f: FrontierPoint) -> Gear:
    found = f.tested or f.fit
    return Gear(
        name=REFERENCE,
        candidate=f.candidate,
        guarantee=None,
        sentence=f"{f.candidate.label}: nothing is lost against it.",
        cost_ratio=1.0,
        exits=_exits(found),
    )


def _exits(found: Evaluation) -> tuple[int, ...]:
    """How many examples left at each stage, `(s,)`."""
    counts = [0] * len(found.stages)
    paths = found.candidate.policy.topology.paths()
    for path, share in zip(paths, found.path_share, strict=False):
        counts[path[-1]] += round(share * found.n)
    return tuple(counts) if found.path_share else ()


def _check_same(examples: Trace, calibration: Calibration | None) -> None:
    if calibration is None or Calibration.of(examples).fingerprint != calibration.fingerprint:
        raise InputError(
            f"examples must be those that gears are tested on, got {len(examples)} others. Give "
            "trace.subset('calibrate')."
        )


def _scores(examples: Trace, candidate: Candidate) -> tuple[int, ...]:
    """For how many the confidence is below each of `SCORES`; nothing where nobody says so."""
    policy, keys = candidate.policy, example_keys(examples.ids)
    active = policy.topology.active
    outputs = [examples.output(k) if k in active else None for k in range(len(policy.topology))]

    def at(path: Path) -> Evidence:
        return Evidence(policy, path, outputs, keys)

    below = np.zeros(len(SCORES), dtype=np.int64)
    for path, _, leaving, _ in departures(policy, len(examples), at):
        sure = policy.says(at(path)).best()[1] if bool(leaving.any()) else torch.ones(len(leaving))
        if sure is None:
            return ()
        below += (sure[leaving].numpy()[:, None] < np.array(SCORES)).sum(axis=0)
    return tuple(below.tolist())


def _why_not(walk: _Walk, calibration: Calibration | None, delta: float) -> str:
    if walk.against is not None or calibration is None:
        return f"Not certified: {walk.against}."
    first = walk.candidates[0]
    p_value = float(walk.test.p_values([first])[0])
    failed = "" if p_value > delta else ", but a test of another gear before it failed"
    return (
        f"Not certified: {walk.test.limit.text} has p = {p_value:.3g} for the safest candidate "
        f"where delta = {delta:g}{failed}; {seen(first, [walk.test], calibration)}."
    )
