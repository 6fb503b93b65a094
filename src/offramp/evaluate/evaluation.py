"""What a setting costs and loses on recorded examples, with intervals.

Layer: evaluate.  Source: methods.md (F, the two risks) and 1 (statistics of exits and of time).
"""

from collections.abc import Sequence

import numpy as np

from offramp._core.checks import check_known
from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Path, Topology
from offramp._core.types import SPLITS, FloatArray
from offramp.evaluate.replay import Replay, replay
from offramp.evaluate.results import Evaluation, Interval
from offramp.policy import Policy, Setting
from offramp.trace import Trace

_LOW, _HIGH = 0.025, 0.975


def evaluate(trace: Trace, setting: Setting, *, bootstrap: int = 2000, seed: int = 0) -> Evaluation:
    """Replay a setting and compare it with F, its reference, on the same examples.

    Args:
        trace: The examples, usually one split: `trace.part("test")`.
        setting: What to replay.
        bootstrap: Number of resamples for the 95 % intervals; 0 leaves them out.
        seed: Of the resampling.

    Raises:
        InputError: If F costs nothing, so that no ratio exists, or the stages differ.
        UnknownNameError: If F is not among the stages.

    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=200, stages=2, seed=0)
    >>> small = Setting.single(trace.topology, "stage0", reference="stage1")
    >>> evaluate(trace, small).cost_ratio
    0.25
    """
    done = replay(trace, setting.policy, top=setting.top)
    f_cost = reference_cost(trace, setting.reference)
    f_wrong = trace.wrong(trace.topology.index(setting.reference), top=setting.top)
    ratio, lost = done.cost / f_cost, done.wrong.astype(np.float64) - f_wrong
    new_errors = np.maximum(lost, 0.0)
    useful, overhead, deciding = _cost_shares(trace, setting.policy, done)
    intervals: list[Interval] | list[None] = (
        paired_intervals([ratio, lost, new_errors], rounds=bootstrap, seed=seed)
        if bootstrap
        else [None, None, None]
    )
    return Evaluation(
        setting=setting,
        n=len(trace),
        split=_split_name(trace),
        stages=trace.stages,
        unit=trace.costs.unit,
        cost=float(done.cost.mean()),
        reference_cost=f_cost,
        cost_ratio=float(ratio.mean()),
        accuracy=float(1 - done.wrong.mean()),
        reference_accuracy=float(1 - f_wrong.mean()),
        difference=float(lost.mean()),
        excess=float(new_errors.mean()),
        cost_ratio_ci=intervals[0],
        difference_ci=intervals[1],
        excess_ci=intervals[2],
        exit_share=_shares(np.bincount(done.last, minlength=done.stages) / len(trace)),
        visit_share=_shares(done.visited.mean(axis=0)),
        useful_share=useful,
        overhead_share=overhead,
        decision_share=deciding,
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


def paired_intervals(columns: Sequence[FloatArray], *, rounds: int, seed: int) -> list[Interval]:
    """Bootstrap intervals (95 %, percentile) of the means of columns measured on one sample.

    Drawing `n` examples with replacement and counting how often each distinct row of values came
    up is one multinomial draw, so the resampling costs as much as there are distinct rows: few,
    since costs depend on the path and losses on two bits. All columns share the resamples.

    Where all examples have one value the interval is that point; a certificate, not a bootstrap,
    says what is possible beyond the sample.

    Args:
        columns: Values per example, each `(n,)`.
        rounds: Number of resamples.
        seed: Of the resampling.

    Returns:
        Lower and upper end for each column.
    """
    rows = np.stack(list(columns), axis=1)
    values, counts = np.unique(rows, axis=0, return_counts=True)  # (u, columns), (u,)
    n = len(rows)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=rounds)  # (rounds, u)
    means = drawn @ values / n  # (rounds, columns)
    # means of one value may differ from it in the last bit
    means = np.clip(means, values.min(axis=0), values.max(axis=0))
    low, high = np.quantile(means, [_LOW, _HIGH], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _split_name(trace: Trace) -> str:
    if trace.split is None:
        return "all"
    names = [name for name in SPLITS if trace.has_split(name)]
    return names[0] if len(names) == 1 else "all"


def _shares(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _cost_shares(
    trace: Trace, policy: Policy, done: Replay
) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Shares of the total cost: useful and overhead per stage, and deciding."""
    topology = policy.topology
    counts = np.bincount(done.path, minlength=len(done.paths))
    useful, overhead = np.zeros(done.stages), np.zeros(done.stages)
    deciding = 0.0
    for path, count in zip(done.paths, counts, strict=True):
        if count == 0:
            continue
        needed, rest = split_cost(trace.costs, topology, path)
        useful += count * needed
        overhead += count * rest
        deciding += count * sum(trace.costs.decision[k] for k in policy.decided(path))
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
