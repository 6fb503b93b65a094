"""Rows stay what they were, whatever a function writes into, and however deep it lies."""

import threading
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from offramp import Adaptive, Cascade
from offramp._core.batch import RowList, batch_size
from offramp.adapters import from_function
from offramp.stages import Stage, copied
from offramp.stages.reading import Reading

Pair = namedtuple("Pair", "text pixels")


@dataclass
class Document:
    pixels: np.ndarray


def pixels():
    return np.arange(3.0)


def objects(parts):
    made = np.empty(len(parts), dtype=object)
    for k, part in enumerate(parts):
        made[k] = part
    return made


def table():
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"pixels": pandas.Series([pixels(), pixels()]), "n": [1, 2]})


def picture():
    image = pytest.importorskip("PIL.Image")
    return image.fromarray(np.full((4, 4, 3), 7, dtype=np.uint8))


#: For each kind of batch: two examples, and where the array of the first one lies.
ROWS = {
    "arrays": (lambda: [pixels(), pixels()], lambda rows: rows[0]),
    "mappings": (lambda: [{"x": pixels()}, {"x": pixels()}], lambda rows: rows[0]["x"]),
    "tuples": (lambda: [("a", pixels()), ("b", pixels())], lambda rows: rows[0][1]),
    "named tuples": (lambda: [Pair("a", pixels())] * 2, lambda rows: rows[0].pixels),
    "lists": (lambda: [["a", [pixels()]], ["b", [pixels()]]], lambda rows: rows[0][1][0]),
    "objects": (lambda: [Document(pixels()), Document(pixels())], lambda rows: rows[0].pixels),
    "arrays of objects": (
        lambda: [objects([pixels(), "a"]), objects([pixels(), "b"])],
        lambda rows: rows[0][0],
    ),
    "an array of objects": (
        lambda: objects([{"x": pixels()}, {"x": pixels()}]),
        lambda rows: rows[0]["x"],
    ),
    "columns": (
        lambda: {"x": objects([pixels(), pixels()]), "n": torch.ones(2)},
        lambda rows: rows["x"][0],
    ),
    "a table": (table, lambda rows: rows["pixels"].iloc[0]),
    "bytes that change": (lambda: [bytearray(b"abc"), bytearray(b"abc")], lambda rows: rows[0]),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_function_that_writes_into_its_rows_spoils_them_for_nobody(kind):
    make, first = ROWS[kind]
    seen = []

    def writes(rows):
        held = first(rows)
        seen.append(bytes(held))
        held[0] = 99
        return [[0.0, 0.0]] * batch_size(rows)

    stages = {name: from_function(writes) for name in ("a", "b")}
    cascade = Cascade.from_models(stages, class_names=["no", "yes"])
    rows = make()
    for _ in range(2):  # not the first batch alone
        for name in stages:
            Adaptive.single(cascade, name)(rows)
    assert bytes(first(rows)) == seen[0]
    assert len(set(seen)) == 1


def test_pictures_are_copied_and_say_what_they_are():
    def writes(rows):
        assert rows[0].format == "PNG"
        rows[0].thumbnail((1, 1))
        rows[1].putpixel((0, 0), (0, 0, 0))
        return [[0.0, 0.0]] * 2

    rows = [picture(), picture()]
    rows[0].format = "PNG"
    stage = from_function(writes)
    stage.run(RowList(rows))
    assert rows[0].size == (4, 4)
    assert rows[1].getpixel((0, 0)) == (7, 7, 7)


def test_columns_of_a_table_keep_their_types():
    pandas = pytest.importorskip("pandas")
    columns = {"text": pandas.array(["a", None], dtype="string"), "one": ["a", None]}
    columns |= {"kind": pandas.Categorical(["x", "y"]), "pair": [(1, 2), (pixels(), 3)]}
    rows = pandas.DataFrame(columns, index=[5, 5])
    made = copied(rows)
    assert list(made.dtypes) == list(rows.dtypes)
    assert made["pair"].iloc[1][0] is not rows["pair"].iloc[1][0]
    assert made["pair"].iloc[0] == (1, 2)


def test_what_nobody_can_copy_is_handed_on():
    lock = threading.Lock()
    assert copied(RowList([lock]))[0] is lock
    module = nn.Linear(2, 2)
    assert copied(RowList([module]))[0] is module


def test_kinds_stay_what_they_are():
    pair = copied((RowList(["a"]), Pair("a", pixels())))
    assert [type(part) for part in pair] == [RowList, Pair]
    assert copied({"a": (1, {2})}) == {"a": (1, {2})}


class WritesRows(nn.Module):
    """A transform of somebody's that writes into what it reads."""

    reads_rows = True

    def forward(self, rows):
        for row in rows:
            row -= 1.0
        return torch.tensor(np.stack(rows), dtype=torch.float32)


def test_a_transform_that_writes_into_arrays_is_found_on_the_first_batch():
    stage = Stage("a", nn.Identity(), transform=WritesRows())
    rows = RowList([pixels(), pixels()])
    reads = Reading("The transform")
    for _ in range(2):
        reads(stage.transform, rows)
        assert rows[0].tolist() == [0.0, 1.0, 2.0]
    assert reads.writes


def test_gaps_in_arrays_are_no_changes():
    reads = Reading("The transform")
    reads(lambda rows: rows, RowList([np.array([np.nan]), np.array([None, 1], dtype=object)]))
    assert not reads.writes
