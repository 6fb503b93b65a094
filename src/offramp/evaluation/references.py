"""What every frontier is compared with: static networks, random and threshold policies, oracles.

Layer: evaluation.  Source: methods.md 1 (references in every plot and table).
"""

from collections.abc import Sequence
from typing import Literal

from offramp._core.checks import check_kind
from offramp._core.topology import Topology
from offramp.evaluation.batch import evaluate_all
from offramp.evaluation.evaluate import reference_cost
from offramp.evaluation.results import Evaluation, ReferencePoint
from offramp.fitting.baselines import fit_random
from offramp.fitting.oracles import ORACLES, OracleKind, oracle
from offramp.policy import Candidate
from offramp.trace import Trace


def references(
    trace: Trace,
    reference: str,
    *,
    top: int = 1,
    topology: Topology | None = None,
    threshold: Sequence[Candidate] = (),
) -> list[ReferencePoint]:
    """Each static network, the random curve, the threshold curve if given, and the oracles.

    Args:
        trace: The examples to compare on.
        reference: Name of the reference.
        top: A label is right when it is among the `top` best.
        topology: What the oracles walk and, if it is a chain of two or more, the random policy
            as well; by default the chain of all stages that answer, to the reference.
        threshold: Candidates of the threshold policy to evaluate.

    >>> from offramp.trace.testing import make_trace
    >>> [p.name for p in references(make_trace(n=100, stages=2), "stage1") if p.kind != "random"]
    ['stage0 alone', 'stage1 alone', 'paper oracle', 'neutral oracle', 'free oracle']
    """
    check_kind("trace", trace, Trace, read="offramp.load_trace(path)")
    topology = _chain_to(trace, reference) if topology is None else topology
    statics = [
        Candidate.single(trace.topology, name, reference=reference, top=top)
        for k, name in enumerate(trace.stages)
        if k not in trace.silent
    ]
    random: list[Candidate] = []
    if len(topology.active) > 1 and all(len(topology.children(k)) < 2 for k in topology.active):
        random = fit_random(trace, reference=reference, top=top, topologies=[topology])
    found = evaluate_all(trace, [*statics, *random, *threshold])
    return [
        *(_point(e, "static", e.candidate.label) for e in found[: len(statics)]),
        *(
            _point(e, "random", f"random, {e.candidate.parameters['rate']:g}")
            for e in found[len(statics) : len(statics) + len(random)]
        ),
        *(_point(e, "threshold", e.candidate.label) for e in found[len(statics) + len(random) :]),
        *(_oracle_point(trace, kind, topology, reference, top) for kind in ORACLES),
    ]


def _chain_to(trace: Trace, reference: str) -> Topology:
    """All stages that answer, to the reference, one of each group; alone where they are one."""
    stages: list[int] = []
    topology = trace.topology
    for k in topology.active:
        if k in trace.silent:
            continue
        group = topology.groups[k]
        is_f = k == topology.index(reference)
        if is_f:
            stages = [j for j in stages if topology.groups[j] != group]
        if is_f or group not in {topology.groups[j] for j in stages}:
            stages.append(k)
        if is_f:
            break
    return topology.chain(stages)


def _point(
    found: Evaluation, kind: Literal["static", "random", "threshold"], name: str
) -> ReferencePoint:
    return ReferencePoint(
        name=name,
        kind=kind,
        cost_ratio=found.cost_ratio,
        accuracy=found.accuracy,
        accuracy_drop=found.accuracy_drop,
        negative_flips=found.negative_flips,
    )


def _oracle_point(
    trace: Trace, kind: OracleKind, topology: Topology, reference: str, top: int
) -> ReferencePoint:
    found = oracle(trace, kind, topology=topology, reference=reference, top=top)
    f_loss = trace.loss(trace.topology.index(reference), top=top)
    return ReferencePoint(
        name=f"{kind} oracle",
        kind="oracle",
        cost_ratio=float(found.cost.mean() / reference_cost(trace, reference)),
        accuracy=float(1 - found.loss.mean()),
        accuracy_drop=float(found.loss.mean() - f_loss.mean()),
        negative_flips=float((found.loss - f_loss).clip(min=0).mean()),
    )
