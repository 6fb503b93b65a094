"""Rows that are no tensors travel up to the function that reads them, in every driver."""

import asyncio

import numpy as np
import pytest
import torch
from torch import nn

from offramp import Adaptive, Cascade, record
from offramp._core.errors import InputError, UnsupportedError
from offramp.policy import Feature, Linear, Node, Policy
from offramp.runtime import Executor
from offramp.stages import given_costs, measure_seconds

pd = pytest.importorskip("pandas")


class Lengths(nn.Module):
    """Logits out of the lengths of texts; sure of short ones."""

    reads_rows = True

    def __init__(self, sure):
        super().__init__()
        self.sure, self.seen = sure, []

    def length(self, rows):
        if isinstance(rows, pd.DataFrame):
            return [len(text) * age for text, age in zip(rows["text"], rows["age"], strict=True)]
        if isinstance(rows, dict):
            return [len(text) * int(age) for text, age in zip(rows["text"], rows["age"])]  # noqa: B905
        return [len(row["text"] if isinstance(row, dict) else row) for row in rows]

    def forward(self, rows):
        n = torch.tensor(self.length(rows), dtype=torch.float32)
        self.seen.append(len(n))
        return torch.stack([self.sure * (4.5 - n), n, torch.zeros(len(n))], dim=1)


TEXTS = ["a" * k for k in (1, 9, 2, 7, 3, 8, 4, 6)]
FORMS = {
    "texts": TEXTS,
    "bytes": [text.encode() for text in TEXTS],
    "an array": np.array(TEXTS),
    "dicts": [{"text": text} for text in TEXTS],
    "a table": pd.DataFrame({"text": TEXTS, "age": 1}, index=range(8, 0, -1)),
    "a mapping": {"text": TEXTS, "age": [1] * 8},
}


def made():
    cascade = Cascade.from_models({"quick": Lengths(3.0), "slow": Lengths(1.0)})
    return cascade, {(0,): Node(Linear.threshold(Feature("max_prob", 0), 0.9))}


@pytest.mark.parametrize("form", FORMS)
def test_every_door_answers_rows_as_the_cascade_does(form):
    rows = FORMS[form]
    cascade, nodes = made()
    labels = [0, 1] * 4
    costs = given_costs(cascade, "calls", {"quick": 1.0, "slow": 4.0})
    trace = record(cascade, [(rows, labels)], costs=costs, progress=False)
    assert torch.equal(trace.logits, cascade(rows))
    model = Adaptive(cascade, Policy(cascade.topology, nodes))
    right = model(rows)
    assert set(right.stage.tolist()) == {0, 1}
    assert cascade.stage(1).module.seen[-1] < len(TEXTS)  # survivors alone
    expected = trace.logits[torch.arange(8), right.stage].log_softmax(1)
    assert torch.allclose(right.log_probs, expected, atol=1e-6)
    parts = [cut(rows, k) for k in range(8)]
    for k, one in enumerate(parts):
        assert torch.allclose(model(one).log_probs, right.log_probs[k : k + 1], atol=1e-6)
    streamed = {}
    for ids, answer in model.stream(parts, batch_size=3):
        streamed |= dict(zip(ids.tolist(), answer.log_probs, strict=True))
    assert torch.allclose(torch.stack([streamed[k] for k in range(8)]), right.log_probs, atol=1e-6)
    assert torch.allclose(gathered(model, parts), right.log_probs, atol=1e-6)


def test_seconds_are_measured_on_rows_too():
    with pytest.warns(UserWarning, match="a step saves little"):
        (seconds,) = measure_seconds(made()[0], TEXTS[:2], batch_sizes=[3], rounds=3).values()
    assert len(seconds) == 2


def cut(rows, k):
    if isinstance(rows, dict):
        return {name: part[k : k + 1] for name, part in rows.items()}
    return rows[k : k + 1]


def gathered(model, parts):
    async def ask():
        with Executor(model, batch_size=4) as executor:
            return await asyncio.gather(*map(executor.submit, parts))

    return torch.cat([answer.log_probs for answer in asyncio.run(ask())])


def test_a_network_beside_a_function_takes_numbers_and_names_what_is_none():
    class Mean(nn.Module):
        reads_rows = True

        def forward(self, rows):
            return torch.stack([torch.tensor([float(np.mean(row)), 1.0, 0.0]) for row in rows])

    cascade = Cascade.from_models({"a": Mean(), "b": nn.Linear(2, 3)})
    x = [[1.0, 2.0], [3.0, 4.0]]
    assert cascade(x).shape == (2, 2, 3)
    assert torch.equal(cascade(x)[:, 1], cascade.stage(1).module(torch.tensor(x)))
    with pytest.raises(InputError, match="batch must be one array"):
        cascade([[1.0, 2.0], [3.0]])


def test_a_function_that_writes_into_its_rows_spoils_nobody_elses():
    class Eats(Lengths):
        def length(self, rows):
            found = super().length(rows)
            if isinstance(rows, pd.DataFrame):
                rows["text"] = ""
            else:
                for row in rows:
                    row.pop("text")
                rows.clear()
            return found

    for form in ("dicts", "a table"):
        rows = FORMS[form]
        cascade = Cascade.from_models({"a": Eats(3.0), "b": Eats(1.0)})
        first = cascade(rows)
        assert torch.equal(cascade(rows), first)
        assert torch.equal(first, made()[0](FORMS["texts"]))


def test_one_bad_row_costs_nobody_elses_answer():
    class Strict(Lengths):
        def forward(self, rows):
            if any(row == "bad" for row in rows):
                raise ValueError("a bad row")
            return super().forward(rows)

    cascade = Cascade.from_models({"quick": Strict(3.0), "slow": Strict(1.0)})
    model = Adaptive(cascade, Policy(cascade.topology, made()[1]))
    lost, answered = [], []
    for ids, _ in model.stream(
        [TEXTS, ["ok", "bad", "fine!!"], TEXTS], on_error=lambda ids, error: lost.extend(ids)
    ):
        answered += ids.tolist()
    assert lost == [9]
    assert sorted(answered) == [k for k in range(19) if k != 9]


def test_nobody_is_answered_where_the_classes_are_known():
    cascade = Cascade.from_models({"a": Lengths(1.0)}, class_names=["x", "y", "z"])
    assert Adaptive.single(cascade, "a")([]).log_probs.shape == (0, 3)
    unknown = Adaptive.single(Cascade.from_models({"a": Lengths(1.0)}), "a")
    with pytest.raises(InputError, match="as long as the number of classes is not known"):
        unknown([])


def test_an_answer_that_depends_on_the_other_rows_is_refused():
    class Relative(Lengths):
        def length(self, rows):
            found = super().length(rows)
            return [k - min(found) for k in found]

    cascade = Cascade.from_models({"a": Relative(3.0)})
    with pytest.raises(UnsupportedError, match="'a' answers an example otherwise in other company"):
        Adaptive.single(cascade, "a")(TEXTS)
