import numpy as np
import pytest
import torch

from offramp._core.errors import FileFormatError, InputError
from offramp.data import cifar10, cifar100


def write_records(path, records, labels):
    """Fill the first records of a file of the official size; the rest stays zero."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width = labels.shape[1] + 3072
    rng = np.random.default_rng(records)
    pixels = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    with path.open("wb") as file:
        file.write(np.hstack([labels.astype(np.uint8), pixels]).tobytes())
        file.truncate(records * width)
    return pixels


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    folder = root / "cifar-10-batches-bin"
    second = write_records(folder / "data_batch_2.bin", 10_000, np.array([[3], [9], [1]]))
    test = write_records(folder / "test_batch.bin", 10_000, np.array([[7]]))
    return root, second, test


def test_cifar10_reads_the_batches_that_are_there_and_names_them(batches):
    root, second, test = batches
    found = cifar10(root)
    assert found.name == "cifar10 [data_batch_2.bin, test_batch.bin]"
    assert found.inputs.shape == (20_000, 3, 32, 32)
    assert found.labels[:4].tolist() == [3, 9, 1, 0]
    assert found.class_names[3] == "cat"
    assert torch.equal(found.inputs[:3].flatten(1), torch.from_numpy(second))
    assert torch.equal(found.subset("test").inputs[:1].flatten(1), torch.from_numpy(test))


def test_ids_do_not_depend_on_which_batches_are_there(batches):
    found = cifar10(batches[0])
    assert found.subset("train").ids[[0, -1]].tolist() == [10_000, 19_999]
    assert found.subset("test").ids[[0, -1]].tolist() == [50_000, 59_999]


def test_pixels_are_channel_by_channel(batches):
    root, second, _ = batches
    image = cifar10(root / "cifar-10-batches-bin").inputs[0]
    for channel, row, column in [(0, 0, 0), (0, 0, 31), (1, 5, 7), (2, 31, 31)]:
        assert image[channel, row, column] == second[0][channel * 1024 + row * 32 + column]


def test_a_truncated_batch_is_refused_with_its_size(tmp_path):
    write_records(tmp_path / "data_batch_1.bin", 9_999, np.array([[0]]))
    with pytest.raises(FileFormatError, match=r"must have 30730000 bytes .* got 30726927"):
        cifar10(tmp_path)


def test_a_label_outside_the_classes_is_refused_with_its_record(tmp_path):
    write_records(tmp_path / "data_batch_1.bin", 10_000, np.array([[0], [10]]))
    with pytest.raises(FileFormatError, match=r"data_batch_1.bin has the label 10 in record 1"):
        cifar10(tmp_path)


def test_class_names_come_from_the_file_and_must_be_ten(tmp_path):
    write_records(tmp_path / "test_batch.bin", 10_000, np.array([[0]]))
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert cifar10(tmp_path).class_names == tuple("abcdefghij")
    (tmp_path / "batches.meta.txt").write_text("a\nb\n")
    with pytest.raises(FileFormatError, match="must name 10 classes, got 2"):
        cifar10(tmp_path)


def test_an_empty_folder_says_what_is_wanted(tmp_path):
    with pytest.raises(FileFormatError, match=r"none of data_batch_1\.bin, .*download=True"):
        cifar10(tmp_path)
    with pytest.raises(FileFormatError, match=r"none of train\.bin, test\.bin"):
        cifar100(tmp_path)


def test_cifar100_reads_coarse_or_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    pixels = write_records(folder / "test.bin", 10_000, np.array([[19, 99], [4, 17]]))
    (folder / "coarse_label_names.txt").write_text("\n".join(f"c{k}" for k in range(20)))
    fine, coarse = cifar100(tmp_path), cifar100(tmp_path, label="coarse")
    assert fine.labels[:2].tolist() == [99, 17]
    assert coarse.labels[:2].tolist() == [19, 4]
    assert (coarse.class_names[19], fine.class_names[99]) == ("c19", "99")
    assert torch.equal(fine.inputs[:2].flatten(1), torch.from_numpy(pixels))
    assert fine.name == "cifar100 (fine) [test.bin]"


def test_another_label_of_cifar100_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"label must be one of .* got 'medium'"):
        cifar100(tmp_path, label="medium")
