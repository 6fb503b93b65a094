"""Limits of risks: what a user may ask a certificate to promise, and how it is said.

Layer: evaluation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from offramp._core.checks import check_choice, check_not_negative, check_probability
from offramp._core.errors import InputError

Label = str | int  # a class by name or index
Limits = Mapping[str, float | Mapping[Label, float]]

PROMISES = ("accuracy_drop", "negative_flips", "error", "disagreement", "recall", "cost")
UNLABELED = ("disagreement", "cost")  # those that take no labels


@final
@dataclass(frozen=True, kw_only=True)
class Limit:
    """The largest value that one risk may have on new examples.

    Args:
        risk: One of `PROMISES`: "accuracy_drop", accuracy lost against the reference;
            "negative_flips", new errors; "error", wrong answers; "disagreement", first labels that
            are not the reference's; "recall", recall lost against the reference by any class;
            "cost", mean cost over the reference's.
        at_most: At least 0; in (0, 1) where it is promised.
        label: With "recall": the class that is meant, by name or index; None for every class.

    Raises:
        InputError: If the risk is unknown, or the limit negative or not finite.

    >>> Limit(risk="cost", at_most=0.5).words("resnet56")
    "spends at most 50 % of resnet56's cost on average"
    """

    risk: str
    at_most: float
    label: Label | None = None

    def __post_init__(self) -> None:
        check_choice("risk", self.risk, PROMISES)
        at_most = check_not_negative(_named(self.risk, self.label), self.at_most)
        object.__setattr__(self, "at_most", at_most)

    @property
    def text(self) -> str:
        """Risk and limit, briefly: "accuracy_drop <= 0.01"."""
        of = "" if self.label is None else f" of class {self.label!r}"
        return f"{self.risk}{of} <= {self.at_most:g}"

    def words(self, reference: str, *, top: int = 1) -> str:
        """What a candidate does that keeps it, in words.

        Args:
            reference: Name of the reference.
            top: The number of labels among which the right one has to be.
        """
        share = points_text(self.at_most)
        points = f"{share} {'point' if share == '1' else 'points'}"
        a, accuracy = ("an", "accuracy") if top == 1 else ("a", f"top-{top} accuracy")
        whose = "any class" if self.label is None else f"class {self.label!r}"
        return {
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
            mapping from classes to values.

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
        if isinstance(value, Mapping):
            if risk != "recall":
                raise InputError(
                    f"Only the limit of 'recall' may be one for each class, got {dict(value)!r} "
                    f"for {risk!r}."
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
