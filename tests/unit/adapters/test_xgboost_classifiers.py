"""XGBoost through the door of scikit-learn: as a stage, in a bundle, in a cascade of estimators."""

import numpy as np
import pytest
import torch

from offramp import Adaptive, Candidate, Cascade
from offramp._core.errors import InputError, NotFittedError, UnsupportedError
from offramp.adapters import from_sklearn
from offramp.bundle import load, save

xgboost = pytest.importorskip("xgboost")
pytest.importorskip("skops")
pd = pytest.importorskip("pandas")

DRAWN = np.random.default_rng(0)
ROWS = DRAWN.normal(size=(300, 4)).astype(np.float32)
WHICH = ROWS[:, :3].argmax(axis=1)
NAMES = np.array(["ant", "bee", "cat"])[WHICH]


def booster(trees=3, **options):
    return xgboost.XGBClassifier(n_estimators=trees, max_depth=2, n_jobs=1, **options)


def alone(stage):
    cascade = Cascade.from_models({"trees": stage})
    return Adaptive(cascade, Candidate.single(cascade.topology, "trees", reference="trees"))


@pytest.mark.parametrize("classes", [2, 3])
def test_a_booster_is_a_stage(classes):
    labels = np.minimum(WHICH, classes - 1)
    fitted = booster().fit(ROWS, labels)
    model = alone(from_sklearn(fitted))
    for given in (ROWS, torch.from_numpy(ROWS)):
        said = model(given)
        assert said.labels.tolist() == fitted.predict(ROWS).tolist()
        assert np.allclose(said.log_probs.exp(), fitted.predict_proba(ROWS), atol=1e-5)


def test_a_bundle_names_the_types_that_skops_does_not_trust(tmp_path):
    table = pd.DataFrame(ROWS, columns=list("abcd"))
    model = alone(from_sklearn(booster().fit(table, WHICH)))
    said = model(table)
    save(model, tmp_path / "bundle")
    with pytest.raises(UnsupportedError, match=r"xgboost\.core\.Booster") as refused:
        load(tmp_path / "bundle")
    types = ["xgboost.core.Booster", "xgboost.sklearn.XGBClassifier"]
    assert all(name in str(refused.value) for name in types)
    again = load(tmp_path / "bundle", allow_types=types)
    assert torch.equal(again(table).log_probs, said.log_probs)


def test_boosters_make_a_cascade_of_estimators():
    from offramp.sklearn import CascadeClassifier

    trees = [("small", booster(1)), ("large", booster(20))]
    made = CascadeClassifier(trees, max_drop=0.3, random_state=0)
    assert (made.fit(ROWS, WHICH).predict(ROWS) == WHICH).mean() > 0.7
    assert made.predict_proba(ROWS).shape == (300, 3)
    assert made.adaptive()(ROWS).labels.tolist() == made.predict(ROWS).tolist()


@pytest.mark.parametrize("labels", [NAMES, WHICH + 1, WHICH * 10], ids=["text", "from 1", "tens"])
def test_a_cascade_of_estimators_takes_labels_that_xgboost_alone_refuses(labels, tmp_path):
    from sklearn.tree import DecisionTreeClassifier

    from offramp.sklearn import CascadeClassifier

    with pytest.raises(ValueError, match="Expected: \\[0 1 2\\]"):
        booster().fit(ROWS, labels)
    pairs = [("tree", DecisionTreeClassifier(max_depth=2)), ("boosted", booster(20))]
    costs = {"tree": 1.0, "boosted": 20.0}
    made = CascadeClassifier(pairs, max_drop=0.3, costs=costs, random_state=0).fit(ROWS, labels)
    assert made.classes_.tolist() == sorted(set(labels.tolist()))
    assert (made.predict(ROWS) == labels).mean() > 0.7
    numbered = CascadeClassifier(pairs, max_drop=0.3, costs=costs, random_state=0).fit(ROWS, WHICH)
    assert np.array_equal(made.predict_proba(ROWS), numbered.predict_proba(ROWS))
    model = made.adaptive()
    names = np.array(model.class_names)
    assert names[model(ROWS).labels].tolist() == made.predict(ROWS).astype(str).tolist()


def test_what_was_fitted_on_numbers_is_told_the_labels(tmp_path):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import LabelEncoder, StandardScaler

    encoder = LabelEncoder()
    numbers = encoder.fit_transform(NAMES)
    for fitted in (
        booster().fit(ROWS, numbers),
        make_pipeline(StandardScaler(), booster()).fit(ROWS, numbers),
    ):
        expected = encoder.inverse_transform(fitted.predict(ROWS)).tolist()
        for order in (None, ["cat", "ant", "bee"]):
            model = alone(from_sklearn(fitted, labels=encoder.classes_, class_names=order))
            names = np.array(model.class_names)
            assert names[model(ROWS).labels].tolist() == expected
        with pytest.raises(InputError, match=r"fitted on the numbers 0 to 2.*encoder\.classes_"):
            from_sklearn(fitted, class_names=["ant", "bee", "cat"])
        for wrong in (["ant", "bee"], ["ant", "bee", "bee"]):
            with pytest.raises(InputError, match="labels must be one for each of the 3 numbers"):
                from_sklearn(fitted, labels=wrong)
    save(model, tmp_path / "bundle")
    types = ["xgboost.core.Booster", "xgboost.sklearn.XGBClassifier"]
    again = load(tmp_path / "bundle", allow_types=types)
    assert torch.equal(again(ROWS).labels, model(ROWS).labels)
    assert again.class_names == model.class_names


def test_a_bare_booster_is_sent_to_functions():
    data = xgboost.DMatrix(ROWS, label=WHICH)
    bare = xgboost.train({"objective": "multi:softprob", "num_class": 3}, data, 2)
    with pytest.raises(NotFittedError, match=r"bare booster .* from_function"):
        from_sklearn(bare)
