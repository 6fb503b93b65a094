"""What a candidate costs and loses on recorded examples, with intervals.

Layer: evaluation.  Source: methods.md (the reference, the two risks) and 1 (statistics of exits
and of time).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from offramp._core.checks import check_kind, check_known, check_positive_int, check_seed
from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Path, Topology
from offramp._core.types import SPLITS, FloatArray, IntArray
from offramp.evaluation.outcomes import Outcomes, f_labels, first_labels, outcomes_of
from offramp.evaluation.replay import replay
from offramp.evaluation.results import Evaluation, Interval
from offramp.evaluation.tally import Tally
from offramp.policy import Candidate, Policy
from offramp.trace import Trace

_LOW, _HIGH = 0.025, 0.975
_DRAWN = 10_000_000  # numbers of resamples held at once
_Way = tuple[Path, int, Costs]  # a path, how many took it, and what it costs


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
    check_kind("trace", trace, Trace, read="offramp.load_trace(path)")
    check_kind("candidate", candidate, Candidate)
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
    f_loss = of_f.loss(stage, top=candidate.top)
    outcomes = outcomes_of(
        trace,
        candidate,
        path=done.path,
        loss=done.loss,
        f_loss=f_loss,
        differs=first_labels(done.labels, trace) != f_labels(of_f, stage)
        if trace.labeled
        else None,
    )
    each = None
    if trace.prices is not None or trace.graded:
        f_cost = trace.bill.alone(trace.topology, trace.topology.index(candidate.reference))
        lost = done.loss - f_loss
        columns = np.broadcast_arrays(done.cost, f_cost, lost, lost.clip(min=0))
        each = np.stack(columns, axis=1)
    return from_outcomes(trace, candidate, outcomes, bootstrap=bootstrap, seed=seed, each=each)


def from_outcomes(
    trace: Trace,
    candidate: Candidate,
    outcomes: Outcomes,
    *,
    bootstrap: int = 0,
    seed: int = 0,
    each: FloatArray | None = None,
) -> Evaluation:
    """The evaluation that follows from how many examples of which kind there are.

    Args:
        trace: Where they were counted; its costs, splits and names are read.
        candidate: What was replayed.
        outcomes: What was counted.
        bootstrap: Number of resamples; 0 leaves the intervals out.
        seed: Of the resampling.
        each: Cost, reference's cost, loss against the reference and excess of every example,
            `(n, 4)`, where counts of kinds do not say them.
    """
    policy, n = candidate.policy, len(trace)
    f_cost = reference_cost(trace, candidate.reference)
    topology, on_path = policy.topology, outcomes.paths.sum(axis=(1, 2))  # (p,)
    tables = [trace.costs] * len(on_path)
    if outcomes.spent is not None:
        tables = outcomes.spent.on_each(trace.costs, on_path)
    ways = list(zip(topology.paths(), on_path.tolist(), tables, strict=True))
    ratios = np.array([t.path(topology, p, policy.decided(p)) for p, _, t in ways]) / f_cost
    path, wrong, f_wrong = np.nonzero(outcomes.paths)  # (u,) each: the kinds that occur
    counts = outcomes.paths[path, wrong, f_wrong]
    ratio = ratios[path]
    lost = (wrong - f_wrong).astype(np.float64)
    values = np.stack([ratio, lost, np.maximum(lost, 0.0)], axis=1)  # (u, 3)
    means = counts @ values / n
    own, reference = float(counts @ (1 - wrong)) / n, float(counts @ (1 - f_wrong)) / n
    graded = outcomes.graded
    if graded is not None:
        own, reference = 1 - graded.own / n, 1 - graded.reference / n
        means[1:] = (graded.own - graded.reference) / n, graded.excess / n
    intervals: list[Interval] | list[None] = [None, None, None]
    if bootstrap and each is not None:
        intervals = intervals_of_each(each, rounds=bootstrap, seed=seed)
    elif bootstrap:
        intervals = paired_intervals(values, counts, rounds=bootstrap, seed=seed)
    exits, visits = _exits_and_visits(len(trace.topology), ways)
    useful, overhead, deciding = _cost_shares(policy, ways)
    labeled = outcomes.classes.size > 0
    return Evaluation(
        candidate=candidate,
        n=n,
        split=split_name(trace),
        stages=trace.stages,
        unit=trace.costs.unit,
        cost=float(means[0] * f_cost),
        reference_cost=f_cost,
        cost_ratio=float(means[0]),
        accuracy=own,
        reference_accuracy=reference,
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
        disagreement=int(outcomes.disagreements.sum()) / n if labeled else None,
        path_share=_shares(on_path / n),
        path_cost_ratio=_shares(ratios),
        class_outcomes=tuple(
            map(tuple, outcomes.classes.reshape(-1, 4).T.tolist() if labeled else [])
        ),
        class_paths=tuple(tuple(row) for row in outcomes.class_paths.tolist()),
        class_disagreements=tuple(outcomes.disagreements.tolist()),
        of_losses=not labeled,
        cost_tally=None if outcomes.spent is None else outcomes.spent.tally,
        loss_tally=None if graded is None else graded.losses,
        difference_tally=None if graded is None else graded.differences,
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

    cost, reference = mean("cost"), first.reference_cost
    if second.reference_cost != reference:  # where examples have prices of their own
        reference = mean("reference_cost")
    return replace(
        first,
        n=n,
        split=f"{first.split} + {second.split}",
        cost=cost,
        reference_cost=reference,
        cost_ratio=mean("cost_ratio") if reference == first.reference_cost else cost / reference,
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
        cost_tally=None,
        loss_tally=None,
        difference_tally=_both(first.difference_tally, second.difference_tally),
    )


def _both(first: Tally | None, second: Tally | None) -> Tally | None:
    return None if first is None or second is None else first + second


def reference_cost(trace: Trace, reference: str) -> float:
    """Mean cost per example of the reference stage run alone.

    Raises:
        InputError: If it is 0, so that no cost ratio exists.
    """
    stage = trace.topology.index(check_known("stage", reference, trace.stages))
    cost = trace.mean_cost(stage)
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
    rng = np.random.default_rng(check_seed(seed))
    drawn = rng.multinomial(n, counts / n, size=rounds)  # (rounds, u)
    means = drawn @ values / n  # (rounds, q)
    # means of one value may differ from it in the last bit
    means = np.clip(means, values.min(axis=0), values.max(axis=0))
    low, high = np.quantile(means, [_LOW, _HIGH], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def intervals_of_each(each: FloatArray, *, rounds: int, seed: int) -> list[Interval]:
    """As `paired_intervals` of cost ratio, loss and excess, where every example differs.

    Args:
        each: Cost, reference's cost, loss against the reference and excess, `(n, 4)`.
        rounds: Number of resamples.
        seed: Of the resampling.
    """
    kinds, counts = np.unique(each, axis=0, return_counts=True)  # (u, 4)
    rng, n = np.random.default_rng(check_seed(seed)), len(each)
    step = max(1, _DRAWN // len(kinds))
    sizes = [min(step, rounds - start) for start in range(0, rounds, step)]
    means = np.concatenate(
        [rng.multinomial(n, counts / n, size=size) @ kinds / n for size in sizes]
    )  # (rounds, 4)
    found = np.stack([means[:, 0] / means[:, 1], means[:, 2], means[:, 3]], axis=1)
    low, high = np.quantile(found, [_LOW, _HIGH], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def split_name(trace: Trace) -> str:
    """Name of the one split that all examples are in, or "all"."""
    if trace.split is None:
        return "all"
    names = [name for name in SPLITS if trace.has_split(name)]
    return names[0] if len(names) == 1 else "all"


def _shares(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _exits_and_visits(stages: int, ways: Sequence[_Way]) -> tuple[FloatArray, FloatArray]:
    """How many examples leave after each stage, and how many visit it, each `(s,)`."""
    exits, visits = np.zeros(stages), np.zeros(stages)
    for path, count, _ in ways:
        exits[path[-1]] += count
        visits[list(path)] += count
    return exits, visits


def _cost_shares(
    policy: Policy, ways: Sequence[_Way]
) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Shares of the total cost: useful and overhead per stage, and deciding."""
    topology = policy.topology
    useful, overhead = np.zeros(len(topology)), np.zeros(len(topology))
    deciding = 0.0
    for path, count, costs in ways:
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
        useful[k] += costs.crossing(path[:i], k)
    return useful, overhead
