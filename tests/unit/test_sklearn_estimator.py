"""A cascade of classifiers as an estimator of scikit-learn."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import offramp
from offramp._core.errors import InputError, UnsupportedError

sklearn = pytest.importorskip("sklearn")
from sklearn.base import BaseEstimator, ClassifierMixin, clone  # noqa: E402
from sklearn.datasets import make_classification  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_validate  # noqa: E402
from sklearn.naive_bayes import GaussianNB  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.svm import SVC  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from offramp.sklearn import CascadeClassifier  # noqa: E402

COSTS = {"small": 1.0, "large": 20.0}


PAIRS = [("small", GaussianNB()), ("large", LogisticRegression())]  # any number of rows will do


def classifier(**options):
    pairs = [("small", GaussianNB()), ("large", KNeighborsClassifier(9))]
    return CascadeClassifier(**({"estimators": pairs, "costs": COSTS, "random_state": 0} | options))


@pytest.fixture(scope="module")
def data():
    rows, labels = make_classification(
        3000, n_features=8, n_informative=6, n_classes=3, class_sep=1.5, random_state=0
    )
    return rows, np.array(["cat", "dog", "eel"])[labels]


@pytest.fixture(scope="module")
def fitted(data):
    return classifier(max_drop=0.05).fit(data[0][:2000], data[1][:2000])


@parametrize_with_checks([classifier(estimators=PAIRS)])
def test_it_is_an_estimator_of_scikit_learn(estimator, check):
    check(estimator)


def test_a_promise_is_kept_at_less_cost(fitted, data):
    assert fitted.choice_.outcome == "certified"
    assert fitted.cost_ < COSTS["large"] * 0.9
    assert fitted.choice_.cascade
    rows, labels = data[0][2000:], data[1][2000:]
    large = fitted.estimators_[fitted.names_.index("large")]
    assert fitted.score(rows, labels) >= large.score(rows, labels) - 0.05
    assert fitted.classes_.tolist() == ["cat", "dog", "eel"]
    assert fitted.n_features_in_ == 8


def test_what_runs_is_what_a_model_of_stages_does(fitted, data):
    model = fitted.adaptive()
    # tensors keep float64, as the classifiers got it
    said = model(torch.tensor(data[0][2000:]))
    assert fitted.classes_[said.labels].tolist() == fitted.predict(data[0][2000:]).tolist()
    assert len(set(said.stage.tolist())) == 2
    np.testing.assert_allclose(
        fitted.predict_proba(data[0][2000:]), said.log_probs.exp(), atol=1e-5
    )


def test_it_can_be_part_of_a_bundle(data, tmp_path):
    rows, labels = data[0][:300], data[1][:300]
    model = classifier(estimators=PAIRS, max_drop=0.1).fit(rows, labels)
    offramp.save(model.adaptive(), tmp_path / "bundle")
    again = offramp.load(tmp_path / "bundle")
    said = again(torch.tensor(rows))
    assert model.classes_[said.labels].tolist() == model.predict(rows).tolist()
    assert again.choice.sentence == model.choice_.sentence


def test_a_dear_classifier_sees_only_some_rows(data):
    counts = []

    class Counts(KNeighborsClassifier):
        def predict_proba(self, X):
            counts.append(len(X))
            return super().predict_proba(X)

    model = CascadeClassifier(
        [("small", GaussianNB()), ("large", Counts(9))],
        max_drop=0.05,
        costs=COSTS,
        random_state=0,
    ).fit(data[0][:2000], data[1][:2000])
    counts.clear()
    model.predict(data[0][2000:])
    assert 0 < sum(counts) < 900


def test_the_order_is_that_of_costs(data):
    turned = CascadeClassifier(
        [("large", KNeighborsClassifier(9)), ("small", GaussianNB())],
        costs=COSTS,
        random_state=0,
        max_drop=0.05,
    ).fit(data[0][:2000], data[1][:2000])
    assert turned.names_ == ["small", "large"]
    assert list(turned.costs_.values()) == [1.0, 20.0]


def test_seconds_are_measured_where_no_costs_are_given(data):
    slow = KNeighborsClassifier(9, algorithm="brute")
    model = CascadeClassifier([("small", GaussianNB()), ("large", slow)], random_state=0)
    model.fit(*(part[:800] for part in data))
    assert model.unit_ == "seconds"
    assert all(0 < cost < 1 for cost in model.costs_.values())
    assert 0 < model.cost_ <= max(model.costs_.values())


def test_too_few_rows_for_a_promise_run_the_reference_alone(data):
    few = classifier(max_drop=0.01).fit(data[0][:60], data[1][:60])
    assert few.choice_.refused
    assert not few.choice_.cascade
    alone = few.estimators_[few.names_.index(few.reference_)]
    assert few.predict(data[0][:60]).tolist() == alone.predict(data[0][:60]).tolist()


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_a_handful_of_rows_is_answered_by_the_dearest(rows):
    X = np.arange(2.0 * rows).reshape(rows, 2)
    y = np.arange(rows) % 2
    model = CascadeClassifier(PAIRS, costs=COSTS, random_state=0).fit(X, y)
    assert (model.choice_, model.reference_) == (None, "large")
    assert model.predict(X).shape == (rows,)


def test_in_pipelines_searches_and_cross_validation(data):
    rows, labels = data[0][:400], data[1][:400]
    inside = make_pipeline(StandardScaler(), classifier(max_drop=0.1))
    assert inside.fit(rows, labels).score(rows, labels) > 0.7
    scores = cross_validate(classifier(), rows, labels, cv=3, error_score="raise")
    assert scores["test_score"].min() > 0.6
    search = GridSearchCV(
        classifier(),
        {"large__n_neighbors": [9], "max_drop": [0.01, 0.1]},
        cv=2,
        error_score="raise",
    ).fit(rows, labels)
    assert set(search.best_params_) == {"large__n_neighbors", "max_drop"}


def test_names_stand_for_classifiers_among_the_parameters():
    made = clone(classifier()).set_params(small=RidgeClassifier(), large__n_neighbors=3)
    assert made.get_params()["large__n_neighbors"] == 3
    assert isinstance(made.get_params()["small"], RidgeClassifier)


def test_frozen_classifiers_are_not_trained_again_and_their_classes_are_mapped(data):
    frozen = pytest.importorskip("sklearn.frozen")
    rows, labels = data
    few = np.isin(labels, ["cat", "dog"])  # it does not know eels
    small = GaussianNB().fit(rows[:500][few[:500]], labels[:500][few[:500]])
    large = KNeighborsClassifier(9).fit(rows[:500], labels[:500])
    model = CascadeClassifier(
        [("small", frozen.FrozenEstimator(small)), ("large", frozen.FrozenEstimator(large))],
        max_drop=0.05,
        costs=COSTS,
        random_state=0,
    ).fit(rows[500:2000], labels[500:2000])
    assert model.choice_.judged.n >= 700  # no row is kept for training
    assert model.estimators_[1].estimator is large
    assert model.classes_.tolist() == ["cat", "dog", "eel"]
    assert model.score(rows[2000:], labels[2000:]) > 0.7
    with pytest.raises(InputError, match="class_names"):
        model.adaptive()


def test_scores_alone_and_tables_will_do(data):
    table = pd.DataFrame(data[0][:900], columns=[f"c{k}" for k in range(8)])
    model = CascadeClassifier(
        [("small", RidgeClassifier()), ("large", SVC())], costs=COSTS, random_state=0, max_drop=0.1
    ).fit(table, data[1][:900])
    assert model.score(table, data[1][:900]) > 0.7
    assert model.feature_names_in_.tolist() == list(table.columns)


def test_texts_and_copies():
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [f"{word} {k % 7}" for k in range(200) for word in ("good", "bad")]
    labels = [1, 0] * 200
    pairs = [
        (name, make_pipeline(CountVectorizer(), LogisticRegression(C=strength)))
        for name, strength in (("small", 0.1), ("large", 1.0))
    ]
    model = CascadeClassifier(pairs, costs=COSTS, random_state=0, max_drop=0.1).fit(texts, labels)
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert each.predict(["a good one", "a bad one"]).tolist() == [1, 0]
    assert not hasattr(model, "n_features_in_")


class Silent(ClassifierMixin, BaseEstimator):
    """Labels alone."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[0])


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"estimators": [("a", GaussianNB())]}, InputError, "at least two pairs"),
        ({"estimators": [GaussianNB(), GaussianNB()]}, InputError, "at least two pairs"),
        ({"estimators": [("a", GaussianNB()), ("a", GaussianNB())]}, ValueError, "unique"),
        ({"holdout": 1.0}, InputError, "holdout"),
        ({"costs": {"small": 1.0}}, InputError, "costs must name"),
        ({"max_drop": 2.0}, InputError, r"in \(0, 1\)"),
        ({"large": LinearRegression()}, InputError, "'large' is one of LinearRegression"),
        ({"large": Silent()}, UnsupportedError, "neither predict_proba"),
        ({"large": SVC(decision_function_shape="ovo")}, UnsupportedError, "pairs of classes"),
    ],
)
def test_arguments_outside_their_domain(data, changes, error, says):
    with pytest.raises(error, match=says):
        classifier().set_params(**changes).fit(data[0][:300], data[1][:300])


def test_a_frozen_classifier_of_other_labels_is_refused(data):
    frozen = pytest.importorskip("sklearn.frozen").FrozenEstimator
    rows, named = data
    numbers = np.unique(named, return_inverse=True)[1]
    of_numbers = frozen(GaussianNB().fit(rows[:300], numbers[:300]))
    model = classifier().set_params(small=of_numbers)
    with pytest.raises(InputError, match=r"'small' knows \[0, 1.*y holds \['"):
        model.fit(rows[300:900], named[300:900])


@pytest.mark.parametrize("rows", [np.zeros((2, 3)), np.zeros(8)])
def test_rows_of_another_shape_have_the_message_of_their_classifier(data, rows):
    model = classifier().fit(data[0][:300], data[1][:300])
    with pytest.raises(ValueError, match=r"^(X has 3 features|Expected 2D array)"):
        model.predict(rows)


def test_unfitted_models_say_so(data):
    with pytest.raises(NotFittedError):
        classifier().predict(data[0])
    with pytest.raises(NotFittedError):
        classifier().adaptive()
    assert not hasattr(classifier(), "n_features_in_")
