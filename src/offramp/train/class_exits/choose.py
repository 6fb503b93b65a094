"""Designing exits from a finished sweep.

Layer: train.  Source: Bonato and Bouganis, class-specific early exit, section 3; methods.md 2.
"""

from collections.abc import Sequence

from offramp.fitting.class_exits.choice import ClassExitPlan, NoViableExit, choose_exits
from offramp.fitting.class_exits.data import Branch, class_index
from offramp.fitting.class_exits.scan import Requirements
from offramp.fitting.class_exits.together import SharedExitPlan, choose_together
from offramp.train.class_exits.sweep import Sweep


def choose_class_exits(
    sweep: Sweep,
    target: int | str | None,
    *,
    requirements: Requirements | None = None,
    branches: Sequence[Branch] | None = None,
    exits: int = 1,
    confirm: bool = True,
) -> ClassExitPlan | NoViableExit:
    """Choose exits of one class on "fit", and confirm them on "calibrate".

    Args:
        sweep: Of `sweep_branches`.
        target: The class by index or name, or None for exits of all classes.
        requirements: By default those of `Requirements()`.
        branches: Of `Sweep.branches`; by default counted in flops.
        exits: Most exits in a row.
        confirm: False takes the best on "fit", as the paper does.

    Raises:
        UnknownNameError: If there is no such class or split.
        InputError: As `choose_exits`.
    """
    index = None if target is None else class_index(target, sweep.class_names)
    return choose_exits(
        sweep.data("fit"),
        sweep.branches() if branches is None else branches,
        target=index,
        requirements=requirements,
        calibrate=sweep.data("calibrate") if confirm else None,
        exits=exits,
    )


def choose_class_exits_together(
    sweep: Sweep,
    targets: Sequence[int | str],
    *,
    requirements: Requirements | None = None,
    branches: Sequence[Branch] | None = None,
    confirm: bool = True,
) -> SharedExitPlan | NoViableExit:
    """Choose one exit for each of several classes, in one cascade.

    Args:
        sweep: Of `sweep_branches`.
        targets: Classes by index or name.
        requirements: With "strict" constraints.
        branches: Of `Sweep.branches`; by default counted in flops.
        confirm: False skips "calibrate".
    """
    return choose_together(
        sweep.data("fit"),
        sweep.branches() if branches is None else branches,
        targets=[class_index(target, sweep.class_names) for target in targets],
        requirements=requirements,
        calibrate=sweep.data("calibrate") if confirm else None,
    )
