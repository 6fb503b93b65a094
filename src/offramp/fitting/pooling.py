"""Weights of log-linear pooling for each path, by maximum likelihood.

Layer: fitting.  Source: methods.md 5.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from offramp._core.threads import one_thread
from offramp._core.topology import Path, Topology
from offramp._core.types import FloatArray
from offramp.policy.features import scaled_log_probs
from offramp.trace import Trace

_MOST_EXAMPLES = 20_000


def fit_pooling(
    part: Trace, topology: Topology, temperatures: Sequence[float]
) -> dict[Path, tuple[float, ...]]:
    """Non-negative weights for each path of `topology`, fitted on `part`.

    Args:
        part: Examples to fit on.
        topology: Its paths get weights.
        temperatures: One per stage; the pooled distributions are scaled by them.

    Returns:
        For each path one weight >= 0 per stage on it; (1,) for a path of one stage.
    """
    return fit_path_pooling(part, topology.paths(), temperatures)


def fit_path_pooling(
    part: Trace, paths: Iterable[Path], temperatures: Sequence[float]
) -> dict[Path, tuple[float, ...]]:
    """As `fit_pooling`, for paths given one by one.

    The likelihood is concave in the weights, so bounded quasi-Newton finds its maximum.
    """
    part.require_labels("combine='log_linear'")
    step = max(1, len(part) // _MOST_EXAMPLES)
    few = part if step == 1 else part.take(torch.arange(0, len(part), step))
    labels = few.labels.numpy()
    log_probs: dict[int, FloatArray] = {}
    found: dict[Path, tuple[float, ...]] = {}
    with one_thread(len(few) * few.classes):
        for path in paths:
            for k in path:
                if k not in log_probs:
                    scaled: Tensor = scaled_log_probs(
                        few.output(k).scores(), torch.tensor(temperatures[k])
                    )
                    log_probs[k] = scaled.double().numpy()
            found[path] = _weights([log_probs[k] for k in path], labels)
    return found


def _weights(each: Sequence[FloatArray], labels: np.ndarray) -> tuple[float, ...]:
    if len(each) == 1:
        return (1.0,)
    stack = np.stack(each, axis=2)  # (n, c, v)
    tensors = torch.from_numpy(stack)  # whose products take the threads that `one_thread` leaves
    at_label = stack[np.arange(len(labels)), labels]  # (n, v)

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        pooled = (tensors @ torch.from_numpy(weights)).numpy()  # (n, c)
        pooled -= pooled.max(axis=1, keepdims=True)
        p = np.exp(pooled)
        total = p.sum(axis=1, keepdims=True)
        nll = np.log(total[:, 0]) - pooled[np.arange(len(labels)), labels]
        expected = np.einsum("nc,ncv->nv", p / total, stack)
        return float(nll.mean()), (expected - at_label).mean(axis=0)

    start = np.full(len(each), 1.0 / len(each))
    bounds = [(0.0, 20.0)] * len(each)
    result = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    weights = tuple(float(w) for w in result.x)
    # All zero would say "every class alike"; then the last stage answers alone.
    return weights if max(weights) > 1e-6 else (*[0.0] * (len(each) - 1), 1.0)
