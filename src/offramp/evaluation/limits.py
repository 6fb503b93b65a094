"""Limits of risks: what a user may ask a certificate to promise, and how it is said.

Layer: evaluation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from offramp._core.checks import (
    check_choice,
    check_not_negative,
    check_number,
    check_probability,
)
from offramp._core.errors import InputError
from offramp._core.schema import omitted

Label = str | int | float  # a class by name or index; of "over_budget" a budget
Limits = Mapping[str, float | Mapping[Label, float]]

PROMISES = (
    "accuracy_drop",
    "negative_flips",
    "error",
    "disagreement",
    "recall",
    "cost",
    "over_budget",
)
OF_COSTS = ("cost", "over_budget")
UNLABELED = ("disagreement", "cost", "over_budget")  # those that take no labels


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
        at_most = check_not_negative(_named(self.risk, self.label), self.at_most)
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


def read_limits(limits: Limits) -> tuple[Limit, ...]:
    """The limits that a mapping names.

    Args:
        limits: From risks to the largest value of each, in (0, 1); "recall" may also have a
            mapping from classes to values, and "over_budget" has one from budgets to shares.

    Raises:
        InputError: If there is none, a risk is unknown, or a limit lies outside (0, 1).

    >>> [limit.text for limit in read_limits({"accuracy_drop": 0.01, "recall": {"cat": 0.03}})]
    ['accuracy_drop <= 0.01', "recall of class 'cat' <= 0.03"]
    """
    if not isinstance(limits, Mapping):
        raise InputError(
            f"limits must be a mapping from risks to limits, got {limits!r}. For example "
            '{"accuracy_drop": 0.01}.'
        )
    found: list[Limit] = []
    for risk, value in limits.items():
        if isinstance(value, Mapping) and risk == "over_budget":
            for budget, share in value.items():
                at_most = check_probability(f"the share over a budget of {budget}", share)
                budget = check_number("budget", budget, "at least 0")
                found.append(Limit(risk=risk, at_most=at_most, budget=budget))
        elif isinstance(value, Mapping):
            if risk != "recall":
                raise InputError(
                    f"Only the limits of 'recall' and 'over_budget' may be several, got "
                    f"{dict(value)!r} for {risk!r}."
                )
            found += [_promised(risk, v, label) for label, v in value.items()]
        else:
            found.append(_promised(risk, value))
    if not found:
        raise InputError(
            f"limits must name at least one risk, got {dict(limits)!r}. For example "
            '{"accuracy_drop": 0.01} allows a loss of one point of accuracy.'
        )
    return tuple(found)


def _promised(risk: str, at_most: float, label: Label | None = None) -> Limit:
    """A limit that can be promised: one of 0 would take more examples than there are."""
    check_choice("risk", risk, PROMISES)
    at_most = check_probability(_named(risk, label), at_most)
    return Limit(risk=risk, at_most=at_most, label=label)


def _named(risk: str, label: Label | None) -> str:
    return f"the limit of {risk!r}" + ("" if label is None else f" of class {label!r}")


def points_text(share: float) -> str:
    """A share as points of accuracy or as per cent: 0.015 is "1.5"."""
    return f"{100 * share:.2f}".rstrip("0").rstrip(".")


def joined(parts: list[str]) -> str:
    """Parts of a sentence: "a, b and c"."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
