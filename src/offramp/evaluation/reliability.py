"""Whether a stage is right as often as it believes: its calibration, as a policy reads it.

Layer: evaluation.  Source: Guo et al., ICML 2017, arXiv:1706.04599 (reliability, expected
calibration error); bins that hold as many examples each, as in Nixon et al. 2019, arXiv:1904.01685.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from offramp._core.checks import check_kind, check_positive_int
from offramp._core.types import BoolArray, FloatArray
from offramp.policy import Candidate
from offramp.policy.of_labels import distribution_of
from offramp.trace import Trace

_CHUNK = 16_384  # examples whose probabilities are held at once


@final
@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How sure one stage is, and how often it is right, in groups from the least to the most sure.

    Args:
        stage: Its name.
        n: Number of examples.
        counts: Examples of each group, `(b,)`, none empty; they sum to `n`.
        confidence: Mean probability of the best class in each group, `(b,)`, in [0, 1].
        accuracy: Share of each group that the stage gets right, `(b,)`, in [0, 1].
        error: Expected calibration error: the mean distance of the two, weighted by the counts, in
            [0, 1]; lower is better.
    """

    stage: str
    n: int
    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    error: float


def reliability(
    trace: Trace,
    candidate: Candidate,
    *,
    stages: Sequence[int] | None = None,
    groups: int = 10,
) -> tuple[Reliability, ...]:
    """For each stage how sure it is and how often it is right, at the policy's temperatures.

    Equal confidences stand in one group, so there may be fewer groups than asked for.

    Args:
        trace: The examples: logits, or labels with confidences.
        candidate: Whose temperatures scale the outputs.
        stages: Which stages to look at, by index; by default those that the candidate may visit.
        groups: How many, at least 1.

    Returns:
        One record for each stage; none where outputs are rankings alone, or losses.

    Raises:
        InputError: If `groups` is below 1.

    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=500, stages=2, seed=0)
    >>> alone = Candidate.single(trace.topology, "stage1", reference="stage1")
    >>> [(one.stage, len(one.counts), sum(one.counts)) for one in reliability(trace, alone)]
    [('stage1', 10, 500)]
    """
    check_kind("trace", trace, Trace, read="offramp.load_trace(path)")
    check_kind("candidate", candidate, Candidate)
    check_positive_int("groups", groups)
    if not trace.labeled or not trace.output(0).scored:
        return ()
    looked_at = candidate.policy.topology.active if stages is None else stages
    found = []
    for k in looked_at:
        output, temperature = trace.output(k), candidate.policy.temperatures[k]
        sure, right = [], []
        for start in range(0, len(trace), _CHUNK):
            rows = torch.arange(start, min(start + _CHUNK, len(trace)))
            told = distribution_of(output.take(rows), temperature)
            sure.append(told.max_prob.double())
            right.append(told.label == trace.labels[rows])
        confidence, correct = torch.cat(sure).numpy(), torch.cat(right).numpy()
        found.append(_grouped(trace.stages[k], confidence, correct, groups))
    return tuple(found)


def _grouped(stage: str, sure: FloatArray, right: BoolArray, groups: int) -> Reliability:
    last = [(len(sure) - 1) * g // groups for g in range(1, groups)]
    edges = np.unique(np.sort(sure)[last])
    place = np.searchsorted(edges, sure, side="left")  # an edge belongs to the group below it
    counts = np.bincount(place)
    kept = counts > 0
    counts = counts[kept]
    confidence = np.bincount(place, weights=sure)[kept] / counts
    accuracy = np.bincount(place, weights=right)[kept] / counts
    return Reliability(
        stage=stage,
        n=len(sure),
        counts=tuple(counts.tolist()),
        confidence=tuple(confidence.tolist()),
        accuracy=tuple(accuracy.tolist()),
        error=float(counts @ np.abs(confidence - accuracy) / len(sure)),
    )


def reliability_reference(
    stage: str, sure: FloatArray, right: BoolArray, groups: int
) -> Reliability:
    """As one record of `reliability`, one example after another."""
    rising = sorted(sure.tolist())
    n = len(rising)
    edges = sorted({rising[(n - 1) * g // groups] for g in range(1, groups)})
    held: dict[int, list[tuple[float, bool]]] = {}
    for value, correct in zip(sure.tolist(), right.tolist(), strict=True):
        held.setdefault(sum(value > edge for edge in edges), []).append((value, correct))
    each = [held[g] for g in sorted(held)]
    confidence = [sum(v for v, _ in group) / len(group) for group in each]
    accuracy = [sum(c for _, c in group) / len(group) for group in each]
    gaps = [len(g) * abs(a - b) for g, a, b in zip(each, confidence, accuracy, strict=True)]
    return Reliability(
        stage=stage,
        n=n,
        counts=tuple(map(len, each)),
        confidence=tuple(confidence),
        accuracy=tuple(accuracy),
        error=sum(gaps) / n,
    )
