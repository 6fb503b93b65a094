"""Small networks that predict the loss of each stage from what the visited stages said.

They are fitted crosswise: the examples are dealt into folds, and what is predicted for an example
comes from a network that has not seen it. So a rule that is fitted on the predictions meets new
examples as it met its own. A policy takes the mean of the folds' networks.

Layer: fitting.  Source: docs/adr/0066.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from offramp._core.threads import one_thread
from offramp._core.types import FloatArray, IntArray
from offramp.policy.deferral import Deferral
from offramp.policy.features import COMBINED, Feature
from offramp.policy.rules import Linear, Rule

_STEPS, _BATCH, _RATE, _DECAY = 150, 384, 1e-2, 1.0
_LEAST_SPREAD = 0.1  # a class that is rarely named must not weigh much for being rare
_MOST_ODDS = 8.0
_NAMED = "predicts_"


@final
@dataclass(frozen=True)
class LossNetwork:
    """Predicts log-odds of a loss for each of `t` stages, from `d` features.

    Args:
        features: What it reads, `(d,)`.
        hidden: Weight `(k, d)` and bias `(k,)` of the hidden layer, float64.
        last: Weight `(t, k + d)` and bias `(t,)`: of the hidden numbers, then of the features.
        classes: How many there are.
    """

    features: tuple[Feature, ...]
    hidden: tuple[FloatArray, FloatArray]
    last: tuple[FloatArray, FloatArray]
    classes: int

    @property
    def predicted(self) -> tuple[Feature, ...]:
        """Names of what it predicts, one for each stage: numbers of the path as a whole."""
        return tuple(Feature(f"value_{j}", COMBINED) for j in range(len(self.last[0])))

    def log_odds(self, x: Float[np.ndarray, "n d"]) -> FloatArray:
        """Log-odds of the losses, `(n, t)`, in [-8, 8]."""
        inner = np.maximum(x @ self.hidden[0].T + self.hidden[1], 0.0)
        found = np.concatenate([inner, x], axis=1) @ self.last[0].T + self.last[1]
        return found.clip(-_MOST_ODDS, _MOST_ODDS)

    def rule(self, features: Sequence[Feature], weights: Sequence[float], bias: float) -> Rule:
        """The rule of a weighted sum, in which predictions may stand beside other features.

        Args:
            features: What is summed.
            weights: Their weights.
            bias: Added at the end.
        """
        given = dict(zip(features, weights, strict=True))
        of_losses = np.array([given.pop(feature, 0.0) for feature in self.predicted])
        if not of_losses.any():
            return Linear(list(given), list(given.values()), bias)
        width, own = len(self.hidden[1]), len(self.features)
        read = [*self.features, *(feature for feature in given if feature not in self.features)]
        sums = np.zeros((width + 1, len(read)))  # the last row is for what no ReLU cuts
        sums[:width, :own] = self.hidden[0]
        sums[width, :own] = of_losses @ self.last[0][:, width:]
        for feature, weight in given.items():
            sums[width, read.index(feature)] += weight
        total = bias + float(of_losses @ self.last[1])
        numbers = [not feature.kind.startswith(_NAMED) for feature in read]
        return Deferral(
            [feature for feature, number in zip(read, numbers, strict=True) if number],
            (_single(sums[:, numbers]), _single(np.append(self.hidden[1], 0.0))),
            (_single(of_losses @ self.last[0][:, :width])[None], torch.tensor([total])),
            self._named(read, sums),
        )

    def _named(self, read: Sequence[Feature], sums: FloatArray) -> dict[int, Tensor]:
        """What naming each class adds to the sums: the columns of its indicators, as rows."""
        found: dict[int, Tensor] = {}
        for feature, column in zip(read, sums.T, strict=True):
            if feature.kind.startswith(_NAMED):
                empty = torch.zeros(self.classes + 1, len(column))
                rows = found.setdefault(feature.stage, empty)
                rows[int(feature.kind.removeprefix(_NAMED))] = _single(column)
        return found


def fit_loss_networks(
    features: Sequence[Feature],
    x: Float[np.ndarray, "n d"],
    losses: Float[np.ndarray, "n t"],
    folds: Int[np.ndarray, " n"],
    *,
    classes: int,
    width: int,
    seed: int,
) -> tuple[LossNetwork, FloatArray]:
    """The mean of one network for each fold, and what each predicts for the fold it has not seen.

    Args:
        features: Names of the columns, `(d,)`.
        x: The features, float32.
        losses: Of the stages, in [0, 1].
        folds: The fold of each example; at least two are there.
        classes: How many there are.
        width: Hidden numbers of each network.
        seed: Of first weights and of the order of the examples.

    Returns:
        The network, and log-odds `(n, t)` in [-8, 8].

    >>> x = np.linspace(-1, 1, 90, dtype=np.float32)[:, None]
    >>> names, folds = [Feature("max_prob", 0)], np.arange(90) % 3
    >>> network, odds = fit_loss_networks(names, x, 1.0 * (x < 0), folds, classes=2, width=4,
    ...                                   seed=0)
    >>> bool(odds[0, 0] > odds[-1, 0]), len(network.hidden[1])
    (True, 12)
    """
    odds = np.empty(losses.shape)
    each = []
    with one_thread():
        for fold in np.unique(folds):
            kept = folds != fold
            one = _trained(tuple(features), x[kept], losses[kept], classes, width, seed + int(fold))
            odds[~kept] = one.log_odds(x[~kept])
            each.append(one)
    return _mean(each), odds


def _trained(
    features: tuple[Feature, ...],
    x: np.ndarray,
    losses: np.ndarray,
    classes: int,
    width: int,
    seed: int,
) -> LossNetwork:
    """One network, by AdamW on standardized features."""
    mean, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    scale = np.where(spread > 1e-6, 1 / np.maximum(spread, _LEAST_SPREAD), 0.0)
    inputs, wanted = _single((x - mean) * scale), _single(losses)
    generator = torch.Generator().manual_seed(seed)
    (n, d), t = inputs.shape, wanted.shape[1]
    hidden = torch.randn(width, d, generator=generator) / d**0.5
    weights = [hidden, torch.zeros(width), torch.zeros(t, width + d)]
    weights.append(wanted.mean(dim=0).clamp(0.002, 0.998).logit())
    for weight in weights:
        weight.requires_grad_()
    stepper = torch.optim.AdamW(weights, lr=_RATE, weight_decay=_DECAY)
    rates = torch.optim.lr_scheduler.LinearLR(stepper, 1.0, 0.0, _STEPS)
    with torch.enable_grad():
        for _ in range(_STEPS):
            rows = torch.randint(n, (min(n, _BATCH),), generator=generator)
            inner = functional.linear(inputs[rows], *weights[:2]).relu()
            found = functional.linear(torch.cat([inner, inputs[rows]], dim=1), *weights[2:])
            loss = functional.binary_cross_entropy_with_logits(found, wanted[rows])
            stepper.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            stepper.step()
            rates.step()
    first, first_bias, last, last_bias = (w.detach().double().numpy() for w in weights)
    direct = last[:, width:] * scale
    return LossNetwork(
        features,
        (first * scale, first_bias - (first * scale) @ mean),
        (np.concatenate([last[:, :width], direct], axis=1), last_bias - direct @ mean),
        classes,
    )


def _mean(each: Sequence[LossNetwork]) -> LossNetwork:
    """One network that predicts the mean of what several of one width predict."""
    width = len(each[0].hidden[1])
    inner = np.concatenate([one.last[0][:, :width] for one in each], axis=1)
    direct = np.sum([one.last[0][:, width:] for one in each], axis=0)
    count = len(each)
    return LossNetwork(
        each[0].features,
        (
            np.concatenate([one.hidden[0] for one in each]),
            np.concatenate([one.hidden[1] for one in each]),
        ),
        (
            np.concatenate([inner, direct], axis=1) / count,
            np.sum([one.last[1] for one in each], axis=0) / count,
        ),
        each[0].classes,
    )


def _single(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def dealt(n: int, folds: int, seed: int) -> IntArray:
    """The fold of each of `n` examples, `(n,)`, at random and as even as can be.

    >>> np.bincount(dealt(10, 3, seed=0)).tolist()
    [4, 3, 3]
    """
    return np.random.default_rng(seed).permutation(n) % folds
