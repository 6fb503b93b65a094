"""What a label with a confidence says, as rules look at it: three probabilities with their counts.

It stands for the distribution of `StageOutput.scores`, without its c + 1 columns for each example.
Computed in float64 by numpy, whose functions give the same whatever stands beside, and rounded to
float32 at the end.

Layer: policy.  Source: docs/adr/0043.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offramp._core.errors import InputError
from offramp._core.outputs import LEAST, TINY, StageOutput
from offramp._core.types import FloatArray, IntArray
from offramp.policy.features import Distribution, scaled_log_probs
from offramp.policy.scalars import FLOOR, Scalars

_NONE = torch.empty(0, 0)
_LEAST, _MOST = float(np.float32(LEAST)), float(np.float32(1 - TINY))  # as tensors clamp
_IMPOSSIBLE = -100.0  # log-probabilities below it do not count in an entropy


@final
class OfLabels(Distribution):
    """Log-probabilities of `m` examples with a label and a confidence each.

    Args:
        output: Labels and confidences, on the CPU.
        temperature: What their scores are divided by: one number, or one for each, `(m, 1)`.

    >>> said = StageOutput(classes=3, ranked=torch.tensor([[1]]), confidence=torch.tensor([0.9]))
    >>> found = OfLabels(said, torch.tensor(1.0))
    >>> found.label.tolist(), round(found.max_prob.item(), 4), found.log_probs.shape
    ([1], 0.9, torch.Size([1, 4]))
    """

    def __init__(
        self, output: StageOutput, temperature: Float[Tensor, "#m 1"] | Float[Tensor, ""]
    ) -> None:
        super().__init__(_NONE)
        if output.confidence is None:
            raise InputError("Labels without confidences have no probabilities.")
        self._output, self._sure, self._temperature = output, output.confidence, temperature

    @cached_property
    def log_probs(self) -> Float[Tensor, "m c"]:
        """Log-probabilities of the classes and, in one more column, of all other labels."""
        return scaled_log_probs(self._output.scores(), self._temperature)

    @cached_property
    def _labels(self) -> IntArray:
        """The labels, and `c` for those that are no class."""
        first, c = self._output.top(1)[:, 0].numpy(), self._output.classes
        return np.where((first >= 0) & (first < c), first, c)

    @cached_property
    def label(self) -> Int[Tensor, " m"]:
        """The label, or `c` for one that is no class."""
        return torch.from_numpy(self._labels)

    @cached_property
    def _parts(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Log-probability of the label, of each other class, of no class; how many others."""
        c = self._output.classes
        p = np.minimum(np.maximum(self._sure.float().numpy(), LEAST), 1 - TINY).astype(np.float64)
        p = np.maximum(p, 1 / c + (0.5 - 0.5 / c) * p)  # near and below chance raised
        inside = self._labels < c
        others = np.where(inside, c - 1.0, float(c))  # classes that share the rest
        alone = self._temperature.dim() == 0
        divisor = self._temperature.item() if alone else self._temperature.double().numpy()[:, 0]
        other = np.log((1 - p) / (others * p)) / divisor
        odd = np.where(inside, np.log(TINY / p) / divisor, -np.inf)
        top = -np.log1p(others * np.exp(other) + np.exp(odd))
        return top, other + top, odd + top, others

    @property
    def scalars(self) -> Scalars | None:
        """The same of the only example, on the host; None of several, and where there is none."""
        if self._scalars is None and len(self._sure) == 1:
            self._scalars = _scalars_of(
                self._output, self._sure.float().item(), self._temperature.item()
            )
        return self._scalars

    def _statistic(self, kind: str) -> Float[Tensor, " m"]:
        values: FloatArray = _STATISTICS[kind](*self._parts)
        return torch.from_numpy(values.astype(np.float32))

    @cached_property
    def _largest(self) -> tuple[Tensor, ...]:
        return tuple(self._statistic(f"log_prob_{rank}") for rank in (1, 2, 3))

    @cached_property
    def max_prob(self) -> Float[Tensor, " m"]:
        """Probability of the label."""
        return self._statistic("max_prob")

    @cached_property
    def margin(self) -> Float[Tensor, " m"]:
        """Gap between the two largest probabilities, in [0, 1]; higher is surer."""
        return self._statistic("margin")

    @cached_property
    def log_margin(self) -> Float[Tensor, " m"]:
        """Gap between the two largest log-probabilities, in [0, 15]."""
        return self._statistic("log_margin")

    @cached_property
    def entropy(self) -> Float[Tensor, " m"]:
        """Entropy in nats, in [0, log(c + 1)]; lower is surer."""
        return self._statistic("entropy")


def _scalars_of(output: StageOutput, sure: float, temperature: float) -> Scalars | None:
    if math.isnan(sure):
        return None
    c, label = output.classes, output.top(1).tolist()[0][0]
    p = min(max(sure, _LEAST), _MOST)
    p = max(p, 1 / c + (0.5 - 0.5 / c) * p)  # near and below chance raised
    if not 0 <= label < c:
        return Scalars([math.log(p), math.log((1 - p) / c)], temperature, counts=[1, c], label=c)
    others = c - 1.0
    row = [math.log(p), math.log((1 - p) / others), math.log(TINY)]
    return Scalars(row, temperature, counts=[1, others, 1], label=label)


def _surprise(log_prob: FloatArray) -> FloatArray:
    return -np.exp(log_prob) * np.maximum(log_prob, _IMPOSSIBLE)


def _third(top: FloatArray, other: FloatArray, odd: FloatArray, others: FloatArray) -> FloatArray:
    return np.where(others == 1, np.minimum(other, odd), other)


#: Each of `_parts`: the label, each other class, no class, and how many others; in float64.
_STATISTICS: dict[str, Callable[[FloatArray, FloatArray, FloatArray, FloatArray], FloatArray]] = {
    "max_prob": lambda top, *_: np.exp(top),
    "margin": lambda top, other, odd, _: np.exp(top) - np.exp(np.maximum(other, odd)),
    "log_margin": lambda top, other, odd, _: (
        np.maximum(top, FLOOR) - np.maximum(np.maximum(other, odd), FLOOR)
    ),
    "entropy": lambda top, other, odd, others: (
        _surprise(top) + others * _surprise(other) + _surprise(odd)
    ),
    "log_prob_1": lambda top, *_: np.maximum(top, FLOOR),
    "log_prob_2": lambda top, other, odd, _: np.maximum(np.maximum(other, odd), FLOOR),
    "log_prob_3": lambda *parts: np.maximum(_third(*parts), FLOOR),
}


def distribution_of(
    output: StageOutput, temperature: Float[Tensor, "#m 1"] | Float[Tensor, ""]
) -> Distribution:
    """What a stage says as rules look at it: scaled probabilities, or the numbers that it gives."""
    if output.features is not None:
        return Distribution.of_values(output.features)
    sure = output.confidence
    if sure is not None and sure.device.type == "cpu":  # elsewhere the host would wait
        return OfLabels(output, temperature)
    return Distribution.of_scores(output.scores(), temperature)
