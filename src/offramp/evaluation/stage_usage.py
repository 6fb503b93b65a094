"""Which stages a chosen candidate uses, and why it does without the others.

Whether a stage would pay is found by putting it into the chain and fitting the same trade-off once
more on the same examples, so every figure can be had again from the trace and the candidate.

Layer: evaluation.  Source: methods.md 1 d (an exit that never fires is removed with its cost).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, final

from offramp._core.topology import Path, Topology
from offramp.evaluation.batch import evaluate_all
from offramp.evaluation.results import Evaluation
from offramp.fitting.learned import refit
from offramp.fitting.search import successors
from offramp.fitting.weighted import IDLE_SHARE
from offramp.policy import Candidate
from offramp.trace import Trace

UsageKind = Literal["used", "kept", "idle", "expensive", "alternative", "not chosen"]


@final
@dataclass(frozen=True, kw_only=True)
class StageUsage:
    """Whether a candidate uses a stage, and why not.

    Args:
        stage: Its name.
        kind: "used": examples leave there. "kept": none does, but later decisions or answers
            read it. "idle": next to nobody would leave there. "expensive": it would cost more than
            it saves. "alternative": another head at the same point is cheaper in total. "not
            chosen": nothing more is known.
        reason: The same in words.
        numbers: What was found on `fit`, by name: "share_leaving", "head_cost_ratio" (over the
            reference's cost); where the stage was tried also "objective", "cost_ratio" and "loss",
            each "_with" it and "_without" it.
    """

    stage: str
    kind: UsageKind
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def used(self) -> bool:
        """True if examples visit the stage."""
        return self.kind in ("used", "kept")


def stage_usage(part: Trace, candidate: Candidate) -> tuple[StageUsage, ...]:
    """For each stage of the cascade: is it used, and if not, why.

    Args:
        part: The examples that the candidate was fitted on: `trace.subset("fit")`.
        candidate: The candidate. Why a stage is missing is found for learned policies on a chain.

    Returns:
        One entry for each stage, in topological order.

    >>> from offramp.fitting.learned import fit_learned
    >>> from offramp.trace.testing import make_trace
    >>> part = make_trace(n=500, accuracies=[0.8, 0.81, 0.9], seed=0)
    >>> (candidate,) = fit_learned(part, reference="stage2", cost_weights=[0.05], combines=["last"],
    ...                           topologies=[part.topology.chain([0, 2])])
    >>> [(use.stage, use.used) for use in stage_usage(part, candidate)]
    [('stage0', True), ('stage1', False), ('stage2', True)]
    """
    (found,) = evaluate_all(part, [candidate])
    own = part.mean_cost(part.topology.index(candidate.reference))
    tried = _tried(part, candidate)
    uses = []
    for k, name in enumerate(part.stages):
        head = part.costs.head[k] / own if own > 0 else 0.0
        if k in candidate.policy.topology.active:
            uses.append(_present(name, found.exit_share[k], head, candidate))
        elif k in tried:
            uses.append(_absent(part, k, head, candidate.policy.topology, *tried[k]))
        else:
            numbers = {"head_cost_ratio": head}
            reason = "not in the chosen chain" if tried else "not among the chosen stages"
            uses.append(StageUsage(stage=name, kind="not chosen", reason=reason, numbers=numbers))
    return tuple(uses)


@final
@dataclass(frozen=True)
class _Trial:
    """What the trade-off comes to on one chain."""

    objective: float
    found: Evaluation

    @property
    def loss(self) -> float:
        """Mean loss of the kind that was minimized."""
        error = self.found.candidate.parameters["loss"] == "error"
        return 1 - self.found.accuracy if error else self.found.negative_flips


def _tried(part: Trace, candidate: Candidate) -> dict[int, tuple[_Trial, _Trial]]:
    """For stages that could stand in the chain: the trial with it, and the one without."""
    used = candidate.policy.topology
    if candidate.method != "learned" or any(len(used.children(k)) > 1 for k in used.active):
        return {}
    chains = {
        k: chain
        for k in range(len(part.topology))
        if k not in used.active and (chain := _with(part.topology, used.active, k))
    }
    topologies = [used, *(part.topology.chain(chain) for chain in chains.values())]
    fits = refit(part, candidate, topologies)
    found = evaluate_all(part, [replace(candidate, policy=fit.policy) for fit in fits])
    without, *others = [_Trial(f.objective, e) for f, e in zip(fits, found, strict=True)]
    return {k: (other, without) for k, other in zip(chains, others, strict=True)}


def _with(topology: Topology, chain: Path, stage: int) -> Path | None:
    """The chain with one more stage in place of its alternative; None if that is no chain."""
    group = topology.groups[stage]
    longer = sorted({stage, *(k for k in chain if topology.groups[k] != group)})
    after = successors(topology)
    return tuple(longer) if all(b in after[a] for a, b in pairwise(longer)) else None


def _present(name: str, leaving: float, head: float, candidate: Candidate) -> StageUsage:
    numbers = {"share_leaving": leaving, "head_cost_ratio": head}
    if leaving > 0 or candidate.method == "single":
        reason = f"{_percent(leaving)} of the examples leave here"
        return StageUsage(stage=name, kind="used", reason=reason, numbers=numbers)
    reason = "nobody leaves here; later decisions or answers read what it says"
    return StageUsage(stage=name, kind="kept", reason=reason, numbers=numbers)


def _absent(
    part: Trace, k: int, head: float, used: Topology, trial: _Trial, without: _Trial
) -> StageUsage:
    leaving, visiting = trial.found.exit_share[k], trial.found.visit_share[k]
    cost = trial.found.cost_ratio - without.found.cost_ratio
    lost = trial.loss - without.loss
    numbers = {
        "share_leaving": leaving,
        "head_cost_ratio": head,
        "objective_with": trial.objective,
        "objective_without": without.objective,
        "cost_ratio_with": trial.found.cost_ratio,
        "cost_ratio_without": without.found.cost_ratio,
        "loss_with": trial.loss,
        "loss_without": without.loss,
    }
    others = [j for j in used.active if part.topology.groups[j] == part.topology.groups[k]]
    effect = f"with it: cost {_points(cost)} % of the reference, loss {_points(lost)} points"
    fires = "would never fire" if leaving == 0 else f"would fire for {_percent(leaving)}"
    kind: UsageKind
    if leaving <= IDLE_SHARE * visiting:
        kind = "idle"
        luck = " only, which may be luck; for the others" if leaving else ":"
        reason = f"{fires}{luck} leaving there loses more than running on saves"
    elif trial.objective < without.objective:
        kind = "not chosen"
        reason = f"would pay on the examples fitted on, but another chain was chosen; {effect}"
    elif others:
        kind = "alternative"
        reason = f"{part.stages[others[0]]!r} at the same point is cheaper in total; {effect}"
    else:
        kind = "expensive"
        spent = _percent(head * visiting)
        reason = f"{fires}, but its head costs {spent} of the reference; {effect}"
    return StageUsage(stage=part.stages[k], kind=kind, reason=reason, numbers=numbers)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(change: float) -> str:
    return f"{100 * change:+.2f}"
