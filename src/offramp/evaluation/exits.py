"""How accurate each stage is alone, and as part of the chosen chain, against what it costs.

Layer: evaluation.  Source: Bolukbasi et al., ICML 2017, section 5 (accuracy of exits by depth);
methods.md 5 (combined answers).
"""

from dataclasses import dataclass, replace
from typing import final

from offramp._core.checks import check_kind
from offramp._core.topology import Path, Topology
from offramp.evaluation.batch import evaluate_all
from offramp.policy import Candidate, Constant, Node, Policy
from offramp.trace import Trace


@final
@dataclass(frozen=True, kw_only=True)
class ExitPoint:
    """One stage: how deep it stands and how often it is right.

    Args:
        stage: Its name.
        group: Its point in the network; alternative heads share one.
        cost_ratios: What the stage costs run alone, its head included, over the reference's own
            cost, for each table of costs.
        accuracy: Share of all examples that the stage gets right by itself.
        combined: Share that the candidate's combined answer at this stage gets right, if every
            example came here by the candidate's chain; None off that chain, or where the last
            visited stage answers alone.
    """

    stage: str
    group: str
    cost_ratios: tuple[float, ...]
    accuracy: float
    combined: float | None


def exit_points(trace: Trace, candidate: Candidate) -> tuple[ExitPoint, ...]:
    """Each stage of the cascade with its depth and its accuracy, in topological order.

    Args:
        trace: The examples; `cost_ratios` stand in the order of `costs` and `other_costs`, a
            table in which the reference costs nothing left out.
        candidate: Says which stage is the reference, and how answers on its chain are combined.

    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=100, stages=2, seed=0)
    >>> alone = Candidate.single(trace.topology, "stage1", reference="stage1")
    >>> [(p.stage, p.cost_ratios, p.combined) for p in exit_points(trace, alone)]
    [('stage0', (0.25,), None), ('stage1', (1.0,), None)]
    """
    check_kind("trace", trace, Trace, read="offramp.load_trace(path)")
    topology = trace.topology
    stage_f = topology.index(candidate.reference)
    tables = [t for t in (trace.mean_costs, *trace.other_costs) if t.alone(topology, stage_f) > 0]
    combined = _combined(trace, candidate)
    return tuple(
        ExitPoint(
            stage=name,
            group=topology.groups[k],
            cost_ratios=tuple(t.alone(topology, k) / t.alone(topology, stage_f) for t in tables),
            accuracy=trace.accuracy(k, top=candidate.top),
            combined=combined.get(k),
        )
        for k, name in enumerate(trace.stages)
        if k not in trace.silent
    )


def _combined(trace: Trace, candidate: Candidate) -> dict[int, float]:
    """Accuracy of the combined answer at each stage of a chain but its first."""
    policy = candidate.policy
    chain = policy.topology.active
    branching = any(len(policy.topology.children(k)) > 1 for k in chain)
    if policy.combine == "last" or branching:
        return {}
    ways = [chain[:length] for length in range(2, len(chain) + 1)]
    found = evaluate_all(trace, [replace(candidate, policy=_all_the_way(policy, w)) for w in ways])
    return {way[-1]: e.accuracy for way, e in zip(ways, found, strict=True)}


def _all_the_way(policy: Policy, way: Path) -> Policy:
    """The policy that combines as the given one, and leaves at the end of `way` only."""
    topology: Topology = policy.topology.chain(way)
    inner = [path for path in topology.paths() if path != way]
    weights = policy.combination.weights
    return Policy(
        topology,
        {path: Node(Constant(False)) for path in inner},
        temperatures=policy.temperatures.tolist(),
        combine=policy.combine,
        weights={p: weights[p] for p in topology.paths() if p in weights} or None,
        outputs=policy.outputs,
        feature_counts=policy.feature_counts,
    )
