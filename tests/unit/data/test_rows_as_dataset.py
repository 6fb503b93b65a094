"""A data set of rows of any type: divided, batched, recorded and told apart like any other."""

import numpy as np
import pytest
import torch
from torch import nn

from offramp import Cascade, record
from offramp._core.batch import RowList
from offramp._core.errors import InputError
from offramp.data import arrays, rows
from offramp.stages import Columns, given_costs

pd = pytest.importorskip("pandas")

TEXTS = [f"text {k}" for k in range(8)]
LABELS = [0, 1] * 4


def forms():
    image = pytest.importorskip("PIL.Image")
    return {
        "texts": TEXTS,
        "bytes": [text.encode() for text in TEXTS],
        "dicts": [{"text": text, "ids": [k] * (k + 1)} for k, text in enumerate(TEXTS)],
        "arrays": [np.arange(k) for k in range(8)],
        "tensors": [torch.arange(k) for k in range(8)],
        "pictures": [image.new("RGB", (k + 1, 2), (k, 0, 0)) for k in range(8)],
        "a table": pd.DataFrame({"age": range(8), "text": TEXTS}),
        "a mapping": {"text": TEXTS, "age": list(range(8))},
    }


@pytest.mark.parametrize("form", forms())
def test_rows_are_divided_and_batched(form):
    examples = rows(forms()[form], LABELS, ids=TEXTS)
    assert len(examples) == 8
    parts = examples.split_into({"fit": 4, "test": 4}, seed=0, stratified=True)
    fit = parts.subset("fit")
    assert sorted(fit.labels.tolist()) == [0, 0, 1, 1]
    first = TEXTS.index(fit.ids[0])
    assert str(fit[0][0]) == str(examples[first][0])
    batches = list(examples.loader(3))
    assert [len(batch.labels) for batch in batches] == [3, 3, 2]
    assert type(examples.batch(1, 4).inputs) is type(examples.inputs)


@pytest.mark.parametrize("form", forms())
def test_the_fingerprint_tells_other_rows(form):
    examples = rows(forms()[form], LABELS)
    assert examples.fingerprint == rows(forms()[form], LABELS).fingerprint
    back = examples.take(torch.arange(7, -1, -1))
    turned = rows(back.inputs, LABELS)
    assert turned.fingerprint != examples.fingerprint


def test_where_one_row_ends_matters():
    one, other = rows(["ab", "c"], [0, 1]), rows(["a", "bc"], [0, 1])
    assert one.fingerprint != other.fingerprint
    assert rows([b"ab", b"c"], [0, 1]).fingerprint != rows([b"a", b"bc"], [0, 1]).fingerprint


def test_rows_are_recorded_through_the_transform_that_reads_them():
    cascade = Cascade.from_models({"a": nn.Linear(1, 2)}, transform=Columns(["age"]))
    examples = rows(forms()["a table"], LABELS)
    costs = given_costs(cascade, "calls", {"a": 1.0})
    trace = record(cascade, examples, costs=costs, batch_size=3, progress=False)
    ages = torch.arange(8.0)[:, None]
    assert torch.allclose(trace.logits[:, 0], cascade.stage("a").module(ages).detach())


def test_what_is_no_rows_is_refused_and_numbers_are_as_in_arrays():
    with pytest.raises(InputError, match="one entry for each example"):
        rows("a text", LABELS)
    with pytest.raises(InputError, match="one length, got 2 inputs and 8 labels"):
        rows(["a", "b"], LABELS)
    assert isinstance(rows(TEXTS, LABELS).inputs, RowList)
    numbers = np.arange(8.0)[:, None]
    assert rows(numbers, LABELS).fingerprint == arrays(numbers, LABELS).fingerprint
