"""The demo from end to end: train, record, fit, choose, evaluate, run for real, deploy, report.

Layer: project.
"""

import csv
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from offramp._core.errors import InputError, UnsupportedError
from offramp._core.files import atomic_file, atomic_folder
from offramp._core.formatting import amount
from offramp._core.ownership import RUN
from offramp._core.schema import to_json
from offramp._core.threads import one_thread
from offramp._core.types import SPLITS, Split
from offramp.bundle import save
from offramp.data import Dataset, digits
from offramp.evaluation import Choice, Evaluation, Frontier, evaluate, fit, replay
from offramp.models import ModelSpec, build
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
from offramp.recording import record
from offramp.report import write_report
from offramp.runtime import Adaptive, Prediction
from offramp.stages import Cascade, Normalize, measure_seconds
from offramp.trace import Trace, save_trace
from offramp.train import train_classifier
from offramp.tuning.compare import compare

TRACE, BUNDLE, TEST_IMAGES, PREDICTIONS = "digits.trace", "bundle", "test.npz", "predictions.csv"
EVALUATION, TIMING = "evaluation.json", "timing.json"
SIZES: dict[Split, int] = {"train": 400, "fit": 500, "calibrate": 550, "test": 347}
MAX_LOSS = 0.02  # two points of accuracy
DELTA = 0.1  # chance that the promise is wrong
POLICIES = ("threshold", "random")  # learned ones need more than 500 examples to be promised
BATCH_SIZES = (1, 256)
_SCALE, _MEAN, _STD = 1 / 16, 0.305, 0.376  # pixels are 0 to 16; moments of the digits
_NEAR = 1e-3  # scores this near a threshold may fall on either side of it by rounding


@final
@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of the demo and how it is trained."""

    name: str
    width: int
    depth: int
    epochs: int
    learning_rate: float


#: Sizes were measured: each is eight to nine times as expensive as the one before, and better.
NETWORKS = (
    Network(name="small", width=4, depth=3, epochs=16, learning_rate=0.015),
    Network(name="middle", width=10, depth=4, epochs=20, learning_rate=0.008),
    Network(name="large", width=24, depth=5, epochs=24, learning_rate=0.004),
)


@final
@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo found.

    Args:
        choice: The chosen point with its promise, or why nothing can be promised.
        chosen: It, on `test`.
        singles: Each network alone, on `test`, by name.
        timing: Rows of `side_by_side.compare`.
        replayed: Test images that the runtime treated exactly as replay had said.
        undecided: Others, whose score lies within rounding of a threshold.
        predicted: Test images that a fresh process answered as this one did.
        report: The page.
    """

    choice: Choice
    chosen: Evaluation
    singles: Mapping[str, Evaluation]
    timing: tuple[Mapping[str, Any], ...]
    replayed: int
    undecided: int
    predicted: int
    report: Path


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    networks: tuple[Network, ...] = NETWORKS,
    rounds: int = 15,
    bootstrap_seed: int = 0,
    progress: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> DemoResult:
    """Run the demo into a folder, which appears whole or not at all.

    Args:
        out: The folder; an earlier run of the demo in it is replaced.
        seed: Of the splits, the first weights and the training.
        networks: What to train, cheapest first.
        rounds: Timed rounds.
        bootstrap_seed: Of the resampling for intervals.
        progress: Show bars.
        tell: Called with a few words before each step.

    Raises:
        InputError: If `out` holds anything that the demo did not write, or another run.
        UnsupportedError: If the runtime or a fresh process gives other answers than replay.
    """
    same = check_replaceable(out, "offramp demo")
    with one_thread(), atomic_folder(out, RUN, overwrite=same) as folder:
        run = RunFolder.claim(folder)
        tell("training three networks")
        examples = digits().split_into(SIZES, seed=seed, stratified=True)
        cascade = trained(examples, networks, seed=seed, progress=progress)
        tell("recording what they say about images they have not seen")
        run.remember(TRACE, trace=TRACE, seed=seed, command=f"offramp demo --seed {seed}")
        trace = _recorded(cascade, examples, folder, progress)
        tell("fitting policies")
        frontier, choice = promised(trace, seed=seed, progress=progress)
        run.write(FRONTIER, to_json(frontier))
        run.write(CHOSEN, to_json(choice))
        test = trace.subset("test")
        chosen = evaluate(test, choice.candidate, seed=bootstrap_seed)
        run.write(EVALUATION, chosen.numbers())
        tell("running it for real")
        images = examples.subset("test")
        answer = Adaptive(cascade, choice, costs=trace.costs)(images.inputs, images.ids)
        replayed, undecided = _agreement(test, choice.candidate, answer)
        timing = _timed(cascade, choice, frontier.reference, images, rounds, progress)
        run.write(TIMING, {"timing": timing})
        tell("deploying it and asking a fresh process")
        predicted = _deployed(folder, run, cascade, choice, trace, images, answer)
        tell("writing the report")
        _reported(run, cascade, examples, trace, frontier, choice, timing, seed)
        singles = {
            p.candidate.policy.topology.names[p.candidate.policy.topology.root]: evaluate(
                test, p.candidate, bootstrap=0
            )
            for p in frontier.singles
        }
    return DemoResult(
        choice=choice,
        chosen=chosen,
        singles=singles,
        timing=tuple(timing),
        replayed=replayed,
        undecided=undecided,
        predicted=predicted,
        report=out / REPORT,
    )


def trained(
    examples: Dataset,
    networks: tuple[Network, ...] = NETWORKS,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Cascade:
    """The demo's cascade, trained on the part `train` of the examples."""
    part = examples.subset("train")
    transform = Normalize(_SCALE, _MEAN, _STD)
    specs = {
        n.name: ModelSpec(
            name="small_cnn",
            arguments={
                "width": n.width,
                "depth": n.depth,
                "classes": examples.classes,
                "seed": seed + k,
            },
        )
        for k, n in enumerate(networks)
    }
    models = {name: build(spec) for name, spec in specs.items()}
    for n in networks:
        train_classifier(
            models[n.name],
            part,
            epochs=n.epochs,
            seed=seed,
            transform=transform,
            learning_rate=n.learning_rate,
            description=f"Training {n.name}",
            progress=progress,
        )
    return Cascade.from_models(
        models, transform=transform, specs=specs, class_names=examples.class_names
    )


def promised(trace: Trace, *, seed: int = 0, progress: bool = True) -> tuple[Frontier, Choice]:
    """The demo's policies and its choice; `test` is not looked at.

    The choice is certified on `calibrate` (docs/adr/0017): on new images it loses more than
    `MAX_LOSS` with probability `DELTA` at most.

    Args:
        trace: With the splits of `SIZES`.
        seed: Of the fitting.
        progress: Show a bar.
    """
    frontier = fit(trace, POLICIES, seed=seed, progress=progress)
    return frontier, frontier.cheapest(max_drop=MAX_LOSS, delta=DELTA)


def _recorded(cascade: Cascade, examples: Dataset, folder: Path, progress: bool) -> Trace:
    """The trace of all images but those trained on, with costs in FLOPs and in seconds."""
    if examples.split is None:
        raise InputError("examples must have splits, so that those trained on can be left out.")
    fresh = examples.take(examples.split != SPLITS.index("train"))
    with warnings.catch_warnings():
        # In seconds the two small ones cost nearly the same; the policy counts FLOPs.
        warnings.simplefilter("ignore", UserWarning)
        seconds = measure_seconds(cascade, fresh.batch(0, 256).inputs, batch_sizes=BATCH_SIZES)
    trace = record(cascade, fresh, progress=progress)
    trace = replace(trace, other_costs=tuple(seconds[size] for size in BATCH_SIZES))
    save_trace(trace, folder / TRACE)
    return trace


def _agreement(test: Trace, candidate: Candidate, answer: Prediction) -> tuple[int, int]:
    """How many examples the runtime treated as replay says, and how many rounding decides."""
    said = replay(test, candidate.policy)
    same = (answer.labels.numpy() == said.labels[:, 0]) & (answer.stage.numpy() == said.last)
    if answer.cost is not None:
        same &= np.isclose(answer.cost.numpy(), said.cost)
    undecided = ~same & (said.closest < _NEAR)
    if not (same | undecided).all():
        raise UnsupportedError(
            f"The runtime treats {int((~same & ~undecided).sum())} of {len(test)} test images "
            "otherwise than replay. Please report this with the facts about your machine."
        )
    return int(same.sum()), int(undecided.sum())


def _timed(
    cascade: Cascade,
    choice: Choice,
    reference: str,
    images: Dataset,
    rounds: int,
    progress: bool,
) -> list[dict[str, Any]]:
    adaptive = Adaptive(cascade, choice, fold=True)
    static = Adaptive.single(cascade, reference, fold=True)
    inputs = images.batch(0, len(images)).inputs
    return compare(
        adaptive, static, inputs, batch_sizes=BATCH_SIZES, rounds=rounds, progress=progress
    )


def _deployed(
    folder: Path,
    run: RunFolder,
    cascade: Cascade,
    choice: Choice,
    trace: Trace,
    images: Dataset,
    answer: Prediction,
) -> int:
    """Save the bundle, let a fresh process predict with it, and count equal answers."""
    run.remember(BUNDLE, TEST_IMAGES, PREDICTIONS)
    inputs = images.batch(0, len(images)).inputs
    save(
        Adaptive(cascade, choice, costs=trace.costs),
        folder / BUNDLE,
        input_shape=tuple(inputs.shape[1:]),
    )
    with atomic_file(folder / TEST_IMAGES) as temporary, temporary.open("wb") as file:
        labels = images.labels.numpy()
        np.savez_compressed(file, images=inputs.numpy(), labels=labels, ids=images.ids)
    paths = [str(folder / name) for name in (BUNDLE, TEST_IMAGES, PREDICTIONS)]
    program = [sys.executable, "-m", "offramp"]
    done = subprocess.run(
        [*program, "predict", *paths[:2], "--ids", "ids", "--out", paths[2]],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UnsupportedError(f"A fresh process could not predict: {done.stderr.strip()}")
    with (folder / PREDICTIONS).open(encoding="utf-8", newline="") as file:
        rows = [(row["id"], row["label"], row["stage"]) for row in csv.DictReader(file)]
    wanted = [
        (str(name), str(label), answer.stage_names[stage])
        for name, label, stage in zip(
            images.ids.tolist(), answer.labels.tolist(), answer.stage.tolist(), strict=True
        )
    ]
    equal = sum(row == want for row, want in zip(rows, wanted, strict=True))
    if equal != len(wanted):
        raise UnsupportedError(
            f"A fresh process answers {len(wanted) - equal} of {len(wanted)} test images otherwise."
        )
    return equal


def _reported(
    run: RunFolder,
    cascade: Cascade,
    examples: Dataset,
    trace: Trace,
    frontier: Frontier,
    choice: Choice,
    timing: list[dict[str, Any]],
    seed: int,
) -> None:
    run.remember(REPORT, "report.json")
    costs = ", ".join(
        f"{name} {amount(cost, 'flops')}FLOP"
        for name, cost in zip(trace.stages, trace.stage_costs(), strict=True)
    )
    content = report_content(
        "Adaptive inference on handwritten digits",
        trace,
        frontier,
        choice,
        seed=0,
        timing=timing,
        images=example_images(examples, trace.subset("test"), choice.candidate, cascade),
        notes=(
            f"Three small convolutional networks, trained on {SIZES['train']} images: {costs}.",
            "Times are of this machine, batch-norms folded in both models.",
        ),
        reproduction=reproduction(
            [f"offramp demo --seed {seed}"],
            seed=seed,
            data=f"{examples.name}, SHA-256 {examples.fingerprint}",
            folder=run.path,
            files=(FRONTIER, CHOSEN, EVALUATION, TIMING, PREDICTIONS),
        ),
    )
    write_report(run.path / REPORT, content, overwrite=True)
