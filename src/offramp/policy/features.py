"""What a decision looks at: statistics of the visited stages' class probabilities.

A feature is a statistic of one distribution: that of a visited stage (temperature-scaled), or the
combined one of all visited stages. Never the label, never the rest of the batch. Everything is
float32, here and at run time, and computed row by row, so a decision does not change with the
batch it is taken in.

Layer: policy.  Source: methods.md 1 (features) and 6 (float32 everywhere).
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offramp._core.checks import check_choice
from offramp._core.errors import InputError
from offramp._core.registry import Registry
from offramp.policy.scalars import FLOOR, MOST_CLASSES, Scalars

COMBINED = -1  # a feature of the combined distribution, not of one stage's
RANKS = 3  # sorted log-probabilities kept as features
_ONE = torch.ones(())


class Distribution:
    """Log-probabilities of `m` examples, with their statistics computed on first use.

    Args:
        log_probs: `(m, c)`, float32, rows normalized.

    >>> sure = Distribution(torch.tensor([[2.0, 0.0]]).log_softmax(dim=1))
    >>> round(sure.max_prob.item(), 3), round(sure.scalars.number("max_prob"), 3)
    (0.881, 0.881)
    """

    def __init__(self, log_probs: Float[Tensor, "m c"]) -> None:
        self._scores, self._temperature = log_probs, _ONE
        self._log_probs: Tensor | None = log_probs
        self._scalars: Scalars | None = None
        self.values: Tensor | None = None

    @classmethod
    def of_scores(
        cls,
        scores: Float[Tensor, "m c"],
        temperature: Float[Tensor, "#m 1"] | Float[Tensor, ""],
        *,
        row: list[float] | None = None,
    ) -> "Distribution":
        """Of scores divided by a temperature; normalized when somebody looks.

        Args:
            scores: Of `m` examples.
            temperature: One number, or one for each example.
            row: The scores of the only example on the host, if they are there already.
        """
        one = cls(scores)
        one._temperature, one._log_probs = temperature, None
        if row is not None:
            one._scalars = _scalars_of(row, temperature)
        return one

    @classmethod
    def of_values(cls, values: Float[Tensor, "m d"]) -> "Distribution":
        """Of a stage that gives numbers instead of probabilities: features "value_0", ..."""
        one = cls(values.new_empty(len(values), 0))
        one.values = values
        return one

    @property
    def log_probs(self) -> Float[Tensor, "m c"]:
        """Log-probabilities, rows normalized."""
        if self._log_probs is None:
            if self._scalars is not None and self._scalars.temperature == 1.0:
                self._log_probs = self._scores.log_softmax(dim=1)  # the same: x / 1 is x
            else:
                self._log_probs = scaled_log_probs(self._scores, self._temperature)
        return self._log_probs

    @property
    def scalars(self) -> Scalars | None:
        """The same of the only example, on the host; None where tensors are the better way.

        That is: of several examples, of many classes, where one is not finite, and of no classes.
        """
        if self._scalars is None:
            m, c = self._scores.shape
            if m == 1 and 0 < c <= MOST_CLASSES:
                self._scalars = _scalars_of(self._scores.tolist()[0], self._temperature)
        return self._scalars

    @cached_property
    def _largest(self) -> tuple[Tensor, ...]:
        """The largest log-probabilities, at least -15, each `(m,)`, the largest first."""
        count = min(RANKS, self.log_probs.shape[1])
        return self.log_probs.topk(count, dim=1).values.clamp(min=FLOOR).unbind(dim=1)

    @cached_property
    def label(self) -> Int[Tensor, " m"]:
        """Predicted label; ties go to the lowest index."""
        return self.log_probs.argmax(dim=1)

    @cached_property
    def max_prob(self) -> Float[Tensor, " m"]:
        """Largest probability, in [1/c, 1]; higher is surer."""
        return self.log_probs.amax(dim=1).exp()

    @cached_property
    def margin(self) -> Float[Tensor, " m"]:
        """Gap between the two largest probabilities, in [0, 1]; higher is surer."""
        return self._largest[0].exp() - self._largest[1].exp()

    @cached_property
    def log_margin(self) -> Float[Tensor, " m"]:
        """Gap between the two largest log-probabilities, in [0, 15]; it does not saturate."""
        return self._largest[0] - self._largest[1]

    @cached_property
    def entropy(self) -> Float[Tensor, " m"]:
        """Entropy in nats, in [0, log c]; lower is surer."""
        return -(self.log_probs.exp() * self.log_probs.clamp(min=-100.0)).sum(dim=1)

    def log_prob(self, rank: int) -> Float[Tensor, " m"]:
        """The `rank`-th largest log-probability (1 is the largest), at least -15."""
        return self._largest[rank - 1]


#: Statistics that a threshold may be set on, with the sign that makes higher surer.
CONFIDENCES: Registry[float] = Registry(
    "confidence", {"max_prob": 1.0, "margin": 1.0, "log_margin": 1.0, "entropy": -1.0}
)

#: Statistics of a distribution, `(m,)`, by name; each computed row by row, in float32.
FEATURES: Registry[Callable[[Distribution], Tensor]] = Registry(
    "feature",
    {
        "max_prob": lambda d: d.max_prob,
        "margin": lambda d: d.margin,
        "log_margin": lambda d: d.log_margin,
        "entropy": lambda d: d.entropy,
        **{
            f"log_prob_{rank}": partial(Distribution.log_prob, rank=rank)
            for rank in range(1, RANKS + 1)
        },
    },
)
_OF_A_NUMBER = "value_"  # what a stage gives that has no classes


def _statistic(of: Distribution, kind: str) -> Tensor:
    if not kind.startswith(_OF_A_NUMBER):
        return FEATURES[kind](of)
    if of.values is None:
        raise InputError(f"{kind!r} is a feature of stages without classes; this one gives scores.")
    number, given = int(kind.removeprefix(_OF_A_NUMBER)), of.values.shape[1]
    if number >= given:
        raise InputError(
            "features must be those that the policy was fitted on, and it reads number "
            f"{number} of a stage, which gives {given} (counted from 0)."
        )
    return of.values[:, number]


@final
@dataclass(frozen=True, order=True, slots=True)
class Feature:
    """One number per example.

    Args:
        kind: One of `FEATURES` ("max_prob", "margin", "log_margin", "entropy", "log_prob_1"...), or
            "agrees_J" (1 where the predicted label equals stage J's), or "predicts_C" (1 where
            the predicted label is class C), or "value_J" (number J of a stage without classes).
        stage: Index of the stage whose distribution it is taken of, or `COMBINED`.

    >>> Feature("margin", 0)
    Feature(kind='margin', stage=0)
    """

    kind: str
    stage: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(agrees|predicts|value)_\d+", self.kind):
            check_choice("kind", self.kind, FEATURES)

    def of(self, distributions: Callable[[int], Distribution]) -> Float[Tensor, " m"]:
        """Its value, given the distribution of each visited stage (and of `COMBINED`)."""
        here = distributions(self.stage)
        if self.kind in FEATURES or self.kind.startswith(_OF_A_NUMBER):
            return _statistic(here, self.kind)
        name, number = self.kind.split("_")
        other = distributions(int(number)).label if name == "agrees" else int(number)
        return (here.label == other).to(torch.float32)

    def scalar(self, here: Scalars, distributions: Callable[[int], Distribution]) -> float | None:
        """Its value for the only example; None: look at tensors.

        Args:
            here: Of the distribution of its stage; no statistic is off by more than its `error`.
            distributions: As in `of`.
        """
        found = here.number(self.kind)
        if found is not None:
            return found
        name, number = _parts(self.kind)
        other: int | None = number
        if name == "agrees":
            there = distributions(number).scalars
            other = None if there is None else there.label
        elif name != "predicts":
            return None
        if here.label is None or other is None:
            return None
        return float(here.label == other)


def confidence_features(path: tuple[int, ...], classes: int, *, combined: bool) -> list[Feature]:
    """The features of the learned policy at the end of `path`.

    Of the present stage the statistics; of each stage before it log margin and agreement; where
    the answer is a combination, its log margin and entropy as well.

    Raises:
        InputError: If `path` is empty.
    """
    if not path:
        raise InputError("path must hold at least one stage, got ().")
    here = path[-1]
    features = [Feature("max_prob", here), Feature("log_margin", here), Feature("entropy", here)]
    features += [Feature(f"log_prob_{r}", here) for r in range(1, min(RANKS, classes) + 1)]
    for j in path[:-1]:
        features += [Feature("log_margin", j), Feature(f"agrees_{j}", here)]
    if combined and len(path) > 1:
        features += [Feature("log_margin", COMBINED), Feature("entropy", COMBINED)]
    return features


@cache
def _parts(kind: str) -> tuple[str, int]:
    """Of "agrees_2" the name and the number; -1 where there is none."""
    name, _, number = kind.rpartition("_")
    return name, int(number) if number.isdigit() else -1


def _scalars_of(row: list[float], temperature: Tensor) -> Scalars | None:
    return Scalars(row, temperature.item()) if math.isfinite(sum(row)) else None


def scaled_log_probs(
    scores: Float[Tensor, "m c"], temperature: Float[Tensor, "#m 1"] | Float[Tensor, ""]
) -> Float[Tensor, "m c"]:
    """Log-probabilities of scores divided by a temperature, or by one for each row."""
    return (scores / temperature).log_softmax(dim=1)
