"""Arrays of an npz file that are mapped: the numbers that are read, from where they lie."""

import io
import zipfile

import numpy as np
import pytest

from offramp._core.errors import FileFormatError
from offramp.data.arrays import read_arrays

MADE = {
    "plain": np.arange(24, dtype=np.int64).reshape(4, 3, 2),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(4, 3)),
    "bytes": np.arange(7, dtype=np.uint8),
    "text": np.array(["ä", "bc"]),
    "none": np.zeros((0, 3), dtype=np.float32),
    "one": np.array(5.0),
    "a name that is long, so that the header is": np.ones(3, dtype=np.float16),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_is_mapped_is_what_is_read(save, tmp_path):
    save(tmp_path / "a.npz", **MADE)
    read = read_arrays(tmp_path / "a.npz")
    mapped = read_arrays(tmp_path / "a.npz", list(MADE), mapped=True)
    for name, values in MADE.items():
        assert np.array_equal(read[name], values)
        assert np.array_equal(mapped[name], values)
        assert mapped[name].dtype == values.dtype
        assert mapped[name].shape == values.shape
        there = save is np.savez and values.size > 0
        assert isinstance(mapped[name], np.memmap) == there


def bytes_of(values):
    held = io.BytesIO()
    np.save(held, values)
    return held.getvalue()


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    ("names", "asked"), [(("x.npy", "x"), "x"), (("x.npy", "x.npy.npy"), "x.npy")]
)
def test_a_name_that_means_two_arrays_is_refused(tmp_path, mapped, names, asked):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for k, name in enumerate(names):
            archive.writestr(name, bytes_of(np.full(3, k)))
    with pytest.raises(FileFormatError, match=f"the array '{asked}' is there twice"):
        read_arrays(tmp_path / "a.npz", [asked], mapped=mapped)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_header_whose_shape_is_none_is_refused(tmp_path, mapped):
    header = bytes_of(np.zeros((3, 1))).replace(b"(3, 1), }   ", b"(3, True), }")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header)
    with pytest.raises(FileFormatError, match="cannot be read as npz"):
        read_arrays(tmp_path / "a.npz", ["x"], mapped=mapped)
