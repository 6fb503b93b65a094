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
        class_names: All classes in the order of the cascade, which the stage then answers in; by
            default `classes_` as text. `[]` for none.
        name: Of the stage; by default the type of the classifier, of a pipeline of its last step.

    Raises:
        NotFittedError: If it has no `classes_` yet.
        UnsupportedError: If it gives neither probabilities nor scores, or scores of pairs of
            classes, or has several targets.
        InputError: If there are fewer than two classes, or `class_names` are others.

    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> rows, labels = load_iris(return_X_y=True)
    >>> stage = from_sklearn(LogisticRegression(max_iter=500).fit(rows, labels))
    >>> stage.class_names, stage.run(torch.tensor(rows[:2]))[0].logits.shape
    (('0', '1', '2'), torch.Size([2, 3]))
    """
    own = _class_names(estimator)
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
            f"{who} has no classes_: it is not fitted, or no classifier. Call fit first."
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
