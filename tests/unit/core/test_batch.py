"""Batches of every kind: tensor, tuple, mapping."""

import pytest
import torch

from offramp._core.batch import apply, batch_size, concat, take_rows, to_device
from offramp._core.errors import InputError

X = torch.arange(12.0).reshape(4, 3)
Y = torch.arange(4)
KINDS = [X, (X, Y), [X, Y], {"x": X, "y": Y}]


def tensors(batch):
    if isinstance(batch, torch.Tensor):
        return [batch]
    return list(batch.values()) if isinstance(batch, dict) else list(batch)


@pytest.mark.parametrize("batch", KINDS)
@pytest.mark.parametrize(
    "index",
    [torch.tensor([2, 0, 2]), torch.tensor([False, True, True, False]), torch.tensor([]).long()],
)
def test_rows_are_taken_from_every_tensor_in_the_order_asked(batch, index):
    taken = take_rows(batch, index)
    for before, after in zip(tensors(batch), tensors(taken), strict=True):
        wanted = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        assert after.tolist() == [before[k].tolist() for k in wanted.tolist()]
    assert batch_size(taken) == len(index) if index.dtype != torch.bool else 2


@pytest.mark.parametrize("batch", KINDS)
def test_parts_that_are_joined_give_the_whole(batch):
    parts = [take_rows(batch, torch.tensor(rows).long()) for rows in ([0], [], [1, 2, 3])]
    for before, after in zip(tensors(batch), tensors(concat(parts)), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("batch", KINDS)
def test_a_batch_keeps_its_kind_on_another_device(batch):
    moved = to_device(batch, "meta")
    assert {t.device.type for t in tensors(moved)} == {"meta"}
    assert isinstance(moved, dict) == isinstance(batch, dict)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, Y[:3]), r"\{'0': 4, '1': 3\}"),
        ({"x": X, "s": torch.tensor(1.0)}, r"'s': None"),
        ((), r"got the lengths \{\}"),
    ],
)
def test_lengths_that_differ_are_printed(batch, message):
    with pytest.raises(InputError, match=message):
        batch_size(batch)


def test_batches_of_different_kinds_are_not_joined():
    with pytest.raises(InputError, match="must be of one kind"):
        concat([{"x": X}, {"z": X}])
    with pytest.raises(InputError, match="at least one batch"):
        concat([])


def test_a_network_takes_each_kind_as_its_arguments():
    def network(x, y=None):
        return x.sum() + (0 if y is None else y.sum())

    assert apply(network, X) == X.sum()
    for batch in KINDS[1:]:
        assert apply(network, batch) == X.sum() + Y.sum()
