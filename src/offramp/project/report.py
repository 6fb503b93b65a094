"""What a report shows, put together from the layers that compute it.

Layer: project.
"""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp._core.files import sha256
from offramp._core.topology import RAW_INPUT
from offramp.evaluation import (
    Choice,
    Evaluation,
    Frontier,
    FrontierPoint,
    by_class,
    costs_by_unit,
    evaluate,
    exit_points,
    frontier_of,
    overlap,
    promisable,
    references,
    reliability,
    savings,
    share_of_gap_closed,
    stage_usage,
    sweep,
)
from offramp.evaluation.promisable import Promisable
from offramp.evaluation.results import RISKS, Overlap
from offramp.fitting.baselines import fit_random
from offramp.policy import Candidate
from offramp.project.splits import unseen
from offramp.report import ExampleImage, ReportContent, Reproduction, TimingRow
from offramp.trace import Trace

if TYPE_CHECKING:
    from offramp._core.types import Split

_PACKAGES = ("offramp", "torch", "numpy", "scipy", "scikit-learn")
_MOST_POINTS = 40  # of a curve
_MOST_COMPARED = 6  # stages whose overlap is shown
_POLICIES = {
    "learned": ("learned", "agreement"),
    "thresholds": ("threshold",),
    "random exits": ("random",),
}


def report_content(
    title: str,
    trace: Trace,
    frontier: Frontier,
    choice: Choice,
    *,
    seed: int,
    timing: Sequence[Mapping[str, Any]] = (),
    images: Sequence[ExampleImage] = (),
    notes: Sequence[str] = (),
    reproduction: Reproduction | None = None,
) -> ReportContent:
    """Evaluate the choice and everything to compare it with on what nobody has seen.

    Args:
        title: Of the page.
        trace: With splits.
        frontier: Of `fit` on this trace.
        choice: Made from the frontier.
        seed: Of the resampling for intervals.
        timing: Rows of `side_by_side.compare`.
        images: Examples for each stage.
        notes: What may help to read the report.
        reproduction: How to get the same numbers again.
    """
    part = unseen(trace)
    has_test = trace.has_split("test")
    calibrate = trace.subset("calibrate") if trace.has_split("calibrate") else None
    learned = frontier_of(frontier, ("learned", "agreement"), calibrate)
    threshold = None if learned is None else frontier_of(frontier, ("threshold",), calibrate)
    learned = learned or frontier  # of thresholds alone they are the front
    top = choice.candidate.top
    points = references(part, frontier.reference, top=top)
    if trace.graded:  # nothing is right, and oracles leave nowhere
        points = [point for point in points if point.kind != "oracle"]
    found = evaluate(part, choice.candidate, seed=seed)
    random = [p for p in points if p.kind == "random"]
    neutral = next((p for p in points if p.name == "neutral oracle"), None)
    risk = choice.risk if choice.risk in RISKS else "accuracy_drop"
    return ReportContent(
        title=title,
        chosen=choice,
        test=found if has_test else None,
        frontier=learned.points,
        frontier_test=_on(part, learned.pareto) if has_test else (),
        promisable=_promisable(trace, learned, choice),
        threshold=() if threshold is None else _on(part, threshold.pareto),
        references=tuple(points),
        overlap=None if trace.graded else _overlap(part, choice.candidate),
        uses=stage_usage(trace.subset("fit"), choice.candidate),
        costs_by_unit=costs_by_unit(part, choice.candidate, seed=seed),
        savings=savings(part, _policies(trace, frontier, calibrate), risk=risk, seed=seed),
        exits=exit_points(part, choice.candidate) if _has_exits(trace) else (),
        reliability=reliability(part, choice.candidate, stages=_compared(part, choice.candidate)),
        classes=by_class(found, trace.class_names),
        gap_closed=share_of_gap_closed(found, random, neutral) if random and neutral else None,
        timing=tuple(TimingRow(**row) for row in timing),
        stages=trace.stages,
        costs=(trace.costs, *trace.other_costs),
        images=tuple(images),
        warnings=tuple(_warnings(trace)),
        notes=tuple(notes),
        reproduction=Reproduction() if reproduction is None else reproduction,
    )


def _promisable(trace: Trace, frontier: Frontier, choice: Choice) -> tuple[Promisable, ...]:
    """Of a few candidates of the front; of none where nothing can be promised of these examples."""
    if choice.delta is None or trace.seen_in_training or trace.lossy or trace.graded:
        return ()
    front = frontier.pareto
    step = max(1, -(-len(front) // _MOST_POINTS))
    return promisable(front[::step], delta=choice.delta)


def _overlap(part: Trace, candidate: Candidate) -> Overlap:
    return overlap(part, top=candidate.top, stages=_compared(part, candidate))


def reproduction(
    commands: Iterable[str], *, seed: int | None, data: str, folder: Path, files: Iterable[str]
) -> Reproduction:
    """How to get the same numbers again: commands, versions, machine, checksums of files."""
    return Reproduction(
        commands=tuple(commands),
        seed=seed,
        versions={"python": platform.python_version(), **versions(_PACKAGES)},
        data_fingerprint=data,
        files={name: sha256(folder / name) for name in files},
        machine=machine(),
    )


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Those of the packages that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def machine() -> dict[str, str]:
    """Facts about this machine that matter for speed."""
    import torch

    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _policies(trace: Trace, frontier: Frontier, calibrate: Trace | None) -> dict[str, Frontier]:
    """The frontier of each policy by itself; random exits are made here where they are missing."""
    found = {name: frontier_of(frontier, methods, calibrate) for name, methods in _POLICIES.items()}
    if found["random exits"] is None:
        top = frontier.singles[0].candidate.top
        fit = trace.subset("fit")
        settings = fit_random(fit, reference=frontier.reference, top=top)
        found["random exits"] = sweep(
            settings, fit, calibrate, reference=frontier.reference, top=top, progress=False
        )
    return {name: one for name, one in found.items() if one is not None}


def _has_exits(trace: Trace) -> bool:
    """True if stages share work, so that depth means something."""
    return any(source != RAW_INPUT for source in trace.topology.sources)


def _compared(trace: Trace, candidate: Candidate) -> list[int]:
    """Whose overlap is shown: of many stages those in use, and the reference."""
    shown = set(range(len(trace.stages)))
    if len(shown) > _MOST_COMPARED:
        reference = trace.topology.index(candidate.reference)
        shown = {*candidate.policy.topology.active, reference}
    return sorted(shown - set(trace.silent))


def _on(part: Trace, points: Sequence[FrontierPoint]) -> tuple[Evaluation, ...]:
    step = max(1, -(-len(points) // _MOST_POINTS))
    return tuple(evaluate(part, point.candidate, bootstrap=0) for point in points[::step])


def _warnings(trace: Trace) -> list[str]:
    found = []
    if trace.seen_in_training:
        found.append(
            "The networks were trained on these examples: what is fitted and shown here is too "
            "good for the expensive ones."
        )
    if trace.lossy:
        found.append("The trace was stored with less precision than the networks computed.")
    splits: tuple[Split, ...] = ("calibrate", "test")
    for split in splits:
        if not trace.has_split(split):
            found.append(f"There is no split {split!r}: figures from the other parts are too good.")
    return found
