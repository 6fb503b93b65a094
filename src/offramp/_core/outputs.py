"""What one stage said about some examples: logits, labels with or without confidence, features.

Layer: _core.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from offramp._core.errors import InputError

_LEAST = 1e-3  # below it confidences are alike, so that rounding leaves the label on top
_TINY = 1e-6  # a service that reports confidence 0 or 1 is not taken at its word: log 0 is -inf


def best_labels(scores: Float[Tensor, "m c"], count: int) -> Int[Tensor, "m r"]:
    """The `count` classes of highest score, best first; ties go to the lowest index.

    >>> best_labels(torch.tensor([[1.0, 2.0, 2.0]]), 2)
    tensor([[1, 2]])
    """
    if count == 1:  # much faster than sorting
        return scores.argmax(dim=1, keepdim=True)
    if torch.compiler.is_compiling():  # ONNX has no stable sort, but its TopK keeps the order
        return scores.topk(count, dim=1).indices
    # stable: equal scores keep the order of their index
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]


def finite_rows(logits: Float[Tensor, "m c"]) -> Bool[Tensor, " m"]:
    """True where all logits are finite.

    >>> finite_rows(torch.tensor([[0.0, 1.0], [torch.nan, 0.0], [0.0, -torch.inf]]))
    tensor([ True, False, False])
    """
    return logits.abs().amax(dim=1) < torch.inf  # NaN is the largest, and compares false


def sums_up(logits: Tensor) -> bool:
    """Whether the sum is finite, as it is only if all terms are; finite ones may overflow."""
    return math.isfinite(logits.sum().item())


def labels_with_confidence(
    labels: Int[Tensor, " m"], confidence: Float[Tensor, " m"], classes: int
) -> "StageOutput":
    """What a stage says that answers with labels and confidences.

    Args:
        labels: `(m,)`, any whole numbers.
        confidence: Probability that each is right, in [0, 1]; NaN where there is no answer.
        classes: Number of classes `c`, at least 2.

    Raises:
        InputError: If the lengths differ, or a confidence is outside [0, 1].
    """
    if labels.dim() != 1 or confidence.shape != labels.shape or labels.is_floating_point():
        raise InputError(
            "A stage that answers with labels and confidences must give whole numbers (m,) and "
            f"probabilities (m,), got shapes {tuple(labels.shape)} and {tuple(confidence.shape)} "
            f"of {labels.dtype} and {confidence.dtype}."
        )
    outside = (confidence < -_TINY) | (confidence > 1 + _TINY)  # False for NaN
    if bool(outside.any()):
        raise InputError(f"confidence must be in [0, 1], got {float(confidence[outside][0])!r}.")
    return StageOutput(classes=classes, ranked=labels.long()[:, None], confidence=confidence)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutput:
    """Outputs of one stage for `m` examples; exactly one of the forms.

    Args:
        logits: Unnormalized scores, `(m, c)`, float32.
        ranked: Predicted labels, best first, `(m, r)`, int64; a label outside the classes is
            legitimate (services do that) and simply wrong.
        confidence: Probability that `ranked[:, 0]` is right, `(m,)` in [0, 1], or None.
        features: Of tasks without classes: what a policy sees, `(m, d)`, float32.
        classes: Number of classes `c`; 1 with features.
    """

    classes: int
    logits: Float[Tensor, "m c"] | None = None
    ranked: Int[Tensor, "m r"] | None = None
    confidence: Float[Tensor, " m"] | None = None
    features: Float[Tensor, "m d"] | None = None

    def __len__(self) -> int:
        forms = (self.logits, self.ranked, self.features)
        held = next((form for form in forms if form is not None), None)
        return 0 if held is None else len(held)

    @property
    def width(self) -> int:
        """Columns of `scores`: the classes, and one for other labels where there are no logits."""
        return self.classes if self.logits is not None else self.classes + 1

    @property
    def scored(self) -> bool:
        """True where there are numbers to decide on: logits, a confidence or features."""
        return any(held is not None for held in (self.logits, self.confidence, self.features))

    def scores(self) -> Float[Tensor, "m k"]:
        """Logits, or what a label with a confidence amounts to.

        A label with confidence p becomes log p at the label and log((1 - p)/(c - 1)) elsewhere,
        with one more column for labels outside the classes, so `k` is `c + 1` there. Services
        report confidences below chance, 1/c, for labels they stand by: near and below it p is
        raised, in unchanged order, so that the label stays the most likely one.

        Raises:
            InputError: If there is only a ranking.

        Source: methods.md 2 (how a binary head stands in a trace).
        """
        if self.logits is not None:
            return self.logits
        if self.ranked is None or self.confidence is None:
            raise InputError(
                "These outputs are rankings without logits or confidences; only policies that "
                "compare predicted labels (agreement) and the oracles can use them."
            )
        c = self.classes
        p = self.confidence.to(torch.float32).clamp(_LEAST, 1 - _TINY)  # (m,)
        p = torch.maximum(p, 1 / c + (1 - 1 / c) * p / 2)
        first = self.ranked[:, 0]
        inside = (first >= 0) & (first < c)
        others = torch.where(inside, max(c - 1, 1), c)  # classes that share the rest
        scores = ((1 - p) / others).log()[:, None].repeat(1, c + 1)  # (m, c + 1)
        column = torch.where(inside, first, c)
        scores[:, c] = torch.log(torch.tensor(_TINY))
        return scores.scatter(1, column[:, None], p.log()[:, None])

    def top(self, m: int) -> Int[Tensor, "n m"]:
        """The `m` best labels, best first; ties go to the lowest index.

        Raises:
            InputError: If fewer labels are known.
        """
        if self.logits is not None:
            if m > self.classes:
                raise InputError(f"top {m} of {self.classes} classes does not exist.")
            return best_labels(self.logits, m)
        if self.ranked is None or m > self.ranked.shape[1]:
            have = 0 if self.ranked is None else self.ranked.shape[1]
            raise InputError(f"top {m} is asked for, but only {have} ranked labels are known.")
        return self.ranked[:, :m]

    def take(self, index: Tensor) -> "StageOutput":
        """The outputs of some examples, by position or mask."""
        return self._each(lambda values: values[index])

    def placed(self, rows: Int[Tensor, " m"], n: int) -> "StageOutput":
        """The same among `n` examples, at the positions `rows`; what the others hold is void."""
        return self._each(
            lambda values: values.new_zeros(n, *values.shape[1:]).index_copy_(0, rows, values)
        )

    def concat(self, others: "Sequence[StageOutput]") -> "StageOutput":
        """These and others of the same form, in order."""
        each = [self, *others]
        return StageOutput(
            classes=self.classes,
            **{
                name: torch.cat([getattr(one, name) for one in each])
                for name in ("logits", "ranked", "confidence", "features")
                if getattr(self, name) is not None
            },
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> "StageOutput":
        if self.logits is not None:
            return StageOutput(classes=self.classes, logits=change(self.logits))
        return StageOutput(
            classes=self.classes,
            ranked=None if self.ranked is None else change(self.ranked),
            confidence=None if self.confidence is None else change(self.confidence),
            features=None if self.features is None else change(self.features),
        )
