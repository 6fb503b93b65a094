"""Fitted classifiers of scikit-learn, and of whoever speaks as it does, as stages.

Layer: adapters.  Source: docs/adr/0050.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from offramp._core.errors import InputError, NotFittedError, UnsupportedError
from offramp.adapters.answers import in_order
from offramp.models import ModelSpec
from offramp.models.estimator import Estimator, Method
from offramp.stages import Stage


def from_sklearn(
    estimator: Any,  # noqa: ANN401  (whoever has the methods)
    *,
    labels: Sequence[object] | None = None,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
) -> Stage:
    """A fitted classifier as a stage: of scikit-learn, a pipeline, LightGBM, XGBoost.

    It is asked for `predict_proba`, or else for `decision_function`, whose scores count as logits
    and are no probabilities. The rows reach it as `Adaptive` was given them: tables and lists as
    they are, and arrays and tensors as arrays. An array of float64 comes as float32, as everywhere
    in torch; give a table or a tensor where more digits matter.

    A bundle keeps the classifier as skops writes it, without pickle. Whoever loads it names the
    types that skops does not trust: `offramp.load(..., allow_types=[...])`.

    Args:
        estimator: Fitted, with `classes_`.
        labels: Where it was fitted on 0, 1, 2... in place of labels, as XGBoost asks for: the label
            that each number stands for, in their order, `encoder.classes_` of the `LabelEncoder`.
            They take the place of `classes_`.
        class_names: All classes in the order of the cascade, which the stage then answers in; by
            default `classes_` as text. `[]` for none.
        name: Of the stage; by default the type of the classifier, of a pipeline of its last step.

    Raises:
        NotFittedError: If it has no `classes_` yet.
        UnsupportedError: If it gives neither probabilities nor scores, or scores of pairs of
            classes, or has several targets.
        InputError: If there are fewer than two classes, `class_names` are others, or `labels` are
            given to a classifier that has some, or not one for each number.

    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> rows, labels = load_iris(return_X_y=True)
    >>> stage = from_sklearn(LogisticRegression(max_iter=500).fit(rows, labels))
    >>> stage.class_names, stage.run(torch.tensor(rows[:2]))[0].logits.shape
    (('0', '1', '2'), torch.Size([2, 3]))
    """
    own = _class_names(estimator)
    if labels is not None:
        own = _named(estimator, own, [str(one) for one in np.asarray(labels).tolist()])
    elif class_names is not None and _numbered(own) and len(class_names) == len(own):
        _check_not_numbers(estimator, own, list(class_names))
    method = method_of(estimator)
    module = Estimator.holding(estimator, method, len(own))
    arguments = {"size": len(module.skops), "method": method, "classes": len(own)}
    stage = Stage(
        name or type(_last(estimator)).__name__,
        module,
        spec=None if module.why_not else ModelSpec(name="sklearn", arguments=arguments),
        outputs="probabilities" if method == "predict_proba" else "logits",
        class_names=own,
    )
    return in_order(stage, class_names)


def _class_names(estimator: Any) -> list[str]:  # noqa: ANN401
    who = type(estimator).__name__
    if isinstance(estimator, type):
        raise InputError(f"estimator must be a fitted classifier, got the class {estimator!r}.")
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        raise NotFittedError(
            f"{who} has no classes_: it is not fitted, or no classifier. Call fit first. A bare "
            "booster of XGBoost or LightGBM goes as a function: from_function(booster_of_rows, "
            "outputs='probabilities', class_names=[...])."
        )
    if isinstance(classes, list) and any(np.ndim(each) for each in classes):
        raise UnsupportedError(
            f"{who} has {len(classes)} targets; a stage has one. Make a stage for each."
        )
    if getattr(estimator, "multilabel_", False):
        raise UnsupportedError(f"{who} gives several labels to one example; a stage gives one.")
    names = [str(one) for one in np.asarray(classes).tolist()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"classes_ of {who} must be at least 2 and differ as text, got {names}.")
    return names


def _numbered(own: Sequence[str]) -> bool:
    return list(own) == [str(k) for k in range(len(own))]


def _named(estimator: Any, own: Sequence[str], labels: list[str]) -> list[str]:  # noqa: ANN401
    """The labels that 0, 1, 2... stand for."""
    who = type(estimator).__name__
    if not _numbered(own):
        raise InputError(
            f"labels are for a classifier that was fitted on 0, 1, 2..., but {who} was fitted on "
            f"{list(own)[:5]}. Leave them out; class_names=[...] gives another order."
        )
    if len(labels) != len(own) or len(set(labels)) < len(labels):
        raise InputError(
            f"labels must be one for each of the {len(own)} numbers that {who} was fitted on, all "
            f"different as text, got {labels[:5]}."
        )
    return labels


def _check_not_numbers(estimator: Any, own: Sequence[str], names: list[str]) -> None:  # noqa: ANN401
    """Raise `InputError` where names are given to numbers: which is which nobody has said."""
    if sorted(names) != sorted(own):
        raise InputError(
            f"{type(estimator).__name__} was fitted on the numbers 0 to {len(own) - 1}, and which "
            f"of {names[:5]} each of them stands for is not known. Say it, in the order of the "
            "numbers: from_sklearn(estimator, labels=encoder.classes_) of a LabelEncoder."
        )


def method_of(estimator: Any) -> Method:  # noqa: ANN401  (whoever has the methods)
    """What a classifier is asked: "predict_proba", or else "decision_function".

    Raises:
        UnsupportedError: If it has neither, or scores pairs of classes.
    """
    who = type(_last(estimator)).__name__
    if hasattr(estimator, "predict_proba"):
        return "predict_proba"
    if not hasattr(estimator, "decision_function"):
        raise UnsupportedError(
            f"{who} has neither predict_proba nor decision_function, so nobody can tell how sure "
            "it is. Wrap it in sklearn.calibration.CalibratedClassifierCV where it can, or give "
            "its labels: from_function(estimator.predict, outputs='labels', class_names=[...])."
        )
    if getattr(_last(estimator), "decision_function_shape", "") == "ovo":
        raise UnsupportedError(
            f"decision_function of {who} scores pairs of classes; set "
            "decision_function_shape='ovr'."
        )
    return "decision_function"


def _last(estimator: Any) -> Any:  # noqa: ANN401
    """What answers: of a pipeline its last step, of a search the best."""
    for _ in range(8):
        inner = getattr(estimator, "best_estimator_", None)
        steps = getattr(estimator, "steps", None)
        if inner is None and isinstance(steps, list) and steps:
            inner = steps[-1][1]
        if inner is None:
            return estimator
        estimator = inner
    return estimator
