"""Exits for several classes in one cascade: they share the network up to where they are attached.

Layer: fitting.  Source: methods.md 2 (several target classes share features, charged once); Bonato
and Bouganis, class-specific early exit, section 5, suggest it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from offramp._core.errors import InputError
from offramp.fitting.class_exits.choice import NoViableExit, fulfils, ranked_candidates
from offramp.fitting.class_exits.data import Branch, ClassData, ClassExit
from offramp.fitting.class_exits.figures import SystemFigures, system_figures
from offramp.fitting.class_exits.scan import Requirements


@final
@dataclass(frozen=True, kw_only=True)
class SharedExitPlan:
    """One exit for each of several classes, in one cascade.

    Args:
        targets: The classes that have an exit, indices.
        exits: In the order in which they are reached.
        requirements: What the complete system keeps.
        fit: Figures of the system on `fit`.
        calibrate: The same on `calibrate`, or None where nobody confirmed them.
    """

    targets: tuple[int, ...]
    exits: tuple[ClassExit, ...]
    requirements: Requirements
    fit: SystemFigures
    calibrate: SystemFigures | None


def choose_together(
    fit: ClassData,
    branches: Sequence[Branch],
    *,
    targets: Sequence[int],
    requirements: Requirements | None = None,
    calibrate: ClassData | None = None,
) -> SharedExitPlan | NoViableExit:
    """Find an exit for each class such that all together keep the accuracy.

    Each class has its candidates, as `choose_exits` ranks them. The classes are taken in the order
    given, each with its best candidate with which all exits together keep the accuracy, on `fit`
    and on `calibrate`: of the tolerance the first class may use one part of as many as there are
    classes, the second two, and so on. A class for which no candidate is left has no exit.

    Args:
        fit: Examples to choose on.
        branches: What stands in each column of the evidence, `(b,)`.
        targets: The classes, different indices, at least one.
        requirements: With "strict" constraints and no precision floor.
        calibrate: Other examples to confirm on.

    Raises:
        InputError: If a class repeats, has no branch or no examples, or the requirements do
            not fit.

    >>> import numpy as np
    >>> from offramp.fitting.class_exits.time import Timing
    >>> data = ClassData(labels=np.array([0, 0, 1, 1]), baseline=np.array([0, 0, 1, 1]),
    ...                  class_names=("cat", "dog"), evidence=np.array([[5.0, -9], [4, -8],
    ...                                                                 [-3, 6], [-9, 7]]))
    >>> timing = Timing(baseline=10.0, reached=1.0, branch=1.0, unit="flops")
    >>> both = [Branch(point="layer1", keep_previous=False, target=k, timing=timing)
    ...         for k in (0, 1)]
    >>> choose_together(data, both, targets=[0, 1]).fit.gain_all
    4.0
    """
    asked = requirements or Requirements()
    _check(fit, branches, targets, asked, calibrate)
    ranked = {k: ranked_candidates(fit, branches, k, asked) for k in targets}
    splits = [fit] if calibrate is None else [fit, calibrate]
    chosen: dict[int, ClassExit] = {}
    for position, target in enumerate(targets):
        part = replace(asked, tolerance=asked.tolerance * (position + 1) / len(targets))
        for candidate in ranked[target]:
            trial = {**chosen, target: candidate.exits[0]}
            if all(fulfils(data, _in_order(trial), part) for data in splits):
                chosen = trial
                break
    if not chosen:
        confirmed = "" if calibrate is None else f" and keeps the accuracy on {calibrate.split!r}"
        return NoViableExit(
            target=None,
            reason=f"No branch makes any of these classes faster on {fit.split!r}{confirmed}.",
        )
    exits = _in_order(chosen)
    return SharedExitPlan(
        targets=tuple(target for target in targets if target in chosen),
        exits=exits,
        requirements=asked,
        fit=system_figures(fit, exits),
        calibrate=None if calibrate is None else system_figures(calibrate, exits),
    )


def _in_order(chosen: Mapping[int, ClassExit]) -> tuple[ClassExit, ...]:
    """Exits in the order in which they are reached; at one point the classes in their order."""
    return tuple(
        leaf
        for _, leaf in sorted(
            chosen.items(), key=lambda item: (item[1].branch.timing.reached, item[0])
        )
    )


def _check(
    fit: ClassData,
    branches: Sequence[Branch],
    targets: Sequence[int],
    asked: Requirements,
    calibrate: ClassData | None,
) -> None:
    if asked.constraints != "strict" or asked.precision_floor > 0:
        raise InputError(
            "Several classes in one cascade need constraints='strict' without a precision floor, "
            f"got {asked.constraints!r} and {asked.precision_floor!r}."
        )
    if not targets or len(set(targets)) != len(targets):
        raise InputError(f"targets must be different classes, at least one, got {list(targets)}.")
    for target in targets:
        fit.require(target)
        if calibrate is not None:
            calibrate.require(target)
        if all(branch.target != target for branch in branches):
            raise InputError(f"branches must hold at least one of class {target}, got none.")
