"""Where stages come from, and what of them a policy needs.

Layer: runtime.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.outputs import StageOutput
from offramp._core.topology import Topology
from offramp.backends.fold import fold
from offramp.policy.policy import Evidence, Policy
from offramp.runtime.plans import plan_segments
from offramp.stages import Stage, tell_classes

_MOST_RANKED = 1024  # labels that a rule may compare


@runtime_checkable
class StageSource(Protocol):
    """Where stages come from: a `Cascade`, or the part of one that a bundle holds."""

    @property
    def topology(self) -> Topology:
        """All stages, held or not."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or none."""
        ...

    def stage(self, which: int) -> Stage:
        """A stage by position; only those that a policy needs are asked for."""
        ...


Prepared = dict[int, tuple[nn.Module, nn.Module]]  # networks and copies, by the id of each


def ready_stages(
    cascade: StageSource, topology: Topology, prepared: Prepared | None
) -> dict[int, Stage]:
    """The stages whose segments or heads a topology needs, in evaluation mode, by index.

    Args:
        cascade: Where they come from.
        topology: What is used of them.
        prepared: Copies that were made before, and will be added to; None to take none.
    """
    _prepare_for_forks()
    plans = plan_segments(topology)
    needed = {k for plan in plans.values() for k in plan.segments} | set(plans)
    chosen = {k: _used(cascade.stage(k), answers=k in plans) for k in sorted(needed)}
    if cascade.class_names:
        tell_classes(chosen.values(), len(cascade.class_names))
    if prepared is not None:
        chosen = folded(chosen, prepared)
    for stage in chosen.values():
        stage.eval()
    return chosen


def check_made_for(cascade: StageSource, topology: Topology, costs: Costs | None) -> None:
    """Raise `InputError` unless a policy's topology and the costs fit the cascade's stages."""
    topology.check_same_stages(cascade.topology, "the cascade")
    if costs is not None and len(costs) != len(topology):
        raise InputError(
            f"costs must have one entry per stage ({len(topology)}), got {len(costs)}."
        )


def check_form(cascade: StageSource, policy: Policy) -> None:
    """Raise `InputError` unless the stages answer in the form that a policy was fitted on."""
    for k in policy.topology.active:
        stage = cascade.stage(k)
        policy.check_reads(stage.form, f"stage {stage.name!r}")
    if cascade.stage(policy.topology.root).form == "labels":
        _check_labels_alone(policy)


def _check_labels_alone(policy: Policy) -> None:
    """Raise `InputError` unless a policy can decide where stages give labels alone."""
    topology = policy.topology
    ranked = torch.zeros(1, _MOST_RANKED, dtype=torch.int64)
    outputs = [StageOutput(classes=2, ranked=ranked)] * len(topology)
    for path in topology.paths():
        at = Evidence(policy, path, outputs, torch.zeros(1, dtype=torch.int64))
        rules = policy.node(path).rules if topology.children(path[-1]) else ()
        where = f"after stage {topology.names[path[-1]]!r}"
        asked: list[tuple[str, Callable[[Evidence], object]]] = [
            (f"its rule {type(rule).__name__} {where}", rule.score) for rule in rules
        ]
        for what, ask in (*asked, (f"combine={policy.combine!r}", policy.says)):
            try:
                ask(at)
            except InputError as error:
                raise InputError(
                    f"This policy cannot decide on labels alone: {what} needs logits or "
                    "confidences. Take policies that compare labels (agreement, always_last), "
                    "or let the stages say how sure they are: outputs='confidence'."
                ) from error


def _used(stage: Stage, *, answers: bool) -> Stage:
    """What is needed of a stage; where nobody may leave, its head is neither held nor moved."""
    if answers or stage.head is None:
        return stage
    return stage.replaced(head=None, head_spec=None)


def folded(stages: Mapping[int, Stage], prepared: Prepared | None = None) -> dict[int, Stage]:
    """Stages that run prepared copies of their networks; those of one group share one."""
    copies = {} if prepared is None else prepared

    def once(module: nn.Module) -> nn.Module:
        if copies.get(id(module), (None,))[0] is not module:
            copies[id(module)] = (module, fold(module))
        return copies[id(module)][1]

    return {
        k: stage.replaced(
            module=once(stage.module), head=None if stage.head is None else once(stage.head)
        )
        for k, stage in stages.items()
    }


@functools.cache
def _prepare_for_forks() -> None:
    """From now on children of this process run torch with one thread, which needs no pool.

    A fork copies the memory of a process but only one of its threads. A pool of threads that
    worked before the fork is then waited for in the child for ever, as soon as an operation is
    large enough to be divided.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_alone)


def _alone() -> None:
    torch.set_num_threads(1)
