import numpy as np
import pytest
import torch

from offramp._core.errors import FileFormatError, InputError
from offramp.data import arrays, load_dataset, npz


def test_uint8_images_with_channels_last_are_turned():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3), dtype=np.uint8)
    turned = arrays(images, [0, 1, 0, 1]).inputs
    assert turned.shape == (4, 3, 8, 6)
    for n, h, w, c in np.ndindex(4, 8, 6, 3):
        assert turned[n, c, h, w] == images[n, h, w, c]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 3, 8, 8), np.uint8), ((2, 3, 8, 3), np.uint8), ((2, 8, 8, 3), np.float32)],
)
def test_auto_leaves_alone_what_is_not_surely_channels_last(shape, dtype):
    assert arrays(np.zeros(shape, dtype=dtype), [0, 1]).inputs.shape == shape


def test_the_layout_can_be_said():
    assert arrays(np.zeros((2, 8, 8, 3)), [0, 1], layout="nhwc").inputs.shape == (2, 3, 8, 8)
    assert arrays(np.zeros((2, 8, 9)), [0, 1], layout="nhw").inputs.shape == (2, 1, 8, 9)
    uint8 = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    assert arrays(uint8, [0, 1], layout="nchw").inputs.shape == (2, 8, 8, 3)
    with pytest.raises(InputError, match=r"layout 'nhwc' needs 4 axes, got \(2, 8, 9\)"):
        arrays(np.zeros((2, 8, 9)), [0, 1], layout="nhwc")


def test_float64_becomes_float32_and_uint8_stays():
    assert arrays(np.zeros((2, 5)), [0, 1]).inputs.dtype == torch.float32
    assert arrays(np.zeros((2, 5), dtype=np.uint8), [0, 1]).inputs.dtype == torch.uint8


def test_labels_must_be_integers_of_one_axis():
    with pytest.raises(InputError, match=r"labels must be whole numbers, got 0\.5"):
        arrays(np.zeros((2, 5)), np.array([0.5, 1.0]))
    assert arrays(np.zeros((2, 5)), np.array([0.0, 1.0])).labels.tolist() == [0, 1]
    with pytest.raises(InputError, match=r"one integer for each example, got shape \(2, 1\)"):
        arrays(np.zeros((2, 5)), np.array([[0], [1]]))


def test_no_examples_are_refused():
    with pytest.raises(InputError, match="n = 0"):
        arrays(np.zeros((0, 5)), [])


def test_given_splits_are_taken_and_a_missing_class_is_warned_of():
    split = ["train", "train", "test", "test"]
    whole = arrays(np.zeros((4, 2)), [0, 1, 1, 0], split=split)
    assert len(whole.subset("test")) == 2
    with pytest.warns(UserWarning, match="'test' of arrays has no example of class '0'"):
        arrays(np.zeros((4, 2)), [0, 1, 1, 1], split=split)


def test_an_npz_file_is_read_by_the_names_of_its_arrays(tmp_path):
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(tmp_path / "a.npz", x=images, y=np.array([1, 0], dtype=np.uint8), key=["u", "v"])
    found = npz(tmp_path / "a.npz", inputs="x", labels="y", ids="key", class_names=["p", "q"])
    assert torch.equal(found.inputs, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert (found.ids.tolist(), found.labels.tolist()) == (["u", "v"], [1, 0])
    assert (found.class_names, found.name) == (("p", "q"), "a.npz")


def test_an_array_that_is_not_there_is_named_with_those_that_are(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 2)), y=np.array([0]))
    with pytest.raises(FileFormatError, match=r"holds \[.x., .y.\]\. Say which is which: inputs="):
        npz(tmp_path / "a.npz")


def test_missing_truncated_foreign_and_pickled_files_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match=r"none\.npz is missing"):
        npz(tmp_path / "none.npz")
    np.savez(tmp_path / "whole.npz", images=np.zeros((9, 50)), labels=np.zeros(9, dtype=int))
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(content[: len(content) // 2])
    np.savez_compressed(tmp_path / "packed.npz", images=np.zeros((9, 50)), labels=np.zeros(9, int))
    packed = bytearray((tmp_path / "packed.npz").read_bytes())
    packed[60:90] = b"\xff" * 30
    (tmp_path / "packed.npz").write_bytes(packed)
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "one.npy", np.zeros(3))
    pickled = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "pickled.npz", images=pickled, labels=np.array([0]))
    for name in ("half.npz", "packed.npz", "text.npz", "one.npy", "pickled.npz"):
        with pytest.raises(FileFormatError, match=name):
            npz(tmp_path / name)


def test_several_arrays_of_an_npz_file_become_a_mapping(tmp_path):
    ids, mask = np.arange(12).reshape(4, 3), np.ones((4, 3), dtype=np.int64)
    np.savez(tmp_path / "text.npz", input_ids=ids, attention_mask=mask, labels=[0, 1, 0, 1])
    found = npz(tmp_path / "text.npz", inputs=["input_ids", "attention_mask"])
    assert sorted(found.inputs) == ["attention_mask", "input_ids"]
    assert found.inputs["input_ids"].tolist() == ids.tolist()
    assert load_dataset("npz", tmp_path / "text.npz", inputs=["input_ids"]).inputs.keys() == {
        "input_ids"
    }
