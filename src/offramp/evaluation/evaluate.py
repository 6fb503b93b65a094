"""What a candidate costs and loses on recorded examples, with intervals.

Layer: evaluation.  Source: methods.md (the reference, the two risks) and 1 (statistics of exits
and of time).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from offramp._core.checks import check_known, check_positive_int
from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Path, Topology
from offramp._core.types import SPLITS, BoolArray, FloatArray, IntArray
from offramp.evaluation.replay import path_costs, replay
from offramp.evaluation.results import Evaluation, Interval
from offramp.policy import Candidate, Policy
from offramp.trace import Trace

_LOW, _HIGH = 0.025, 0.975


@final
@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How many examples of which kind there are: all that an evaluation needs of them.

    Wherever two axes of size 2 stand last, the first is 1 where the example's own answer is wrong,
    the second where the reference's is.

    Args:
        paths: Of each path of the candidate's topology, `(p, 2, 2)`.
        classes: Of each true class, `(c, 2, 2)`.
        class_paths: Of each path, how many are of each true class, `(p, c)`.
        disagreements: Of each true class, examples whose first label is not the reference's,
            `(c,)`.
    """

    paths: IntArray
    classes: IntArray
    class_paths: IntArray
    disagreements: IntArray


def evaluate(
    trace: Trace,
    candidate: Candidate,
    *,
    bootstrap: int = 2000,
    seed: int = 0,
    costs: Costs | None = None,
    baseline: Trace | None = None,
) -> Evaluation:
    """Replay a candidate and compare it with the reference, its reference, on the same examples.

    Args:
        trace: The examples, usually one split: `trace.subset("test")`.
        candidate: What to replay.
        bootstrap: Number of resamples for the 95 % intervals; 0 leaves them out.
        seed: Of the resampling.
        costs: What to bill the same decisions by; by default the trace's own costs.
        baseline: Where the reference's answers stand, if not in `trace`: the same examples, in the
            same order.

    Raises:
        InputError: If the reference costs nothing, so that no ratio exists, or stages or examples
            differ.
        UnknownNameError: If the reference is not among the stages.

    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=200, stages=2, seed=0)
    >>> small = Candidate.single(trace.topology, "stage0", reference="stage1")
    >>> evaluate(trace, small).cost_ratio
    0.25
    """
    if bootstrap != 0:
        check_positive_int("bootstrap", bootstrap)
    if costs is not None:
        trace = trace.with_costs(costs)
    done = replay(trace, candidate.policy, top=candidate.top)
    of_f = trace if baseline is None else baseline
    if not np.array_equal(of_f.ids, trace.ids):
        raise InputError(
            f"baseline must hold the {len(trace)} examples of the trace in the same order, got "
            f"{len(of_f)} others."
        )
    stage = of_f.topology.index(candidate.reference)
    f_wrong = of_f.wrong(stage, top=candidate.top)
    outcomes = outcomes_of(
        trace,
        path=done.path,
        paths=len(done.paths),
        wrong=done.wrong,
        f_wrong=f_wrong,
        differs=first_labels(done.labels, trace) != f_labels(of_f, stage),
    )
    return from_outcomes(trace, candidate, outcomes, bootstrap=bootstrap, seed=seed)


def outcomes_of(
    trace: Trace,
    *,
    path: IntArray,
    paths: int,
    wrong: BoolArray,
    f_wrong: BoolArray,
    differs: BoolArray,
) -> Outcomes:
    """Count the examples of a trace.

    Args:
        trace: The examples.
        path: The path that each has taken, `(n,)`, of `paths`.
        paths: How many paths there are.
        wrong: True where the example's own answer is wrong, `(n,)`.
        f_wrong: True where the reference's is, `(n,)`.
        differs: True where its first label is not the reference's, `(n,)`.
    """
    labels, c = trace.labels.numpy(), trace.classes
    return Outcomes(
        paths=count_outcomes(path, wrong, f_wrong, paths),
        classes=count_outcomes(labels, wrong, f_wrong, c),
        class_paths=np.bincount(c * path + labels, minlength=c * paths).reshape(paths, c),
        disagreements=np.bincount(labels[differs], minlength=c),
    )


def count_outcomes(group: IntArray, wrong: BoolArray, f_wrong: BoolArray, groups: int) -> IntArray:
    """Examples of each group by right or wrong, and the reference right or wrong, `(g, 2, 2)`.

    Args:
        group: Of each example, `(n,)`, in 0..groups - 1.
        wrong: True where the example's own answer is wrong, `(n,)`.
        f_wrong: True where the reference's is, `(n,)`.
        groups: How many groups there are.
    """
    kinds = 4 * group + 2 * wrong + f_wrong
    return np.bincount(kinds, minlength=4 * groups).reshape(groups, 2, 2)


def f_labels(trace: Trace, stage: int) -> IntArray:
    """The reference's own first label of each example, `(n,)`."""
    return first_labels(trace.output(stage).top(1).numpy(), trace)


def first_labels(labels: IntArray, trace: Trace) -> IntArray:
    """The first of each row of labels, `(n,)`; all that lie outside the classes become `c`."""
    first = labels[:, 0]
    return np.where((first >= 0) & (first < trace.classes), first, trace.classes)


def from_outcomes(
    trace: Trace, candidate: Candidate, outcomes: Outcomes, *, bootstrap: int = 0, seed: int = 0
) -> Evaluation:
    """The evaluation that follows from how many examples of which kind there are.

    Args:
        trace: Where they were counted; its costs, splits and names are read.
        candidate: What was replayed.
        outcomes: What was counted.
        bootstrap: Number of resamples; 0 leaves the intervals out.
        seed: Of the resampling.
    """
    policy, n = candidate.policy, len(trace)
    f_cost = reference_cost(trace, candidate.reference)
    path, wrong, f_wrong = np.nonzero(outcomes.paths)  # (u,) each: the kinds that occur
    counts = outcomes.paths[path, wrong, f_wrong]
    ratios = path_costs(trace, policy) / f_cost  # (p,)
    ratio = ratios[path]
    lost = (wrong - f_wrong).astype(np.float64)
    values = np.stack([ratio, lost, np.maximum(lost, 0.0)], axis=1)  # (u, 3)
    means = counts @ values / n
    intervals: list[Interval] | list[None] = (
        paired_intervals(values, counts, rounds=bootstrap, seed=seed)
        if bootstrap
        else [None, None, None]
    )
    on_path = outcomes.paths.sum(axis=(1, 2))  # (p,)
    ways = [(p, int(count)) for p, count in zip(policy.topology.paths(), on_path, strict=True)]
    exits, visits = _exits_and_visits(len(trace.topology), ways)
    useful, overhead, deciding = _cost_shares(trace.costs, policy, ways)
    return Evaluation(
        candidate=candidate,
        n=n,
        split=split_name(trace),
        stages=trace.stages,
        unit=trace.costs.unit,
        cost=float(means[0] * f_cost),
        reference_cost=f_cost,
        cost_ratio=float(means[0]),
        accuracy=float(counts @ (1 - wrong) / n),
        reference_accuracy=float(counts @ (1 - f_wrong) / n),
        accuracy_drop=float(means[1]),
        negative_flips=float(means[2]),
        cost_ratio_ci=intervals[0],
        accuracy_drop_ci=intervals[1],
        negative_flips_ci=intervals[2],
        exit_share=_shares(exits / n),
        visit_share=_shares(visits / n),
        useful_share=useful,
        overhead_share=overhead,
        decision_share=deciding,
        disagreement=int(outcomes.disagreements.sum()) / n,
        path_share=_shares(on_path / n),
        path_cost_ratio=_shares(ratios),
        class_outcomes=tuple(tuple(row) for row in outcomes.classes.reshape(-1, 4).T.tolist()),
        class_paths=tuple(tuple(row) for row in outcomes.class_paths.tolist()),
        class_disagreements=tuple(outcomes.disagreements.tolist()),
    )


def pooled(first: Evaluation, second: Evaluation) -> Evaluation:
    """One evaluation of the examples of two parts together, without intervals.

    It is one to choose by; what only certificates need, counts of disagreements, paths and
    classes, is left out, for they are tested on one part alone.

    Args:
        first: Of one part.
        second: Of the same candidate on another part of the same trace.
    """
    n = first.n + second.n
    share = first.n / n  # of the examples
    spent = first.n * first.cost + second.n * second.cost
    cost_share = first.n * first.cost / spent if spent > 0 else share  # of the total cost

    def mean(name: str, weight: float = share) -> float:
        a, b = getattr(first, name), getattr(second, name)
        return float(weight * a + (1 - weight) * b)

    def means(name: str, weight: float = share) -> tuple[float, ...]:
        pairs = zip(getattr(first, name), getattr(second, name), strict=True)
        return tuple(weight * a + (1 - weight) * b for a, b in pairs)

    return replace(
        first,
        n=n,
        split=f"{first.split} + {second.split}",
        cost=mean("cost"),
        cost_ratio=mean("cost_ratio"),
        accuracy=mean("accuracy"),
        reference_accuracy=mean("reference_accuracy"),
        accuracy_drop=mean("accuracy_drop"),
        negative_flips=mean("negative_flips"),
        cost_ratio_ci=None,
        accuracy_drop_ci=None,
        negative_flips_ci=None,
        exit_share=means("exit_share"),
        visit_share=means("visit_share"),
        useful_share=means("useful_share", cost_share),
        overhead_share=means("overhead_share", cost_share),
        decision_share=mean("decision_share", cost_share),
        disagreement=None,
        path_share=(),
        path_cost_ratio=(),
        class_outcomes=(),
        class_paths=(),
        class_disagreements=(),
    )


def reference_cost(trace: Trace, reference: str) -> float:
    """Cost per example of the reference stage run alone.

    Raises:
        InputError: If it is 0, so that no cost ratio exists.
    """
    stage = trace.topology.index(check_known("stage", reference, trace.stages))
    cost = trace.costs.alone(trace.topology, stage)
    if cost <= 0:
        raise InputError(
            f"The reference {reference!r} costs {cost} {trace.costs.unit}; a cost ratio needs more "
            "than 0. Nothing can be saved on a network that is free: choose another reference."
        )
    return cost


def paired_intervals(
    values: FloatArray, counts: IntArray, *, rounds: int, seed: int
) -> list[Interval]:
    """Bootstrap intervals (95 %, percentile) of means over examples of few different kinds.

    Drawing `n` examples with replacement and counting the kinds is one multinomial draw, so the
    resampling costs as much as there are kinds, not examples. All means share the resamples.

    Where all examples have one value the interval is that point; a certificate, not a bootstrap,
    says what is possible beyond the sample.

    Args:
        values: For each kind of example the quantities to average, `(u, q)`.
        counts: How many examples are of each kind, `(u,)`.
        rounds: Number of resamples.
        seed: Of the resampling.

    Returns:
        Lower and upper end for each of the `q` quantities.
    """
    n = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=rounds)  # (rounds, u)
    means = drawn @ values / n  # (rounds, q)
    # means of one value may differ from it in the last bit
    means = np.clip(means, values.min(axis=0), values.max(axis=0))
    low, high = np.quantile(means, [_LOW, _HIGH], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def split_name(trace: Trace) -> str:
    """Name of the one split that all examples are in, or "all"."""
    if trace.split is None:
        return "all"
    names = [name for name in SPLITS if trace.has_split(name)]
    return names[0] if len(names) == 1 else "all"


def _shares(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _exits_and_visits(
    stages: int, ways: Sequence[tuple[Path, int]]
) -> tuple[FloatArray, FloatArray]:
    """How many examples leave after each stage, and how many visit it, each `(s,)`."""
    exits, visits = np.zeros(stages), np.zeros(stages)
    for path, count in ways:
        exits[path[-1]] += count
        visits[list(path)] += count
    return exits, visits


def _cost_shares(
    costs: Costs, policy: Policy, ways: Sequence[tuple[Path, int]]
) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Shares of the total cost: useful and overhead per stage, and deciding."""
    topology = policy.topology
    useful, overhead = np.zeros(len(topology)), np.zeros(len(topology))
    deciding = 0.0
    for path, count in ways:
        if count == 0:
            continue
        needed, rest = split_cost(costs, topology, path)
        useful += count * needed
        overhead += count * rest
        deciding += count * sum(costs.decision[k] for k in policy.decided(path))
    total = float(useful.sum() + overhead.sum() + deciding)
    scale = 1 / total if total > 0 else 0.0
    return _shares(useful * scale), _shares(overhead * scale), float(deciding * scale)


def split_cost(costs: Costs, topology: Topology, path: Path) -> tuple[FloatArray, FloatArray]:
    """Cost of segments and heads in each stage on `path`: what the last one needs, and the rest.

    The last stage's answer needs its own head and the segments of its lineage; what an earlier
    stage computed and it continues is therefore useful, an earlier exit's head is not.

    Returns:
        Useful and overhead cost, each `(s,)`.
    """
    lineage = {topology.groups[j] for j in topology.lineage(path[-1])}
    useful, overhead = np.zeros(len(topology)), np.zeros(len(topology))
    for i, k in enumerate(path):
        for j in topology.new_segments(path[:i], k):
            share = useful if topology.groups[j] in lineage else overhead
            share[j] += costs.segment[j]
        (useful if k == path[-1] else overhead)[k] += costs.head[k]
    return useful, overhead
