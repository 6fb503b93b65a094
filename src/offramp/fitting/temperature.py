"""One temperature per stage, by maximum likelihood.

Layer: fitting.  Source: Guo et al., ICML 2017, arXiv:1706.04599, section 4.2.
"""

import numpy as np
import torch

from offramp._core.types import FloatArray
from offramp.trace import Trace

_MOST_EXAMPLES = 20_000  # one number per stage is settled long before
_AT_ONCE = 2**15  # numbers that stay near the processor
_SHARPEST, _FLATTEST = 0.05, 20.0


def fit_temperatures(part: Trace) -> list[float]:
    """The temperature of each stage that makes its probabilities most likely on `part`.

    The likelihood is concave in the inverse temperature, so Newton's method finds its only
    maximum; it is kept within [0.05, 20], where a stage without errors would run away.

    Args:
        part: Examples to fit on: logits, or labels with confidences.

    Returns:
        One number > 0 per stage; above 1 the stage was too sure of itself. Without labels all 1.

    >>> from offramp.trace.testing import make_trace
    >>> len(fit_temperatures(make_trace(n=200, stages=2, seed=0)))
    2
    """
    if not part.labeled:
        return [1.0] * len(part.topology)  # there are no probabilities
    step = max(1, len(part) // _MOST_EXAMPLES)
    few = part if step == 1 else part.take(torch.arange(0, len(part), step))
    labels = few.labels.numpy()
    return [
        _temperature(few.output(k).scores().double().numpy(), labels)
        for k in range(len(part.topology))
    ]


def negative_log_likelihood(scores: FloatArray, labels: np.ndarray, inverse: float) -> float:
    """Mean of -log p(label) with p = softmax(inverse * scores); in nats, lower is better."""
    scaled = inverse * scores
    scaled -= scaled.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(scaled).sum(axis=1))
    return float((log_total - scaled[np.arange(len(labels)), labels]).mean())


def _temperature(scores: FloatArray, labels: np.ndarray) -> float:
    low, high = 1 / _FLATTEST, 1 / _SHARPEST
    inverse = 1.0
    below = scores - scores.max(axis=1, keepdims=True)  # <= 0: no power overflows
    at_label = float(below[np.arange(len(labels)), labels].sum())
    rows = max(1, _AT_ONCE // scores.shape[1])
    parts = [below[i : i + rows] for i in range(0, len(below), rows)]
    for _ in range(50):
        slope, curvature = -at_label, 0.0
        for part in parts:
            p = np.exp(inverse * part)
            p /= p.sum(axis=1, keepdims=True)
            p *= part
            mean = p.sum(axis=1)
            p *= part
            slope += float(mean.sum())
            curvature += float(p.sum() - (mean**2).sum())
        # The interval shrinks with the sign of the slope; a Newton step that leaves it is
        # replaced by its middle, so flat tails cannot throw the search off.
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        following = inverse - slope / curvature if curvature > 0 else low
        if not low < following < high:
            following = float(np.sqrt(low * high))
        if abs(following - inverse) < 1e-7 * inverse:
            break
        inverse = following
    return 1.0 / inverse
