"""Files that hold no plain arrays: nobody is told to unpickle them."""

import numpy as np
import pytest
from torch import nn

from offramp._core.errors import FileFormatError
from offramp.cli.edge import _array_in
from offramp.data.arrays import read_arrays
from offramp.models.weights import load_weights
from offramp.trace import from_npz


def garbage(path):
    path.write_bytes(b"garbage, and more of it")


def objects(path):
    np.savez(path, images=np.array([{}, "x"], dtype=object))


@pytest.mark.parametrize("made", [garbage, objects])
@pytest.mark.parametrize(
    "read",
    [
        read_arrays,
        lambda path: load_weights(nn.Linear(2, 2), path),
        lambda path: _array_in(path, "images"),
        lambda path: from_npz(path, predictions={"a": "images"}, labels="images", costs={}),
    ],
)
def test_no_advice_to_unpickle(tmp_path, made, read):
    path = tmp_path / "a.npz"
    made(path)
    with pytest.raises(FileFormatError, match=r"pickled objects") as caught:
        read(path)
    assert "allow_pickle" not in str(caught.value)
    assert "unsafely" not in str(caught.value)
