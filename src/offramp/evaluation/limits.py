"""Limits of risks: what a user may ask a certificate to promise, and how it is said.

Layer: evaluation.
"""

from collections.abc import Mapping

from offramp._core.checks import check_choice, check_number, check_probability
from offramp._core.errors import InputError
from offramp.policy.promise import PROMISES, Label, Limit, limit_name

#: From risks to the largest value of each; of "recall" also by class, of "over_budget" by budget.
Limits = Mapping[str, float | Mapping[str | int | float, float]]

OF_COSTS = ("cost", "over_budget")
UNLABELED = ("disagreement", "cost", "over_budget")  # those that take no labels


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
            found += [_promised(risk, v, _label(label)) for label, v in value.items()]
        else:
            found.append(_promised(risk, value))
    if not found:
        raise InputError(
            f"limits must name at least one risk, got {dict(limits)!r}. For example "
            '{"accuracy_drop": 0.01} allows a loss of one point of accuracy.'
        )
    return tuple(found)


def _label(label: object) -> Label:
    if isinstance(label, str | int):
        return label
    raise InputError(f"A class must be a name or an index, got {label!r}.")


def _promised(risk: str, at_most: float, label: Label | None = None) -> Limit:
    """A limit that can be promised: one of 0 would take more examples than there are."""
    check_choice("risk", risk, PROMISES)
    at_most = check_probability(limit_name(risk, label), at_most)
    return Limit(risk=risk, at_most=at_most, label=label)


def joined(parts: list[str]) -> str:
    """Parts of a sentence: "a, b and c"."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
