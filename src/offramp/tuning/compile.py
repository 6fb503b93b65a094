"""One verb for all that makes a model faster on this machine without changing its answers.

Layer: tuning.  Source: methods.md 6 (backends, batch sizes); docs/adr/0023 (stages in one piece).
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from offramp._core.batch import batch_size
from offramp._core.checks import check_kind, check_known
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp._core.types import AnyBatch, Raw
from offramp.backends import BACKENDS, Compiled, backend_of, choose_backends, with_backend
from offramp.backends.table import AUTO, EAGER
from offramp.policy import Policy
from offramp.runtime import Adaptive
from offramp.runtime.source import folded
from offramp.stages import HeldStages, SegmentSpec, Stage, take_in
from offramp.tuning.fuse_for import fuse_for
from offramp.tuning.meter import measure_times

_ENOUGH = 32  # examples that show who leaves where, so that stages may be put together

_log = logging.getLogger(__name__)


def compile(
    model: Adaptive,
    example: AnyBatch,
    *,
    backend: str | Mapping[str, str] = AUTO,
    batch_sizes: Sequence[int] = (1, 32, 128),
    threads: int | None = None,
    rounds: int = 7,
    progress: bool = True,
) -> Adaptive:
    """The same model, as fast as it gets here: answers are equal to rounding.

    Batch-norms are folded, each stage runs in the backend that was fastest when all that are
    installed took turns, exits run in one piece where a call costs more than leaving between them
    saves, and batches are taken in the sizes that cost least. What was decided is logged.

    Args:
        model: In PyTorch; stays as it is. Stages that run in another runtime already stay there.
        example: Raw input as it will come. One example is enough to choose backends; exits are put
            together only where some 32 real ones show who leaves where.
        backend: "auto" measures; or one for all stages, or one for each by name, whose answers are
            those of PyTorch to rounding.
        batch_sizes: Those that will come; they count alike.
        threads: For runtimes of their own; by default as many as torch uses.
        rounds: Of measuring, at least 1.
        progress: Show bars.

    Returns:
        A model that can be saved; the measured batch sizes are of this machine, and stay here.

    Raises:
        UnknownNameError: If there is no such backend or stage.
        InputError: If there is no example, a backend changes answers, or a number is below 1.
        UnsupportedError: If a backend that was named cannot run a stage.
        MissingExtraError: If it is not installed.

    >>> import torch
    >>> from torch import nn
    >>> from offramp import Candidate, Cascade
    >>> cascade = Cascade.from_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    >>> model = Adaptive(cascade, Candidate.single(cascade.topology, "b", reference="b"))
    >>> fast = compile(model, torch.zeros(1, 4), batch_sizes=[1], rounds=1, progress=False)
    >>> bool(torch.allclose(fast(torch.ones(2, 4)).log_probs, model(torch.ones(2, 4)).log_probs))
    True
    """
    check_kind("model", model, Adaptive, read="offramp.load(path)")
    held, device = _held(model), model.policy.temperatures.device
    batch = take_in(held)(example)
    if batch_size(batch) == 0:
        raise InputError("example must hold at least one example, got none.")
    if device.type != "cpu" and backend == AUTO:  # other runtimes run elsewhere
        stages = folded(dict(enumerate(held)))
        made = held.with_stages(list(stages.values()))
    else:
        measured = {"batch_sizes": batch_sizes, "rounds": rounds, "progress": progress}
        chosen = _chosen(held, batch, backend, threads, measured)
        made = with_backend(held, chosen, example=batch, threads=threads)
        if _may_be_joined(model, held, chosen, batch):
            (one,) = set(chosen.values())
            made = fuse_for(held, model.policy, batch, backend=one, threads=threads, rounds=rounds)
    times = measure_times(made, batch, batch_sizes=batch_sizes, rounds=rounds, progress=progress)
    costs, gears = model.costs, model.gears
    return Adaptive(made, model.choice, costs=costs, times=times, gears=gears).to(device)


def _held(model: Adaptive) -> HeldStages:
    """The stages that the policy, a gear or the reference runs."""
    topology, cascade = model.policy.topology, model.cascade
    wanted = set(topology.active)
    wanted |= {k for gear in model.gears for k in gear.candidate.policy.topology.active}
    if not isinstance(model.choice, Policy):
        wanted.add(topology.index(model.candidate.reference))
    run = sorted({j for k in wanted for j in topology.lineage(k)})
    stages = [cascade.stage(k) for k in run]
    return HeldStages(
        topology=cascade.topology,
        stages={stage.name: stage for stage in stages},
        class_names=cascade.class_names,
        input_shape=getattr(cascade, "input_shape", None),
    )


def _chosen(
    held: HeldStages,
    batch: Raw,
    backend: str | Mapping[str, str],
    threads: int | None,
    measured: dict[str, Any],
) -> dict[str, str]:
    """The backend of each stage that is in PyTorch; the others keep theirs."""
    free = [stage.name for stage in held if not _is_compiled(stage)]
    if isinstance(backend, Mapping):
        chosen = {check_known("stage", name, free): each for name, each in backend.items()}
    elif backend != AUTO:
        check_known("backend", backend, (*BACKENDS, AUTO))
        chosen = dict.fromkeys(free, backend)
    elif free:
        chosen = choose_backends(held, batch, threads=threads, **measured).best()
    else:
        chosen = {}
    for stage, name in chosen.items():
        if not backend_of(name).exact:
            raise InputError(
                f"backend must leave answers as they are to rounding, got {name!r} for stage "
                f"{stage!r}. Use offramp.tuning.quantize, which records and fits anew."
            )
        _log.info("Stage %r runs in %r.", stage, name)
    return chosen


def _is_compiled(stage: Stage) -> bool:
    return any(isinstance(part, Compiled) for part in stage.modules())


def _may_be_joined(
    model: Adaptive, held: HeldStages, chosen: Mapping[str, str], batch: Raw
) -> bool:
    """Whether it is worth asking if exits should run in one piece, and known how to."""
    topology, names = model.policy.topology, set(chosen.values())
    exits = sum(isinstance(stage.spec, SegmentSpec) or stage.source is not None for stage in held)
    if exits < 2 or len(names) != 1 or names <= {EAGER, "folded"}:
        return False
    asked = {topology.names[k] for k in topology.active}
    reference = asked if isinstance(model.choice, Policy) else {model.candidate.reference}
    if set(chosen) != set(held.stages) or not reference <= asked or not _is_chain(topology):
        return False
    if batch_size(batch) < _ENOUGH:
        _log.info("Exits stay apart: %d examples do not show who leaves where.", batch_size(batch))
        return False
    return True


def _is_chain(topology: Topology) -> bool:
    return all(len(topology.children(k)) <= 1 for k in topology.active)
