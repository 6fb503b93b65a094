"""Rows of any type: whatever is taken, split and joined is what it was."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.batch import RowList, as_rows, batch_size, concat, split_rows, take_rows
from support.properties import examples

pd = pytest.importorskip("pandas")


@st.composite
def batches(draw, n, deep=True):
    numbers = np.arange(2 * n).reshape(n, 2)
    kinds = {
        "tensor": torch.from_numpy(numbers),
        "array": numbers.astype(draw(st.sampled_from([">f4", "i2", "f8", ">i8"])))[::-1],
        "texts": [f"t{k}" for k in range(n)],
        "bytes": [bytes([k]) for k in range(n)],
        "ids": [list(range(k)) for k in range(n)],
        "dicts": [{"k": k} for k in range(n)],
        "table": pd.DataFrame({"k": range(n), "t": [f"t{k}" for k in range(n)]}),
    }
    if deep and draw(st.booleans()):
        names = draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True))
        return {name: draw(batches(n, deep=False)) for name in names}
    return kinds[draw(st.sampled_from(sorted(kinds)))]


def plain(rows, k):
    """One row as something that can be compared."""
    if isinstance(rows, dict):
        return {name: plain(part, k) for name, part in rows.items()}
    if isinstance(rows, torch.Tensor):
        return rows[k].tolist()
    return rows[k] if isinstance(rows, RowList) else rows.iloc[k].tolist()


@given(st.data())
@examples(60)
def test_rows_come_in_the_order_asked_and_join_again(data):
    n = data.draw(st.integers(1, 6))
    rows = as_rows(data.draw(batches(n)))
    assert batch_size(rows) == n
    index = data.draw(st.lists(st.integers(0, n - 1), max_size=8))
    taken = take_rows(rows, torch.tensor(index, dtype=torch.int64))
    assert [plain(taken, j) for j in range(len(index))] == [plain(rows, k) for k in index]
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=3)))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, n], strict=True)]
    whole = concat(split_rows(rows, sizes))
    assert [plain(whole, k) for k in range(n)] == [plain(rows, k) for k in range(n)]
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    kept = take_rows(rows, keep)
    chosen = keep.nonzero()[:, 0].tolist()
    assert [plain(kept, j) for j in range(len(chosen))] == [plain(rows, k) for k in chosen]
