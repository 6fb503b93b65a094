"""Which backend is fastest for each stage on this machine: measured, not guessed.

Layer: backends.  Source: style.md 3, habit 20 (interleaved rounds, medians).
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

import torch

from offramp._core.batch import form_of, only_tensors
from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError, MissingExtraError, UnsupportedError
from offramp._core.progress import progress_bar
from offramp._core.types import AnyBatch, Raw
from offramp.backends.build import Builder, Built
from offramp.backends.compiled import Compiled
from offramp.backends.form import TensorSpec
from offramp.backends.measured import BackendTable
from offramp.backends.table import BACKENDS, EAGER, backend_of, exact_backends
from offramp.stages import Stage, take_in
from offramp.stages.timing import Run, described, filled, median_seconds

_log = logging.getLogger(__name__)


def choose_backends(
    stages: Iterable[Stage],
    example: AnyBatch,
    *,
    candidates: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1, 32, 128),
    rounds: int = 7,
    threads: int | None = None,
    calibration: AnyBatch | None = None,
    progress: bool = False,
) -> BackendTable:
    """Measure every stage in every backend, in interleaved rounds; medians count.

    Args:
        stages: A cascade; stays as it is. Services, and stages that run in another runtime
            already, are left out.
        example: Some raw input; one example is enough.
        candidates: Backends; by default those with float32 answers that are installed, but for
            "compile", which takes minutes, and CUDA, where data lie elsewhere. "eager" is always
            measured. One that cannot run a stage is noted under `refused`.
        batch_sizes: Each at least 1; name those that matter, for `best` counts them alike.
        rounds: At least 1, after two of warm-up.
        threads: As for `with_backend`.
        calibration: As for `with_backend`.
        progress: Whether to show a bar.

    Raises:
        UnknownNameError: If there is no such backend.
        InputError: As `with_backend`; or if no stage runs in PyTorch, or `example` is no tensors.

    >>> from torch import nn
    >>> table = choose_backends(
    ...     [Stage("a", nn.Linear(4, 3))],
    ...     torch.zeros(1, 4),
    ...     candidates=["onnxruntime"],
    ...     batch_sizes=[1],
    ...     rounds=1,
    ... )
    >>> sorted(table.seconds["a"])
    ['eager', 'onnxruntime']
    """
    check_positive_int("rounds", rounds)
    sizes = tuple(sorted({check_positive_int("batch_sizes", size) for size in batch_sizes}))
    names = list(dict.fromkeys((EAGER, *_candidates(candidates))))
    count = torch.get_num_threads() if threads is None else check_positive_int("threads", threads)
    stages = list(stages)
    example = take_in(stages)(example)
    if not only_tensors(example):
        raise InputError(
            f"example must be tensors, whose form the table holds, got {form_of(example)}. For "
            "other rows name a backend for each stage: with_backend(cascade, {...}, example=rows)."
        )
    builder = Builder(stages, example, calibration, threads=count)
    seconds: dict[str, dict[str, tuple[float, ...]]] = {}
    refused: dict[str, dict[str, str]] = {}
    groups = builder.groups()
    with progress_bar("Measuring", len(groups), enabled=progress) as advance:
        for group, members in groups.items():
            theirs = members[0].waits or any(isinstance(p, Compiled) for p in members[0].modules())
            if theirs:  # they run elsewhere: in a service, or in another runtime
                builder.keep(group, builder.build(group, EAGER))
                continue
            built, reasons = _candidates_of(builder, group, names)
            times = _times(built, builder.given(group), sizes, rounds)
            for stage in members:
                seconds[stage.name], refused[stage.name] = times, reasons
            builder.keep(group, built[EAGER])
            advance(1)
    if not seconds:
        raise InputError(
            "stages must hold one that runs in PyTorch; each has its backend already, and there is "
            "nothing to choose."
        )
    where = f"{described('cpu')}, {count} for other runtimes; median of {rounds} rounds"
    return BackendTable(
        batch_sizes=sizes,
        seconds=seconds,
        refused={stage: reasons for stage, reasons in refused.items() if reasons},
        where=where,
        inputs=TensorSpec.of(example),
    )


def _candidates(given: Sequence[str] | None) -> Sequence[str]:
    if given is None:
        return [name for name in exact_backends() if BACKENDS[name].tried]
    if isinstance(given, str):
        raise InputError(f"candidates must be a sequence of names, got the text {given!r}.")
    for name in given:
        backend_of(name)
    return given


def _candidates_of(
    builder: Builder, group: str, names: Sequence[str]
) -> tuple[dict[str, Built], dict[str, str]]:
    built: dict[str, Built] = {}
    reasons: dict[str, str] = {}
    for name in names:
        try:
            built[name] = builder.build(group, name)
        except (UnsupportedError, MissingExtraError) as error:
            reasons[name] = str(error)
            _log.info("The backend %r is not taken for %r: %s", name, group, error)
    return built, reasons


def _times(
    built: Mapping[str, Built], given: Raw, sizes: Sequence[int], rounds: int
) -> dict[str, tuple[float, ...]]:
    """Seconds of each backend at each size; they take turns."""
    found: dict[str, list[float]] = {name: [] for name in built}
    with torch.inference_mode():
        for size in sizes:
            batch = filled(given, size)
            runs = [_run(each, batch) for each in built.values()]
            medians = median_seconds(runs, rounds, torch.device("cpu"))
            for name, seconds in zip(built, medians, strict=True):
                found[name].append(seconds)
    return {name: tuple(each) for name, each in found.items()}


def _run(built: Built, batch: Raw) -> Run:
    def run() -> None:
        result = built.stages[0].segment(batch)
        for stage in built.stages:
            stage.answer(result)

    return run
