"""The demo from end to end: learn, fit, choose, evaluate, run for real, deploy, report.

What it shows is a `World`; where nothing but answers is known, nothing is run.

Layer: project.
"""

import csv
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import numpy as np
from PIL import Image
from torch import Tensor

from offramp._core.errors import UnsupportedError
from offramp._core.files import atomic_file, atomic_folder
from offramp._core.ownership import RUN
from offramp._core.schema import to_json
from offramp._core.threads import one_thread
from offramp.bundle import save
from offramp.bundle.pictures import IMAGE_OPTIONS
from offramp.data import Dataset
from offramp.evaluation import Choice, Evaluation, Frontier, evaluate, fit, replay
from offramp.policy import Candidate
from offramp.project.folder import (
    CHOSEN,
    FRONTIER,
    REPORT,
    RunFolder,
    check_replaceable,
)
from offramp.project.images import example_images
from offramp.project.report import report_content, reproduction
from offramp.project.worlds.digits import DIGITS
from offramp.project.worlds.world import Learned, World
from offramp.report import write_report
from offramp.runtime import Adaptive, Prediction
from offramp.stages import Cascade
from offramp.trace import Trace, save_trace
from offramp.tuning.compare import compare

BUNDLE, PREDICTIONS, EVALUATION, TIMING = (
    "bundle",
    "predictions.csv",
    "evaluation.json",
    "timing.json",
)
MAX_LOSS = 0.02  # two points of accuracy
DELTA = 0.1  # chance that the promise is wrong
_NEAR = 1e-3  # scores this near a threshold may fall on either side of it by rounding


@final
@dataclass(frozen=True, kw_only=True)
class Live:
    """What became of the choice when it ran.

    Args:
        timing: Rows of `side_by_side.compare`.
        replayed: Examples of test that the runtime treated exactly as replay had said.
        undecided: Others, whose score lies within rounding of a threshold.
        predicted: Examples of test that a fresh process answered as this one did.
    """

    timing: tuple[Mapping[str, Any], ...]
    replayed: int
    undecided: int
    predicted: int


@final
@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo found.

    Args:
        world: What it showed.
        choice: The chosen point with its promise, or why nothing can be promised.
        chosen: It, on `test`.
        singles: Each stage alone, on `test`, by name.
        live: How it ran; None where only answers are known.
        report: The page.
        next: Commands that may follow.
    """

    world: World
    choice: Choice
    chosen: Evaluation
    singles: Mapping[str, Evaluation]
    live: Live | None
    report: Path
    next: tuple[str, ...]


def run_demo(
    out: Path,
    *,
    world: World = DIGITS,
    source: Path | None = None,
    seed: int = 0,
    rounds: int | None = None,
    bootstrap_seed: int = 0,
    progress: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> DemoResult:
    """Run the demo into a folder, which appears whole or not at all.

    Args:
        out: The folder; an earlier run of the demo in it is replaced.
        world: What to show.
        source: Folder of its data; None where they come with the package.
        seed: Of the splits, the first weights and the training.
        rounds: Timed rounds; by default as the world says.
        bootstrap_seed: Of the resampling for intervals.
        progress: Show bars.
        tell: Called with a few words before each step.

    Raises:
        InputError: If `out` holds anything that the demo did not write, or another run; or if
            the world's data are not in the folder.
        UnsupportedError: If the runtime or a fresh process gives other answers than replay, or
            packages are missing that the world needs.
    """
    same = check_replaceable(out, "offramp demo")
    command = _command(world, source, seed)
    with one_thread(), atomic_folder(out, RUN, overwrite=same) as folder:
        run = RunFolder.claim(folder)
        learned = world.learn(source, seed=seed, progress=progress, tell=tell)
        trace, name = learned.trace, f"{world.name}.trace"
        run.remember(name, trace=name, seed=seed, command=command)
        save_trace(trace, folder / name)
        tell("fitting policies")
        frontier, choice = promised(trace, world, seed=seed, progress=progress)
        run.write(FRONTIER, to_json(frontier))
        run.write(CHOSEN, to_json(choice))
        test = trace.subset("test")
        chosen = evaluate(test, choice.candidate, seed=bootstrap_seed)
        run.write(EVALUATION, chosen.numbers())
        live = None
        if learned.cascade is not None and learned.test is not None:
            live = _run(
                run, world, learned.cascade, choice, trace, learned.test, rounds, progress, tell
            )
        tell("writing the report")
        _reported(run, world, learned, frontier, choice, live, command, seed)
        singles = {
            p.candidate.policy.topology.names[p.candidate.policy.topology.root]: evaluate(
                test, p.candidate, bootstrap=0
            )
            for p in frontier.singles
        }
        following = _next(out, world, learned.test)
    return DemoResult(
        world=world,
        choice=choice,
        chosen=chosen,
        singles=singles,
        live=live,
        report=out / REPORT,
        next=following,
    )


def promised(
    trace: Trace, world: World = DIGITS, *, seed: int = 0, progress: bool = True
) -> tuple[Frontier, Choice]:
    """The demo's policies and its choice; `test` is not looked at.

    The choice is certified on `calibrate` (docs/adr/0017): on new examples it loses more than
    `MAX_LOSS` with probability `DELTA` at most.

    Args:
        trace: With the splits fit and calibrate.
        world: Which policies, and what to compare with.
        seed: Of the fitting.
        progress: Show a bar.
    """
    frontier = fit(trace, world.policies, reference=world.reference, seed=seed, progress=progress)
    return frontier, frontier.cheapest(max_drop=MAX_LOSS, delta=DELTA)


def _command(world: World, source: Path | None, seed: int) -> str:
    """What to type to get this demo again."""
    told = [] if world is DIGITS else [f"--{world.name}"]
    if source is not None:
        told = ["--data", world.name, str(source)]
    return shlex.join(["offramp", "demo", *told, "--seed", str(seed)])


def _run(
    run: RunFolder,
    world: World,
    cascade: Cascade,
    choice: Choice,
    trace: Trace,
    test: Dataset,
    rounds: int | None,
    progress: bool,
    tell: Callable[[str], None],
) -> Live:
    """The choice at work: in this process, timed beside its reference, and in a fresh process."""
    tell("running it for real")
    model = Adaptive(cascade, choice, costs=trace.costs)
    answer = model(test.inputs, test.ids)
    replayed, undecided = _agreement(trace.subset("test"), choice.candidate, answer)
    timing = compare(
        Adaptive(cascade, choice, fold=True),
        Adaptive.single(cascade, choice.candidate.reference, fold=True),
        test.batch(0, world.timed).inputs,
        batch_sizes=world.batch_sizes,
        rounds=world.rounds if rounds is None else rounds,
        progress=progress,
    )
    run.write(TIMING, {"timing": timing})
    tell("deploying it and asking a fresh process")
    predicted = _deployed(run, world, model, test, answer)
    return Live(timing=tuple(timing), replayed=replayed, undecided=undecided, predicted=predicted)


def _agreement(test: Trace, candidate: Candidate, answer: Prediction) -> tuple[int, int]:
    """How many examples the runtime treated as replay says, and how many rounding decides."""
    said = replay(test, candidate.policy)
    same = (answer.labels.numpy() == said.labels[:, 0]) & (answer.stage.numpy() == said.last)
    if answer.cost is not None:
        same &= np.isclose(answer.cost.numpy(), said.cost)
    undecided = ~same & (said.closest < _NEAR)
    if not (same | undecided).all():
        raise UnsupportedError(
            f"The runtime treats {int((~same & ~undecided).sum())} of {len(test)} examples of "
            "test otherwise than replay. Please report this with the facts about your machine."
        )
    return int(same.sum()), int(undecided.sum())


def _deployed(
    run: RunFolder, world: World, model: Adaptive, test: Dataset, answer: Prediction
) -> int:
    """Save the bundle, let a fresh process predict with it, and count equal answers."""
    asked, example = _files_of(test)
    run.remember(BUNDLE, asked, example, PREDICTIONS)
    inputs, extra, shape = test.inputs, {}, None
    if isinstance(inputs, Tensor):
        shape = tuple(inputs.shape[1:])
        extra = {IMAGE_OPTIONS: {"orient": True, "resize": list(shape[1:])}}
    save(model, run.path / BUNDLE, input_shape=shape, extra=extra)
    _write_inputs(test, run.path / asked)
    _write_example(test, run.path / example)
    ids = ["--ids", "ids"] if isinstance(inputs, Tensor) else []
    paths = [str(run.path / name) for name in (BUNDLE, asked, PREDICTIONS)]
    allowed = ["--allow-import"] if world.allow_import else []
    done = subprocess.run(
        [sys.executable, "-m", "offramp", "predict", *paths[:2], *ids, *allowed, "--out", paths[2]],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UnsupportedError(f"A fresh process could not predict: {done.stderr.strip()}")
    with Path(paths[2]).open(encoding="utf-8", newline="") as file:
        rows = [(row["label"], row["stage"]) for row in csv.DictReader(file)]
    wanted = [
        (str(label), answer.stage_names[stage])
        for label, stage in zip(answer.labels.tolist(), answer.stage.tolist(), strict=True)
    ]
    equal = sum(row == want for row, want in zip(rows, wanted, strict=True))
    if equal != len(wanted):
        raise UnsupportedError(
            f"A fresh process answers {len(wanted) - equal} of {len(wanted)} examples of test "
            "otherwise."
        )
    return equal


def _files_of(test: Dataset) -> tuple[str, str]:
    """Names of the files with all examples of test, and with one."""
    pictures = isinstance(test.inputs, Tensor)
    return ("test.npz", "example.png") if pictures else ("test.txt", "example.txt")


def _write_inputs(test: Dataset, path: Path) -> None:
    with atomic_file(path) as temporary:
        if not isinstance(test.inputs, Tensor):
            temporary.write_text("\n".join(test.inputs) + "\n", encoding="utf-8")
            return
        with temporary.open("wb") as file:
            labels = test.labels.numpy()
            np.savez_compressed(file, images=test.inputs.numpy(), labels=labels, ids=test.ids)


def _write_example(test: Dataset, path: Path) -> None:
    """One example as one's own would be: a picture, or a text."""
    first = test[0][0]
    with atomic_file(path) as temporary:
        if not isinstance(first, Tensor):
            temporary.write_text(f"{first}\n", encoding="utf-8")
            return
        pixels = first.permute(1, 2, 0).numpy()
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(temporary, "PNG")


def _next(out: Path, world: World, test: Dataset | None) -> tuple[str, ...]:
    """Three commands that go on from here."""
    allowed = " --allow-import" if world.allow_import else ""
    where = {name: shlex.quote(str(out / name)) for name in (BUNDLE, f"{world.name}.trace")}
    folder = shlex.quote(str(out))
    report = f"offramp report {folder}"
    if test is None:
        trace = where[f"{world.name}.trace"]
        return (
            f"offramp fit {trace} --max-cost 0.5 --out {folder}-half",
            f"offramp evaluate {trace} {folder} --split test",
            report,
        )
    example = shlex.quote(str(out / _files_of(test)[1]))
    serve = f"offramp serve {where[BUNDLE]}{allowed}"
    if not all(map(find_spec, ("starlette", "uvicorn"))):
        serve = f"pip install 'offramp[serve]' && {serve}"
    return (
        serve,
        f"offramp predict {where[BUNDLE]} {example}{allowed} --out answers.csv --overwrite",
        f"{report} --timing {shlex.quote(str(out / TIMING))}",
    )


def _reported(
    run: RunFolder,
    world: World,
    learned: Learned,
    frontier: Frontier,
    choice: Choice,
    live: Live | None,
    command: str,
    seed: int,
) -> None:
    run.remember(REPORT, "report.json")
    images: Any = ()
    notes, files = list(learned.notes), [FRONTIER, CHOSEN, EVALUATION]
    if live is not None and learned.test is not None and learned.cascade is not None:
        test = learned.trace.subset("test")
        images = example_images(learned.test, test, choice.candidate, learned.cascade)
        notes.append("Times are of this machine, batch-norms folded in both models.")
        files += [TIMING, PREDICTIONS]
    content = report_content(
        world.title,
        learned.trace,
        frontier,
        choice,
        seed=0,
        timing=() if live is None else live.timing,
        images=images,
        notes=tuple(notes),
        reproduction=reproduction(
            [command], seed=seed, data=learned.data, folder=run.path, files=files
        ),
    )
    write_report(run.path / REPORT, content, overwrite=True)
