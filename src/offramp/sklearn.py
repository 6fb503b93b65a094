"""A cascade of classifiers as an estimator of scikit-learn.

Layer: project.  Source: docs/adr/0050.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from offramp._core.checks import check_number
from offramp._core.errors import InputError, MissingExtraError
from offramp._core.outputs import log_probabilities
from offramp.adapters import from_function, from_sklearn
from offramp.adapters.of_sklearn import method_of
from offramp.evaluation import fit
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade
from offramp.trace import from_logits

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_regressor
    from sklearn.utils import _safe_indexing, check_random_state, column_or_1d, indexable
    from sklearn.utils.metaestimators import _BaseComposition
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _num_samples, assert_all_finite, check_is_fitted
except ImportError as error:
    raise MissingExtraError("scikit-learn", "sklearn") from error

_LEAST = 8  # held-out rows that anything can be fitted on
_SHOWN = 5  # classes in a message
_FAR = 20.0  # below the lowest score, of a class that nobody scored


@final
class CascadeClassifier(ClassifierMixin, _BaseComposition, BaseEstimator):  # type: ignore[misc]
    """Asks cheap classifiers first, and dearer ones where these are not sure enough.

    `fit` trains the classifiers on a part of the rows, and records what they say about the rest.
    On half of that the cascade is fitted, on the other half it is tested: with probability
    `1 - delta` it loses at most `max_drop` of accuracy on new rows, against the classifier that
    was most accurate. Where that cannot be promised, as of too few rows, this classifier answers
    alone, and `choice_.refused` says why.

    Args:
        estimators: Pairs of a name and a classifier, at least two, with `predict_proba` or
            `decision_function`. What `sklearn.frozen.FrozenEstimator` holds is not trained again;
            it must not have seen the rows. Where all are frozen, no rows are kept for training.
        max_drop: Accuracy that may be lost, in (0, 1); 0.01 is one point.
        delta: Largest chance that more is lost, in (0, 1); None to measure only.
        policy: Name of a policy of `offramp.fit`, or several.
        holdout: Share of the rows that no classifier is trained on, in (0, 1).
        costs: Of one row, for each name; None measures seconds, which differ from run to run, and
            so may the cascade.
        random_state: Of the division into parts.

    Attributes:
        classes_: Labels of all classes, sorted.
        estimators_: The classifiers, fitted, the cheapest first.
        names_: Their names.
        costs_: Their costs, by name.
        choice_: What was chosen, with a `sentence` and a `guarantee`; None of fewer than 8 rows.
        reference_: Name of the classifier that losses refer to.
        cost_: Mean cost of a row, on the rows that the choice rests on.
        unit_: Of the costs: "seconds", or "cost" where they were given.
        n_features_in_: Number of columns, where the classifiers tell it, and `feature_names_in_`.

    >>> from sklearn.datasets import make_classification
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> rows, labels = make_classification(3000, 8, n_informative=6, random_state=0)
    >>> pairs = [("bayes", GaussianNB()), ("near", KNeighborsClassifier(9))]
    >>> costs = {"bayes": 1.0, "near": 50.0}
    >>> model = CascadeClassifier(pairs, max_drop=0.05, costs=costs, random_state=0)
    >>> model.fit(rows, labels).choice_.outcome
    'certified'
    """

    _required_parameters: ClassVar = ["estimators"]  # as the checks of scikit-learn read it

    def __init__(
        self,
        estimators: Sequence[tuple[str, Any]],
        *,
        max_drop: float = 0.01,
        delta: float | None = 0.1,
        policy: str | Sequence[str] = "threshold",
        holdout: float = 0.5,
        costs: Mapping[str, float] | None = None,
        random_state: Any = None,  # noqa: ANN401  (as scikit-learn takes it)
    ) -> None:
        self.estimators = estimators
        self.max_drop = max_drop
        self.delta = delta
        self.policy = policy
        self.holdout = holdout
        self.costs = costs
        self.random_state = random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters, with `deep` also those of the classifiers, as "name__parameter"."""
        found: dict[str, Any] = self._get_params("estimators", deep=deep)
        return found

    def set_params(self, **params: Any) -> "CascadeClassifier":  # noqa: ANN401
        """Set parameters; a name alone puts another classifier in the place of one."""
        self._set_params("estimators", **params)
        return self

    def fit(self, X: Any, y: Any) -> "CascadeClassifier":  # noqa: ANN401, N803
        """Train the classifiers, and fit and test the cascade.

        Args:
            X: Rows as the classifiers take them: an array, a sparse matrix, a table, a list.
            y: Labels `(n,)`. Classifiers that refuse them, as XGBoost does all but 0, 1, 2..., are
                trained on their numbers in sorted order.

        Raises:
            InputError: If an argument is outside its domain.
        """
        names = self._checked_names()
        rows, labels = indexable(X, _checked_labels(y))
        _check_enough(rows, labels)
        frozen = [_is_frozen(each) for _, each in self.estimators]
        random = check_random_state(self.random_state)
        train, held = _divided(labels, 1.0 if all(frozen) else self.holdout, random)
        seen, said = _safe_indexing(rows, train), labels[train]
        trained = [
            (each, each.classes_) if known else _trained(each, seen, said)
            for (_, each), known in zip(self.estimators, frozen, strict=True)
        ]
        made, known = [each for each, _ in trained], [own for _, own in trained]
        _check_classes(dict(zip(names, known, strict=True)), labels)
        self.classes_ = np.unique(np.concatenate([labels, *known]))
        scores, seconds = [], []
        for each, own in trained:
            begun = time.perf_counter()
            scores.append(_scores(each, own, self.classes_, rows, held))
            seconds.append((time.perf_counter() - begun) / max(1, len(held)))
        costs = seconds if self.costs is None else [float(self.costs[name]) for name in names]
        order = np.argsort(costs, kind="stable")
        self.names_ = [names[k] for k in order]
        self.estimators_ = [made[k] for k in order]
        self._known = [known[k] for k in order]
        self.costs_ = {names[k]: costs[k] for k in order}
        self.unit_ = "seconds" if self.costs is None else "cost"
        self._choose(torch.stack([scores[k] for k in order], dim=1), labels[held], random)
        return self

    def predict_proba(self, X: Any) -> Any:  # noqa: ANN401, N803
        """Probabilities of the classes `(n, c)`, of whoever answers each row."""
        check_is_fitted(self)
        (rows,) = indexable(X)
        try:
            said = self._running(rows)(torch.arange(_num_samples(rows))).log_probs
        except InputError as error:  # about positions of rows, which nobody here has seen
            told = error.__cause__
            raise told if isinstance(told, TypeError | ValueError) else error from None
        sure = np.exp(said.numpy().astype(np.float64))
        return sure / sure.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> Any:  # noqa: ANN401, N803
        """The most probable class of each row, `(n,)`."""
        sure = self.predict_proba(X)
        return self.classes_[sure.argmax(axis=1)]

    def adaptive(self) -> Adaptive:
        """The same as a model of offramp, which `offramp.save` takes.

        Raises:
            InputError: If a classifier does not know all classes.
        """
        check_is_fitted(self)
        names = [str(one) for one in self.classes_.tolist()]
        made = {
            name: from_sklearn(
                each, labels=None if np.array_equal(own, each.classes_) else own, class_names=names
            )
            for name, each, own in zip(self.names_, self.estimators_, self._known, strict=True)
        }
        return Adaptive(Cascade.from_models(made), self.choice_ or self._candidate)

    @property
    def n_features_in_(self) -> int:
        """Number of columns of the rows that it was fitted on."""
        try:
            check_is_fitted(self)
        except ValueError as error:  # `hasattr` has to be False
            raise AttributeError("n_features_in_ is known once fit was called.") from error
        return int(self.estimators_[0].n_features_in_)

    @property
    def feature_names_in_(self) -> Any:  # noqa: ANN401
        """Names of the columns, where it was fitted on a table."""
        return self.estimators_[0].feature_names_in_

    def _choose(self, scores: Tensor, labels: Any, random: Any) -> None:  # noqa: ANN401
        """Fit and test on held-out rows, or take the dearest where there are too few."""
        self.choice_ = None
        self.reference_, self.cost_ = self.names_[-1], self.costs_[self.names_[-1]]
        topology = self._cascade(None).topology
        self._candidate = Candidate.single(topology, self.reference_, reference=self.reference_)
        n = len(labels)
        if n < _LEAST:
            return
        part = np.where(random.permutation(n) < n // 2, "fit", "calibrate").tolist()
        trace = from_logits(
            {name: scores[:, k] for k, name in enumerate(self.names_)},
            np.searchsorted(self.classes_, labels),
            costs=self.costs_,
            unit=self.unit_,
            split=part,
        )
        found = fit(trace, self.policy, progress=False)
        self.choice_ = found.cheapest(max_drop=self.max_drop, delta=self.delta)
        self._candidate, self.reference_ = self.choice_.candidate, found.reference
        self.cost_ = float(self.choice_.judged.cost)

    def _running(self, rows: Any) -> Adaptive:  # noqa: ANN401
        return Adaptive(self._cascade(rows), self._candidate)

    def _cascade(self, rows: Any) -> Cascade:  # noqa: ANN401
        """The cascade over some rows of any type: its examples are their positions."""
        cascade = Cascade.from_models(
            {
                name: from_function(
                    _asked(each, own, self.classes_, rows),
                    outputs="logits",
                    classes=len(self.classes_),
                )
                for name, each, own in zip(self.names_, self.estimators_, self._known, strict=True)
            }
        )
        for stage in cascade:
            stage.keeps_company = True  # as every estimator does
        return cascade

    def _checked_names(self) -> list[str]:
        pairs = self.estimators
        if (
            not isinstance(pairs, list | tuple)
            or len(pairs) < 2
            or any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in pairs)
        ):
            raise InputError(
                "estimators must be at least two pairs of a name and a classifier, such as "
                f"[('small', a), ('large', b)], got {pairs!r}."
            )
        names = [name for name, _ in pairs]
        self._validate_names(names)
        for name, each in pairs:
            if is_regressor(each):
                kind = type(each).__name__
                raise InputError(f"estimators must be classifiers; {name!r} is one of {kind}.")
        if not 0.0 < check_number("holdout", self.holdout, "in (0, 1)") < 1.0:
            raise InputError(f"holdout must be in (0, 1), got {self.holdout!r}.")
        if self.costs is not None and set(self.costs) != set(names):
            raise InputError(f"costs must name {sorted(names)}, got {sorted(self.costs)}.")
        return names

    def _more_tags(self) -> dict[str, Any]:  # of scikit-learn before 1.6
        return {"preserves_dtype": []}

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401
        from sklearn.utils import get_tags

        tags = super().__sklearn_tags__()
        told = [get_tags(each).input_tags for _, each in self.estimators or ()]
        tags.input_tags.sparse = all(each.sparse for each in told)
        tags.input_tags.allow_nan = all(each.allow_nan for each in told)
        return tags


def _trained(estimator: Any, rows: Any, labels: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """A classifier fitted on labels, and the labels that its classes stand for."""
    try:
        made = clone(estimator).fit(rows, labels)
    except ValueError as error:
        names, numbers = np.unique(labels, return_inverse=True)
        if np.array_equal(names, np.arange(len(names))):
            raise
        try:
            made = clone(estimator).fit(rows, numbers)
        except ValueError:
            raise error from None  # it was not about the labels
        return made, names
    return made, made.classes_


_Ask = Callable[[Tensor], Tensor]


def _asked(estimator: Any, own: Any, classes: Any, rows: Any) -> _Ask:  # noqa: ANN401
    """What a stage calls with positions of rows."""

    def ask(positions: Tensor) -> Tensor:
        return _scores(estimator, own, classes, rows, positions.numpy())

    return ask


def _scores(estimator: Any, own: Any, classes: Any, rows: Any, at: Any) -> Tensor:  # noqa: ANN401
    """Logits `(m, c)` of some rows in the order of `classes`, float32; `own` are the classifier's.

    A class that the classifier does not know has probability 0, or a score far below the others.
    """
    if len(at) == 0:
        return torch.zeros(0, len(classes))
    method = method_of(estimator)
    found = np.asarray(getattr(estimator, method)(_safe_indexing(rows, at)), dtype=np.float32)
    if found.ndim == 1:
        found = np.stack([np.zeros_like(found), found], axis=1)
    if found.shape != (len(at), len(own)) or not np.isfinite(found).all():
        raise InputError(
            f"{method} of {type(estimator).__name__} must give ({len(at)}, {len(own)}) finite "
            f"numbers, got the shape {found.shape}."
        )
    probable = method == "predict_proba"
    lowest = 0.0 if probable else found.min() - _FAR
    said = np.full((len(at), len(classes)), lowest, dtype=np.float32)
    said[:, np.searchsorted(classes, own)] = found
    scores = torch.from_numpy(said)
    return log_probabilities("The probabilities", scores) if probable else scores


def _checked_labels(y: Any) -> Any:  # noqa: ANN401
    labels = column_or_1d(y, warn=True)
    if labels.dtype.kind == "f":
        assert_all_finite(labels, input_name="y")
    check_classification_targets(labels)
    return labels


def _check_enough(rows: Any, labels: Any) -> None:  # noqa: ANN401
    if _num_samples(rows) < 2:
        raise InputError(f"X must have at least 2 rows, got n_samples = {_num_samples(rows)}.")
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"y must have at least 2 classes, got the one class {labels.tolist()[0]!r}."
        )


def _check_classes(made: Mapping[str, Any], labels: Any) -> None:  # noqa: ANN401
    known = np.unique(labels).tolist()
    for name, own in made.items():
        if not set(np.asarray(own).tolist()) & set(known):
            raise InputError(
                f"estimators must know classes of y; {name!r} knows {_few(own)}, and y holds "
                f"{_few(known)}. Train it with the same labels; or give y as the numbers that it "
                "was trained on, LabelEncoder().fit_transform(y)."
            )


def _few(classes: Any) -> str:  # noqa: ANN401
    known = np.asarray(classes).tolist()
    return str(known) if len(known) <= _SHOWN else f"{str(known[:_SHOWN])[:-1]}, ...]"


def _is_frozen(estimator: Any) -> bool:  # noqa: ANN401
    try:
        from sklearn.frozen import FrozenEstimator
    except ImportError:  # scikit-learn before 1.6
        return False
    return isinstance(estimator, FrozenEstimator)


def _divided(labels: Any, holdout: float, random: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """Rows to train on, and the rest; every class has a row to train on, where any is needed."""
    order = random.permutation(len(labels))
    held = order[: round(len(labels) * holdout)]
    train = order[len(held) :]
    if holdout == 1.0:
        return train, held
    missing = np.setdiff1d(labels[held], labels[train])
    moved = [held[np.flatnonzero(labels[held] == each)[0]] for each in missing]
    return np.sort(np.append(train, moved).astype(int)), np.sort(held[~np.isin(held, moved)])
