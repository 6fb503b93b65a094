"""What scikit-learn and services give: probabilities with zeros, names, refusals, prices."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import offramp
from offramp._core.costs import Costs
from offramp._core.errors import InputError, UnknownNameError
from offramp.evaluation import evaluate
from offramp.evaluation.replay import replay
from offramp.fitting.baselines import fit_agreement
from offramp.policy import Candidate
from offramp.trace import (
    from_logits,
    from_npz,
    from_parquet,
    from_predictions,
    from_probabilities,
    make_trace,
)

PRICED = {"costs": {"a": 1.0, "b": 3.0}, "unit": "usd"}
P = np.array([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]])
PETS = ("cat", "dog", "fish")


def of(p, labels=(0, 1, 1), **more):
    return from_probabilities({"a": p, "b": P}, list(labels), **PRICED, **more)


def test_probabilities_come_back_as_probabilities_and_zeros_count_as_the_floor():
    trace = of(P)
    found = trace.output(0).logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(found, P, atol=3e-7)
    np.testing.assert_allclose(trace.logits[0, 0, 1:].exp().numpy(), 1e-7, rtol=1e-5)
    assert trace.outputs == "logits"
    assert [trace.accuracy(k) for k in (0, 1)] == [pytest.approx(2 / 3)] * 2
    stacked = np.stack([P, P], axis=1)
    assert torch.equal(from_probabilities(stacked, [0, 1, 1], **PRICED).logits, trace.logits)


def test_logits_and_their_probabilities_make_the_same_decisions():
    made = make_trace(600, stages=2, seed=0)
    probabilities = made.logits.softmax(dim=2).double()
    other = from_probabilities(probabilities, made.labels, costs=made.costs, names=made.stages)
    frontier = offramp.fit(
        made.split_into({"fit": 400, "test": 200}, seed=0),
        "threshold",
        combines=["last"],
        progress=False,
    )
    candidate = frontier.pareto[len(frontier.pareto) // 2].candidate
    same = replay(made, candidate.policy).last == replay(other, candidate.policy).last
    assert same.mean() > 0.99


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (P * 100, r"probabilities of 'a' must be in \[0, 1\], got 100\.0; scores of any other"),
        (P / 2, r"must sum to 1 over the classes, got 0\.5 for example 0"),
        (
            P[:, :1],
            r"must sum to 1 over the classes, got 0\.2 for example 1.*\(1 - p, p\)",
        ),
        (P[:, 0], r"one probability for each class, .* got shape \(3,\)"),
        (np.where(P == 0, np.nan, P), r"must be in \[0, 1\], got nan"),
        (np.log(P + 1e-9), r"must be in \[0, 1\], got -"),
    ],
)
def test_what_is_no_probability_is_refused(p, message):
    with pytest.raises(InputError, match=message):
        of(p)


def test_the_logarithm_of_zero_names_the_door_for_probabilities():
    with np.errstate(divide="ignore"), pytest.raises(InputError, match="to from_probabilities"):
        from_logits({"a": np.log(P), "b": np.log(P)}, [0, 1, 2], **PRICED)
    with pytest.raises(InputError, match="Find out why the network gives such an output"):
        from_logits({"a": P + np.nan, "b": P}, [0, 1, 2], **PRICED)


def test_rounded_probabilities_and_float16_are_taken():
    of(np.round(P, 2))
    of(P.astype(np.float16))
    of(P + 1e-7)


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=5))
def test_any_rows_that_sum_to_one_keep_their_order(rows):
    p = np.array(rows) + 1e-3
    p /= p.sum(axis=1, keepdims=True)
    trace = from_probabilities({"a": p}, [0] * len(p), costs={"a": 1.0}, unit="x")
    found = trace.output(0).logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(found, p, atol=1e-6)


def test_files_hold_probabilities_too(tmp_path):
    np.savez(tmp_path / "p.npz", labels=[0, 1, 1], forest=P, large=P)
    named = {"a": "forest", "b": "large"}
    trace = from_npz(tmp_path / "p.npz", probabilities=named, **PRICED)
    assert torch.equal(trace.logits, of(P).logits)
    with pytest.raises(InputError, match=r"exactly one of .* got logits, probabilities"):
        from_npz(tmp_path / "p.npz", probabilities=named, logits=named, **PRICED)


def test_names_of_classes_are_labels_everywhere():
    said = {"a": ["cat", "dog", "fish"], "b": np.array(["dog", "dog", "fish"])}
    trace = from_predictions(said, ["cat", "dog", "cat"], class_names=PETS, **PRICED)
    assert trace.labels.tolist() == [0, 1, 0]
    assert trace.ranked[:, :, 0].tolist() == [[0, 1], [1, 1], [2, 2]]
    assert trace.classes == 3
    ranked = {"a": [["cat", "dog"], ["dog", "cat"]], "b": [["dog", "cat"], ["fish", "dog"]]}
    top = from_predictions(ranked, [1, 1], class_names=PETS, **PRICED)
    assert top.ranked[:, 1].tolist() == [[1, 0], [2, 1]]
    by_name = of(P, ("cat", "dog", "dog"), class_names=PETS)
    assert by_name.labels.tolist() == [0, 1, 1]


def test_a_name_that_is_no_class_is_wrong_in_predictions_and_refused_in_labels():
    said = {"a": ["cat", "bird", "Dog"], "b": ["cow", "bird", "dog"]}
    with pytest.warns(UserWarning, match=r"'a' gave 2 labels that are no class, such as 'bird'"):
        trace = from_predictions(said, ["cat", "dog", "dog"], class_names=PETS, **PRICED)
    assert [trace.accuracy(k) for k in (0, 1)] == [pytest.approx(1 / 3)] * 2
    first = trace.ranked[:, :, 0]
    assert first[1, 0] == first[1, 1] >= 3  # both say "bird"
    assert first[0, 1] not in (first[1, 1], first[2, 0])  # each name has a number of its own
    with pytest.raises(InputError, match=r"got 'Dog' for example 1\. Did you mean 'dog'"):
        from_predictions(said, ["cat", "Dog", "dog"], class_names=PETS, **PRICED)
    with pytest.raises(InputError, match="predictions of 'a' are text, so class_names"):
        from_predictions(said, [0, 1, 1], **PRICED)
    with pytest.raises(InputError, match="class_names must differ"):
        from_predictions(said, ["cat"] * 3, class_names=["cat", "cat"], **PRICED)


REFUSED = {
    "None": [0, None, 2],
    "NaN": [0.0, np.nan, 2.0],
    "an array of objects": np.array([0, None, 2], dtype=object),
    "None among names": ["cat", None, "fish"],
    "NaN among names": ["cat", float("nan"), "fish"],
}


@pytest.mark.parametrize("form", REFUSED)
def test_a_refusal_is_a_wrong_answer_without_confidence_and_is_counted(form):
    confidences = {"a": [0.9, None, 0.9], "b": np.array([0.9, 0.8, np.nan])}
    with pytest.warns(UserWarning, match=r"'a' refused 1 of 3 .*; 'b' refused 1 of 3"):
        trace = from_predictions(
            {"a": REFUSED[form], "b": [0, 1, None]},
            [0, 1, 2],
            confidences=confidences,
            class_names=PETS,
            **PRICED,
        )
    assert trace.wrong(0).tolist() == [False, True, False]
    assert trace.confidence[:, 0].tolist() == [pytest.approx(0.9), 0.0, pytest.approx(0.9)]
    assert trace.confidence[2, 1] == 0
    scores = trace.output(0).scores()
    assert torch.isfinite(scores).all()
    assert scores[1].argmax() == 3  # none of the classes
    assert scores[1].softmax(0).max() < scores[0].softmax(0).max()


def test_a_missing_value_of_pandas_is_a_refusal_and_a_missing_confidence_is_not():
    pd = pytest.importorskip("pandas")
    with pytest.warns(UserWarning, match="'a' refused 1 of 3"):
        trace = from_predictions({"a": pd.Series([0, pd.NA, 2], dtype="Int64")}, [0, 1, 2], **ONE)
    assert trace.wrong(0).tolist() == [False, True, False]
    with pytest.raises(InputError, match=r"confidence must be in \[0, 1\], got nan for example 1"):
        from_predictions({"a": [0, 1]}, [0, 1], confidences={"a": [0.5, None]}, **ONE)


ONE = {"costs": {"a": 1.0}, "unit": "x"}


@pytest.mark.parametrize("labels", [[0, None], [0, -1], np.array([0, -7]), torch.tensor([0, -1])])
def test_two_refusals_do_not_agree(labels):
    said = {name: labels for name in "abc"}
    with pytest.warns(UserWarning, match="'c' refused 1 of 2"):
        trace = from_predictions(said, [0, 0], costs=dict(a=1.0, b=2.0, c=3.0), unit="x", classes=2)
    (candidate,) = fit_agreement(trace, reference="c", options=[(1, 1)])
    assert replay(trace, candidate.policy).last.tolist() == [1, 2]


def test_a_negative_label_is_never_sure():
    said, sure = {"a": torch.tensor([0, -1])}, {"a": [0.9, 0.9]}
    with pytest.warns(UserWarning, match="'a' refused 1 of 2"):
        trace = from_predictions(said, [0, 1], confidences=sure, **ONE)
    np.testing.assert_allclose(trace.confidence[:, 0], [0.9, 0.0])


def test_columns_of_parquet_may_have_refusals_and_names(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "label": ["cat", "dog", "fish"],
        "a": ["cat", None, "fish"],
        "b": pa.array(["dog", "dog", "fish"]).dictionary_encode(),
        "ca": [0.9, None, 1.0],
        "cb": [0.9, 0.9, 0.9],
    }
    parquet.write_table(pa.table(columns), tmp_path / "s.parquet")
    with pytest.warns(UserWarning, match="'a' refused 1 of 3"):
        trace = from_parquet(
            tmp_path / "s.parquet",
            predictions={"a": "a", "b": "b"},
            confidences={"a": "ca", "b": "cb"},
            class_names=PETS,
            **PRICED,
        )
    assert trace.wrong(0).tolist() == [False, True, False]
    assert trace.wrong(1).tolist() == [True, False, False]


def test_rounding_outside_the_unit_interval_is_cut_and_more_is_refused():
    near = np.float32([0.5, 1.0000002])
    trace = from_predictions({"a": [0, 1]}, [0, 1], confidences={"a": near}, **ONE)
    assert trace.confidence[:, 0].tolist() == [0.5, 1.0]
    below = from_predictions({"a": [0, 1]}, [0, 1], confidences={"a": [-1e-7, 0.5]}, **ONE)
    assert below.confidence[0, 0] == 0
    for wrong in (1.001, -0.001, 83.0):
        with pytest.raises(InputError, match=r"confidence must be in \[0, 1\]"):
            from_predictions({"a": [0, 1]}, [0, 1], confidences={"a": [0.5, wrong]}, **ONE)


def test_the_mean_of_the_prices_is_the_cost_and_is_stated():
    prices = {"a": np.array([0.1, 0.2, 0.6]), "b": 4}
    trace = from_probabilities({"a": P, "b": P}, [0, 1, 1], costs=prices, unit="usd")
    assert trace.costs.segment == (pytest.approx(0.3), 4.0)
    assert trace.costs.note == "a: mean of 3 prices from 0.1 to 0.6"
    frontier = Candidate.single(trace.topology, "a", reference="b")
    assert evaluate(trace, frontier, bootstrap=0).cost == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("price", "message"),
    [
        ([0.1, 0.2], r"one price for each of the 3 examples, got shape \(2,\)"),
        ([0.1, -0.2, 0.3], r"must be finite and at least 0, got -0\.2\d* for example 1"),
        ([0.1, np.nan, 0.3], "must be finite and at least 0, got nan for example 1"),
        ("0.1", "costs of 'a' must be numbers, got an array of <U3"),
        (None, "costs of 'a' must be an array, a tensor or nested lists, got None"),
    ],
)
def test_wrong_prices_are_named(price, message):
    with pytest.raises(InputError, match=message):
        from_logits({"a": P, "b": P}, [0, 1, 1], costs={"a": price, "b": 1.0}, unit="usd")


def test_a_table_of_prices_is_refused_with_its_shape():
    bare = inspect.unwrap(Costs.__init__)  # the tests' type checker would be first
    table, zeros = [[1.0, 2.0], [1.0, 2.0]], (0.0, 0.0)
    with pytest.raises(InputError, match=r"one cost per stage, shape \(2,\), got shape \(2, 2\)"):
        bare(object.__new__(Costs), unit="usd", segment=table, head=zeros, decision=zeros)
    with pytest.raises(InputError, match="segment must be one number for each stage"):
        bare(object.__new__(Costs), unit="usd", segment=["a", 1.0], head=zeros, decision=zeros)


def test_an_unknown_stage_in_the_costs_is_still_named():
    with pytest.raises(UnknownNameError, match="no stage 'c'"):
        from_logits({"a": P, "b": P}, [0, 1, 1], costs={"a": 1, "b": 1, "c": 1}, unit="usd")


def test_nothing_is_said_where_nothing_is_odd():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_predictions({"a": [0, 7], "b": [0, 8]}, [0, 1], **PRICED)  # labels of their own


@pytest.mark.parametrize("said", [["0.9", "high"], ["high", None], [[0.5], [0.5]], [0.5, True, 1]])
def test_confidences_that_are_no_numbers_or_too_many_are_refused(said):
    with pytest.raises(InputError, match="confidences of 'a' must"):
        from_predictions({"a": [0, 1]}, [0, 1], confidences={"a": said}, **ONE)
