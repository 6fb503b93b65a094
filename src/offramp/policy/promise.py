"""What may be promised of a policy on new examples; a certificate gives it, a bundle carries it.

Layer: policy.
"""

from dataclasses import dataclass
from typing import final

from offramp._core.checks import check_choice, check_not_negative
from offramp._core.errors import InputError
from offramp._core.schema import omitted

Label = str | int  # a class by name or index
Numbers = dict[str, float | int | str | None]

PROMISES = (
    "accuracy_drop",
    "negative_flips",
    "error",
    "disagreement",
    "recall",
    "cost",
    "over_budget",
)


@final
@dataclass(frozen=True, kw_only=True)
class Limit:
    """The largest value that one risk may have on new examples.

    Args:
        risk: One of `PROMISES`: "accuracy_drop", accuracy lost against the reference;
            "negative_flips", new errors; "error", wrong answers; "disagreement", first labels that
            are not the reference's; "recall", recall lost against the reference by any class;
            "cost", mean cost over the reference's; "over_budget", examples that cost more than
            `budget`.
        at_most: At least 0; in (0, 1) where it is promised.
        label: With "recall": the class that is meant, by name or index; None for every class.
        budget: With "over_budget": what one example may cost, >= 0, in the unit of the trace.

    Raises:
        InputError: If the risk is unknown, the limit negative or not finite, or a budget is missing
            or not asked for.

    >>> Limit(risk="cost", at_most=0.5).words("resnet56")
    "spends at most 50 % of resnet56's cost on average"
    """

    risk: str
    at_most: float
    label: Label | None = None
    budget: float | None = omitted(None)

    def __post_init__(self) -> None:
        check_choice("risk", self.risk, PROMISES)
        if (self.budget is not None) != (self.risk == "over_budget"):
            raise InputError(
                f"budget belongs to the risk 'over_budget', got {self.budget!r} for {self.risk!r}. "
                'For example {"over_budget": {0.02: 0.05}}: at most 5 % cost more than 0.02.'
            )
        if self.budget is not None:
            check_not_negative("budget", self.budget)
        at_most = check_not_negative(limit_name(self.risk, self.label), self.at_most)
        object.__setattr__(self, "at_most", at_most)

    @property
    def text(self) -> str:
        """Risk and limit, briefly: "accuracy_drop <= 0.01"."""
        of = "" if self.label is None else f" of class {self.label!r}"
        of += "" if self.budget is None else f" of {self.budget:g}"
        return f"{self.risk}{of} <= {self.at_most:g}"

    def words(
        self, reference: str, *, top: int = 1, of_losses: bool = False, unit: str = ""
    ) -> str:
        """What a candidate does that keeps it, in words.

        Args:
            reference: Name of the reference.
            top: The number of labels among which the right one has to be.
            of_losses: Whether losses were recorded, and not labels.
            unit: Of a budget.
        """
        share = points_text(self.at_most)
        points = f"{share} {'point' if share == '1' else 'points'}"
        a, accuracy = ("an", "accuracy") if top == 1 else ("a", f"top-{top} accuracy")
        whose = "any class" if self.label is None else f"class {self.label!r}"
        of_loss = {
            "accuracy_drop": f"has a mean loss at most {self.at_most:g} above that of {reference}",
            "negative_flips": f"loses at most {self.at_most:g} more than {reference} on average, "
            "gains not counted",
            "error": f"has a mean loss of at most {self.at_most:g}",
        }
        if of_losses and self.risk in of_loss:
            return of_loss[self.risk]
        return {
            "over_budget": f"costs more than {self.budget or 0.0:g} {unit} for at most {share} % "
            "of the examples",
            "accuracy_drop": f"loses at most {points} of {accuracy} against {reference} alone",
            "negative_flips": f"makes at most {points} of errors that {reference} alone avoids",
            "error": f"has {a} {accuracy} of at least {points_text(1 - self.at_most)} %",
            "disagreement": f"differs from {reference} alone in at most {share} % of its answers",
            "recall": f"loses at most {points} of recall of {whose} against {reference} alone",
            "cost": f"spends at most {share} % of {reference}'s cost on average",
        }[self.risk]


@final
@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """A promise: on new examples no limit is exceeded.

    It is wrong with probability `delta` at most, over the draw of the examples. It is that of
    `limits` and of nothing tighter: a limit computed for the candidate alone would not hold for
    one that was chosen among many.

    Args:
        limits: The largest value of each risk that is promised; all hold at once.
        delta: Largest chance that the promise is wrong, in (0, 1).
        p_value: The smallest delta with which this candidate would have been reached.
        tested: How many candidates were tested, the one that failed included.
        n: Number of examples that were tested on.
        split: Which part of a trace they are.
        fingerprint: SHA-256 of their ids, labels and recorded outputs.
        class_weights: Share of each class in future over its share in these examples, `(c,)`; None
            where the shares stay.
        assumptions: Under what the promise holds, one sentence each.
    """

    limits: tuple[Limit, ...]
    delta: float
    p_value: float
    tested: int
    n: int
    split: str
    fingerprint: str
    class_weights: tuple[float, ...] | None
    assumptions: tuple[str, ...]

    @property
    def bound(self) -> float:
        """What is promised of the first risk."""
        return self.limits[0].at_most

    @property
    def numbers(self) -> Numbers:
        """Its figures as plain values, by name."""
        names = ("delta", "p_value", "n", "tested", "fingerprint", "split")
        weights = {} if self.class_weights is None else {"class_weights": self.class_weights}
        return {
            **{name: getattr(self, name) for name in names},
            **{name: " ".join(map(str, values)) for name, values in weights.items()},
            "assumptions": " ".join(self.assumptions),
        }


def limit_name(risk: str, label: Label | None) -> str:
    """For messages: "the limit of 'cost'"."""
    return f"the limit of {risk!r}" + ("" if label is None else f" of class {label!r}")


def points_text(share: float) -> str:
    """A share as points of accuracy or as per cent: 0.015 is "1.5"."""
    return f"{100 * share:.2f}".rstrip("0").rstrip(".")
