"""Which exits of a class to take: chosen on `fit`, confirmed on `calibrate`.

Layer: fitting.
Source: Bonato and Bouganis, class-specific early exit, sections 3.1.1, 3.3 and 3.4;
methods.md 2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from offramp._core.checks import check_positive_int, check_shape
from offramp._core.errors import InputError
from offramp.fitting.class_exits.data import Branch, ClassData, ClassExit
from offramp.fitting.class_exits.figures import (
    PaperFigures,
    SystemFigures,
    paper_figures,
    system_figures,
)
from offramp.fitting.class_exits.scan import Requirements, Standing, allowed, scan
from offramp.fitting.pareto import pareto_front

#: Besides its best threshold each branch offers more careful ones, that leave less, so that there
#: is something to fall back on where `calibrate` refutes the best.
CAREFUL = (1.0, 0.75, 0.5, 0.25)


@final
@dataclass(frozen=True, kw_only=True)
class ExitCandidate:
    """The best threshold of one branch on `fit`.

    Args:
        exits: The exits before it, if any, and itself last.
        time: t'' of the class: by the paper's formula under its constraints, else as measured.
        loss: t' / t, what those who stay pay.
        score: Value by the selection in force, higher is better.
        on_front: True if no other candidate is at least as good in time and loss, better in one.
    """

    exits: tuple[ClassExit, ...]
    time: float
    loss: float
    score: float
    on_front: bool = False


@final
@dataclass(frozen=True, kw_only=True)
class ClassExitPlan:
    """The exits chosen for a class.

    Args:
        target: The class, an index; None for an exit of all classes.
        exits: In the order in which they are reached.
        requirements: What they keep.
        fit: Figures of the system on `fit`.
        calibrate: The same on `calibrate`, or None where nobody confirmed them.
        candidates: The best threshold of each branch with a viable one.
        refuted: Better choices on `fit` that `calibrate` refuted.
    """

    target: int | None
    exits: tuple[ClassExit, ...]
    requirements: Requirements
    fit: SystemFigures
    calibrate: SystemFigures | None
    candidates: tuple[ExitCandidate, ...]
    refuted: int

    def paper(self, data: ClassData) -> PaperFigures:
        """The paper's figures of these exits on a split; for exits of one class."""
        return paper_figures(data, self.exits)

    def system(self, data: ClassData) -> SystemFigures:
        """Figures of the complete system on a split."""
        return system_figures(data, self.exits)


@final
@dataclass(frozen=True, kw_only=True)
class NoViableExit:
    """No exit makes the class faster and keeps what it has to: run the network alone.

    Args:
        target: The class, an index; None for an exit of all classes.
        reason: Why, in one plain sentence.
        candidates: What was viable on `fit`, if anything was.
        refuted: Choices that were viable on `fit` and that `calibrate` refuted.
    """

    target: int | None
    reason: str
    candidates: tuple[ExitCandidate, ...] = ()
    refuted: int = 0


def choose_exits(
    fit: ClassData,
    branches: Sequence[Branch],
    *,
    target: int | None,
    requirements: Requirements | None = None,
    calibrate: ClassData | None = None,
    exits: int = 1,
) -> ClassExitPlan | NoViableExit:
    """Find the branch and threshold, or several, that make a class fastest.

    On `fit` every threshold of every branch of the class is judged. The candidates, and more
    careful thresholds of each, are tried on `calibrate` from the best downwards; the first that
    fulfils the requirements there too is taken. Without `calibrate` the best on `fit` is.

    Args:
        fit: Examples to choose on.
        branches: What stands in each column of the evidence, `(b,)`.
        target: The class, an index; None looks among the branches that answer all classes.
        requirements: By default those of `Requirements()`.
        calibrate: Other examples to confirm on.
        exits: Most exits in a row; each further one is deeper, and kept only if it pays.

    Raises:
        InputError: If no branch is of this class, a split has no example of it, the baseline is
            never right on it, or exits of all classes are asked for with the paper's constraints.

    >>> from offramp.fitting.class_exits.time import Timing
    >>> data = ClassData(labels=np.array([0, 0, 1, 1]), baseline=np.array([0, 0, 1, 1]),
    ...                  class_names=("cat", "dog"), evidence=np.array([[5.0], [4.0], [-3], [-9]]))
    >>> timing = Timing(baseline=10.0, reached=1.0, branch=1.0, unit="flops")
    >>> branch = Branch(point="layer1", keep_previous=False, target=0, timing=timing)
    >>> choose_exits(data, [branch], target=0).fit.gain(0)
    5.0
    """
    asked = requirements or Requirements()
    columns = _columns(fit, branches, target, asked, calibrate)
    check_positive_int("exits", exits)
    ranked = _search(fit, branches, columns, asked, ())
    for _ in range(exits - 1):
        deeper = [
            found
            for before in _distinct(ranked)
            for found in _search(fit, branches, columns, asked, before.exits)
        ]
        ranked = _ranked([*ranked, *deeper])
    return _confirmed(fit, calibrate, ranked, target, asked)


def ranked_candidates(
    data: ClassData, branches: Sequence[Branch], target: int, requirements: Requirements
) -> list[ExitCandidate]:
    """Single exits for a class, the best first: each branch's best threshold and careful ones."""
    columns = _columns(data, branches, target, requirements, None)
    return _search(data, branches, columns, requirements, ())


def _columns(
    fit: ClassData,
    branches: Sequence[Branch],
    target: int | None,
    requirements: Requirements,
    calibrate: ClassData | None,
) -> list[int]:
    for data in (fit, *([] if calibrate is None else [calibrate])):
        check_shape("evidence", data.evidence.shape, (len(data), len(branches)))
        if target is not None:
            data.require(target)
    if target is None and requirements.constraints == "paper":
        raise InputError(
            "constraints must be 'strict' for an exit of all classes, got 'paper': (5) to (7) are "
            "about one class."
        )
    columns = [k for k, branch in enumerate(branches) if branch.target == target]
    if not columns:
        raise InputError(f"branches must hold at least one of class {target!r}, got none.")
    return columns


def _search(
    data: ClassData,
    branches: Sequence[Branch],
    columns: Sequence[int],
    requirements: Requirements,
    before: tuple[ClassExit, ...],
) -> list[ExitCandidate]:
    """Candidates that add one exit, the best first, with more careful thresholds of each."""
    found: list[ExitCandidate] = []
    depth = before[-1].branch.timing.reached if before else -1.0
    for column in columns:
        branch = branches[column]
        if branch.timing.reached > depth:
            found += _of_branch(data, column, branch, requirements, before)
    return _ranked(found)


def _of_branch(
    data: ClassData,
    column: int,
    branch: Branch,
    requirements: Requirements,
    before: tuple[ClassExit, ...],
) -> Iterator[ExitCandidate]:
    standing = Standing.of(data, before, branch.timing.baseline)
    cuts = scan(data, column, branch, standing, requirements.thresholds)
    holds, times = allowed(data, branch, standing, cuts, requirements)
    baseline = branch.timing.baseline
    staying = baseline + branch.timing.branch + sum(x.branch.timing.branch for x in before)
    for row in _careful(holds, times, baseline):
        yield ExitCandidate(
            exits=(
                *before,
                ClassExit(column=column, branch=branch, log_odds=float(cuts.log_odds[row])),
            ),
            time=float(times[row]),
            loss=staying / baseline,
            score=requirements.score(float(times[row]), baseline, staying),
        )


def _careful(holds: np.ndarray, times: np.ndarray, baseline: float) -> list[int]:
    """Of the allowed thresholds the one that saves most, and some that save less."""
    rows = np.flatnonzero(holds)
    if len(rows) == 0:
        return []
    saved = baseline - times[rows]
    most = saved.max()
    picked = [int(rows[np.flatnonzero(saved >= share * most)[0]]) for share in CAREFUL]
    return list(dict.fromkeys(picked))


def _ranked(found: Sequence[ExitCandidate]) -> list[ExitCandidate]:
    """The best first; of equals the one that saves most, then the one found first."""
    return sorted(found, key=lambda c: (-c.score, c.time))


def _distinct(ranked: Sequence[ExitCandidate], *, most: int = 12) -> list[ExitCandidate]:
    """Candidates to add an exit to: the best few, with their more careful thresholds."""
    deepest = max((len(c.exits) for c in ranked), default=0)
    return [c for c in ranked if len(c.exits) == deepest][:most]


def _best_of_each(ranked: Sequence[ExitCandidate]) -> tuple[ExitCandidate, ...]:
    """For each branch, or row of branches, its best candidate, with the front marked."""
    best: dict[tuple[int, ...], ExitCandidate] = {}
    for candidate in ranked:
        best.setdefault(tuple(leaf.column for leaf in candidate.exits), candidate)
    kept = list(best.values())
    times = np.array([c.time for c in kept], dtype=np.float64)
    front = pareto_front(times, np.array([c.loss for c in kept], dtype=np.float64))
    return tuple(replace(c, on_front=bool(on)) for c, on in zip(kept, front, strict=True))


def _confirmed(
    fit: ClassData,
    calibrate: ClassData | None,
    ranked: Sequence[ExitCandidate],
    target: int | None,
    requirements: Requirements,
) -> ClassExitPlan | NoViableExit:
    candidates = _best_of_each(ranked)
    what = "all classes" if target is None else f"the class {fit.class_names[target]!r}"
    if not ranked:
        return NoViableExit(
            target=target,
            reason=f"No branch makes {what} faster on {fit.split!r} within the constraints "
            f"{requirements.constraints!r} and thresholds in {list(requirements.thresholds)}.",
        )
    for refuted, candidate in enumerate(ranked):
        if calibrate is None or fulfils(calibrate, candidate.exits, requirements):
            return ClassExitPlan(
                target=target,
                exits=candidate.exits,
                requirements=requirements,
                fit=system_figures(fit, candidate.exits),
                calibrate=None if calibrate is None else system_figures(calibrate, candidate.exits),
                candidates=candidates,
                refuted=refuted,
            )
    return NoViableExit(
        target=target,
        reason=f"{len(ranked)} choices make {what} faster on {fit.split!r}, and none of them keeps "
        f"the constraints {requirements.constraints!r} on other examples.",
        candidates=candidates,
        refuted=len(ranked),
    )


def fulfils(data: ClassData, exits: Sequence[ClassExit], requirements: Requirements) -> bool:
    """True if exits keep what they have to on a split and still make their classes faster.

    Args:
        data: The examples, others than those that the exits were chosen on.
        exits: In the order in which they are reached; under the paper's constraints of one class.
        requirements: What they have to keep.
    """
    system = system_figures(data, exits)
    if requirements.constraints == "paper":
        paper = paper_figures(data, exits)
        faster = 0 < paper.time < system.time_baseline
        precise = not paper.precision < requirements.precision_floor  # NaN where nobody leaves
        return paper.holds and faster and precise
    targets = {leaf.branch.target for leaf in exits}
    gains = [system.gain_all if k is None else system.gain(k) for k in targets]
    return (
        system.keeps_accuracy(requirements.tolerance)
        and min(gains) > 1
        and _precise(data, exits, requirements.precision_floor)
    )


def _precise(data: ClassData, exits: Sequence[ClassExit], floor: float) -> bool:
    if floor == 0:
        return True
    targets = {leaf.branch.target for leaf in exits}
    if len(targets) > 1 or None in targets:
        raise InputError(
            f"precision_floor is for exits of one class, got {floor!r} with exits of several."
        )
    return not paper_figures(data, exits).precision < floor
