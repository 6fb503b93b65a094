"""Any function on rows is a stage: what it may get, what it may return, and bundles of them."""

import functools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from tests.support import functions
from tests.support.functions import NAMES, label_of

import offramp
from offramp import Adaptive, Cascade, Policy, load, save
from offramp._core.errors import InputError, UnsupportedError
from offramp.adapters import from_function
from offramp.data import rows as rows_of
from offramp.evaluation.replay import replay
from offramp.policy import Agreement, Candidate, Constant, Node
from offramp.stages import given_costs, measure_flops, measure_seconds

TEXTS = ["x" * (k % 70) for k in range(420)]
LABELS = torch.tensor([NAMES.index(label_of(text)) for text in TEXTS])
WHERE = "tests.support.functions"


def alone(call, outputs="labels", *, looked_at=False, **options):
    stage = from_function(call, outputs=outputs, **({"class_names": NAMES} | options))
    cascade = Cascade.from_models({"it": stage})
    cascade.stage("it").keeps_company = not looked_at  # here answers do not depend on the rows
    return Adaptive.single(cascade, "it")


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (["a", "b"], list),
        ([b"a", b"b"], list),
        ([{"text": "a"}, {"text": "b"}], list),
        (pd.DataFrame({"age": [1, 2], "name": ["a", "b"]}), pd.DataFrame),
        ({"text": ["a", "b"], "age": np.array([1, 2])}, dict),
        (np.array([[1.0], [2.0]]), torch.Tensor),
        (torch.zeros(2, 3), torch.Tensor),
    ],
)
def test_a_function_gets_the_rows_as_they_are(rows, kind):
    seen = []

    def look(given):
        seen.append(given)
        return [0, 1]

    model = alone(look, class_names=(), classes=3)
    model(rows)
    assert isinstance(seen[-1], kind)


@pytest.mark.parametrize(
    "said",
    [
        ["short", "long"],
        ("short", "long"),
        [0, 2],
        [0.0, 2.0],
        np.array([0, 2], dtype=np.uint8),
        np.array(["short", "long"]),
        np.array(["short", "long"], dtype=object),
        pd.Series(["short", "long"]),
        torch.tensor([0, 2], dtype=torch.int16),
        {"labels": ["short", "long"]},
    ],
)
def test_labels_may_come_in_any_form(said):
    answer = alone(lambda rows: said)(["a", "b"])
    assert answer.labels.tolist() == [0, 2]
    assert answer.confidence is None
    assert answer.valid.all()


@pytest.mark.parametrize("sure", [[0.5, 1.0000001], np.array([0.5, 1]), torch.tensor([0.5, 1.0])])
def test_confidences_may_come_in_any_form(sure):
    for said in ((["short", "long"], sure), {"labels": [0, 2], "confidence": sure}):
        answer = alone(lambda rows, said=said: said, "confidence")(["a", "b"])
        assert answer.labels.tolist() == [0, 2]
        assert answer.confidence.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, pd.DataFrame])
def test_scores_may_come_in_any_form(make):
    rows = [[0.25, 0.5, 0.25], [0.0, 0.0, 1.0]]
    answer = alone(lambda given: make(rows), "probabilities")(["a", "b"])
    np.testing.assert_allclose(answer.log_probs.exp(), rows, atol=1e-6)
    logits = alone(lambda given: make(rows), "logits")(["a", "b"])
    torch.testing.assert_close(logits.log_probs, torch.tensor(rows).log_softmax(1))


@pytest.mark.parametrize("form", ["probabilities", "logits"])
def test_columns_with_names_are_read_by_the_names_of_the_classes(form):
    table = pd.DataFrame({"long": [0.75, 0.0], "short": [0.25, 0.0], "middle": [0.0, 1.0]})
    names = list(NAMES)
    same = alone(lambda rows: table[names], form)(["a", "b"])
    turned = alone(lambda rows: table, form)(["a", "b"])
    assert same.labels.tolist() == turned.labels.tolist() == [2, 1]
    torch.testing.assert_close(turned.log_probs, same.log_probs)
    other = table.rename(columns={"long": "huge"})
    with pytest.raises(InputError, match=r"Stage 'it' gives a table whose columns .*'huge'"):
        alone(lambda rows: other, form)(["a", "b"])
    unnamed = alone(lambda rows: other, form, class_names=(), classes=3)(["a", "b"])
    assert unnamed.labels.tolist() == [0, 2]  # by position


def test_what_a_function_returns_is_copied():
    held, labels = np.zeros((2, 3), np.float32), np.zeros(2, np.int64)
    answers = [alone(lambda rows: held, "logits")(["a", "b"]), alone(lambda rows: labels)([1, 2])]
    held[:], labels[:] = [0, 0, 9], 7
    assert [answer.labels.tolist() for answer in answers] == [[0, 0], [0, 0]]


def test_a_function_may_write_into_its_rows():
    def greedy(rows):
        rows.clear()
        return [0, 1]

    rows = ["a", "b"]
    alone(greedy)(rows)
    assert rows == ["a", "b"]


def test_refusals_and_foreign_labels_are_answers():
    answer = alone(functions.rough, "confidence")(["", "x" * 99, "x"])
    assert answer.labels[0] < 0
    assert answer.labels[1] >= len(NAMES)
    assert answer.labels[2] == 0
    assert answer.confidence[0] == 0.0
    with pytest.raises(InputError, match="Stage 'it' gives the label 'huge'"):
        alone(functions.rough, "confidence", strict=True)(["x" * 99])


@pytest.mark.parametrize(
    "labels",
    [["short", None], [0, -1], [0.0, np.nan], np.array([0, -3]), torch.tensor([0, -1])],
)
@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_a_refusal_is_never_sure(labels, make):
    answer = alone(lambda rows: (labels, make([0.75, 0.99])), "confidence")(["a", "b"])
    assert answer.labels[0] == 0
    assert answer.labels[1] < -255
    assert answer.confidence.tolist() == [0.75, 0.0]


@pytest.mark.parametrize(
    "labels",
    [[99, 1], [-2, -3], [None, 1], np.array([1, 3]), torch.tensor([-1, 1]), [[0, 1], [2, 3]]],
)
def test_a_strict_function_gives_classes_alone(labels):
    message = "Stage 'it' gives the label .*, which is none of the 3 classes"
    for options in ({}, {"class_names": (), "classes": 3}):
        with pytest.raises(InputError, match=message):
            alone(lambda rows: labels, strict=True, **options)(["a", "b"])
    assert alone(lambda rows: [2, 0], strict=True)(["a", "b"]).labels.tolist() == [2, 0]


@pytest.mark.parametrize("make", [list, np.array, pd.Series])
def test_labels_beyond_int64_are_refused(make):
    labels = make(np.array([1, 2**64 - 1], dtype=np.uint64))
    with pytest.raises(InputError, match="Stage 'it' must give labels below"):
        alone(lambda rows: labels)(["a", "b"])
    assert alone(lambda rows: make(np.array([1, 2], dtype=np.uint64)))([0, 1]).labels[1] == 2


def test_two_services_agree_on_a_foreign_label_and_never_on_a_refusal():
    said = {
        "a": ["huge", None, "tiny", -1],
        "b": ["huge", None, "enormous", -1],
        "c": ["short"] * 4,
    }
    stages = {
        name: from_function(
            lambda rows, own=own: [own[int(row)] for row in rows],
            outputs="labels",
            class_names=NAMES,
        )
        for name, own in said.items()
    }
    cascade = Cascade.from_models(stages, edges="chain")
    nodes = {(0,): Node(Constant(False)), (0, 1): Node(Agreement((0, 1)))}
    policy = Policy(cascade.topology, nodes)
    assert Adaptive(cascade, policy)(["0", "1", "2", "3"]).stage.tolist() == [1, 2, 2, 2]


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_negative_numbers_of_two_functions_never_agree_live_or_recorded(make):
    def call(rows):
        return make([-1 if "no" in row else 0 for row in rows])

    stages = {name: from_function(call, outputs="labels", classes=2) for name in "abc"}
    cascade = Cascade.from_models(stages, edges="chain")
    nodes = {(0,): Node(Constant(False)), (0, 1): Node(Agreement((0, 1)))}
    policy = Policy(cascade.topology, nodes)
    rows = ["yes", "no 1", "no 2"]
    answer = Adaptive(cascade, policy)(rows)
    assert answer.stage.tolist() == [1, 2, 2]
    assert (answer.labels[1:] < -255).all()
    costs = given_costs(cascade, "us", dict.fromkeys("abc", 1.0))
    trace = offramp.record(cascade, rows_of(rows, [0, 1, 1]), costs=costs, progress=False)
    assert replay(trace, policy).last.tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("call", "outputs", "message"),
    [
        (functions.broken, "labels", "Stage 'it' must answer for each of the 2 examples"),
        (lambda rows: None, "labels", "Stage 'it' must give one label for each example"),
        (lambda rows: "short", "labels", "Stage 'it' must give one label for each example"),
        (lambda rows: [b"a", b"b"], "labels", "Stage 'it' must give labels that are whole"),
        (lambda rows: [0.5, 1.0], "labels", "Stage 'it' must give labels that are whole"),
        (lambda rows: [0, 1], "confidence", "Stage 'it' must give labels and confidences"),
        (lambda rows: ([0, 1], [0.5]), "confidence", r"Stage 'it': .* shapes \(2,\) and \(1,\)"),
        (lambda rows: ([0, 1], [0.5, 83]), "confidence", "Stage 'it': confidence must be in"),
        (lambda rows: ([0, 1], [0.5, np.nan]), "confidence", "Stage 'it' .* got NaN for example 1"),
        (lambda rows: [["a"], ["b"]], "logits", "Stage 'it' must give one number for each"),
        (lambda rows: np.zeros(2), "logits", r"Stage 'it' gives no logits.*\(2,\)"),
        (lambda rows: np.zeros((2, 1)), "logits", "Stage 'it' must give logits for at least 2"),
        (lambda rows: np.full((2, 3), 0.5), "probabilities", "stage 'it' must sum to 1"),
        (lambda rows: np.full((2, 3), np.nan), "probabilities", r"stage 'it' must be in \[0, 1\]"),
        (lambda rows: np.zeros((2, 4)), "logits", "class_names must have 4 entries"),
    ],
)
def test_what_is_wrong_is_said_with_the_stage(call, outputs, message):
    with pytest.raises(InputError, match=message):
        alone(call, outputs)(["a", "b"])


def test_text_labels_need_names_and_labels_a_number_of_classes():
    with pytest.raises(InputError, match="needs the names of the classes"):
        alone(functions.exact_labels, class_names=(), classes=3)(["a"])
    with pytest.raises(InputError, match="the number of classes must be given"):
        alone(lambda rows: [0], class_names=())(["a"])
    with pytest.raises(InputError, match="classes must be the number of class_names, 3, got 4"):
        alone(len, classes=4)
    with pytest.raises(InputError, match="call must be a function"):
        from_function(3)
    with pytest.raises(InputError, match="outputs must be one of"):
        from_function(len, outputs="label")


def test_an_error_of_the_function_names_its_stage():
    def fails(rows):
        raise KeyError("text")

    with pytest.raises(KeyError) as caught:
        alone(fails)(["a"])
    assert "function of stage 'it'" in caught.value.__notes__[0]


def of_functions(form):
    ends = {"confidence": "", "labels": "_labels"}[form]
    return Cascade.from_models(
        {
            name: from_function(f"{WHERE}:{name}{ends}", outputs=form, class_names=NAMES)
            for name in ("rough", "exact")
        }
        | (
            {"again": from_function(functions.exact_labels, outputs=form, class_names=NAMES)}
            if form == "labels"
            else {}
        ),
        edges="chain",
    )


@pytest.mark.parametrize("form", ["confidence", "labels"])
def test_a_session_of_functions(form, tmp_path):
    cascade = of_functions(form)
    costs = given_costs(cascade, "us", dict(zip(cascade.topology.names, (1, 9, 30), strict=False)))
    data = rows_of(TEXTS, LABELS, class_names=NAMES)
    where = tmp_path / "t.trace"
    trace = offramp.record(cascade, data, costs=costs, path=where, progress=False)
    assert trace.class_names == NAMES
    assert [note.partition(";")[0] for note in trace.notes] == [
        "'rough' refused 6 times",
        "'rough' gave a label that is no class 54 times",
    ]
    divided = trace.split_into({"fit": 200, "calibrate": 220}, seed=0)
    policy = "agreement" if form == "labels" else "threshold"
    frontier = offramp.fit(divided, policy, reference=trace.stages[-1], progress=False)
    choice = frontier.cheapest(max_drop=0.1, delta=None)
    model, said = Adaptive(cascade, choice, costs=costs), replay(trace, choice.candidate.policy)
    answer = model(TEXTS)
    assert answer.stage.tolist() == said.last.tolist()
    assert answer.labels.tolist() == said.labels[:, 0].tolist()
    one_by_one = [int(model([text]).labels) for text in TEXTS[:80]]
    assert one_by_one == answer.labels[:80].tolist()
    streamed = torch.full((len(TEXTS),), -9)
    for ids, part in model.stream([TEXTS[:200], TEXTS[200:]], batch_size=32):
        streamed[torch.from_numpy(ids)] = part.labels
    assert torch.equal(streamed, answer.labels)
    save(model, tmp_path / "b")
    with pytest.raises(UnsupportedError, match="not allowed here"):
        load(tmp_path / "b")
    again = load(tmp_path / "b", allow_import=True)
    assert torch.equal(again(TEXTS).labels, answer.labels)
    assert torch.equal(again.reference(TEXTS).labels, model.reference(TEXTS).labels)
    save(again, tmp_path / "c")


def test_what_nobody_can_import_is_refused_when_it_is_saved(tmp_path):
    def inner(rows):
        return [0 for _ in rows]

    for call in (lambda rows: [0 for _ in rows], inner, functools.partial(functions.exact_labels)):
        model = alone(call)
        candidate = Candidate.single(model.cascade.topology, "it", reference="it")
        with pytest.raises(InputError, match=r"from_function\('package.module:name'"):
            save(Adaptive(model.cascade, candidate), tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert from_function(functions.exact).spec.arguments["call"] == f"{WHERE}:exact"
    with pytest.raises(UnsupportedError, match="no callable 'nobody'"):
        from_function(f"{WHERE}:nobody")


def test_costs_of_functions_are_measured_in_seconds_or_given():
    cascade = of_functions("confidence")
    with pytest.raises(UnsupportedError, match=r"\['rough', 'exact'\] cannot be counted"):
        measure_flops(cascade, TEXTS[:4])
    with pytest.warns(UserWarning, match="costs"):
        measured = measure_seconds(cascade, TEXTS[:4], batch_sizes=[4])[4]
    assert all(s > 0 for s in measured.segment)


def test_an_answer_that_depends_on_the_company_is_refused():
    def majority(rows):
        labels = [label_of(row) for row in rows]
        return [max(set(labels), key=labels.count)] * len(rows)

    with pytest.raises(UnsupportedError, match="Stage 'it' answers an example otherwise"):
        alone(majority, looked_at=True)(["x" * 3, "x" * 3, "x" * 15])


def test_a_manifest_names_the_function(tmp_path):
    cascade = of_functions("confidence")
    candidate = Candidate.single(cascade.topology, "exact", reference="exact")
    save(Adaptive(cascade, candidate), tmp_path / "b")
    stage = json.loads((tmp_path / "b" / "manifest.json").read_text())["stages"][0]
    assert stage["model"]["arguments"]["call"] == f"{WHERE}:exact"
    assert stage["outputs"] == "confidence"


@pytest.mark.parametrize("given", [[2**70, 1], [[1, 2], [1]]])
def test_labels_that_no_tensor_holds_are_refused(given):
    with pytest.raises(InputError, match=r"labels below 2\*\*63"):
        alone(lambda rows: given, class_names=(), classes=3)(["a", "b"])
