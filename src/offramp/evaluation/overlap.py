"""Overlap: which examples which networks get right.

Layer: evaluation.  Source: methods.md 1 (overlap).
"""

from collections.abc import Sequence

import numpy as np

from offramp._core.checks import check_kind
from offramp.evaluation.results import Overlap
from offramp.trace import Trace


def overlap(trace: Trace, *, top: int = 1, stages: Sequence[int] | None = None) -> Overlap:
    """For each subset of stages the share of examples that exactly it gets right.

    Args:
        trace: The examples.
        top: A stage is right when the label is among its `top` best.
        stages: Which stages to look at; by default all.

    >>> from offramp.trace.testing import make_trace
    >>> sum(overlap(make_trace(n=100, stages=2, seed=0)).shares)
    1.0
    """
    check_kind("trace", trace, Trace, read="offramp.load_trace(path)")
    looked_at = list(range(len(trace.topology)) if stages is None else stages)
    names = tuple(trace.stages[k] for k in looked_at)
    right = np.stack([~trace.wrong(k, top=top) for k in looked_at], axis=1)
    patterns, counts = np.unique(right, axis=0, return_counts=True)  # (u, s), (u,)
    order = np.argsort(-counts, kind="stable")
    return Overlap(
        stages=names,
        n=len(trace),
        subsets=tuple(tuple(names[k] for k in np.flatnonzero(patterns[i])) for i in order),
        shares=tuple(float(counts[i] / len(trace)) for i in order),
    )
