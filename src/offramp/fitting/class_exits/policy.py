"""Class-specific exits as a policy like any other, and the fitter that `fit` knows by name.

Layer: fitting.  Source: methods.md 2 (a class exit tests p of its class alone; answers are never
combined; it may also test p of a multi-class head that is there anyway).
"""

from collections.abc import Sequence

import numpy as np

from offramp._core.checks import check_known
from offramp._core.errors import InputError
from offramp._core.schema import to_json
from offramp._core.topology import Topology
from offramp._core.types import FloatArray, OutputForm
from offramp.fitting.class_exits.choice import ClassExitPlan, choose_exits
from offramp.fitting.class_exits.data import Branch, ClassData, ClassExit, class_index
from offramp.fitting.class_exits.scan import Requirements
from offramp.fitting.class_exits.time import Timing
from offramp.fitting.search import sub_chains
from offramp.policy.candidate import Candidate
from offramp.policy.features import Distribution
from offramp.policy.policy import Node, Policy
from offramp.policy.rules import ClassThreshold, class_log_odds
from offramp.policy.situation import Rule
from offramp.trace import Trace

_TOLERANCES = (0.0, 0.005, 0.01, 0.02)


def class_policy(
    topology: Topology,
    rules: Sequence[tuple[str, Rule]],
    last: str,
    *,
    outputs: OutputForm | None = None,
) -> Policy:
    """The chain of some exits and the network's own answer, one rule at each exit.

    Args:
        topology: Of the cascade.
        rules: For each exit its stage and rule, in the order in which they are reached.
        last: The stage that answers everybody else.
        outputs: As in `offramp.Policy`.

    >>> topology = Topology.of(["cat", "last"])
    >>> policy = class_policy(topology, [("cat", ClassThreshold(0, 3, 2.9))], "last")
    >>> policy.topology.describe()
    'cat -> last'
    """
    chain = topology.chain([*(name for name, _ in rules), last])
    paths = chain.paths()[: len(rules)]
    nodes = {p: Node(rule) for p, (_, rule) in zip(paths, rules, strict=True)}
    return Policy(chain, nodes, outputs=outputs)


def class_data(
    trace: Trace, columns: Sequence[tuple[int, int]], reference: str, *, split: str = "fit"
) -> ClassData:
    """Read from a trace what a class-specific choice looks at, with the policy's own arithmetic.

    Args:
        trace: The examples of one split.
        columns: For each column of the evidence a stage and a class.
        reference: The stage that stands for the baseline.
        split: Name of the split, for messages.
    """
    return ClassData(
        labels=trace.labels.numpy(),
        baseline=trace.output(trace.topology.index(reference)).top(1)[:, 0].numpy(),
        class_names=trace.class_names or tuple(str(k) for k in range(trace.classes)),
        evidence=_evidence(trace, columns),
        split=split,
    )


def _evidence(trace: Trace, columns: Sequence[tuple[int, int]]) -> FloatArray:
    held = {
        stage: Distribution(trace.output(stage).scores().log_softmax(dim=1))
        for stage in {stage for stage, _ in columns}
    }
    each = [class_log_odds(held[stage], target).double().numpy() for stage, target in columns]
    return np.stack(each, axis=1) if each else np.empty((len(trace), 0))


def fit_class_specific(
    part: Trace,
    *,
    reference: str,
    top: int = 1,
    targets: Sequence[int | str] | None = None,
    tolerances: Sequence[float] = _TOLERANCES,
    thresholds: tuple[float, float] = (0.5, 1.0),
    precision_floor: float = 0.0,
) -> list[Candidate]:
    """Candidates with one exit for one class, at the best stage, by the strict constraints.

    Every stage before the reference is tried as the exit of every class, whether it is a head of
    that class alone or of all classes.

    Args:
        part: Examples to fit on.
        reference: Name of the reference, which answers everybody who stays.
        top: Must be 1: an exit answers with one label.
        targets: Classes by index or name; by default all that have examples which the reference
            gets right.
        tolerances: What accuracy and each class's recall may lose; one choice for each.
        thresholds: Range of the threshold alpha, within (0, 1].
        precision_floor: Least share of the class among what leaves early.

    Raises:
        UnknownNameError: If there is no such class or stage.
        InputError: If `top` is not 1, or a class that was named has no examples.

    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=400, stages=2, seed=0)
    >>> found = fit_class_specific(trace, reference="stage1", targets=[2], tolerances=[0.02])
    >>> [s.policy.topology.describe() for s in found], found[0].parameters["target"]
    (['stage0 -> stage1'], 2)
    """
    part.require_labels("policy='class_exits'")
    if top != 1:
        raise InputError(f"top must be 1, got {top!r}: a class exit answers with one label.")
    check_known("stage", reference, part.stages)
    columns, branches = _branches(part, reference)
    data = class_data(part, columns, reference)
    if targets is None:
        wanted = np.unique(data.labels[data.right]).tolist()
    else:
        wanted = [class_index(target, data.class_names) for target in targets]
    candidates: dict[str, Candidate] = {}
    for target in wanted if branches else []:
        for tolerance in tolerances:
            found = choose_exits(
                data,
                branches,
                target=target,
                requirements=Requirements(
                    thresholds=thresholds, tolerance=tolerance, precision_floor=precision_floor
                ),
            )
            if isinstance(found, ClassExitPlan):
                candidate = _candidate(part, columns, found.exits[0], reference, tolerance)
                candidates.setdefault(repr(to_json(candidate.policy)), candidate)
    return list(candidates.values())


def _branches(part: Trace, reference: str) -> tuple[list[tuple[int, int]], list[Branch]]:
    last = part.topology.index(reference)
    pairs = [t.active for t in sub_chains(part.topology, longest=2) if t.active[-1] == last]
    columns, branches = [], []
    baseline = part.costs.alone(part.topology, last)
    for stage, _ in pairs:
        leaving = part.costs.path(part.topology, (stage,), [stage])
        staying = part.costs.path(part.topology, (stage, last), [stage])
        extra = max(staying - baseline, 0.0)
        timing = Timing(
            baseline=baseline,
            reached=max(leaving - extra, 0.0),
            branch=extra,
            unit=part.costs.unit,
        )
        for target in range(part.classes):
            columns.append((stage, target))
            branches.append(
                Branch(point=part.stages[stage], keep_previous=False, target=target, timing=timing)
            )
    return columns, branches


def _candidate(
    part: Trace,
    columns: Sequence[tuple[int, int]],
    leaf: ClassExit,
    reference: str,
    tolerance: float,
) -> Candidate:
    stage, target = columns[leaf.column]
    rule = ClassThreshold(stage, target, leaf.log_odds)
    return Candidate(
        policy=class_policy(
            part.topology, [(part.stages[stage], rule)], reference, outputs=part.outputs
        ),
        method="class_exits",
        reference=reference,
        parameters={"target": target, "threshold": leaf.threshold, "tolerance": float(tolerance)},
    )
