"""Rules: one real number per example; an action is taken where it is at least 0.

A rule decides whether to leave, or which of two stages to visit next. Rules are modules made of
tensors only, so that replay, runtime and an exported graph run the same arithmetic. NaN compares
false, so an example with broken outputs never leaves by a rule.

Layer: policy.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp._core.checks import check_fraction, check_seed
from offramp._core.errors import InputError
from offramp._core.keys import keyed_uniform
from offramp._core.registry import Registry
from offramp._core.schema import OneOf, stored
from offramp.policy.features import Distribution, Feature
from offramp.policy.scalars import UNIT
from offramp.policy.situation import Rule as Rule
from offramp.policy.situation import Situation
from offramp.policy.stopping import Stopping

_NEAR_ZERO, _NEAR_OVERFLOW = 1e-36, 1e37  # of single precision


@final
@stored("constant")
class Constant(nn.Module):
    """Always or never.

    Args:
        take: True takes the action for everyone.
    """

    free = True

    def __init__(self, take: bool) -> None:
        super().__init__()
        self.take = take

    def score(self, at: Situation) -> Float[Tensor, " m"]:
        """1 for always, -1 for never."""
        return torch.full(at.ids.shape, 1.0 if self.take else -1.0, device=at.ids.device)


@final
@stored("linear")
class Linear(nn.Module):
    """A weighted sum of features plus a bias; a threshold is the case of one feature.

    Args:
        features: What is summed, `(d,)`.
        weights: Their weights, `(d,)`; rounded to float32.
        bias: Added at the end; rounded to float32.
    """

    free = False
    weights: Tensor
    bias: Tensor

    def __init__(self, features: Sequence[Feature], weights: Sequence[float], bias: float) -> None:
        super().__init__()
        if len(features) != len(weights):
            raise InputError(
                f"weights must have one entry per feature ({len(features)}), got {len(weights)}."
            )
        self.features = tuple(features)
        self.register_buffer("weights", torch.tensor(list(weights), dtype=torch.float32))
        self.register_buffer("bias", torch.tensor(bias, dtype=torch.float32))
        self._seen: tuple[Tensor | None, int, Tensor | None, int] = (None, 0, None, 0)
        self._numbers: tuple[list[float], float] = ([], 0.0)

    @classmethod
    def threshold(cls, feature: Feature, value: float, *, sign: float = 1.0) -> "Linear":
        """Take the action where `sign * feature >= sign * value`."""
        return cls([feature], [sign], -sign * value)

    def score(self, at: Situation) -> Float[Tensor, " m"]:
        """Weighted sum plus bias, summed in the order of the features."""
        return linear_score([f.of(at.distribution) for f in self.features], self.weights, self.bias)

    def takes(self, at: Situation) -> bool:
        """Whether the score of the only example is at least 0, by plain numbers where these tell.

        They are doubles. Where tensors may round to the other side of 0, tensors are asked.

        Source: docs/adr/0057.
        """
        weights, total = self._on_host()
        size, doubt = abs(total), _NEAR_ZERO
        stage, here = None, None
        for feature, weight in zip(self.features, weights, strict=True):
            if feature.stage != stage:  # most are of the stage of the one before
                stage = feature.stage
                here = at.distribution(stage).scalars
            found = None if here is None else feature.scalar(here, at.distribution)
            if found is None:
                break
            value, error = found
            term = weight * value
            total += term
            size += abs(term)
            doubt += error * abs(weight)
        else:  # a sum of k terms is rounded k times, and so is each product
            doubt += 2 * UNIT * (len(weights) + 2) * size
            if abs(total) > doubt and size < _NEAR_OVERFLOW:
                return total > 0
        return self.score(at).item() >= 0

    def _on_host(self) -> tuple[list[float], float]:
        """Weights and bias as numbers, kept for as long as the tensors stay as they are."""
        weights, bias = self._buffers["weights"], self._buffers["bias"]
        if weights is None or bias is None or weights.is_inference() or bias.is_inference():
            return self.weights.tolist(), self.bias.item()  # such tensors do not tell of changes
        w, of_weights, b, of_bias = self._seen
        if (
            w is not weights
            or b is not bias
            or of_weights != weights._version
            or of_bias != bias._version
        ):
            self._seen = (weights, weights._version, bias, bias._version)
            self._numbers = (weights.tolist(), bias.item())
        return self._numbers


def linear_score(
    columns: Sequence[Float[Tensor, " m"]], weights: Float[Tensor, " d"], bias: Float[Tensor, ""]
) -> Float[Tensor, " m"]:
    """Weighted sum of columns plus bias, in float32.

    Column by column rather than as a matrix product: BLAS picks kernels by batch size, and the
    last bit of a score must not depend on the rest of the batch.
    """
    first, *others = weights.unbind()
    total = columns[0] * first
    for column, weight in zip(columns[1:], others, strict=True):
        total += column * weight
    return total + bias


@final
@stored("random")
class Random(nn.Module):
    """Takes the action for a share of the examples, drawn by key: the random policy.

    Args:
        rate: Probability of the action, in [0, 1].
        seed: Of the draw; an example's number depends on (seed, id, stage) alone.
        stage: Index of the stage after which is decided.
    """

    free = True

    def __init__(self, rate: float, seed: int, stage: int) -> None:
        super().__init__()
        self.rate = check_fraction("rate", rate)
        self.seed = check_seed(seed)
        self.stage = stage

    def score(self, at: Situation) -> Float[Tensor, " m"]:
        """`rate` minus the example's number in [0, 1), but -1 at rate 0."""
        if self.rate == 0.0:
            return torch.full(at.ids.shape, -1.0, device=at.ids.device)
        drawn = keyed_uniform(at.ids, self.seed, self.stage)
        return (self.rate - drawn).to(torch.float32)


@final
@stored("agreement")
class Agreement(nn.Module):
    """Takes the action where two stages agree: needs labels only, no confidence.

    Args:
        stages: The two stages compared.
        depth: How many of the best labels are compared.
        shared: At least so many of them must be common to both; with `depth = 1` the two labels
            must be equal.
    """

    free = False

    def __init__(self, stages: tuple[int, int], depth: int = 1, shared: int = 1) -> None:
        super().__init__()
        if not 1 <= shared <= depth:
            raise InputError(f"shared must be in [1, depth = {depth}], got {shared}.")
        self.stages, self.depth, self.shared = stages, depth, shared

    def score(self, at: Situation) -> Float[Tensor, " m"]:
        """Number of common labels minus the number asked for."""
        first, second = (at.ranked(stage, self.depth) for stage in self.stages)
        common = (first[:, :, None] == second[:, None, :]).any(dim=2).sum(dim=1)
        return (common - self.shared).to(torch.float32)


@final
@stored("class_threshold")
class ClassThreshold(nn.Module):
    """Takes the action where one stage answers one class with at least a given probability.

    Compared are log-odds, log p - log(1 - p): near 1 the probabilities themselves round to ties.

    Args:
        stage: Index of the stage that is asked; nothing else is looked at.
        target: The class, an index.
        log_odds: The threshold alpha as log(alpha / (1 - alpha)), finite; rounded to float32.

    Source: methods.md 2; Bonato and Bouganis, section 3.3.
    """

    free = False
    log_odds: Tensor

    def __init__(self, stage: int, target: int, log_odds: float) -> None:
        super().__init__()
        if target < 0:
            raise InputError(f"target must be the index of a class, got {target}.")
        if not math.isfinite(log_odds):
            raise InputError(
                f"log_odds must be finite, got {log_odds!r}; to leave never or always take a "
                "Constant rule."
            )
        self.stage, self.target = stage, target
        self.register_buffer("log_odds", torch.tensor(log_odds, dtype=torch.float32))

    def score(self, at: Situation) -> Float[Tensor, " m"]:
        """Log-odds of the class minus the threshold; -infinity where another class is likelier."""
        return class_log_odds(at.distribution(self.stage), self.target) - self.log_odds


def class_log_odds(distribution: Distribution, target: int) -> Float[Tensor, " m"]:
    """Log-odds of one class, log p - log(1 - p); -infinity where another class is likelier.

    Args:
        distribution: Of `m` examples over `c` classes.
        target: The class, in [0, c).

    Raises:
        InputError: If there is no such class.

    >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    >>> class_log_odds(Distribution(logits.log_softmax(dim=1)), 0)
    tensor([1.3069,   -inf])
    """
    log_probs = distribution.log_probs
    if not 0 <= target < log_probs.shape[1]:
        raise InputError(f"target must be in [0, {log_probs.shape[1]}), got {target}.")
    others = torch.cat([log_probs[:, :target], log_probs[:, target + 1 :]], dim=1)
    odds = log_probs[:, target] - others.logsumexp(dim=1)
    return torch.where(distribution.label == target, odds, -torch.inf)


#: What decides, by the "kind" that stands in a file; a class of yours is marked with `stored`.
RULES: Registry[Callable[..., Rule]] = Registry(
    "rule",
    {
        "constant": Constant,
        "linear": Linear,
        "random": Random,
        "agreement": Agreement,
        "class_threshold": ClassThreshold,
        "stopping": Stopping,
    },
)

AnyRule = Annotated[Rule, OneOf(RULES)]
