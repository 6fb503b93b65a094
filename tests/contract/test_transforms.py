"""What every transform promises, those of others included."""

import copy
import inspect
import json
from io import BytesIO

import numpy as np
import pytest
import torch
from torch import nn

from offramp._core.batch import RowList, as_batch, as_rows, batch_size, take_rows
from offramp._core.schema import from_json, stored, to_json
from offramp.stages import (
    TRANSFORMS,
    Columns,
    Decode,
    Normalize,
    Pad,
    Resize,
    Stage,
    Transform,
)
from offramp.stages.transforms import key_of


def check_transform(transform, rows, *, kind=None):
    """Assert what cascades, bundles and the runtime rely on.

    Args:
        transform: One of the members of `TRANSFORMS`, with arguments that are not the default ones.
        rows: At least three examples that it takes and that differ.
        kind: The name under which it is registered; by default the one that it is written with.
    """
    taken = as_rows(rows) if getattr(transform, "reads_rows", False) else as_batch(rows)
    n = batch_size(taken)
    assert n >= 3

    # It is found again by its kind, with the same arguments and no weights.
    value = json.loads(json.dumps(to_json(transform)))
    assert value["kind"] in TRANSFORMS
    assert kind in (None, value["kind"])
    assert isinstance(transform, TRANSFORMS[value["kind"]])
    again = from_json(Transform, value)
    assert to_json(again) == value
    assert key_of(again) == key_of(transform) is not None
    assert not transform.state_dict()
    assert inspect.getdoc(type(transform)).partition("\n")[0].endswith(".")

    # It repeats itself, leaves its rows as they were, and answers for each of them.
    before = copy.deepcopy(taken)
    whole = transform(taken)
    assert same(taken, before)
    assert same(transform(taken), whole)
    assert same(again(taken), whole)
    assert batch_size(whole) == n
    assert same(Stage("a", nn.Identity(), transform=transform).prepare(taken), whole)

    # What it makes of an example depends on no other; survivors are taken out of the result.
    for k in range(n):
        alone = transform(take_rows(taken, torch.tensor([k])))
        assert same(alone, take_rows(whole, torch.tensor([k])), padded=True)
    back = torch.arange(n).flip(0)
    assert same(transform(take_rows(taken, back)), take_rows(whole, back))


def same(one, other, *, padded=False):
    """Whether two batches are equal; `padded` where the second may be longer.

    A list of tensors counts as the tensor that they make, since images of one size are one.
    """
    if padded and isinstance(one, torch.Tensor) and isinstance(other, RowList):
        one = RowList(one)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if padded and one.dim() == other.dim():
            other = other[tuple(map(slice, one.shape))]
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        pairs = list(zip(one.values(), other.values(), strict=True))
        return list(one) == list(other) and all(same(*pair, padded=padded) for pair in pairs)
    if isinstance(one, RowList | tuple | list):
        pairs = list(zip(one, other, strict=True))
        return all(same(*pair, padded=padded) for pair in pairs)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return one.equals(other) if hasattr(one, "equals") else one == other


def pixels(n=4, size=(5, 6)):
    values = np.random.default_rng(0).integers(0, 256, (n, 3, *size), dtype=np.uint8)
    return torch.from_numpy(values)


def pictures(sizes=((4, 5), (6, 3), (5, 5))):
    image = pytest.importorskip("PIL.Image")
    found = []
    for k, size in enumerate(sizes):
        file = BytesIO()
        image.fromarray(pixels(k + 1, size)[k].permute(1, 2, 0).numpy()).save(file, "PNG")
        found.append(file.getvalue())
    return found


IDS = [[1, 2, 3], [4], [5, 6]]
DICTS = [{"a": k, "b": k / 2, "text": f"t{k}"} for k in range(3)]


def table():
    return pytest.importorskip("pandas").DataFrame(DICTS)


EXAMPLES = {
    "columns": [
        (lambda: Columns(["b", "a"]), lambda: DICTS),
        (lambda: Columns("text"), lambda: DICTS),
        (
            lambda: Columns(["a", "text"], stack=False),
            table,
        ),
    ],
    "decode": [
        (lambda: Decode("L"), pictures),
        (lambda: Decode(orient=False), lambda: pictures(((4, 5),) * 3)),
    ],
    "normalize": [(lambda: Normalize(1 / 255, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]), pixels)],
    "pad": [
        (lambda: Pad(7, length=2), lambda: IDS),
        (lambda: Pad(0, mask=None), lambda: [{"input_ids": row} for row in IDS]),
    ],
    "resize": [
        (lambda: Resize(4, crop_pct=0.8, interpolation="bicubic"), pixels),
        (lambda: Resize((8, 7), antialias=False), pictures),
    ],
}
CASES = [(kind, k) for kind, cases in EXAMPLES.items() for k in range(len(cases))]


def test_every_registered_transform_has_an_example():
    assert set(EXAMPLES) == set(TRANSFORMS)


@pytest.mark.parametrize(("kind", "k"), CASES)
def test_every_transform_keeps_what_it_promises(kind, k):
    make, rows = EXAMPLES[kind][k]
    check_transform(make(), rows(), kind=kind)


def broken(change):
    @stored("broken", brief=True)
    class Broken(nn.Module):
        """Broken in one way."""

        def __init__(self, by: float = 2.0) -> None:
            super().__init__()
            self.by = by

        def forward(self, x):
            return change(x)

    return Broken


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x - x.float().mean(),  # depends on the others
        lambda x: x[:2],  # drops examples
        lambda x: x.mul_(2),  # writes into its input
        lambda x: x + torch.rand(1),  # draws
    ],
)
def test_the_contract_tells_who_breaks_it(change, monkeypatch):
    kind = broken(change)
    monkeypatch.setattr(TRANSFORMS, "_factories", {**TRANSFORMS._factories, "broken": kind})
    monkeypatch.setattr("offramp._core.registry._added", 10_000 + id(kind))
    with pytest.raises((AssertionError, IndexError)):
        check_transform(kind(3.0), pixels().float())
