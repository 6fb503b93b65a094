"""Rows of any type: what they become, and what can be done with them."""

import numpy as np
import pytest
import torch

from offramp._core.batch import (
    RowList,
    all_alike,
    as_batch,
    as_rows,
    batch_size,
    concat,
    form_of,
    split_rows,
    take_rows,
    to_device,
)
from offramp._core.errors import InputError

pd = pytest.importorskip("pandas")

X = np.arange(6.0).reshape(3, 2)


def pictures():
    image = pytest.importorskip("PIL.Image")
    return [image.new("RGB", (k + 2, 2)) for k in range(3)]


TEXTS = ["a", "bb", "ccc"]
IDS = [[1], [2, 3], [4, 5, 6]]
KINDS = {
    "texts": (TEXTS, RowList),
    "bytes": ([b"a", b"b", b"c"], RowList),
    "a tuple of texts": (tuple(TEXTS), RowList),
    "an array of texts": (np.array(TEXTS), RowList),
    "an array of objects": (np.array([{"a": 1}, None, "x"], dtype=object), RowList),
    "a column of texts": (pd.Series(TEXTS, index=[7, 8, 9]), RowList),
    "token ids": (IDS, RowList),
    "token ids of one length": ([[1, 2], [3, 4], [5, 6]], RowList),
    "dicts": ([{"ids": ids} for ids in IDS], RowList),
    "tensors of several shapes": ([torch.zeros(3, k, 2) for k in (1, 2, 3)], RowList),
    "arrays of several shapes": ([np.zeros(k) for k in (1, 2, 3)], RowList),
    "a table": (pd.DataFrame({"x": [1, 2, 3], "t": TEXTS}, index=[7, 8, 9]), pd.DataFrame),
    "a column of numbers": (pd.Series([1.0, 2.0, 3.0]), torch.Tensor),
    "an array": (X[::-1].astype(">f8"), torch.Tensor),
    "numbers": ([1, 2, 3], torch.Tensor),
    "a mapping": ({"t": TEXTS, "x": X, "age": [1, 2, 3]}, dict),
    "a tuple": ((X, torch.zeros(3)), tuple),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_they_were_and_can_be_taken_and_joined(kind):
    given, wanted = KINDS[kind]
    rows = as_rows(given)
    assert type(rows) is wanted
    assert batch_size(rows) == 3
    assert as_rows(rows) is rows or isinstance(rows, dict | tuple)
    assert to_device(rows, "cpu") is rows or isinstance(rows, dict | tuple)
    parts = split_rows(rows, (1, 2))
    assert [batch_size(part) for part in parts] == [1, 2]
    again = concat([take_rows(rows, torch.tensor(k).long()) for k in ([0], [], [1, 2])])
    for found in (again, concat(parts), take_rows(rows, torch.tensor([True] * 3))):
        same(found, rows)
    last = take_rows(rows, torch.tensor([2]))
    assert batch_size(last) == 1
    assert form_of(last)
    assert all_alike(last)
    assert not all_alike(rows) or kind == "a tuple"


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            same(one[name], other[name])
    elif isinstance(one, tuple | list):
        for a, b in zip(one, other, strict=True):
            if isinstance(a, torch.Tensor | list):
                same(a, b)
            else:
                assert np.array_equal(a, b)
    else:
        assert one.equals(other)


def test_pictures_are_rows():
    images = pictures()
    rows = as_rows(images)
    assert type(rows) is RowList
    assert rows == images
    assert not all_alike(rows)
    assert all_alike(as_rows([images[0], images[0].copy()]))


def test_float64_that_is_no_tensor_becomes_float32_as_in_a_batch_of_tensors():
    found = as_rows({"x": X, "y": pd.Series([1.0, 2.0, 3.0]), "t": torch.zeros(3).double()})
    assert [part.dtype for part in found.values()] == [torch.float32] * 2 + [torch.float64]


def test_lists_of_rows_become_tensors_where_a_network_reads_them():
    assert as_batch(as_rows([[1, 2], [3, 4]])).tolist() == [[1, 2], [3, 4]]
    assert as_batch(RowList([torch.zeros(2, 3)] * 4)).shape == (4, 2, 3)
    with pytest.raises(InputError, match=r"one tensor, got tensors of the shapes .*Resize"):
        as_batch(RowList([torch.zeros(2), torch.zeros(3)]))
    with pytest.raises(InputError, match="batch must be numbers"):
        as_batch(RowList(TEXTS))


BAD = {
    "None": (None, "batch must hold one entry for each example.* got None"),
    "a text": ("abc", r"got str\. A single one goes into a list"),
    "bytes": (b"abc", r"got bytes\. A single one goes into a list"),
    "a number": (3.0, "got float"),
    "an array without axes": (np.array(3.0), "must have the examples along its first axis"),
    "a text without axes": (np.array("x"), "got ndarray"),
    "a generator": ((x for x in TEXTS), r"got generator\. Make a list of it"),
    "a set": (set(TEXTS), r"got set\. Make a list of it"),
    "a row": ({"text": "abc"}, r"batch\['text'\] must hold one entry .* got str\. A single one"),
    "two lengths": ({"t": TEXTS, "x": [1, 2]}, r"got the lengths \{'t': 3, 'x': 2\}"),
    "a table and a list": ({"t": TEXTS[:2], "x": pd.DataFrame(X)}, r"\{'t': 2, 'x': 3\}"),
}


@pytest.mark.parametrize("bad", BAD)
def test_where_rows_cannot_be_had_the_message_says_so(bad):
    given, message = BAD[bad]
    with pytest.raises(InputError, match=message):
        batch_size(as_rows(given))


def test_a_picture_alone_goes_into_a_list():
    with pytest.raises(InputError, match=r"got Image\. A single one goes into a list"):
        as_rows(pictures()[0])


def test_rows_of_different_kinds_are_not_joined():
    table = pd.DataFrame(X, columns=["a", "b"])
    for one, other in (
        (RowList(TEXTS), torch.zeros(3)),
        (table, table[["a"]]),
        ({"x": RowList(TEXTS)}, {"x": torch.zeros(3)}),
    ):
        with pytest.raises(InputError, match="must be of one kind"):
            concat([one, other])


def test_no_rows_are_a_batch_of_none():
    assert batch_size(as_rows([])) == 0
    assert form_of(as_rows([])) == "a list of nothing"
