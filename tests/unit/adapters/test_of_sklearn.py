"""Classifiers of scikit-learn, and of who speaks as it does, as stages, live and in bundles."""

import io
import json
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

from offramp import Adaptive, Cascade, load, save
from offramp._core.errors import (
    FileFormatError,
    InputError,
    NotFittedError,
    UnsupportedError,
)
from offramp.adapters import from_sklearn, in_order
from offramp.cli import main
from offramp.models.estimator import Estimator, opened, stored, untrusted
from offramp.policy import Candidate
from offramp.stages import weights_digest

sklearn = pytest.importorskip("sklearn")
from sklearn.ensemble import RandomForestClassifier  # noqa: E402
from sklearn.linear_model import LogisticRegression, RidgeClassifier  # noqa: E402
from sklearn.multioutput import MultiOutputClassifier  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer, StandardScaler  # noqa: E402
from sklearn.svm import SVC, LinearSVC  # noqa: E402

random = np.random.default_rng(0)
ROWS = random.normal(size=(120, 4)).astype(np.float32)
WHICH = (ROWS[:, 0] > 0).astype(int) + (ROWS[:, 1] > 0.5)
NAMES = np.array(["cat", "dog", "eel"])
FOREST = RandomForestClassifier(4, random_state=0).fit(ROWS, WHICH)
LINEAR = make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, NAMES[WHICH])
TREE = "sklearn.tree._tree.Tree"


def alone(stage):
    cascade = Cascade.from_models({"it": stage})
    return Adaptive.single(cascade, "it")


@pytest.mark.parametrize("classifier", [FOREST, LINEAR], ids=["forest", "pipeline"])
def test_a_stage_gives_the_probabilities_of_its_classifier(classifier):
    stage = from_sklearn(classifier)
    said = alone(stage)(ROWS)
    expected = classifier.predict_proba(ROWS)
    torch.testing.assert_close(
        said.log_probs.exp(), torch.tensor(expected).float(), atol=1e-5, rtol=0
    )
    assert stage.class_names == tuple(map(str, classifier.classes_))


def test_rows_are_tables_lists_and_arrays():
    table = pd.DataFrame(ROWS, columns=list("abcd"))
    on_tables = LogisticRegression().fit(table, WHICH)
    expected = torch.tensor(on_tables.predict(table))
    assert torch.equal(alone(from_sklearn(on_tables))(table).labels, expected)
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = ["a good one", "a bad one", "good and good", "so bad"] * 5
    of_texts = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [1, 0, 1, 0] * 5)
    assert alone(from_sklearn(of_texts))(texts).labels.tolist() == [1, 0, 1, 0] * 5
    plain = KNeighborsClassifier(1).fit(ROWS, WHICH)
    assert alone(from_sklearn(plain))(torch.tensor(ROWS)).labels.tolist() == WHICH.tolist()


def test_columns_in_a_mapping_are_refused_with_the_repair():
    with pytest.raises(InputError, match="DataFrame"):
        alone(from_sklearn(FOREST))({"a": ROWS[:, 0], "b": ROWS[:, 1]})


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_logits_where_there_are_no_probabilities(classes):
    labels = WHICH.clip(max=classes - 1)
    for made in (RidgeClassifier(), LinearSVC(dual=False)):
        classifier = made.fit(ROWS, labels)
        said = alone(from_sklearn(classifier))(ROWS)
        assert said.labels.tolist() == classifier.predict(ROWS).tolist()


def test_no_rows_are_no_answers():
    assert from_sklearn(FOREST).run(torch.zeros(0, 4))[0].logits.shape == (0, 3)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: LogisticRegression(), NotFittedError, "Call fit first"),
        (lambda: LogisticRegression, InputError, "the class"),
        (lambda: make_pipeline(StandardScaler(), SVC()), NotFittedError, "Call fit first"),
        (lambda: _Silent().fit(ROWS, WHICH), UnsupportedError, "CalibratedClassifierCV"),
        (
            lambda: SVC(decision_function_shape="ovo").fit(ROWS, WHICH),
            UnsupportedError,
            "decision_function_shape='ovr'",
        ),
        (
            lambda: MultiOutputClassifier(LogisticRegression()).fit(ROWS, ROWS[:, :2] > 0),
            UnsupportedError,
            "2 targets",
        ),
    ],
)
def test_what_cannot_be_a_stage_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        from_sklearn(make())


class _Silent(sklearn.base.ClassifierMixin, sklearn.base.BaseEstimator):
    """Neither probabilities nor scores."""

    def fit(self, rows, labels):
        self.classes_ = np.unique(labels)
        return self


def test_classes_in_another_order_are_turned_or_refused():
    turned = from_sklearn(LINEAR, class_names=["eel", "cat", "dog"])
    expected = [["eel", "cat", "dog"].index(name) for name in LINEAR.predict(ROWS)]
    assert alone(turned)(ROWS).labels.tolist() == expected
    assert alone(in_order(from_sklearn(LINEAR), ["eel", "cat", "dog"]))(ROWS).labels.tolist() == (
        expected
    )
    with pytest.raises(InputError, match="class"):
        Cascade.from_models({"a": from_sklearn(LINEAR), "b": turned})
    with pytest.raises(InputError, match="are missing"):
        from_sklearn(LINEAR, class_names=["eel", "cat", "cow"])


def test_columns_that_are_not_the_classes_are_no_answer():
    class Odd(_Silent):
        def predict_proba(self, rows):
            return np.full((len(rows), 2), 0.5)

    with pytest.raises(InputError, match="must give"):
        alone(from_sklearn(Odd().fit(ROWS, WHICH)))(ROWS)


def model_of(**stages):
    cascade = Cascade.from_models(stages)
    last = list(stages)[-1]
    return Adaptive(cascade, Candidate.single(cascade.topology, last, reference=last))


def test_a_bundle_gives_the_same_answers_without_pickle(tmp_path):
    model = model_of(linear=from_sklearn(LINEAR, class_names=["eel", "cat", "dog"]))
    save(model, tmp_path / "bundle")
    again = load(tmp_path / "bundle")
    assert torch.equal(again(ROWS).log_probs, model(ROWS).log_probs)
    assert again.class_names == ("eel", "cat", "dog")
    assert {file.suffix for file in (tmp_path / "bundle").iterdir()} == {".json", ".safetensors"}
    save(again, tmp_path / "twice")
    assert torch.equal(load(tmp_path / "twice")(ROWS).log_probs, model(ROWS).log_probs)


def shift(rows):
    return rows + 1


def test_types_that_skops_does_not_trust_are_refused_by_name(tmp_path):
    named = make_pipeline(FunctionTransformer(shift), FOREST).fit(ROWS, WHICH)
    model = model_of(it=from_sklearn(named))
    save(model, tmp_path / "bundle")
    (own,) = [name for name in untrusted(stored(named)) if "shift" in name]
    for allowed in ([], [TREE], ["builtins.eval"]):
        with pytest.raises(UnsupportedError, match=f"'it'.*{own}.*allow_types"):
            load(tmp_path / "bundle", allow_types=allowed)
    again = load(tmp_path / "bundle", allow_types=[TREE, own])
    assert torch.equal(again(ROWS).log_probs, model(ROWS).log_probs)


def test_types_are_allowed_by_name_on_the_shell(tmp_path, capsys):
    save(model_of(it=from_sklearn(FOREST)), tmp_path / "bundle")
    np.savez(tmp_path / "rows.npz", images=ROWS)
    asked = ["predict", str(tmp_path / "bundle"), str(tmp_path / "rows.npz"), "--out"]
    asked += [str(tmp_path / "a.csv")]
    assert main(asked) == 2
    assert f"--allow-types {TREE}" in capsys.readouterr().err.replace("\n", " ")
    assert main([*asked, "--allow-types", TREE]) == 0


def test_a_lambda_is_refused_when_saved(tmp_path):
    unnamed = make_pipeline(FunctionTransformer(lambda rows: rows), LogisticRegression())
    model = model_of(it=from_sklearn(unnamed.fit(ROWS, WHICH)))
    assert model(ROWS).labels.tolist() == unnamed.predict(ROWS).tolist()
    with pytest.raises(InputError, match="cannot be part of a bundle"):
        save(model, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_equal_classifiers_have_equal_bytes():
    forests = [RandomForestClassifier(4, random_state=seed) for seed in (0, 0, 1)]
    digests = {weights_digest({"it": from_sklearn(each.fit(ROWS, WHICH))}) for each in forests}
    assert len(digests) == 2


def test_bytes_that_are_none_of_ours_are_refused():
    with pytest.raises(FileFormatError, match="cannot be read"):
        opened(b"nothing")
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("schema.json", json.dumps({"__class__": "a" * 10**6}))
    with pytest.raises(FileFormatError, match="compressed"):
        opened(compressed.getvalue())
    other = Estimator.holding(FOREST, "predict_proba", 2)
    with pytest.raises(FileFormatError, match="2 classes"):
        other.open([TREE])
    with pytest.raises(UnsupportedError, match="not been opened"):
        Estimator(size=3, method="predict_proba", classes=2)(torch.zeros(1, 4))
    with pytest.raises(InputError, match="at least 2"):
        Estimator(size=3, method="predict", classes=2)


def test_lightgbm_goes_through_the_same_door(tmp_path):
    lightgbm = pytest.importorskip("lightgbm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier = lightgbm.LGBMClassifier(n_estimators=3, num_leaves=4, verbose=-1, n_jobs=1)
        table = pd.DataFrame(ROWS, columns=list("abcd"))
        model = model_of(trees=from_sklearn(classifier.fit(table, WHICH)))
        said = model(table)
        assert said.labels.tolist() == classifier.predict(table).tolist()
        save(model, tmp_path / "bundle")
        with pytest.raises(UnsupportedError, match=r"lightgbm\.basic\.Booster") as refused:
            load(tmp_path / "bundle")
        types = ["collections.OrderedDict", "lightgbm.basic.Booster"]
        assert all(name in str(refused.value) for name in types)
        again = load(tmp_path / "bundle", allow_types=[*types, "lightgbm.sklearn.LGBMClassifier"])
        assert torch.equal(again(table).log_probs, said.log_probs)


def test_lightgbm_takes_labels_that_are_text():
    lightgbm = pytest.importorskip("lightgbm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier = lightgbm.LGBMClassifier(n_estimators=3, num_leaves=4, verbose=-1, n_jobs=1)
        classifier.fit(ROWS, NAMES[WHICH])
        for order in (None, ["eel", "cat", "dog"]):
            stage = from_sklearn(classifier, class_names=order)
            named = np.array(stage.class_names)
            assert named[alone(stage)(ROWS).labels].tolist() == classifier.predict(ROWS).tolist()


def test_labels_are_for_classifiers_that_have_numbers():
    names = NAMES.tolist()
    numbered = LogisticRegression().fit(ROWS, WHICH)
    stage = from_sklearn(numbered, labels=names, class_names=names[::-1])
    said = alone(stage)(ROWS)
    assert (np.array(names)[::-1][said.labels] == NAMES[numbered.predict(ROWS)]).all()
    with pytest.raises(InputError, match="labels are for a classifier that was fitted on 0, 1, 2"):
        from_sklearn(LINEAR, labels=names)
    with pytest.raises(InputError, match=r"fitted on the numbers 0 to 2.*labels=encoder\.classes_"):
        from_sklearn(FOREST, class_names=names)
    assert from_sklearn(FOREST, class_names=["2", "0", "1"]).class_names == ("2", "0", "1")
