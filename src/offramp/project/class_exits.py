"""From a configuration to designed exits: the sweep, the choice, and what is written about it.

Layer: project.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import nn

from offramp._core.errors import InputError
from offramp._core.schema import to_json
from offramp.data import Dataset
from offramp.fitting.class_exits import (
    Branch,
    ClassExitPlan,
    NoViableExit,
    Requirements,
    SharedExitPlan,
    class_index,
)
from offramp.fitting.class_exits.figures import as_json
from offramp.project.config.sections import ClassExitsSection, RunConfig
from offramp.project.heads import HEADS, load_heads
from offramp.project.networks import built, planned, spec_of, with_heads
from offramp.stages import Cascade
from offramp.train.class_exits import (
    UNITS,
    Recipe,
    Sweep,
    choose_class_exits,
    choose_class_exits_together,
    exit_row,
    paper_tables,
    sweep_branches,
    with_pruned,
)

BRANCHES = "branches"  # folder of the sweep, in that of the run
Found = ClassExitPlan | SharedExitPlan | NoViableExit


@final
@dataclass(frozen=True, kw_only=True)
class Designed:
    """What was found.

    Args:
        sweep: The branches.
        branches: What stands in each column, with its costs.
        each: For each class, by name, its design.
        together: One cascade for several classes, where that was asked for.
        everyone: The exit of all classes beside them, where there are such branches.
        tables: Of `paper_tables`, in flops and in seconds.
    """

    sweep: Sweep
    branches: list[Branch]
    each: dict[str, ClassExitPlan | NoViableExit]
    together: SharedExitPlan | NoViableExit | None
    everyone: ClassExitPlan | NoViableExit | None
    tables: list[dict[str, Any]]

    @property
    def deployed(self) -> Found:
        """What a bundle of this design holds."""
        return next(iter(self.each.values())) if self.together is None else self.together


def requirements_of(how: ClassExitsSection) -> Requirements:
    """What an exit has to keep."""
    low, high = how.thresholds
    return Requirements(
        constraints=how.constraints,
        thresholds=(low, high),
        tolerance=how.tolerance,
        precision_floor=how.precision_floor,
        select=how.select,
    )


def targets_of(how: ClassExitsSection, class_names: Sequence[str]) -> list[int]:
    """Positions of the classes to design for; all where none is named.

    Raises:
        UnknownNameError: If there is no such class; the nearest is suggested.
        InputError: If a position is outside.
    """
    names = list(how.superclasses) or class_names
    chosen = how.classes or list(names)
    return list(dict.fromkeys(class_index(_class(one, names), names) for one in chosen))


def _class(one: str | int, names: Sequence[str]) -> str | int:
    """A number on the command line is a position, unless a class has that name."""
    return int(one) if isinstance(one, str) and one not in names and one.isdecimal() else one


def run_sweep(
    config: RunConfig, config_path: Path, examples: Dataset, folder: Path, *, device: str
) -> Sweep:
    """Train all branches, or read them where that is done, and the heads that there are.

    Args:
        config: With a network.
        config_path: The configuration's file.
        examples: With splits.
        folder: Of the run.
        device: Where everything runs.
    """
    if config.network is None:
        raise InputError(f"{config_path} must have the section [network].")
    how, spec = config.class_exits, spec_of(config.network)
    net = built(spec, config_path.parent)
    sweep = sweep_branches(
        net,
        examples,
        folder / BRANCHES,
        groups=how.superclasses or None,
        sampled=how.points,
        grid=how.grid,
        recipe=Recipe(epochs=how.epochs, class_weights=how.class_weights, seed=how.seed),
        validation=how.validation,
        transform=config.network.transform,
        spec=spec,
        device=device,
    )
    heads = folder / HEADS
    if config.exits is None or not heads.exists():
        return sweep
    if how.superclasses:
        warnings.warn(
            f"The heads in {heads} answer classes, not superclasses, and are left aside.",
            stacklevel=2,
        )
        return sweep
    return sweep.with_heads(_headed(config, config_path, examples, net), examples, device=device)


def _headed(config: RunConfig, config_path: Path, examples: Dataset, net: nn.Module) -> Cascade:
    """The network with the heads that `offramp train` has trained."""
    example = examples.batch(0, 1).inputs
    plan = replace(planned(config, config_path.parent, example, examples.class_names), net=net)
    cascade = with_heads(config, plan, example, examples.class_names)
    load_heads(config.folder / HEADS, cascade, config_path)
    return cascade


def designed(sweep: Sweep, how: ClassExitsSection, targets: Sequence[int]) -> Designed:
    """Choose exits for each class, and compute what the paper's tables show."""
    asked = requirements_of(how)
    confirm = "calibrate" in sweep.baselines
    sweep, branches, each = _each(sweep, how, targets, confirm=confirm)
    strict = replace(asked, constraints="strict", select=None, precision_floor=0.0)
    together = None
    if how.together:
        together = choose_class_exits_together(
            sweep, targets, requirements=strict, branches=branches, confirm=confirm
        )
    everyone = None
    if any(branch.target is None for branch in branches):
        everyone = choose_class_exits(
            sweep, None, requirements=strict, branches=branches, confirm=confirm
        )
    return Designed(
        sweep=sweep,
        branches=branches,
        each=each,
        together=together,
        everyone=everyone,
        tables=[
            paper_tables(
                sweep,
                targets,
                branches=_branches(sweep, how.model_copy(update={"unit": unit})),
                thresholds=asked.thresholds,
            )
            for unit in UNITS
        ],
    )


def _each(
    sweep: Sweep, how: ClassExitsSection, targets: Sequence[int], *, confirm: bool
) -> tuple[Sweep, list[Branch], dict[str, ClassExitPlan | NoViableExit]]:
    """Designs of the classes; with pruning once more among branches that read less."""

    def choose(of: Sweep, branches: list[Branch]) -> dict[str, ClassExitPlan | NoViableExit]:
        return {
            of.class_names[k]: choose_class_exits(
                of,
                k,
                requirements=requirements_of(how),
                branches=branches,
                exits=how.exits,
                confirm=confirm,
            )
            for k in targets
        }

    branches = _branches(sweep, how)
    each = choose(sweep, branches)
    if not how.prune:
        return sweep, branches, each
    pruned = with_pruned(sweep, [one for one in each.values() if isinstance(one, ClassExitPlan)])
    branches = _branches(pruned, how)
    return pruned, branches, choose(pruned, branches)


def _branches(sweep: Sweep, how: ClassExitsSection) -> list[Branch]:
    """The columns with their costs; those that `kp` excludes are of nobody."""
    found = sweep.branches(how.unit, batch_size=how.batch_size)
    if how.kp == "both":
        return found
    return [
        b if sweep.label(k) != "branch" or b.keep_previous == (how.kp == "on") else _nobody(b)
        for k, b in enumerate(found)
    ]


def _nobody(branch: Branch) -> Branch:
    return replace(branch, target=-1)


def design_to_dict(
    found: Designed, how: ClassExitsSection, targets: Sequence[int]
) -> dict[str, Any]:
    """What `class_exits.json` holds."""
    sweep, asked = found.sweep, requirements_of(how)
    return {
        "format": "offramp-class-exits",
        "version": 1,
        "unit": how.unit,
        "batch_size": how.batch_size,
        "class_names": list(sweep.class_names),
        "targets": [sweep.class_names[k] for k in targets],
        "requirements": {**to_json(asked), "select": asked.criterion},
        "branches": len(sweep.specs),
        "heads": 0 if sweep.heads is None else len(sweep.heads.heads),
        "examples": {split: len(sweep.data(split)) for split in sweep.baselines},
        "classes": [{"class": name, **_described(sweep, one)} for name, one in found.each.items()],
        "together": None if found.together is None else _described(sweep, found.together),
        "everyone": None if found.everyone is None else _described(sweep, found.everyone),
        "tables": found.tables,
    }


def _described(sweep: Sweep, found: Found) -> dict[str, Any]:
    """A design with what it does on every split."""
    if isinstance(found, NoViableExit):
        return {"outcome": "no viable exit", "reason": found.reason, "refuted": found.refuted}
    return {
        "outcome": "exit",
        "refuted": found.refuted if isinstance(found, ClassExitPlan) else None,
        "exits": [
            {
                "class": None
                if leaf.branch.target is None
                else sweep.class_names[leaf.branch.target],
                "point": leaf.branch.point,
                "keep_previous": leaf.branch.keep_previous,
                "reads": list(sweep.reads(leaf.column)),
                "what": sweep.label(leaf.column),
                "threshold": leaf.threshold,
            }
            for leaf in found.exits
        ],
        "rows": {
            split: as_json(exit_row(sweep.data(split), found.exits)) for split in sweep.baselines
        },
    }
