"""`offramp fit`: fit policies on a trace and choose one.

Layer: cli.
"""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp._core.errors import InputError
from offramp.cli import options
from offramp.cli.errors import NO_ANSWER
from offramp.cli.output import Output, points
from offramp.cli.section import from_section, merged, words
from offramp.project.choose import choose
from offramp.project.config.config import load_config
from offramp.project.config.sections import FitSection, RunConfig
from offramp.project.folder import (
    CHOSEN,
    FRONTIER,
    RunFolder,
    check_bundle,
    claim_bundle,
)
from offramp.project.splits import check_unlabeled, load_divided

if TYPE_CHECKING:
    from offramp.evaluation import Choice, Frontier

_LINES = 12  # of the front, for people
_FIELDS = (
    "policy",
    "max_drop",
    "max_cost",
    "max_request_cost",
    "over_budget",
    "delta",
    "unlabeled",
    "margin",
    "reference",
    "top",
    "combines",
    "loss",
    "risk",
    "seed",
)
Given = Mapping[str, Any]


@from_section(FitSection, *_FIELDS)
def command(
    trace: Annotated[
        Path | None, typer.Argument(help="The trace; by default that of the run's folder.")
    ] = None,
    config: options.Config = None,
    given: Given = MappingProxyType({}),
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default in runs/.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Also write a bundle to deploy; needs --config.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is there already.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Fit policies on a trace and choose the one that suits you.

    In: a trace, and the loss of accuracy that you can bear, or the cost that you can pay, or both.
    A loss is promised for new examples, tested on calibrate; a cost alone is measured, unless you
    give --delta. With --delta none both are measured, not promised.

    Out: a folder with frontier.json (all candidates) and chosen.json (the choice and why); with
    --bundle also the bundle that predict and bench run. Exit code 3: use one network alone.

    Example: offramp fit cifar.trace --policy learned --max-drop 0.02 --out runs/cifar
    """
    from offramp._core.schema import to_json

    output = Output(as_json=json)
    if bundle is not None and config is None:
        raise InputError("--bundle needs --config, which says how to build the networks.")
    needs = ("stage",) if bundle is not None else ()
    settings = RunConfig() if config is None else load_config(config, needs=needs)
    section = _merged(settings.fit, given)
    run = RunFolder.claim(_folder(out, trace, None if config is None else settings))
    path = run.trace_path() if trace is None else trace
    if bundle is not None:
        overwrite = check_bundle(run, bundle, overwrite=overwrite, keep=[config, path])
    frontier, choice = _fit(path, section)
    inside = os.path.relpath(path.resolve(), run.path.resolve())
    command_line = _command_line(path, section, run.path)
    run.remember(trace=inside, seed=section.seed, command=command_line)
    run.write(FRONTIER, to_json(frontier))
    run.write(CHOSEN, to_json(choice))
    types: list[str] = []
    if bundle is not None and config is not None:
        claim_bundle(run, bundle)
        types = _save_bundle(bundle, settings, config, choice, path, overwrite=overwrite)
    _show(output, frontier, choice, run.path, bundle, types)


def _merged(section: FitSection, given: Given) -> FitSection:
    """The section with what was given on the command line in its place."""
    limits = {"max_drop": None, "max_cost": None}
    section = merged(section, {**(limits if given.keys() & limits else {}), **given})
    given_limits = (section.max_drop is not None) + (section.max_cost is not None)
    if given_limits == 0 or (given_limits == 2 and section.level is None):
        raise InputError(
            "Say which point to choose: either --max-drop (0.02 allows two points of accuracy) or "
            "--max-cost (0.5 allows half of the cost), or with --delta both, got "
            f"{section.max_drop} and {section.max_cost}."
        )
    if section.max_request_cost is not None and (section.max_drop is None or section.level is None):
        raise InputError(
            "--max-request-cost must be given with --max-drop and a --delta, got "
            f"{section.max_request_cost}: a budget is promised, or not asked for."
        )
    if section.level is not None:
        _check_promise(section)
    if section.unlabeled:
        check_unlabeled(section.level, {section.risk} if section.max_drop is not None else set())
    return section


def _check_promise(section: FitSection) -> None:
    """Refuse what could not be certified, before anything is fitted."""
    from offramp._core.checks import check_probability

    if section.max_drop == 0:
        raise InputError(
            "--max-drop must be in (0, 1), got 0.0: no number of examples promises that nothing "
            "is lost. With --delta none it is measured only."
        )
    if section.max_cost is not None:
        check_probability("--max-cost", section.max_cost)
    if section.margin is not None:
        raise InputError(
            f"--margin must not be given together with --delta, got {section.margin}: it guards a "
            "measured risk, and a certificate needs no guard. With --delta none the risk is "
            "measured only."
        )


def _folder(out: Path | None, trace: Path | None, settings: RunConfig | None) -> Path:
    if out is not None:
        return out
    if settings is not None:
        return settings.folder
    if trace is None:
        raise InputError("Name a trace, or a configuration with --config.")
    return Path("runs") / trace.stem


def _command_line(trace: Path, section: FitSection, out: Path) -> str:
    """What to type to get this fit again, whatever was in the configuration."""
    told = words(section, [name for name in _FIELDS if name != "delta"])
    told += ["--delta", "none" if section.level is None else str(section.level)]
    return shlex.join(["offramp", "fit", str(trace), *told, "--out", str(out)])


def _fit(path: Path, section: FitSection) -> "tuple[Frontier, Choice]":
    from offramp.evaluation import fit

    trace = load_divided(path, seed=section.seed)
    given: dict[str, Any] = {"combines": section.combines, "loss": section.loss}
    part = trace.subset("fit") if section.unlabeled else trace
    frontier = fit(
        part,
        section.policy,
        reference=section.reference,
        top=section.top,
        seed=section.seed,
        **{name: value for name, value in given.items() if value is not None},
    )
    if section.unlabeled:
        frontier = frontier.calibrated_on(trace.subset("calibrate"), fit=part, labeled=False)
    return frontier, choose(frontier, section)


def _save_bundle(
    bundle: Path,
    settings: RunConfig,
    config: Path,
    choice: "Choice",
    path: Path,
    *,
    overwrite: bool,
) -> list[str]:
    """Write the bundle; types in it that whoever loads it has to allow."""
    from torch import Tensor

    from offramp import Adaptive, save
    from offramp.project.build import cascade_of, dataset_of
    from offramp.project.classifiers import types_to_allow
    from offramp.project.inputs import image_options
    from offramp.trace import load_trace

    trace = load_trace(path)
    first = None if settings.data is None else dataset_of(settings).batch(0, 1).inputs
    cascade = cascade_of(settings, config.parent, trace.class_names, example=first)
    save(
        Adaptive(cascade, choice, costs=trace.costs),
        bundle,
        input_shape=tuple(first.shape[1:]) if isinstance(first, Tensor) else None,
        extra=image_options(settings.data),
        overwrite=overwrite,
    )
    return types_to_allow(cascade)


def _show(
    output: Output,
    frontier: "Frontier",
    choice: "Choice",
    folder: Path,
    bundle: Path | None,
    types: list[str],
) -> None:
    from offramp._core.schema import to_json

    front = frontier.pareto
    step = max(1, -(-len(front) // _LINES))
    rows = [
        [f"{100 * p.judged.cost_ratio:.2f} %", points(p.judged.accuracy_drop), p.candidate.method]
        for p in front[::step]
    ]
    where = front[0].judged.split if front else "fit"
    output.line(
        f"{len(frontier.points)} candidates, {len(front)} of them on the front. The reference is "
        f"{frontier.reference}."
    )
    output.table([f"cost over the reference ({where})", "points lost", "policy"], rows)
    output.line()
    output.paragraph(choice.sentence)
    output.line(f"Written: {folder / FRONTIER}, {folder / CHOSEN}")
    if bundle is not None:
        output.line(f"Bundle: {bundle}")
    if types:
        output.paragraph(
            "It holds types that skops does not trust by itself. Wherever the bundle is loaded, "
            "such as by predict and serve, say that you do:"
        )
        output.line(f"  {' '.join(f'--allow-types {name}' for name in types)}")
    output.result(
        {
            "folder": str(folder),
            "candidates": len(frontier.points),
            "front": len(front),
            "reference": frontier.reference,
            "bundle": None if bundle is None else str(bundle),
            "allow_types": types,
            **to_json(choice),
        }
    )
    if choice.refused is not None:
        raise typer.Exit(NO_ANSWER)
