"""Which test each limit gets, and weights of classes where their shares change in a known way.

Layer: evaluation.  Source: methods.md 4 (known label shift: weighted loss over the largest weight).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from offramp._core.checks import check_number
from offramp._core.errors import InputError
from offramp.evaluation.calibration import Calibration
from offramp.evaluation.cost_tests import BudgetTest, CostTest
from offramp.evaluation.results import Evaluation
from offramp.evaluation.risk_tests import (
    CountTest,
    GradedTest,
    RecallTest,
    RiskTest,
    WeightedTest,
    class_table,
)
from offramp.policy.promise import Label, Limit

ClassWeights = Mapping[Label, float] | Sequence[float]

_OFF = 5.0  # standard errors that the mean weight of the examples may lie from 1


def risk_tests(
    limits: Sequence[Limit],
    calibration: Calibration | None,
    *,
    delta: float,
    class_weights: ClassWeights | None = None,
) -> list[RiskTest]:
    """The test of each limit; without examples only of those that need no classes.

    Args:
        limits: What is to be kept.
        calibration: The examples to test on, or None.
        delta: Level of the tests.
        class_weights: Known factors by which classes become more frequent.

    Raises:
        InputError: If a class is unknown, or weights are given without labels.
    """
    weights = None
    if class_weights is not None:
        if calibration is not None and not calibration.labeled:
            raise InputError(
                f"class_weights cannot be given where the examples of {calibration.split} have no "
                "labels: nobody knows which class each is of. Certify without them, or label."
            )
        if calibration is not None:
            weights = read_weights(class_weights, calibration)
    made = [_test(limit, calibration, delta, weights) for limit in limits]
    return [test for test in made if test is not None]


def _test(
    limit: Limit, calibration: Calibration | None, delta: float, weights: tuple[float, ...] | None
) -> RiskTest | None:
    if calibration is not None:
        _check_testable(limit, calibration, weighted=weights is not None)
    if limit.risk == "over_budget":
        return BudgetTest(limit=limit, delta=delta)
    if calibration is not None and calibration.graded and limit.risk != "cost":
        return GradedTest(limit=limit, delta=delta)
    if limit.risk == "cost" and weights is None:
        return CostTest(limit=limit, delta=delta)
    if limit.risk == "recall":  # whatever share of the examples a class has: no weights
        if calibration is None:
            return None
        named = None if limit.label is None else [calibration.class_index(limit.label)]
        return RecallTest(limit=limit, delta=delta, classes=tuple(named or _classes(calibration)))
    if weights is not None:
        return WeightedTest(limit=limit, delta=delta, weights=weights)
    return CountTest(limit=limit, delta=delta)


def _check_testable(limit: Limit, calibration: Calibration, *, weighted: bool) -> None:
    """Raise `InputError` for what nobody can test on these examples."""
    if calibration.of_losses and (weighted or limit.risk in ("recall", "disagreement")):
        raise InputError(
            f"{limit.risk!r}{' with class weights' if weighted else ''} needs labels, and losses "
            "were recorded here. What can be promised is accuracy_drop (the loss against the "
            "reference), negative_flips, error, cost and over_budget."
        )
    if weighted and (limit.risk == "over_budget" or (limit.risk == "cost" and calibration.priced)):
        raise InputError(
            f"class_weights cannot be given together with {limit.risk!r} where examples have "
            "prices of their own, or a budget: what each class costs is not kept."
        )


def _classes(calibration: Calibration) -> range:
    if not calibration.class_names:
        raise InputError(
            "An older version stored this frontier without its classes, so nothing can be "
            "promised of them. Fit again."
        )
    return range(len(calibration.class_names))


def read_weights(given: ClassWeights, calibration: Calibration) -> tuple[float, ...]:
    """Weights of all classes in their order, `(c,)`.

    Args:
        given: One number for each class, in their order or by name.
        calibration: The examples, which know the names.

    Raises:
        InputError: If a class is missing or unknown, or a weight negative or not finite.
    """
    names = [calibration.class_names[k] for k in _classes(calibration)]
    if isinstance(given, Mapping):
        held = {calibration.class_index(label): _weight(w) for label, w in given.items()}
        missing = [name for k, name in enumerate(names) if k not in held]
        if missing:
            raise InputError(
                f"class_weights must name all {len(names)} classes, got none for {missing[0]!r}. "
                "A class whose share stays has the weight 1."
            )
        values = [held[k] for k in range(len(names))]
    else:
        values = [_weight(w) for w in given]
    if len(values) != len(names):
        raise InputError(
            f"class_weights must have one weight for each of {len(names)} classes, got "
            f"{len(values)}."
        )
    wrong = [w for w in values if not (np.isfinite(w) and w >= 0)]
    if wrong or not any(values):
        raise InputError(
            "class_weights must be finite and at least 0, not all 0, got "
            f"{wrong[0] if wrong else 0.0!r}."
        )
    return tuple(values)


def _weight(value: object) -> float:
    return check_number("class_weights", value, "that is finite and at least 0")


def check_weights(
    given: ClassWeights | None, calibration: Calibration, found: Evaluation
) -> tuple[float, ...] | None:
    """The weights, if they can be ratios of shares: then their mean over the examples is near 1.

    Raises:
        InputError: If the mean lies more than five standard errors from 1.
    """
    if given is None:
        return None
    weights = read_weights(given, calibration)
    shares = class_table(found).sum(axis=0) / found.n  # (c,)
    mean = float(shares @ weights)
    error = float(np.sqrt(max(0.0, shares @ np.square(weights) - mean**2) / found.n))
    if abs(mean - 1) > _OFF * error + 1e-6:
        raise InputError(
            "class_weights must be each class's share in future over its share in "
            f"{calibration.split}; their mean over its examples would be about 1, got {mean:.4g}."
        )
    return weights
