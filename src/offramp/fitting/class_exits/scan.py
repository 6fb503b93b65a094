"""Every threshold of one branch at once: what each claims, and whether the demands hold.

The examples are sorted by evidence; each cut between two of them is a threshold, and running sums
over the sorted examples count what it claims. So all thresholds cost one sorting.

Layer: fitting.  Source: Bonato and Bouganis, class-specific early exit, equations (3) to (7), (11)
and (12), section 3.3; methods.md 2 (`strict`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from offramp._core.checks import check_choice, check_fraction
from offramp._core.errors import InputError
from offramp._core.types import BoolArray, FloatArray, IntArray
from offramp.fitting.class_exits.data import (
    ROUNDING,
    STAYS,
    Branch,
    ClassData,
    ClassExit,
    answers_and_times,
    route,
)
from offramp.fitting.class_exits.figures import paper_figures, system_figures
from offramp.fitting.class_exits.time import logit, nested_time

CONSTRAINTS = ("strict", "paper")
SELECTIONS = ("ratio", "saved_over_inflicted", "saved")


@final
@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What an exit has to keep, and which of those that do is best.

    Args:
        constraints: "strict": accuracy of the complete system and each class's recall stay within
            `tolerance` of the baseline's. "paper": (5), (6) and (7) as they are written.
        thresholds: Range of the threshold alpha, within (0, 1].
        tolerance: For "strict": what accuracy and recalls may lose, in [0, 1]; 0.005 is half a
            point.
        precision_floor: Least share of the class among what leaves early, in [0, 1].
        select: "ratio" of gain over loss, "saved_over_inflicted" time, or time "saved". By default
            "saved" for "strict", so that `gain_true` is largest, and "ratio" for "paper".

    Raises:
        InputError: If an argument is outside its domain.

    >>> Requirements().criterion, Requirements(constraints="paper").criterion
    ('saved', 'ratio')
    """

    constraints: str = "strict"
    thresholds: tuple[float, float] = (0.95, 1.0)
    tolerance: float = 0.005
    precision_floor: float = 0.0
    select: str | None = None

    def __post_init__(self) -> None:
        check_choice("constraints", self.constraints, CONSTRAINTS)
        if self.select is not None:
            check_choice("select", self.select, SELECTIONS)
        check_fraction("tolerance", self.tolerance)
        check_fraction("precision_floor", self.precision_floor)
        low, high = self.thresholds
        if not 0.0 < low <= high <= 1.0:
            raise InputError(
                f"thresholds must be a range (low, high) within (0, 1], got {self.thresholds!r}. "
                "Percentages have to be divided by 100 first."
            )

    @property
    def criterion(self) -> str:
        """The selection that is in force."""
        return self.select or ("saved" if self.constraints == "strict" else "ratio")

    def score(self, time: float, baseline: float, staying: float) -> float:
        """Value of a candidate, higher is better.

        Args:
            time: t'', mean time of the class.
            baseline: t.
            staying: t', time of those who stay.
        """
        if self.criterion == "saved":
            return baseline - time
        if self.criterion == "ratio":
            return (baseline / time) / (staying / baseline)
        inflicted = staying - baseline
        return (baseline - time) / inflicted if inflicted > 0 else float("inf")


@final
@dataclass(frozen=True, kw_only=True)
class Standing:
    """The system before the exit that is looked for, which is deeper than its exits.

    Args:
        exits: Its exits, in the order in which they are reached.
        alive: True for the examples that stay, `(n,)`.
        answers: What each example is answered, `(n,)`.
        times: What each example takes, `(n,)`.
    """

    exits: tuple[ClassExit, ...]
    alive: BoolArray
    answers: IntArray
    times: FloatArray

    @classmethod
    def of(cls, data: ClassData, exits: Sequence[ClassExit], baseline: float) -> "Standing":
        """Route the examples through the exits that there are.

        Args:
            data: The examples.
            exits: In the order in which they are reached.
            baseline: t.
        """
        left = route(data, exits)
        answers, times = answers_and_times(data, exits, left, baseline)
        return cls(exits=tuple(exits), alive=left == STAYS, answers=answers, times=times)


@final
@dataclass(frozen=True, kw_only=True)
class Scan:
    """All thresholds of one branch, from the strictest down; each row is one of `u`.

    Args:
        log_odds: The thresholds, `(u,)`, falling; float32 values.
        claimed: Examples of each class that leave here, `(u, c)`.
        claimed_right: Those of them that the exit gets right, `(u, c)`.
        lost: Those of them that the system without this exit gets right, `(u, c)`.
        times: Mean time over the examples of each class, `(u, c)`; NaN without examples.
    """

    log_odds: FloatArray
    claimed: FloatArray
    claimed_right: FloatArray
    lost: FloatArray
    times: FloatArray

    def __len__(self) -> int:
        return len(self.log_odds)


def scan(
    data: ClassData,
    column: int,
    branch: Branch,
    standing: Standing,
    thresholds: tuple[float, float],
) -> Scan:
    """Count for every threshold in a range what it claims.

    A threshold lies halfway between the examples that it parts, so that rounding moves none.

    Args:
        data: The examples.
        column: Of the evidence.
        branch: What stands there.
        standing: The system without it.
        thresholds: Range of alpha, within (0, 1].
    """
    low, high = (logit(alpha) for alpha in thresholds)
    found = data.evidence[:, column]
    rows = np.flatnonzero(standing.alive & (found >= low) & np.isfinite(found))
    rows = rows[np.argsort(-found[rows], kind="stable")]
    cuts, ends = _cuts(found[rows], low, high)
    leaving = branch.timing.leaving + sum(leaf.branch.timing.branch for leaf in standing.exits)
    return _counted(data, column, branch, standing, rows, ends, cuts, leaving)


def _counted(
    data: ClassData,
    column: int,
    branch: Branch,
    standing: Standing,
    rows: IntArray,
    ends: IntArray,
    cuts: FloatArray,
    leaving: float,
) -> Scan:
    labels = data.labels[rows]
    member = np.zeros((len(rows), data.classes))
    member[np.arange(len(rows)), labels] = 1.0

    def total(values: FloatArray | BoolArray) -> FloatArray:
        return np.cumsum(member * values[:, None], axis=0)[ends]

    saved = standing.times[rows] + branch.timing.branch - leaving
    alone = data.per_class(standing.times + standing.alive * branch.timing.branch)
    times = np.full((len(ends), data.classes), np.nan)
    np.divide(alone - total(saved), data.sizes, out=times, where=data.sizes > 0)
    return Scan(
        log_odds=cuts,
        claimed=total(np.ones(len(rows))),
        claimed_right=total(data.answers_at(column, branch.target)[rows] == labels),
        lost=total(standing.answers[rows] == labels),
        times=times,
    )


def _cuts(found: FloatArray, low: float, high: float) -> tuple[FloatArray, IntArray]:
    """Thresholds that part falling values, and the last position that each one claims."""
    if len(found) == 0:
        return np.empty(0), np.empty(0, dtype=np.int64)
    ends = np.append(np.flatnonzero(np.diff(found) < 0), len(found) - 1)
    value = found[ends]
    below = np.append(value[1:], -np.inf)
    bottom, top = np.maximum(below, low), np.minimum(value, high)
    middle = ((bottom + top) / 2).astype(np.float32).astype(np.float64)
    parts = (middle > below) & (middle <= value) & (middle >= low) & (middle <= high)
    kept = parts | (value <= high)  # above `high` only cuts that lie between two values are left
    return np.where(parts, middle, value)[kept], ends[kept]


def allowed(
    data: ClassData, branch: Branch, standing: Standing, found: Scan, requirements: Requirements
) -> tuple[BoolArray, FloatArray]:
    """Which thresholds fulfil the requirements and save time, and t'' of the class, each `(u,)`."""
    if requirements.constraints == "paper":
        holds, times = _paper(data, branch, standing, found)
    else:
        holds = _strict(data, standing, found, requirements.tolerance)
        times = _class_times(data, branch.target, found)
    holds &= _precise(data, standing, found, requirements.precision_floor)
    baseline = branch.timing.baseline
    return holds & (times > ROUNDING * baseline) & (times < (1 - ROUNDING) * baseline), times


def _precise(data: ClassData, standing: Standing, found: Scan, floor: float) -> BoolArray:
    """Precision of the new exit and of those before it together."""
    gone = ~standing.alive
    claimed = found.claimed.sum(axis=1) + gone.sum()
    right = found.claimed_right.sum(axis=1) + (gone & (standing.answers == data.labels)).sum()
    holds: BoolArray = right >= floor * claimed - ROUNDING
    return holds


def _class_times(data: ClassData, target: int | None, found: Scan) -> FloatArray:
    if target is not None:
        return found.times[:, target]
    total: FloatArray = np.nansum(found.times * data.sizes, axis=1)
    return total / len(data)


def _strict(data: ClassData, standing: Standing, found: Scan, tolerance: float) -> BoolArray:
    """Accuracy of the complete system and each class's recall against the baseline's."""
    without = data.per_class(standing.answers == data.labels)
    right = without - found.lost + found.claimed_right  # (u, c)
    fallen = data.per_class(data.right) - right
    total = fallen.sum(axis=1) / len(data)
    present = data.sizes > 0
    each = (fallen[:, present] / data.sizes[present]).max(axis=1)
    holds: BoolArray = np.maximum(total, each) <= tolerance + ROUNDING
    return holds


def _paper(
    data: ClassData, branch: Branch, standing: Standing, found: Scan
) -> tuple[BoolArray, FloatArray]:
    """(5), (6), (7), and t'' with g by (4) or, after other exits, by (12)."""
    target = branch.target if branch.target is not None else -1
    own = data.labels == target
    size, gone = int(own.sum()), ~standing.alive
    here = found.claimed.sum(axis=1)
    right_claims = found.claimed[:, target] + int((gone & own).sum())
    impostors = here - found.claimed[:, target] + int((gone & ~own).sum())
    staying_right = data.per_class(standing.alive & data.right) - found.lost
    rest_right = staying_right.sum(axis=1) - staying_right[:, target]
    others = len(data) - size
    left_over = others - impostors
    rest = np.divide(rest_right, left_over, out=np.zeros(len(here)), where=left_over > 0)
    beta = int((data.right & ~own).sum()) / others if others else 0.0
    eta = int((data.right & own).sum()) / size
    holds = (
        (rest >= beta - ROUNDING)
        & ((right_claims + left_over) / len(data) >= eta - ROUNDING)
        & ((right_claims + staying_right[:, target]) / size >= eta - ROUNDING)
    )
    return holds, _paper_times(data, branch, standing, here, size - int(gone.sum()))


def _paper_times(
    data: ClassData, branch: Branch, standing: Standing, claims: FloatArray, unclaimed: int
) -> FloatArray:
    """The time is linear in the last rate, so two values of it give all."""
    timings = [*(leaf.branch.timing for leaf in standing.exits), branch.timing]
    rates = list(paper_figures(data, standing.exits).rates) if standing.exits else []
    nobody, everybody = (nested_time(timings, [*rates, rate]) for rate in (0.0, 1.0))
    if unclaimed <= 0:
        return np.full(len(claims), nobody)
    return nobody + claims / unclaimed * (everybody - nobody)


def allowed_reference(
    data: ClassData, column: int, branch: Branch, standing: Standing, requirements: Requirements
) -> list[float]:
    """Thresholds among the examples' own evidence that fulfil everything, judged one by one."""
    low, high = (logit(alpha) for alpha in requirements.thresholds)
    kept = []
    for value in sorted({float(v) for v in data.evidence[standing.alive, column]}, reverse=True):
        if not (low <= value <= high and np.isfinite(value)):
            continue
        exits = (*standing.exits, ClassExit(column=column, branch=branch, log_odds=value))
        system, paper = system_figures(data, exits), paper_figures(data, exits)
        strict = requirements.constraints == "strict"
        holds = system.keeps_accuracy(requirements.tolerance) if strict else paper.holds
        time = system.times[paper.target] if strict else paper.time
        baseline = branch.timing.baseline
        if (
            holds
            and ROUNDING * baseline < time < (1 - ROUNDING) * baseline
            and (paper.precision >= requirements.precision_floor)
        ):
            kept.append(value)
    return kept
