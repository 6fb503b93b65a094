"""Cost meters: what each stage of a cascade costs per example.

Layer: stages.  Source: methods.md, introduction (a multiply-add counts as 2 FLOPs); Guan et al.,
IJCAI 2018, section 4.2 (costs should grow geometrically).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, final

import torch

from offramp._core.batch import batch_size, take_rows, to_device
from offramp._core.checks import check_known, check_positive_int
from offramp._core.costs import Costs
from offramp._core.device import check_device, device_of
from offramp._core.errors import InputError, MissingExtraError, UnsupportedError
from offramp._core.registry import Registry
from offramp._core.types import AnyBatch, Raw
from offramp.stages.cascade import Cascade, evaluating
from offramp.stages.operations import Operations, plain_attention
from offramp.stages.segments import run_segments
from offramp.stages.stage import take_in
from offramp.stages.timing import described, filled, median_seconds
from offramp.stages.wrong_type import naming_types

_WINDOW_S = 1.0  # an energy counter ticks every 0.1 s or so; a shorter window measures nothing


@final
@dataclass(frozen=True, kw_only=True)
class _Part:
    """One stage, ready to be run on fixed inputs."""

    segment: Callable[[], Any]
    head: Callable[[], Any] | None


def measure_flops(cascade: Cascade, batch: AnyBatch) -> Costs:
    """Count floating-point operations per example; a multiply-add counts as 2.

    Counted are matrix products, convolutions and attention, as `torch.utils.flop_counter` does;
    element-wise work, pooling and the arithmetic of decisions (at most a few operations per class)
    are left out, so decisions cost 0. Of the branches of `torch.cond` the more expensive one
    counts.

    Args:
        cascade: Its modules stay as they are.
        batch: Some raw input, which is copied to the cascade's device; one example is enough.

    Raises:
        UnsupportedError: If no operation of any stage can be counted, or there is an operator of
            torch into which nobody can look; it is named.

    Warns:
        UserWarning: If a step of the cascade is less than twice as expensive as the one before it.

    >>> from torch import nn
    >>> measure_flops(Cascade.from_models({"net": nn.Linear(4, 3)}), torch.zeros(1, 4)).segment
    (24.0,)
    """
    where = device_of(cascade)
    batch = to_device(take_in(cascade)(batch), where)
    m = batch_size(batch)
    with evaluating(cascade), torch.no_grad(), plain_attention():
        parts = _parts(cascade, batch)
        segment = [_count(part.segment) / m for part in parts]
        head = [0.0 if part.head is None else _count(part.head) / m for part in parts]
    unseen = [
        s.name for s, count in zip(cascade, segment, strict=True) if not count and s.calls_on_rows
    ]
    if unseen:
        raise UnsupportedError(
            f"The operations of {unseen} cannot be counted: functions on rows in which no matrix "
            "product, convolution or attention of torch is seen. Measure seconds (measure_seconds, "
            'unit = "seconds") or give the costs (given_costs).'
        )
    if sum(segment) + sum(head) == 0:
        raise UnsupportedError(
            "No floating-point operation of this cascade can be counted (no matrix product, "
            "convolution or attention is visible). Measure seconds or give the costs."
        )
    costs = Costs(
        unit="flops",
        segment=tuple(segment),
        head=tuple(head),
        decision=(0.0,) * len(parts),
        note="counted by torch.utils.flop_counter; a multiply-add is 2; decisions are not counted",
    )
    costs.warn_if_flat(cascade.topology)
    return costs


def measure_seconds(
    cascade: Cascade,
    batch: AnyBatch,
    *,
    batch_sizes: Sequence[int] = (1, 32, 128),
    rounds: int = 15,
    device: torch.device | str = "cpu",
) -> dict[int, Costs]:
    """Measure time per example at several batch sizes.

    The stages take turns within each round, so that a disturbance of the machine hits all of them;
    of the rounds the median counts. Decisions cost 0: what they take depends on the policy.

    Args:
        cascade: Is moved to `device`.
        batch: Some raw input; its examples are repeated to fill each batch size.
        batch_sizes: Each at least 1.
        rounds: At least 1, after two rounds of warm-up.
        device: Where to run.

    Returns:
        For each batch size the costs, in seconds per example.

    Warns:
        UserWarning: If at the largest batch size a step of the cascade is less than twice as
            expensive as the one before it.
    """
    check_positive_int("rounds", rounds)
    device = check_device(device)
    cascade.to(device)
    found: dict[int, Costs] = {}
    batch = take_in(cascade)(batch)
    for size in sorted({check_positive_int("batch_sizes", b) for b in batch_sizes}):
        with evaluating(cascade), torch.inference_mode():
            parts = _parts(cascade, to_device(filled(batch, size), device))
            segment, head = _median_seconds(parts, rounds, device)
        found[size] = Costs(
            unit="seconds",
            segment=tuple(s / size for s in segment),
            head=tuple(s / size for s in head),
            decision=(0.0,) * len(parts),
            note=f"median of {rounds} interleaved rounds, batch size {size}, {described(device)}",
        )
    if not found:
        raise InputError("batch_sizes must name at least one batch size, got none.")
    found[max(found)].warn_if_flat(cascade.topology)
    return found


def measure_joules(
    cascade: Cascade,
    batch: AnyBatch,
    *,
    rounds: int = 3,
    device: torch.device | str = "cpu",
    window_s: float = _WINDOW_S,
) -> Costs:
    """Measure energy per example with the counters of the hardware, through the package zeus.

    On a GPU its own energy counts, on a CPU that of the packages and of the memory, other
    processes' work included: measure on a machine that does nothing else.

    Args:
        cascade: Is moved to `device`.
        batch: Raw input, used as it is: its size is the batch size.
        rounds: At least 1; the stages take turns within a round, and the median counts.
        device: Where to run.
        window_s: Seconds for which each stage is repeated in each round, > 0.

    Raises:
        MissingExtraError: If zeus is not installed.
        UnsupportedError: If the hardware, or the rights to read it, report no energy.
    """
    check_positive_int("rounds", rounds)
    if not window_s > 0:
        raise InputError(f"window_s must be greater than 0, got {window_s!r}.")
    device = check_device(device)
    monitor = _energy_monitor(device)
    cascade.to(device)
    batch = take_in(cascade)(batch)
    m = batch_size(batch)
    with evaluating(cascade), torch.inference_mode():
        parts = _parts(cascade, to_device(batch, device))
        segment: list[list[float]] = [[] for _ in parts]
        head: list[list[float]] = [[] for _ in parts]
        for _ in range(rounds):
            for k, part in enumerate(parts):
                segment[k].append(_energy(monitor, part.segment, window_s) / m)
                head[k].append(_energy(monitor, part.head, window_s) / m if part.head else 0.0)
    return Costs(
        unit="joules",
        segment=tuple(median(s) for s in segment),
        head=tuple(median(h) for h in head),
        decision=(0.0,) * len(parts),
        note=f"median of {rounds} interleaved rounds, batch size {m}, {described(device)}, zeus",
    )


def _flops(cascade: Cascade, batch: Raw, size: int, device: torch.device | str) -> Costs:
    one = take_rows(to_device(batch, check_device(device)), torch.arange(1))
    return measure_flops(cascade.to(device), one)


def _seconds(cascade: Cascade, batch: Raw, size: int, device: torch.device | str) -> Costs:
    return measure_seconds(cascade, batch, batch_sizes=[size], device=device)[size]


def _joules(cascade: Cascade, batch: Raw, size: int, device: torch.device | str) -> Costs:
    return measure_joules(cascade, filled(batch, size), device=device)


#: What measures a unit, by its name: of a cascade, some raw input, a batch size and a device.
METERS: Registry[Callable[[Cascade, Raw, int, torch.device | str], Costs]] = Registry(
    "unit that is measured", {"flops": _flops, "seconds": _seconds, "joules": _joules}
)


def measure_costs(
    cascade: Cascade,
    batch: Raw,
    unit: str = "flops",
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
) -> Costs:
    """Measure the cost of each stage in a unit of `METERS`.

    Args:
        cascade: Is moved to `device`.
        batch: Some raw input; its examples are repeated to fill a batch.
        unit: "flops", "seconds", "joules", or one that was registered.
        batch_size: Examples that run at once; operations are counted on one.
        device: Where to run.

    Raises:
        UnknownNameError: If nothing measures this unit.
        UnsupportedError: If it cannot be measured here.

    >>> from torch import nn
    >>> measure_costs(Cascade.from_models({"net": nn.Linear(4, 3)}), torch.zeros(1, 4)).segment
    (24.0,)
    """
    return METERS[unit](cascade, batch, check_positive_int("batch_size", batch_size), device)


def given_costs(
    stages: Cascade | Sequence[str], unit: str, cost: Mapping[str, float], *, note: str = ""
) -> Costs:
    """Costs that the user knows: dollars per call, someone else's FLOPs, any unit.

    Args:
        stages: The cascade, or the names of its stages in order.
        unit: "flops", "seconds", "joules", "usd", or a name of your own.
        cost: Cost per example of each stage, by name, finite and at least 0.
        note: Where the figures come from.

    Raises:
        InputError: If a stage has no cost.
        UnknownNameError: If a cost belongs to no stage.

    >>> given_costs(["local", "service"], "usd", {"local": 0.0, "service": 0.001}).segment
    (0.0, 0.001)
    """
    names = stages.topology.names if isinstance(stages, Cascade) else tuple(stages)
    for name in cost:
        check_known("stage", name, names)
    missing = [name for name in names if name not in cost]
    if missing:
        raise InputError(f"cost must have an entry for every stage; {missing} have none.")
    return Costs.simple(unit, [cost[name] for name in names], note=note)


def _parts(cascade: Cascade, batch: Raw) -> list[_Part]:
    """Run everything once, so that each part can be run again on the inputs it really gets.

    Stages of one group have one segment between them, the same object.
    """
    with naming_types(cascade, batch):
        results = {stage.group: result for stage, result in run_segments(list(cascade), batch)}
    segments: dict[str, Callable[[], Any]] = {}
    parts = []
    for stage in cascade:
        source = stage.source
        given = batch if source is None else results[cascade.stage(source).group]
        segment = segments.setdefault(stage.group, partial(stage.segment, given))
        head = partial(stage.answer, results[stage.group]) if stage.gives_carry else None
        parts.append(_Part(segment=segment, head=head))
    return parts


def _count(run: Callable[[], Any]) -> float:
    with Operations() as operations:
        run()
    return float(operations.total)


def _median_seconds(
    parts: Sequence[_Part], rounds: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Seconds of each segment and of each head, all of them taking turns; no head takes none."""
    each = list(dict.fromkeys(run for p in parts for run in (p.segment, p.head) if run))
    taken = dict(zip(each, median_seconds(each, rounds, device), strict=True))
    segment = [taken[part.segment] for part in parts]
    return segment, [taken[part.head] if part.head else 0.0 for part in parts]


def _energy_monitor(device: torch.device) -> Any:  # noqa: ANN401  (zeus is optional)
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError as error:
        raise MissingExtraError("zeus", "energy") from error
    gpu = device.type == "cuda"
    try:
        index = torch.cuda.current_device() if gpu and device.index is None else device.index
        monitor = ZeusMonitor(gpu_indices=[index] if gpu else [], cpu_indices=[] if gpu else None)
    except (RuntimeError, OSError, ValueError) as error:
        raise UnsupportedError(f"The energy of {device} cannot be read: {error}") from error
    if not (monitor.gpu_indices or monitor.cpu_indices):
        raise UnsupportedError(
            f"This machine reports no energy for {device}: it needs an NVIDIA or AMD GPU, or a "
            "CPU whose RAPL counters this user may read. Use measure_flops or measure_seconds."
        )
    return monitor


def _energy(
    monitor: Any,  # noqa: ANN401  (zeus is optional)
    run: Callable[[], Any],
    window_s: float,
) -> float:
    run()  # warm-up
    count = 0
    monitor.begin_window("offramp")  # synchronizes the GPU, as does the end
    start = time.perf_counter()
    while time.perf_counter() - start < window_s:
        run()
        count += 1
    measured = monitor.end_window("offramp")
    tables = (measured.gpu_energy, measured.cpu_energy, measured.dram_energy)
    joules = sum(sum(table.values()) for table in tables if table)
    if joules <= 0:
        raise UnsupportedError(
            f"The energy counters did not move within {window_s} seconds; take a longer window_s."
        )
    return joules / count
