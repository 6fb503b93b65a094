"""What one stage said about some examples: logits, labels with or without confidence, features.

Layer: _core.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from offramp._core.errors import InputError

NO_LABEL = -1  # label of an example that no stage could answer; 0 would be a class
LEAST = 1e-3  # below it confidences are alike, so that rounding leaves the label on top
TINY = 1e-6  # a service that reports confidence 0 or 1 is not taken at its word: log 0 is -inf
_LOG_TINY = float(torch.log(torch.tensor(TINY)))
_ABOVE_ONE = 1e-6  # float32 rounds sums of probabilities to a little above 1
_SUM_TOLERANCE = 1e-2  # services round each of many probabilities
FLOOR = 1e-7  # probabilities below it, zeros among them, are raised to it: log 0 is -inf
_FEW = 64  # numbers that Python adds faster than torch
_BINARY = "Of two classes give both probabilities: (1 - p, p)."

#: Labels of examples that a service has not answered, beside a confidence of NaN: it failed for
#: good; or its spending cap was reached, so it was not asked.
FAILED = -2
CAPPED = -3


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
    if logits.ndim == 2 and logits.shape[0] == 1 and logits.shape[1] <= _FEW:
        return math.isfinite(sum(logits.tolist()[0]))  # a quarter of the time
    return math.isfinite(logits.sum().item())


def log_probabilities(name: str, given: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Logarithms of probabilities, float32; the last axis is that of the classes.

    Zeros, and all that is below `FLOOR`, are raised to it; rows are divided by their sum.

    Args:
        name: Whose they are, for messages.
        given: `(..., c)`, at least two axes.

    Raises:
        InputError: If one is outside [0, 1], or a row does not sum to 1 within 0.01.

    >>> log_probabilities("p", torch.tensor([[0.5, 0.5]]))
    tensor([[-0.6931, -0.6931]])
    """
    given = given.float()
    if torch.compiler.is_compiling():  # a graph cannot look at values
        return (given / given.sum(dim=-1, keepdim=True)).clamp(min=FLOOR).log()
    outside = ~((given >= -_ABOVE_ONE) & (given <= 1 + _ABOVE_ONE))  # True for NaN
    if bool(outside.any()):
        raise InputError(
            f"{name} must be in [0, 1], got {float(given[outside][0])!r}; scores of any other kind "
            "are logits (from_logits, outputs='logits')."
        )
    if given.dim() < 2:
        raise InputError(
            f"{name} must have one probability for each class, (examples, classes), got shape "
            f"{tuple(given.shape)}. {_BINARY}"
        )
    total = given.sum(dim=-1, keepdim=True)
    wrong = (total - 1).abs().squeeze(-1) > _SUM_TOLERANCE
    if bool(wrong.any()):
        raise InputError(
            f"{name} must sum to 1 over the classes, got {float(total[wrong][0]):g} for example "
            f"{int(wrong.nonzero()[0, 0])}. {_BINARY}"
        )
    return (given / total).clamp(min=FLOOR).log()


def labels_with_confidence(
    labels: Int[Tensor, " m"],
    confidence: Float[Tensor, " m"],
    classes: int,
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
    sure = confidence
    if len(sure) and not _is_within(sure):
        outside = (sure < -TINY) | (sure > 1 + TINY)  # False for NaN
        if bool(outside.any()):
            raise InputError(f"confidence must be in [0, 1], got {float(sure[outside][0])!r}.")
        sure = sure.clamp(0.0, 1.0)  # rounding by a little is cut; NaN stays
    return StageOutput(classes=classes, ranked=labels.long()[:, None], confidence=sure)


def _is_within(values: Float[Tensor, " m"]) -> bool:
    """Whether all are in [0, 1]; False if one is NaN."""
    low, high = values.aminmax()
    return low.item() >= 0 and high.item() <= 1


def alike(parts: Sequence[Float[Tensor, "m _"]]) -> list[Float[Tensor, "m d"]]:
    """Numbers of stages that give more or fewer, filled up with NaN to the most of them.

    >>> alike([torch.ones(1, 1), torch.ones(1, 2)])
    [tensor([[1., nan]]), tensor([[1., 1.]])]
    """
    widths = [part.shape[1] for part in parts]
    if len(set(widths)) == 1:
        return list(parts)
    most = max(widths)
    return [functional.pad(part, (0, most - part.shape[1]), value=math.nan) for part in parts]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutput:
    """Outputs of one stage for `m` examples; exactly one of the forms.

    Args:
        logits: Unnormalized scores, `(m, c)`, float32.
        ranked: Predicted labels, best first, `(m, r)`, int64; a label outside the classes is
            legitimate (services do that) and simply wrong.
        confidence: Probability that `ranked[:, 0]` is right, `(m,)` in [0, 1], or None; NaN where
            there is no answer.
        features: Of tasks without classes: what a policy sees, `(m, d)`, float32. Where outputs of
            different widths come together, NaN fills up the others.
        classes: Number of classes `c`; 1 with features.
        prices: What each answer cost, `(m,)` float64, where the stage says it.
    """

    classes: int
    logits: Float[Tensor, "m c"] | None = None
    ranked: Int[Tensor, "m r"] | None = None
    confidence: Float[Tensor, " m"] | None = None
    features: Float[Tensor, "m d"] | None = None
    prices: Float[Tensor, " m"] | None = None

    def __len__(self) -> int:
        return self._held.shape[0]

    def check_answers(self, stage: str, wanted: int) -> None:
        """Raise `InputError` unless a stage has answered for each of the examples it was given."""
        if (given := len(self)) != wanted:
            raise InputError(
                f"Stage {stage!r} must answer for each of the {wanted} examples that it was "
                f"given, got {given} answers. A network must keep the batch's rows and their order."
            )

    @property
    def width(self) -> int:
        """Columns of `scores`: the classes, and one for other labels where there are no logits."""
        return self.classes if self.logits is not None else self.classes + 1

    @property
    def scored(self) -> bool:
        """True where there are numbers to decide on: logits, a confidence or features."""
        return self.logits is not None or self.confidence is not None or self.features is not None

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
        p = self.confidence.to(torch.float32).clamp(LEAST, 1 - TINY)[:, None]  # (m, 1)
        p = torch.maximum(p, 1 / c + (1 - 1 / c) * p / 2)
        first = self.ranked[:, :1]
        inside = first.clamp(0, c - 1) == first
        others = torch.where(inside, max(c - 1, 1), c)  # classes that share the rest
        scores = ((1 - p) / others).log().repeat(1, c + 1)  # (m, c + 1)
        scores[:, c] = _LOG_TINY
        return scores.scatter_(1, torch.where(inside, first, c), p.log())

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
        if m == self.ranked.shape[1]:
            return self.ranked  # a view costs more than the rest
        return self.ranked[:, :m]

    def best(self) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"] | None]:
        """The label on top, and how sure it is: of log-probabilities theirs, else as was said.

        Without classes the label is 0.
        """
        if self.features is not None:
            return torch.zeros(len(self), dtype=torch.int64, device=self.device), None
        if self.logits is None:
            return self.top(1)[:, 0], self.confidence
        best, labels = self.logits.max(dim=1)  # ties go to the first
        return labels, best.exp()

    def finite(self) -> Bool[Tensor, " m"]:
        """True where a stage has answered: all numbers are finite, the confidence is no NaN."""
        if self.logits is not None:
            return finite_rows(self.logits)
        if self.features is not None:
            return finite_rows(self.features)
        if self.confidence is not None:
            return ~self.confidence.isnan()
        return torch.ones(len(self), dtype=torch.bool, device=self.device)

    def all_finite(self) -> bool:
        """True if all have been answered; makes the host wait for the device."""
        forms = (self.logits, self.features, self.confidence)
        held = next((form for form in forms if form is not None), None)
        return held is None or sums_up(held) or bool(self.finite().all())

    def priced(self, prices: Float[Tensor, " m"]) -> "StageOutput":
        """The same with what each answer cost.

        Raises:
            InputError: If there is not one price of at least 0 for each.
        """
        if prices.shape != (len(self),) or not bool((prices >= 0).all()):
            raise InputError(
                f"prices must be one number of at least 0 for each of the {len(self)} answers, got "
                f"shape {tuple(prices.shape)}: {prices.tolist()[:3]}"
            )
        return replace(self, prices=prices.double())

    def take(self, index: Tensor) -> "StageOutput":
        """The outputs of some examples, by position or mask."""
        return self._each(lambda values: values[index])

    def placed(self, rows: Int[Tensor, " m"], n: int) -> "StageOutput":
        """The same among `n` examples, at the positions `rows`; what the others hold is void."""
        return self._each(
            lambda values: values.new_zeros(n, *values.shape[1:]).index_copy_(0, rows, values)
        )

    def to(self, device: torch.device) -> "StageOutput":
        """The same on another device."""
        return self._each(lambda values: values.to(device))

    def put(self, rows: Int[Tensor, " m"], part: "StageOutput") -> "StageOutput":
        """The same with other outputs at some positions."""
        return self._each(lambda values, new: values.index_copy(0, rows, new), part)

    def where(self, mask: Bool[Tensor, " m"], other: "StageOutput") -> "StageOutput":
        """These where the mask says so, else those of another of the same form."""
        return self._each(
            lambda a, b: torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b), other
        )

    def nothing(self, m: int) -> "StageOutput":
        """Of this form, what `m` examples have who were not answered: NaN, and label -1."""
        return self._each(
            lambda values: values.new_full(
                (m, *values.shape[1:]), math.nan if values.is_floating_point() else NO_LABEL
            )
        )

    def concat(self, others: "Sequence[StageOutput]") -> "StageOutput":
        """These and others of the same form, in order."""
        return self._each(lambda *parts: torch.cat(parts), *others)

    def gathered(
        self, n: int, others: "Sequence[StageOutput]", rows: Sequence[Tensor]
    ) -> "StageOutput":
        """These and others of the same form, each at its own positions among `n` examples."""

        def put(*parts: Tensor) -> Tensor:
            whole = parts[0].new_empty(n, *parts[0].shape[1:])
            for where, part in zip(rows, parts, strict=True):
                whole.index_copy_(0, where, part)
            return whole

        return self._each(put, *others)

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self._held.device

    @property
    def _held(self) -> Tensor:
        for form in (self.logits, self.ranked, self.features):
            if form is not None:
                return form
        raise InputError("A stage's output must have one of logits, ranked and features, got none.")

    def _each(self, change: Callable[..., Tensor], *others: "StageOutput") -> "StageOutput":
        if self.logits is not None:
            return StageOutput(
                classes=self.classes, logits=change(self.logits, *(o.logits for o in others))
            )
        found = {}
        for name in ("ranked", "confidence", "features", "prices"):
            parts = [getattr(one, name) for one in (self, *others)]
            if all(part is not None for part in parts):  # prices are told by some stages alone
                found[name] = change(*(alike(parts) if name == "features" else parts))
        return StageOutput(classes=self.classes, **found)
