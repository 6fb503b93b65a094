import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from offramp._core.errors import FileFormatError, InputError, UnknownNameError
from offramp.data import SOURCES, digits, imagenet32, load_dataset


def write_batch(path, n, *, first=1, width=3072):
    data = np.random.default_rng(n).integers(0, 256, (n, width), dtype=np.uint8)
    np.savez(path, data=data, labels=np.arange(first, first + n), mean=np.zeros(width))
    return data


def test_digits_are_those_of_scikit_learn():
    found, source = digits(), load_digits()
    assert torch.equal(found.inputs[:, 0].double(), torch.from_numpy(source.images))
    assert found.labels.tolist() == source.target.tolist()
    assert found.inputs.dtype == torch.uint8
    assert (int(found.inputs.min()), int(found.inputs.max())) == (0, 16)


def test_imagenet32_counts_classes_from_0_and_names_what_it_used(tmp_path):
    second = write_batch(tmp_path / "train_data_batch_2.npz", 5)
    validation = write_batch(tmp_path / "val_data.npz", 3, first=998)
    found = imagenet32(tmp_path)
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 997, 998, 999]
    assert (found.classes, found.class_names[999]) == (1000, "1000")
    assert torch.equal(found.inputs.flatten(1)[:5], torch.from_numpy(second))
    assert torch.equal(found.subset("test").inputs.flatten(1), torch.from_numpy(validation))
    assert found.name == "imagenet32 [train_data_batch_2.npz, val_data.npz]"
    assert found.ids[0] == "train_data_batch_2:0"
    assert len(imagenet32(tmp_path, part="validation")) == 3


def test_imagenet32_says_that_it_cannot_be_downloaded(tmp_path):
    with pytest.raises(FileFormatError, match=r"register at image-net.org"):
        imagenet32(tmp_path)


def test_imagenet32_refuses_another_size_and_labels_from_0(tmp_path):
    write_batch(tmp_path / "val_data.npz", 2, width=64 * 64 * 3)
    with pytest.raises(FileFormatError, match=r"uint8 \(2, 3072\).* got uint8 \(2, 12288\)"):
        imagenet32(tmp_path)
    write_batch(tmp_path / "val_data.npz", 2, first=0)
    with pytest.raises(FileFormatError, match=r"must be in \[1, 1000\], got 0 to 1"):
        imagenet32(tmp_path)


def test_imagenet32_refuses_pickled_arrays(tmp_path):
    np.savez(tmp_path / "val_data.npz", data=np.zeros((1, 3072)), labels=np.array([[1], 2], object))
    with pytest.raises(FileFormatError, match=r"val_data\.npz"):
        imagenet32(tmp_path)


def test_every_kind_is_known_by_name():
    assert set(SOURCES) == {
        "digits",
        "cifar10",
        "cifar100",
        "imagenet32",
        "folder",
        "npz",
        "texts",
        "table",
    }


def test_a_data_set_is_loaded_by_name_with_its_options(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 4)), labels=np.array([0, 1]))
    assert len(load_dataset("npz", tmp_path / "a.npz", inputs="x")) == 2
    assert load_dataset("digits").name == "digits"


def test_unknown_names_and_options_get_the_nearest_suggested(tmp_path):
    with pytest.raises(UnknownNameError, match=r"no data set 'cifar'. Did you mean 'cifar10'"):
        load_dataset("cifar", tmp_path)
    with pytest.raises(InputError, match=r"option of 'folder' must be .* got 'sise'.* 'size'"):
        load_dataset("folder", tmp_path, sise=3)
    with pytest.raises(InputError, match=r"got 'path'|got 'root'"):
        load_dataset("cifar10", tmp_path, root=tmp_path)


def test_a_path_is_wanted_or_not():
    with pytest.raises(InputError, match="'folder' needs a path, got None"):
        load_dataset("folder")
    with pytest.raises(InputError, match="'digits' comes with a package and takes no path, got x"):
        load_dataset("digits", "x")
